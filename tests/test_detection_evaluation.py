"""`evaluate` and `keras-resnet evaluate` of detectors: trained ones on real images, scales, classes, bad input."""

import json
import shutil
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
from annotated_images import write_coco, write_voc
from PIL import Image
from support import cifar_network, narrow_detector, run_command

import keras_resnet
from keras_resnet.architecture.boxes import suppress_overlaps
from keras_resnet.architecture.detector_spec import DetectionSettings
from keras_resnet.data.labels import coco_classes
from keras_resnet.data.protocols import DetectionProtocol
from keras_resnet.data.sources import load_test
from keras_resnet.detection import Detection, KerasDetector
from keras_resnet.detection_evaluation import dataset_labels, merge_detections
from keras_resnet.detection_metrics import DetectedObjects, coco_curves, voc_curves, voc_metrics
from keras_resnet.models.detector_transforms import with_settings

BCCD_IMAGES = 5


@pytest.fixture
def bccd_folder(test_data, tmp_path):
    """A few of the test images of BCCD for which torchvision's detections are stored, and these."""
    stored = json.loads((test_data / "detectors/bccd_fasterrcnn.json").read_text())
    images = stored["images"][:BCCD_IMAGES]
    names = [image["file"].removesuffix(".jpg") for image in images]
    for folder, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
        (tmp_path / folder).mkdir()
        for name in names:
            shutil.copy(test_data / "bccd" / folder / f"{name}{suffix}", tmp_path / folder)
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "test.txt").write_text("\n".join(names))
    return tmp_path, stored["classes"], dict(zip(names, images, strict=True))


def detected(dataset, classes, images):
    """torchvision's detections as DetectedObjects in the classes of the data set."""
    rows = [images[name] for name in dataset.test.objects.image_ids]
    order = np.array([dataset.class_names.index(name) for name in classes], "int32")
    return DetectedObjects(
        np.repeat(np.arange(len(rows)), [len(row["scores"]) for row in rows]),
        np.concatenate([row["boxes"] for row in rows]).astype("float32"),
        order[np.concatenate([row["labels"] for row in rows]) - 1],
        np.concatenate([row["scores"] for row in rows]).astype("float32"),
    )


def test_the_command_has_the_numbers_of_torchvisions_detections(bccd_folder, test_data):
    folder, classes, images = bccd_folder
    dataset = load_test(folder, "test")
    objects, found = dataset.test.objects, detected(dataset, classes, images)
    expected, voc = coco_curves(objects, found, 3), voc_metrics(voc_curves(objects, found, 3))
    words = ["--model", "fasterrcnn_resnet18_fpn", "--weights", test_data / "detectors/bccd_fasterrcnn.safetensors"]
    words += ["--scales", "320", "--class-names", ",".join(classes), "--dataset", folder, "--split", "test"]
    done = run_command("evaluate", *words, "--curves", folder / "curves.png", "--json")
    result = json.loads(done.stdout)
    assert (result["num_images"], result["num_objects"]) == (BCCD_IMAGES, len(objects))
    assert result["num_detections"] == len(found) and "masks" not in result
    assert result["boxes"] == pytest.approx(expected.metrics(), abs=2e-3)
    assert {name: result[name] for name in voc} == pytest.approx(voc, abs=2e-3)
    for label, row in enumerate(result["by_class"]):
        assert row["name"] == dataset.class_names[label]
        assert row["boxes"]["AP50"] == pytest.approx(expected.metrics(slice(label, label + 1))["AP50"], abs=2e-3)
    assert result["boxes"]["AP50"] > 0.7 and result["protocol"]["scales"] == [320]
    assert Image.open(folder / "curves.png").format == "PNG"


@pytest.fixture(scope="module")
def detector():
    """A narrow Mask R-CNN for images of three classes."""
    narrow, _ = narrow_detector("maskrcnn")
    model = with_settings(narrow, replace(narrow.settings, detections=100))
    model.info |= {"class_names": ["__background__", "wasp", "ant", "bee"]}
    model.info["preprocessing"] = model.info["preprocessing"] | {"min_size": 48, "max_size": 96}
    return model


