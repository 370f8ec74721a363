"""Exports of detectors: the detections of Keras and of torchvision, from images of any size."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from annotated_images import WRITERS
from support import EXPORT_NAMES, narrow_detector, require_format, tiny_classifier

import keras_resnet
from keras_resnet import build, detect, export, get_spec, load_exported, with_settings
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.data.objects import Objects
from keras_resnet.data.sources import image_source
from keras_resnet.deployment.detection_comparison import AveragePrecision, DetectionComparison
from keras_resnet.deployment.detector_serving import head_layers
from keras_resnet.deployment.formats.table import FORMATS
from keras_resnet.deployment.images import export_images, sample_photos
from keras_resnet.deployment.serving import Metadata
from keras_resnet.deployment.verification import make_report
from keras_resnet.prediction import classify

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras exports through TensorFlow"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]
PHOTOS = sample_photos().images
PREPROCESSING = DetectionPreprocessing(min_size=64, max_size=96)


def small_detector(name):
    model = with_settings(narrow_detector(name)[0])  # a copy
    model.info = {"preprocessing": PREPROCESSING.to_config()}
    return model


EXPORTS = [
    ("saved_model", "maskrcnn", "float32"),
    pytest.param("onnx", "fasterrcnn", "float32", marks=pytest.mark.slow),
    pytest.param("onnx", "maskrcnn", "float32", marks=pytest.mark.slow),
    pytest.param("onnx", "retinanet", "float32", marks=pytest.mark.slow),
    pytest.param("openvino", "fasterrcnn", "float32", marks=pytest.mark.slow),
    pytest.param("openvino", "maskrcnn", "float32", marks=pytest.mark.slow),
    ("openvino", "retinanet", "float32"),
    ("litert", "retinanet", "float32"),
]


@pytest.mark.parametrize(("format", "name", "precision"), EXPORTS)
def test_detections_are_those_of_keras(format, name, precision, tmp_path):
    require_format(format)
    model, path = small_detector(name), tmp_path / EXPORT_NAMES[format]
    report = export(model, path, precision=precision, images=PHOTOS, measure_speed=False)
    assert report["verified"] and report["task"] == "detection" and report["num_images"] == len(PHOTOS)
    assert report["num_detections"] > 0 and report["unmatched"] == 0
    exported = load_exported(path)
    assert exported.preprocessing == PREPROCESSING
    other_sizes = [PHOTOS[0, :97, :97], PHOTOS[1, :50, :200], PHOTOS[1, 100:390, :20]]
    for found, expected in zip(detect(other_sizes, exported, 0), detect(other_sizes, model, 0), strict=True):
        assert found.size == expected.size and found.names == expected.names
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.05)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
        assert (found.mask_probabilities is None) == (name != "maskrcnn")
        if name == "maskrcnn":
            np.testing.assert_allclose(found.mask_probabilities, expected.mask_probabilities, atol=1e-3)
    with pytest.raises(ValueError, match="`model` should be a classifier. `keras_resnet.detect` takes detectors"):
        classify(exported, PHOTOS[0])


def test_an_export_finds_what_torchvision_finds(test_data, tmp_path):
    """The stored detections of a network that torchvision trained, on a photograph of blood cells.

    The report has the average precision of the test images, and the file every weight once.
    """
    stored = test_data / "detectors/bccd_fasterrcnn"
    facts = json.loads(stored.with_suffix(".json").read_text())
    sizes = {"min_size": facts["min_size"], "max_size": facts["max_size"]}
    model = keras_resnet.create("fasterrcnn_resnet18_fpn", weights=f"{stored}.safetensors", **sizes)
    model.info["class_names"] = ["__background__", *facts["classes"]]
    expected = facts["images"][0]
    path = next((test_data / "bccd").rglob(expected["file"]))
    data = keras_resnet.load_dataset(test_data / "bccd", skip_bad=True)
    data = replace(data, test=data.test[:3])
    report = export(model, tmp_path / "net", images=data, measure_speed=False)
    precision = keras_resnet.evaluate(model, data).boxes["AP"]
    assert report["verified"] and precision > 0.3
    assert report["average_precision"] == pytest.approx({"keras": precision, "exported": precision}, abs=1e-3)
    assert report["bytes"] < 1.05 * 4 * keras_resnet.fold_batch_norm(model).count_params()
    (found,) = detect(path, load_exported(tmp_path / "net"), score_threshold=0.05)
    np.testing.assert_allclose(found.boxes, expected["boxes"], atol=0.05)
    np.testing.assert_allclose(found.scores, expected["scores"], atol=1e-4)
    assert found.labels.tolist() == expected["labels"]


@pytest.mark.parametrize("sizes", [(800, 1333), (64, 96), (640, 640), (300, 200)])
def test_sides_are_rounded_as_in_float64(sizes):
    """Also where side * scale is an integer that float64 rounds down: 97 pixels become 799."""
    import tensorflow as tf

    from keras_resnet.deployment.detector_serving import SideRounding

    preprocessing = DetectionPreprocessing(min_size=sizes[0], max_size=sizes[1])
    rounding = tf.function(SideRounding(preprocessing))
    random = np.random.default_rng(0)
    sides = [(97, 97), (1, 4000), *((side, factor * side) for side in range(1, 1000, 3) for factor in (1, 2))]
    for height, width in [*sides, *random.integers(1, 4000, (300, 2)).tolist()]:
        resized = rounding(tf.constant([height, width], "float32")).numpy()
        assert tuple(resized) == preprocessing.resized(height, width), (height, width)


INT8 = {"precision": "int8", "calibration": PHOTOS}


def test_int8_quantises_the_body_and_the_neck_only(tmp_path):
    require_format("openvino")
    model, path = small_detector("retinanet"), tmp_path / "net.xml"
    try:
        report = export(model, path, **INT8, images=PHOTOS, measure_speed=False)
    except keras_resnet.deployment.VerificationError as error:  # a random network of few channels
        report, path = error.report, tmp_path / "net.unverified.xml"
    assert report["checks"]["float32"]["unmatched"] == 0
    import openvino

    operations = openvino.Core().read_model(path).get_ops()
    convolutions = [op for op in operations if op.get_type_name() == "Convolution"]
    kernels = [op.input_value(1).get_node().get_type_name() for op in convolutions]
    in_body = sum(isinstance(layer, keras.layers.Conv2D) for layer in model.layers if layer.name.startswith(BODY))
    assert kernels.count("Constant") == len(convolutions) - in_body > 0


BODY = ("conv", "fpn_")
KINDS = {
    "fasterrcnn_resnet18_fpn": {"global_context": True},
    "maskrcnn_resnet50_fpn_v2": {},
    "retinanet_resnet18_fpn": {"backbone": "seresnet18"},
    "fasterrcnn_resnet50_c4": {"global_context": True},
}


@pytest.mark.parametrize("name", KINDS)
def test_layers_that_are_quantised_are_those_of_the_classifier_and_the_pyramid(name):
    """Except for a last stage that is the head of each region, as in the c4 detectors."""
    spec = get_spec(name)
    backbone = replace(get_spec(KINDS[name].get("backbone", name.split("_")[1])), depths=(1, 1, 1, 1))
    narrow = {"neck_width": 32, "rpn_width": 8, "box_width": 8, "classes": 3}
    model = build(replace(spec, **narrow | KINDS[name] | {"backbone": replace(backbone, widths=(8, 16, 24, 32))}))
    classifier = build(replace(backbone, widths=(8, 16, 24, 32)))
    body = {layer.name for layer in classifier.layers if isinstance(layer, keras.layers.Conv2D)}
    if name.endswith("c4"):
        body = {layer for layer in body if not layer.startswith("conv5_")}
    with_weights = {layer.name for layer in model.layers if hasattr(layer, "kernel")}
    quantised = with_weights - set(head_layers(model))
    assert quantised == body | {layer for layer in with_weights if layer.startswith("fpn_")}


def with_objects(boxes, labels):
    """The ImageSource of two images, of which the second has these objects."""
    count, classes = len(boxes), ("ant", "bee")
    none, sides = np.zeros(count, bool), np.diff(np.reshape(boxes, (count, 2, 2)), axis=1)[:, 0]
    arrays = np.ones(count, int), np.array(boxes, "float32"), np.array(labels), none, none, sides.prod(axis=1) * 1.0
    objects = Objects(*arrays, None, np.array([[300, 300]] * 2), np.array([1, 2], object))
    split = replace(image_source(np.zeros((2, 300, 300, 3), "uint8")).split, labels=objects.label_matrix(2))
    return replace(image_source(replace(split, objects=objects)), class_names=classes)


def test_average_precision_counts_what_each_finds():
    """One of the two bees is missing in the export: precision is 1 at 51 of 101 recalls. Names order the classes."""
    found = with_objects(BOXES, (1, 0, 1))
    precision = AveragePrecision.of_images(found, ["__background__", "bee", "ant"])
    everything = {
        "boxes": np.array(BOXES, "float32"),
        "scores": np.array([0.9, 0.8, 0.7]),
        "labels": np.array([1, 2, 1]),
    }
    precision.update_state(everything, {name: values[:2] for name, values in everything.items()}, 1)
    assert precision.result() == pytest.approx({"keras": 1.0, "exported": (1 + 51 / 101) / 2})
    with pytest.warns(UserWarning, match="no average precision"):
        assert AveragePrecision.of_images(found, ["__background__", "bee", "wasp"]) is None
    assert AveragePrecision.of_images(image_source(PHOTOS), ["__background__", "bee"]) is None


@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_with_boxes_is_compared_on_its_test_images(kind, tmp_path):
    folder = WRITERS[kind](tmp_path)
    assert len(export_images(folder).split.objects.sizes) == 2
    assert len(export_images(folder, "train").split) == 3


WRONG = {
    "format": ("net.onnxx", {}, "`path` should be"),
    "two stages": ("net.tflite", {}, r"`format` should be one of \['saved_model', 'onnx', 'openvino'\]"),
    "precision": ("net.onnx", INT8, "int8 is supported by openvino"),
    "size": ("net", {"size": 64}, "`size` should be left out for a detector"),
    "raw": ("net", {"raw": True}, "`raw` should be left out"),
    "batch size": ("net", {"batch_size": 2}, "`batch_size` should be left out"),
    "calibration": ("net.xml", {"precision": "int8"}, "`calibration` should be images for int8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_clear_error_and_leaves_nothing(case, tmp_path):
    name, arguments, message = WRONG[case]
    for row in FORMATS:
        require_format(row)
    with pytest.raises(ValueError, match=message):
        export(small_detector("fasterrcnn"), tmp_path / name, **arguments)
    assert not list(tmp_path.iterdir())


def test_detect_refuses_an_exported_classifier(tmp_path):
    export(tiny_classifier(), tmp_path / "net", measure_speed=False)
    with pytest.raises(ValueError, match="a detector"):
        detect(PHOTOS[0], load_exported(tmp_path / "net"))


def outputs(boxes, scores, labels):
    """Outputs of a detector for one image, with a place for one more detection."""
    count = len(scores)
    padded = {
        "boxes": np.zeros((1, count + 1, 4)),
        "scores": np.zeros((1, count + 1)),
        "labels": np.zeros((1, count + 1)),
    }
    for name, values in (("boxes", boxes), ("scores", scores), ("labels", labels)):
        padded[name][0, :count] = values
    return padded | {"count": np.array([count])}


BOXES = [(0, 0, 100, 100), (50, 0, 90, 40), (200, 200, 230, 220)]
COMPARED = {
    "equal, in another order": (BOXES[::-1], (0.9, 0.8, 0.7)[::-1], (1, 2, 1)[::-1], 0.0, 0.0),
    "shifted a little": (np.array(BOXES) + 0.02, (0.9, 0.8, 0.7), (1, 2, 1), 0.0, 0.02),
    "shifted too far": (np.array(BOXES) + 1.0, (0.9, 0.8, 0.7), (1, 2, 1), 1.0, 0.0),
    "another label": (BOXES, (0.9, 0.8, 0.7), (1, 1, 1), 2 / 6, 0.0),
    "another score": (BOXES, (0.9, 0.8, 0.6), (1, 2, 1), 2 / 6, 0.0),
    "one is missing": (BOXES[:2], (0.9, 0.8), (1, 2), 1 / 5, 0.0),
    "one more at the threshold": ([*BOXES, BOXES[0]], (0.9, 0.8, 0.7, 0.0505), (1, 2, 1, 2), 0.0, 0.0),
}


def compared(model, expected, received):
    """The DetectionComparisonResult of one image in float32."""
    comparison = DetectionComparison(model, Metadata("net", "onnx", "float32", PREPROCESSING, task="detection"))
    comparison.update_state(expected, received)
    return comparison.result()


@pytest.mark.parametrize("case", COMPARED)
def test_counterparts_are_counted(case):
    boxes, scores, labels, unmatched, error = COMPARED[case]
    model = small_detector("fasterrcnn")
    assert model.get_layer("detections").score_threshold == 0.05
    result = compared(model, outputs(BOXES, (0.9, 0.8, 0.7), (1, 2, 1)), outputs(boxes, scores, labels))
    assert result.num_detections == 3
    assert result.unmatched == pytest.approx(unmatched) and result.max_box_error == pytest.approx(error, abs=1e-6)


def test_detections_with_other_masks_are_no_counterparts():
    """Of three masks, one is the same, one differs in 10 of its 784 pixels and one in half of them."""
    expected, received = (outputs(BOXES, (0.9, 0.8, 0.7), (1, 2, 1)) for _ in range(2))
    expected["masks"], received["masks"] = np.zeros((1, 4, 28, 28)), np.zeros((1, 4, 28, 28))
    received["masks"][0, 1, 0, :10] = received["masks"][0, 2, :14] = 0.9
    result = compared(small_detector("fasterrcnn"), expected, received)
    assert result.unmatched == pytest.approx(2 / 6)
    assert result.mask_agreement == pytest.approx(1 - 10 / 784 / 2)


def test_images_without_objects_verify_nothing():
    nothing = outputs(np.zeros((0, 4)), (), ())
    result = compared(small_detector("fasterrcnn"), nothing, nothing)
    checks = {"float32": {"unmatched": 0.0, "tolerance": 0.01}}
    metadata = Metadata("net", "onnx", "float16", PREPROCESSING, task="detection")
    assert not make_report(metadata, result, checks, [], 0, ())["verified"]
