"""COCO's numbers against pycocotools, VOC's average precision against a program of its own and numbers by hand."""

import contextlib
import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import precision_recall_curve

from keras_resnet.data.masks import encode_mask
from keras_resnet.data.objects import Objects
from keras_resnet.data.sources import load_test
from keras_resnet.detection_metrics import (
    COCO_METRICS,
    DetectedObjects,
    VocCurve,
    coco_curves,
    voc_curves,
    voc_metrics,
)
from keras_resnet.detection_results import DetectionEvaluation, plot_precision_recall


def pycocotools_numbers(truth, results, kind, classes=None):
    """The twelve numbers of pycocotools, of a dataset and results as dicts; None for its -1."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        if classes:
            evaluation.params.catIds = classes
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [None if number == -1 else number for number in evaluation.stats]


def numbers(curves, *classes):
    return list(curves.metrics(*classes).values())


def assert_equal_numbers(actual, expected):
    assert [number is None for number in actual] == [number is None for number in expected]
    np.testing.assert_allclose(np.array(actual, float), np.array(expected, float), rtol=0, atol=1e-12)


def as_coco(objects, num_classes):
    """Objects in COCO's form, written for this test."""
    annotations = []
    for index in range(len(objects)):
        x1, y1, x2, y2 = map(float, objects.boxes[index])
        annotations.append(
            {
                "id": index + 1,
                "image_id": int(objects.image[index]) + 1,
                "category_id": int(objects.labels[index]) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(objects.areas[index]),
                "iscrowd": int(objects.crowd[index]),
            }
        )
    images = [{"id": i + 1, "height": int(h), "width": int(w)} for i, (h, w) in enumerate(objects.sizes)]
    return {"images": images, "annotations": annotations, "categories": [{"id": k + 1} for k in range(num_classes)]}


def box_results(found):
    return [
        {
            "image_id": int(image) + 1,
            "category_id": int(label) + 1,
            "score": float(score),
            "bbox": [float(box[0]), float(box[1]), float(box[2]) - float(box[0]), float(box[3]) - float(box[1])],
        }
        for image, label, score, box in zip(found.image, found.labels, found.scores, found.boxes, strict=True)
    ]


def stored_detections(folder, images):
    """torchvision's detections of a trained detector on the images of a split: DetectedObjects."""
    content = json.loads((folder.with_suffix(".json")).read_text())
    indices = {image["file"]: index for index, image in enumerate(content["images"])}
    order = [content["images"][indices[name]] for name in images]
    counts = [len(image["scores"]) for image in order]
    masks = None
    if (path := folder.with_name(f"{folder.name}_masks.npz")).exists():
        stored = np.load(path)
        masks = [encode_mask(mask) for name in images for mask in stored[name]]
        masks = np.array([*masks, None], object)[:-1]
    return DetectedObjects(
        np.repeat(np.arange(len(order)), counts),
        np.concatenate([np.reshape(image["boxes"], (-1, 4)) for image in order]).astype("float32"),
        np.concatenate([image["labels"] for image in order]).astype("int32") - 1,
        np.concatenate([image["scores"] for image in order]).astype("float32"),
        masks,
    )


def bccd_detections(test_data):
    """The objects of 16 images of BCCD's test split in the detector's order of classes, and what was detected."""
    data = load_test(test_data / "bccd", "test", skip_bad=True)
    content = json.loads((test_data / "detectors/bccd_fasterrcnn.json").read_text())
    files = [image["file"] for image in content["images"]]
    kept = [index for index, path in enumerate(data.test.images) if path.rsplit("/", 1)[1] in files]
    objects = data.test.objects.select(kept)
    order = np.array([content["classes"].index(name) for name in data.class_names], "int32")
    names = [data.test.images[index].rsplit("/", 1)[1] for index in kept]
    found = stored_detections(test_data / "detectors/bccd_fasterrcnn", names)
    return replace(objects, labels=order[objects.labels]), found


def test_boxes_that_torchvision_detected(test_data):
    objects, found = bccd_detections(test_data)
    curves = coco_curves(objects, found, 3)
    truth, results = as_coco(objects, 3), box_results(found)
    assert_equal_numbers(numbers(curves), pycocotools_numbers(truth, results, "bbox"))
    for label in range(3):
        expected = pycocotools_numbers(truth, results, "bbox", [label + 1])
        assert_equal_numbers(numbers(curves, slice(label, label + 1)), expected)
    assert curves.metrics()["AP50"] > 0.8 and curves.metrics()["AP"] < 0.8