@pytest.fixture
def folder(tmp_path):
    """A folder in the format of COCO whose objects have masks: the left half of the box."""
    folder = write_coco(tmp_path / "coco")
    path = folder / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + width / 2, y, x + width / 2, y + height, x, y + height]]
    path.write_text(json.dumps(content))
    return folder


@pytest.fixture
def dataset(folder):
    return load_test(folder, "train")


def test_masks_scales_and_batches(detector, dataset):
    """Several images in a batch, and the same scale twice, give the same detections as one at a time."""
    alone = keras_resnet.evaluate(detector, dataset)
    assert alone.num_images == len(dataset.test) and alone.has_masks and len(alone.found)
    assert set(alone.masks) == set(alone.boxes) and alone.classes == dataset.class_names
    done = []
    batches = keras_resnet.evaluate(detector, dataset, batch_size=3, progress=done.append)
    twice = keras_resnet.evaluate(detector, dataset, scales=(48, 48))
    for other in (batches, twice):
        np.testing.assert_array_equal(alone.found.labels, other.found.labels)
        np.testing.assert_allclose(alone.found.boxes, other.found.boxes, atol=1e-3)
        assert all(mask["size"] == [30, 40] for mask in other.found.masks)
    assert done == list(range(1, len(dataset.test) + 1))
    assert alone.to_json()["masks"] == pytest.approx(batches.to_json()["masks"], abs=1e-3)


def test_thresholds_of_the_model_do_not_change_the_result(detector, dataset):
    """A detector that was made for predictions is evaluated at the usual threshold all the same."""
    expected = keras_resnet.evaluate(detector, dataset)
    high = with_settings(detector, replace(detector.settings, score_threshold=0.9, detections=1))
    assert len(keras_resnet.evaluate(high, dataset).found) == len(expected.found) > len(dataset.test)
    with pytest.warns(UserWarning, match=r"scores below 0.9 count as not found"):
        result = keras_resnet.evaluate(high, dataset, score_threshold=0.9, detections=1)
    assert len(result.found) < len(expected.found)


def test_thresholds_of_a_detector_that_cannot_be_changed(detector, dataset):
    """A KerasDetector stands for an exported one: that of the protocol counts, unless its own is higher."""
    low, high = (KerasDetector(with_settings(detector, score_threshold=threshold)) for threshold in (0.05, 0.5))
    with pytest.raises(ValueError, match="`score_threshold` should be at least 0.5.*Received: score_threshold=0.05"):
        keras_resnet.evaluate(high, dataset)
    with pytest.warns(UserWarning, match=r"scores below 0.5 count as not found"):
        one, other = (keras_resnet.evaluate(it, dataset, score_threshold=0.5) for it in (low, high))
    assert one.found.scores.min(initial=1) >= 0.5 and len(one.found) == len(other.found)
    assert len(keras_resnet.evaluate(low, dataset).found) > len(one.found)


def test_objects_without_masks_are_counted(detector, dataset):
    dataset.test.objects.masks[1:] = None
    with pytest.warns(UserWarning, match=r"Masks are not evaluated: 4 of 5 objects have none"):
        assert keras_resnet.evaluate(detector, dataset).masks is None


def test_images_that_cannot_be_read(detector, dataset, tmp_path):
    path = dataset.test.images[1]
    with open(path, "wb") as file:
        file.write(b"no image")
    with pytest.raises(ValueError, match=r"--skip-bad.*(?s:.*)1 unreadable"):
        keras_resnet.evaluate(detector, dataset)
    done = []
    result = keras_resnet.evaluate(detector, dataset, skip_bad=True, progress=done.append)
    assert done == list(range(1, len(dataset.test) + 1))
    assert result.num_images == len(dataset.test) - 1 and len(result.skipped) == 1
    np.testing.assert_array_equal(result.objects.image_ids, np.delete(dataset.test.objects.image_ids, 1))


