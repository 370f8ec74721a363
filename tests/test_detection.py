"""`detect`: files, folders and images in memory -> objects in the pixels of each image, as torchvision finds them."""

import json
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from support import REFERENCES, cifar_network

import keras_resnet
from keras_resnet import detect
from keras_resnet.data.image_files import ORIENTATION_TAG, load_image
from keras_resnet.detection import Detection

TRAINED = {
    "bccd_fasterrcnn": ("fasterrcnn_resnet18_fpn", "bccd"),
    "tiny_coco_maskrcnn": ("maskrcnn_resnet18_fpn", "tiny_coco"),
}
"""File of a detector that torchvision trained -> its name, the folder of its images."""


@dataclass
class Trained:
    """A detector, and what torchvision detected with its weights."""

    model: keras.Model
    paths: list[Path]
    images: list[dict]
    """For each path its boxes, labels and scores."""
    masks: dict[str, np.ndarray] | None


@pytest.fixture(scope="module")
def trained(test_data):
    """Name of a file -> Trained, with its first three images."""

    def load(file):
        name, folder = TRAINED[file]
        stored = test_data / "detectors" / file
        facts = json.loads(stored.with_suffix(".json").read_text())
        sizes = {"min_size": facts["min_size"], "max_size": facts["max_size"]}
        model = keras_resnet.create(name, weights=f"{stored}.safetensors", **sizes)
        model.info["class_names"] = ["__background__", *facts["classes"]]
        images = facts["images"][:3]
        masks = Path(f"{stored}_masks.npz")
        return Trained(
            model,
            [next((test_data / folder).rglob(image["file"])) for image in images],
            images,
            dict(np.load(masks)) if masks.exists() else None,
        )

    return {file: load(file) for file in TRAINED}


@pytest.fixture(scope="module")
def detector():
    """A small detector with random weights, of two classes and the background, which finds objects in any image."""
    changes = {"neck_width": 8, "min_size": 64, "max_size": 96, "detections": 5}
    return keras_resnet.create("maskrcnn_resnet18_fpn", classes=3, **changes)


@pytest.mark.parametrize("file", TRAINED)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_objects_are_those_that_torchvision_finds(file, batch_size, trained):
    """In files, and in batches of images of different sizes."""
    expected = trained[file]
    found = detect(expected.paths, expected.model, score_threshold=0.05, batch_size=batch_size)
    names = expected.model.info["class_names"]
    for detection, path, image in zip(found, expected.paths, expected.images, strict=True):
        assert detection.path == path and detection.error is None
        np.testing.assert_allclose(detection.boxes, image["boxes"], atol=0.05)
        np.testing.assert_allclose(detection.scores, image["scores"], atol=1e-4)
        assert detection.labels.tolist() == image["labels"]
        assert detection.names == tuple(names[label] for label in image["labels"])
        if expected.masks is None:
            assert detection.masks is None
        else:
            masks = expected.masks[image["file"]]
            assert detection.masks.shape == masks.shape == (len(detection), *detection.size)
            assert (detection.masks == masks).mean(axis=(1, 2)).min() >= 0.999


def test_a_threshold_keeps_the_objects_from_that_score_on(trained):
    expected = trained["bccd_fasterrcnn"]
    for threshold in (0.2, 0.9):
        for detection, image in zip(detect(expected.paths, expected.model, threshold), expected.images, strict=True):
            assert len(detection) == sum(score >= threshold for score in image["scores"])
    with pytest.warns(UserWarning, match=r"no scores below its threshold: its own is 0\.05, see .keras_resnet.with"):
        detect([], expected.model, 0.01)


def test_images_in_memory_are_those_in_files(trained):
    model, (path, *_) = trained["bccd_fasterrcnn"].model, trained["bccd_fasterrcnn"].paths
    (expected,) = detect(str(path), model)
    image = load_image(path)
    for given in (image, np.asarray(image), np.asarray(image)[None], [path.read_bytes()], [np.asarray(image)]):
        (found,) = detect(given, model)
        assert found.path is None and found.size == expected.size
        np.testing.assert_array_equal(found.boxes, expected.boxes)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_images_are_turned_upright(orientation, trained, tmp_path):
    """The same pixels, stored turned, with the EXIF orientation that says so."""
    model, (path, *_) = trained["bccd_fasterrcnn"].model, trained["bccd_fasterrcnn"].paths
    turns = (None, None, "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE")
    turn = (*turns, "ROTATE_270")[orientation]
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    load_image(path).transpose(Image.Transpose[turn]).save(tmp_path / "turned.png", exif=exif)
    (found,), (expected,) = detect(tmp_path, model), detect(path, model)
    assert found.size == expected.size == (480, 640)
    np.testing.assert_array_equal(found.boxes, expected.boxes)


def test_masks_are_pasted_as_by_torchvision():
    stored = np.load(REFERENCES / "masks.npz")
    size, probabilities = stored["pasted"].shape[1:], stored["probabilities"] / np.float32(255)
    found = Detection(None, size, stored["boxes"], mask_probabilities=probabilities)
    np.testing.assert_array_equal(found.masks, stored["pasted"])