def test_masks_that_torchvision_detected(test_data):
    """Against COCO's own file, with its categories as "person" and "other", polygons and crowds."""
    file = json.loads((test_data / "tiny_coco/annotations/instances_train2017.json").read_text())
    data = load_test(test_data / "tiny_coco", "train")
    content = json.loads((test_data / "detectors/tiny_coco_maskrcnn.json").read_text())
    files = [image["file"] for image in content["images"]]
    kept = [index for index, path in enumerate(data.test.images) if path.rsplit("/", 1)[1] in files]
    objects = data.test.objects.select(kept)
    objects = replace(objects, labels=(objects.labels != data.class_names.index("person")).astype("int32"))
    names = [data.test.images[index].rsplit("/", 1)[1] for index in kept]
    found = stored_detections(test_data / "detectors/tiny_coco_maskrcnn", names)
    assert objects.crowd.any()

    person = next(category["id"] for category in file["categories"] if category["name"] == "person")
    ids = {image["file_name"]: image["id"] for image in file["images"]}
    image_ids = [ids[name] for name in names]
    truth = {
        "images": [image for image in file["images"] if image["id"] in image_ids],
        "categories": [{"id": 1}, {"id": 2}],
        "annotations": [
            annotation | {"category_id": 1 if annotation["category_id"] == person else 2}
            for annotation in file["annotations"]
            if annotation["image_id"] in image_ids
        ],
    }
    boxes = [row | {"image_id": image_ids[row["image_id"] - 1]} for row in box_results(found)]
    stored = np.load(test_data / "detectors/tiny_coco_maskrcnn_masks.npz")
    masks = [coco_masks.encode(np.asfortranarray(mask, "uint8")) for name in names for mask in stored[name]]
    masks = [
        {name: row[name] for name in ("image_id", "category_id", "score")} | {"segmentation": mask}
        for row, mask in zip(boxes, masks, strict=True)
    ]
    for kind, results, coco_kind in (("boxes", boxes, "bbox"), ("masks", masks, "segm")):
        actual = coco_curves(objects, found, 2, kind).metrics()
        assert_equal_numbers(list(actual.values()), pycocotools_numbers(truth, results, coco_kind))
        assert actual["AP50"] > 0.2


def random_objects(seed, images=30, classes=5):
    """Objects and detections near them: with crowds, difficult ones, images and classes without either."""
    generator = np.random.default_rng(seed)

    def boxes(count):
        corners, sides = generator.integers(0, 300, (count, 2)), generator.integers(1, 200, (count, 2))
        return np.concatenate([corners, corners + sides], axis=1).astype("float32")

    image = np.sort(generator.integers(0, images - 3, 150))
    true, count = boxes(len(image)), len(image)
    objects = Objects(
        image,
        true,
        generator.integers(0, classes - 1, count).astype("int32"),
        generator.random(count) < 0.15,
        generator.random(count) < 0.2,
        (true[:, 2:] - true[:, :2]).prod(axis=1) * generator.uniform(0.3, 1, count),
        None,
        np.full((images, 2), 500, "int32"),
        np.arange(images).astype(object),
    )
    near = np.repeat(np.arange(count), 3)
    found_image = np.concatenate([image[near], generator.integers(3, images, 100)])
    found_boxes = np.concatenate([true[near] + generator.integers(-12, 13, (len(near), 4)), boxes(100)])
    labels = np.concatenate([objects.labels[near], generator.integers(0, classes, 100)])
    labels = np.where(generator.random(len(labels)) < 0.1, 2, labels).astype("int32")
    scores = generator.permutation(len(labels)).astype("float32") / len(labels)
    order = np.lexsort((-scores, found_image))
    order = order[found_image[order] != 5]
    return objects, DetectedObjects(found_image[order], found_boxes[order], labels[order], scores[order])


@pytest.mark.parametrize("seed", range(3))
def test_random_boxes_with_crowds(seed):
    objects, found = random_objects(seed)
    curves = coco_curves(objects, found, 5)
    truth, results = as_coco(objects, 5), box_results(found)
    assert_equal_numbers(numbers(curves), pycocotools_numbers(truth, results, "bbox"))
    for label in range(5):  # the last one has detections, but no object
        expected = pycocotools_numbers(truth, results, "bbox", [label + 1])
        assert_equal_numbers(numbers(curves, slice(label, label + 1)), expected)
    assert numbers(curves, slice(4, 5)) == [None] * 12


def test_equal_scores_and_more_detections_than_count():
    """120 detections of one class in an image, all with the same score: 100 of them count."""
    objects, _ = random_objects(3, images=4)
    boxes = np.tile(objects.boxes, (4, 1))[:240]
    found = DetectedObjects(np.repeat([0, 1], 120), boxes, np.zeros(240, "int32"), np.full(240, 0.5, "float32"))
    actual = numbers(coco_curves(objects, found, 5))
    assert_equal_numbers(actual, pycocotools_numbers(as_coco(objects, 5), box_results(found), "bbox"))


def nothing_found():
    return DetectedObjects(np.zeros(0, int), np.zeros((0, 4), "float32"), np.zeros(0, "int32"), np.zeros(0, "float32"))


def test_nothing_is_detected():
    objects, _ = random_objects(0)
    metrics = coco_curves(objects, nothing_found(), 5).metrics()
    assert list(metrics) == list(COCO_METRICS) and set(metrics.values()) == {0.0}
    curves = voc_curves(objects, nothing_found(), 5)
    assert [curve and curve.area() for curve in curves] == [0.0] * 4 + [None]
    assert voc_metrics(curves) == {"VOC2007_AP": 0.0, "VOC2012_AP": 0.0}