def test_cocos_numbers_with_gaps():
    """torchvision's 91 numbers; the data set has three classes in another order."""
    labels = dataset_labels(coco_classes(), ["toothbrush", "person", "car"])
    assert (labels[90], labels[1], labels[3]) == (0, 1, 2) and (np.delete(labels, [1, 3, 90]) == -1).all()


def test_classes_by_number():
    names = ["__background__", "class 1", "class 2"]
    with pytest.warns(UserWarning, match="1: cat, 2: dog"):
        assert dataset_labels(names, ["cat", "dog"]).tolist() == [-1, 0, 1]
    with pytest.raises(ValueError, match="among the model's 2 classes; 3 of 3 are not"):
        dataset_labels(names, ["cat", "dog", "owl"])
    with pytest.raises(ValueError, match=r"among the model's 2 classes; 1 of 2 are not.*Nearest: \['dog'\]"):
        dataset_labels(["__background__", "cat", "dog"], ["cat", "dogs"])


@pytest.mark.portable
@pytest.mark.parametrize("count", [20, 400])
def test_scales_are_merged_by_the_suppression_that_is_compared_with_torchvision(count):
    """Whole pixels, so that some overlaps are equal to the threshold."""
    random = np.random.default_rng(0)
    corners, sides = random.integers(0, 60, (400, 2)), random.integers(1, 30, (400, 2))
    boxes, labels = np.concatenate([corners, corners + sides], axis=1).astype("float32"), random.integers(1, 4, 400)
    scores, names = random.choice(5000, 400, replace=False).astype("float32") / 5000, tuple("ab" * 200)
    halves = [slice(0, 150), slice(150, 400)]
    found = [Detection(None, (90, 90), boxes[it], scores[it], labels[it], names[it]) for it in halves]
    merged = merge_detections(found, DetectionSettings(nms_threshold=1 / 3, detections=count))
    indices, valid = suppress_overlaps(boxes[None], scores[None], 1 / 3, count, groups=labels[None])
    expected = keras.ops.convert_to_numpy(indices)[keras.ops.convert_to_numpy(valid)]
    assert len(expected) == 20 or 30 < len(expected) < 300
    for name, values in (("boxes", boxes), ("scores", scores), ("labels", labels)):
        np.testing.assert_array_equal(getattr(merged, name), values[expected])


def test_scales_are_merged_by_hand():
    """Of two boxes of a class with an IoU above 0.5, the better one stays; those of other classes do not count."""
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], "float32")
    masks = np.zeros((2, 28, 28), "float32")
    one = Detection(None, (40, 40), boxes, np.array([0.6, 0.3], "float32"), np.array([1, 2]), ("a", "b"), masks)
    two = Detection(None, (40, 40), boxes + 1, np.array([0.9, 0.2], "float32"), np.array([1, 1]), ("a", "a"), masks + 1)
    merged = merge_detections([one, two], DetectionSettings(detections=3))
    np.testing.assert_allclose(merged.boxes, [[1, 1, 11, 11], [20, 20, 30, 30], [21, 21, 31, 31]])
    np.testing.assert_allclose(merged.scores, [0.9, 0.3, 0.2])
    assert merged.labels.tolist() == [1, 2, 1] and merged.names == ("a", "b", "a")
    assert merged.mask_probabilities.mean(axis=(1, 2)).tolist() == [1, 0, 1]
    assert len(merge_detections([one, two], DetectionSettings(detections=2))) == 2
    nothing = Detection(None, (40, 40))
    assert len(merge_detections([nothing, nothing], DetectionSettings())) == 0
    failed = replace(two, error="damaged")
    assert merge_detections([one, failed], DetectionSettings()).error == "damaged"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_threshold": -0.1}, "`score_threshold` should be at least 0 and below 1"),
        ({"score_threshold": float("nan")}, "`score_threshold` should be"),
        ({"detections": 0}, "`detections` should be an integer from 1"),
        ({"scales": (0,)}, "`scales` should be from 1 to"),
        ({"refine": "yes"}, "`refine` should be"),
        ({"refined": True}, "`changes` should be fields of a protocol.*Nearest: .'refine'"),
        ({"protocol": "ten_crop"}, "`protocol` should be None or a DetectionProtocol"),
        ({"size": 320}, r"`size` should be None for a detector.*scales=\(800,\)"),
        ({"context": True}, r"`model` should be a detector whose predictors.*global_context=True"),
    ],
)
def test_values_that_are_invalid(changes, message, detector, dataset):
    with pytest.raises(ValueError, match=message):
        keras_resnet.evaluate(detector, dataset, **changes)