def test_results_are_cocos(trained, tmp_path):
    """pycocotools loads them, and decodes the masks."""
    coco = pytest.importorskip("pycocotools.coco")
    pytest.importorskip("faster_coco_eval")
    expected = trained["tiny_coco_maskrcnn"]
    (found,) = detect(expected.paths[0], expected.model)
    truth = coco.COCO()
    truth.dataset = {"images": [{"id": 7}], "categories": [], "annotations": []}
    truth.createIndex()
    (tmp_path / "results.json").write_text(json.dumps(found.to_coco(7)))
    rows = truth.loadRes(str(tmp_path / "results.json")).dataset["annotations"]
    masks = np.array([coco.maskUtils.decode(row["segmentation"]) for row in rows], bool)
    np.testing.assert_array_equal(masks, found.masks)
    boxes = np.array([row["bbox"] for row in rows])
    np.testing.assert_allclose(boxes[:, :2] + boxes[:, 2:], found.boxes[:, 2:], rtol=1e-6)
    assert [row["category_id"] for row in rows] == found.labels.tolist()


def test_a_stream_reads_the_images_of_a_folder_as_they_are_requested(detector, image_folder):
    """Files that are not images have an error instead of objects."""
    found = detect(image_folder, detector, stream=True)
    assert next(found).error is None
    late = image_folder / "wasps" / "9.png"
    late.write_bytes(b"no image")
    bad = [detection for detection in found if detection.error]
    assert [detection.path.name for detection in bad] == ["3x.png", "9.png", "cut.png"]
    assert all(len(detection) == 0 and detection.size == (0, 0) for detection in bad)


def test_an_iterator_is_read_as_its_images_are_requested(detector):
    read = []

    def images():
        for number in range(100):
            read.append(number)
            yield np.zeros((30, 40, 3), "uint8")

    found = detect(images(), detector, stream=True)
    assert next(found).size == (30, 40) and 0 < len(read) < 50
    assert len(detect(iter([np.zeros((30, 40, 3), "uint8")] * 3), detector)) == 3


def test_the_order_is_that_of_the_images_whatever_shares_a_batch(detector):
    sizes = [(30, 40), (40, 30), (64, 96), (30, 40), (10, 10), (40, 30)]
    images = [np.random.default_rng(seed).integers(0, 256, (*size, 3), "uint8") for seed, size in enumerate(sizes)]
    together = detect(images, detector, 0.05, batch_size=6)
    assert [detection.size for detection in together] == sizes and any(map(len, together))
    for one, other in zip(together, detect(images, detector, 0.05), strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)


def test_another_size_of_the_inputs(trained):
    """The same objects in an image of twice the size, at the size that the model was trained with."""
    model, (path, *_) = trained["bccd_fasterrcnn"].model, trained["bccd_fasterrcnn"].paths
    (expected,) = detect(path, model)
    large = keras_resnet.create("fasterrcnn_resnet18_fpn", classes=4, neck_width=64, box_width=128, rpn_width=64)
    large.set_weights(model.get_weights())
    assert keras_resnet.preprocessing(large).min_size == 800
    (found,) = detect(path, large, min_size=320, max_size=533)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    assert keras_resnet.preprocessing(large).min_size == 800


def test_names_of_classes_without_stored_ones(detector):
    names = keras_resnet.models.preprocessing.class_names
    assert names(detector) == ["__background__", "class 1", "class 2"]
    assert names(keras_resnet.create("retinanet_resnet18_fpn"))[1:3] == ["person", "bicycle"]


def test_preprocessing_is_that_of_the_detector(detector):
    prepare = keras_resnet.preprocessing(detector)
    assert (prepare.min_size, prepare.max_size) == (64, 96)
    assert prepare(np.zeros((32, 64, 3), "uint8")).images.shape == (1, 64, 96, 3)
    image = np.full((2, 2, 3), 255, "uint8")
    expected = keras_resnet.preprocess_input(image, "torch")
    np.testing.assert_array_equal(keras_resnet.preprocess_input(image, detector), expected)


@pytest.mark.parametrize("function", [keras_resnet.predict, keras_resnet.prediction.classify])
def test_a_detector_is_not_a_classifier(function, detector, image_folder):
    with pytest.raises(ValueError, match="`model` should be a classifier.*`keras_resnet.detect` takes detectors"):
        function(detector, str(image_folder / "ants" / "0.png"))


@pytest.mark.parametrize("model", [cifar_network, lambda: "photos/", lambda: None])
def test_a_classifier_is_not_a_detector(model, image_folder):
    with pytest.raises(ValueError, match=r"`model` should be a detector, .*`keras_resnet.predict`.*Received: model="):
        detect(image_folder, model(), stream=True)


@pytest.mark.parametrize("images", [None, 1, [None], [1.5], [np.zeros((4, 4))], {None: 1}])
def test_other_values_than_images_are_refused(images, detector):
    with pytest.raises(ValueError, match="Received"):
        detect(images, detector)


def test_missing_files_raise_at_the_call(detector):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        detect("nowhere.png", detector, stream=True)
    assert detect([], detector) == []


def test_contents_of_files_are_files(detector):
    assert [found.error is None for found in detect([b"", b"no image"], detector)] == [False, False]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("score_threshold", value) for value in (-0.1, 1.1, None, "0.5", True, float("nan"))),
        *(("batch_size", value) for value in (0, 1.5, None)),
        *(("min_size", value) for value in (0, "800", 1.5)),
        ("max_size", 10**6),
    ],
)
def test_values_that_are_invalid(name, value, detector, image_folder):
    with pytest.raises(ValueError, match=f"Received: {name}="):
        detect(image_folder, detector, stream=True, **{name: value})