def test_there_are_no_objects():
    objects, found = random_objects(0)
    objects = objects.select(slice(27, 30))
    found = replace(found, image=np.zeros(len(found), int))
    assert set(coco_curves(objects, found, 5).metrics().values()) == {None}
    assert voc_metrics(voc_curves(objects, found, 5)) == {"VOC2007_AP": None, "VOC2012_AP": None}


def development_kit(objects, found, label):
    """Right or wrong for each detection that counts, and the number of objects, in the words of VOCevaldet.m.

    Boxes are the first and the last pixel, counted from 1, of each axis.
    """

    def pixels(boxes):
        return boxes.astype(float) + np.array([1, 1, 0, 0])

    true = {}
    for image, box, of_class, ignored in zip(
        objects.image, pixels(objects.boxes), objects.labels, objects.difficult | objects.crowd, strict=True
    ):
        if of_class == label:
            true.setdefault(image, []).append({"box": box, "difficult": ignored, "detected": False})
    verdicts = []
    rows = zip(found.scores, found.image, pixels(found.boxes), found.labels, strict=True)
    for _, image, box, of_class in sorted(rows, key=lambda row: -row[0]):
        if of_class != label:
            continue
        best, best_overlap = None, -np.inf
        for it in true.get(image, []):
            other = it["box"]
            width = min(box[2], other[2]) - max(box[0], other[0]) + 1
            height = min(box[3], other[3]) - max(box[1], other[1]) + 1
            if width > 0 and height > 0:
                areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other)]
                overlap = width * height / (sum(areas) - width * height)
                if overlap > best_overlap:
                    best, best_overlap = it, overlap
        if best_overlap < 0.5 or best is None:
            verdicts.append(False)
        elif not best["difficult"]:
            verdicts.append(not best["detected"])
            best["detected"] = True
    return verdicts, sum(not it["difficult"] for rows in true.values() for it in rows)


def area_by_scikit_learn(verdicts, count):
    """Area below the curve of scikit-learn, whose recall is among what was detected, made to never rise."""
    precision, recall, _ = precision_recall_curve(verdicts, -np.arange(len(verdicts), dtype=float))
    precision, recall = precision[:-1][::-1], recall[:-1][::-1] * (sum(verdicts) / count)
    best = [precision[index:].max() for index in range(len(precision))]
    return np.sum(np.diff([0.0, *recall]) * best)


def eleven_points_by_definition(verdicts, count):
    total = 0.0
    for tenth in range(11):
        best = 0.0
        for length in range(1, len(verdicts) + 1):
            right = sum(verdicts[:length])
            if 10 * right >= tenth * count:
                best = max(best, right / length)
        total += best / 11
    return total


@pytest.mark.parametrize("seed", range(3))
def test_voc_against_a_program_of_its_own(seed):
    objects, found = random_objects(seed)
    curves = voc_curves(objects, found, 5)
    assert curves[4] is None
    for label, curve in enumerate(curves[:4]):
        verdicts, count = development_kit(objects, found, label)
        assert 0 < sum(verdicts) < len(verdicts)
        np.testing.assert_allclose(curve.area(), area_by_scikit_learn(verdicts, count), rtol=1e-12)
        np.testing.assert_allclose(curve.eleven_points(), eleven_points_by_definition(verdicts, count), rtol=1e-12)


def test_voc_on_real_detections(test_data):
    objects, found = bccd_detections(test_data)
    metrics = voc_metrics(voc_curves(objects, found, 3))
    verdicts = [development_kit(objects, found, label) for label in range(3)]
    np.testing.assert_allclose(metrics["VOC2012_AP"], np.mean([area_by_scikit_learn(*row) for row in verdicts]))
    np.testing.assert_allclose(metrics["VOC2007_AP"], np.mean([eleven_points_by_definition(*row) for row in verdicts]))
    assert metrics["VOC2012_AP"] > 0.8


def test_voc_by_hand():
    """Right, wrong, right, wrong of three objects: precision 1, 1/2, 2/3, 1/2 at recall 1/3, 1/3, 2/3, 2/3."""
    curve = VocCurve(np.array([1, 1, 2, 2]) / 3, np.array([1, 1 / 2, 2 / 3, 1 / 2]))
    np.testing.assert_allclose(curve.area(), 1 / 3 + 1 / 3 * 2 / 3)
    np.testing.assert_allclose(curve.eleven_points(), (4 * 1 + 3 * 2 / 3) / 11)


def test_a_class_without_detections_is_plotted(tmp_path):
    objects, found = random_objects(0)
    none_of_one = found.labels != objects.labels[0]
    kept = {name: getattr(found, name)[none_of_one] for name in ("image", "boxes", "labels", "scores")}
    evaluation = DetectionEvaluation(tuple("abcde"), objects, DetectedObjects(**kept))
    assert evaluation.by_class[objects.labels[0]]["VOC2012_AP"] == 0
    plot_precision_recall(evaluation, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_missing_library_is_one_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ImportError, match=r"faster_coco_eval.*pip install 'keras-residual\[detection\]'"):
        coco_curves(*random_objects(0), 5)