def test_models_and_data_that_do_not_fit(detector, dataset, monkeypatch):
    without = replace(dataset, test=replace(dataset.test, objects=None))
    with pytest.raises(ValueError, match="`dataset` should be one with boxes of objects"):
        keras_resnet.evaluate(detector, without)
    with pytest.raises(ValueError, match="`models` should be one detector"):
        keras_resnet.evaluate([detector, detector], dataset)
    with pytest.raises(ValueError, match="should have one class for each image"):
        keras_resnet.evaluate(cifar_network(), dataset)
    with pytest.raises(ValueError, match="`protocol` should be one of"):
        keras_resnet.evaluate(cifar_network(), dataset, DetectionProtocol())
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ImportError, match="pip install"):
        keras_resnet.evaluate(detector, dataset)


def test_a_voc_folder_has_no_masks(detector, tmp_path):
    result = keras_resnet.evaluate(detector, load_test(write_voc(tmp_path), "train"))
    assert result.masks is None and "masks" not in result.to_json() and "masks" not in result.by_class[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--score-threshold", "-1"], "--score-threshold"),
        (["--refine"], "--refine"),
        (["--class-names", "a,b"], "--class-names"),
        (["--curves", "curves.png"], "--curves"),
    ],
)
def test_options_that_are_not_for_a_classifier(words, message, ended, tmp_path):
    cifar_network().save(tmp_path / "a.keras")
    status, _, said = ended("evaluate", "--model", tmp_path / "a.keras", "--dataset", "digits", *words)
    assert status == 1 and said.startswith("error: ") and message in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--flip"], "`--flip` should be left out for a detector"),
        (["--confusion", "a.png"], "`--confusion` should be left out for a detector"),
        (["--protocol", "ten_crop"], "`--protocol` should be left out for a detector"),
        (["--class-names", "a,b"], "`class_names` should be 3 names"),
        (["--curves", "nowhere/a.png"], "The folder of `path` should exist"),
        (["--dataset", "digits"], "boxes of objects"),
    ],
)
def test_options_that_are_not_for_a_detector(words, message, detector, folder, ended, tmp_path):
    detector.save(tmp_path / "a.keras")
    words = ["--dataset", folder, "--split", "train", *words]
    status, _, said = ended("evaluate", "--model", tmp_path / "a.keras", *words)
    assert status == 1 and said.startswith("error: ") and message in said and "Traceback" not in said


def test_a_missing_library_is_noticed_before_weights_are_read(monkeypatch, folder, ended):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    words = ["--model", "fasterrcnn_resnet18_fpn", "--weights", "nowhere.safetensors", "--dataset", folder]
    status, _, said = ended("evaluate", *words)
    assert status == 1 and "faster_coco_eval" in said and "nowhere" not in said


def test_the_table(detector, folder, ended, tmp_path):
    detector.save(tmp_path / "a.keras")
    words = ["--dataset", folder, "--split", "train", "--by-class"]
    status, answer, said = ended("evaluate", "--model", tmp_path / "a.keras", *words)
    assert status == 0 and "note" not in said
    assert all(word in answer for word in ("AP_small", "VOC2012_AP", "mask AP", "masks", "wasp"))
