"""Exports of segmenters: the classes of Keras for every pixel, in every format, from images of any size."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from PIL import Image
from support import EXPORT_NAMES, require_format, small_segmenter, tiny_classifier

from keras_resnet import detect, evaluate, export, fold_batch_norm, load_exported, segment
from keras_resnet.architecture.segmenter import without_auxiliary
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.data.sources import from_arrays, image_source
from keras_resnet.deployment.exporting import VerificationError
from keras_resnet.deployment.formats.float_operations import float_operations
from keras_resnet.deployment.images import sample_photos
from keras_resnet.deployment.segmentation_comparison import SegmentationComparison, _stretched
from keras_resnet.deployment.segmenter_serving import ResizedShorterSide, prepared_segmenter
from keras_resnet.deployment.serving import Metadata
from keras_resnet.deployment.verification import make_report
from keras_resnet.prediction import classify

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras exports through TensorFlow"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]
PHOTOS = sample_photos().images[:, :97, :131]
NAMES, COLORS = list("abcde"), [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]


def trained(head="fcn", shorter_side=None, **changes):
    """A segmenter with names of classes, colours and a preprocessing."""
    model = small_segmenter(head, **changes)
    preprocessing = SegmentationPreprocessing(shorter_side=shorter_side).to_config()
    model.info = {"preprocessing": preprocessing, "class_names": NAMES, "colors": COLORS}
    return model


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("format", "head", "shorter_side"),
    [
        ("saved_model", "deeplabv3", None),
        ("onnx", "deeplabv3plus", None),
        slow("onnx", "fcn", 70),
        slow("openvino", "deeplabv3", 70),
        slow("litert", "deeplabv3plus", 70),
    ],
)
def test_classes_and_probabilities_are_those_of_keras(format, head, shorter_side, tmp_path):
    require_format(format)
    model, path = trained(head, shorter_side), tmp_path / EXPORT_NAMES[format]
    report = export(model, path, images=PHOTOS, measure_speed=False)
    assert report["verified"] and report["task"] == "segmentation" and report["num_images"] == len(PHOTOS)
    assert report["disagreement"] < 1e-4 and report["pixel_agreement"] == 1 - report["disagreement"]
    exported = load_exported(path)
    assert (exported.name, list(exported.class_names)) == (model.name, NAMES)
    assert [list(color) for color in exported.colors] == COLORS
    outputs = exported(PHOTOS)  # a batch
    assert outputs["mask"].shape == PHOTOS.shape[:3] and outputs["mask"].dtype == np.uint8
    np.testing.assert_allclose(outputs["probabilities"].sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_array_equal(outputs["mask"], outputs["probabilities"].argmax(axis=-1))
    other_sizes = [PHOTOS[0][:64, :64], PHOTOS[1][:35, :90], PHOTOS[1][:90, :33]]
    for found, expected in zip(segment(other_sizes, exported), segment(other_sizes, model), strict=True):
        assert found.class_names == expected.class_names and found.colors == expected.colors
        assert (found.mask == expected.mask).mean() > 0.999


PRECISIONS = [
    ("saved_model", "bfloat16"),
    slow("saved_model", "float16"),
    slow("onnx", "float16"),
    slow("onnx", "int8"),
    slow("openvino", "float16"),
    slow("openvino", "bfloat16"),
    slow("openvino", "int8"),
    slow("litert", "float16"),
    slow("litert", "int8"),
]


@pytest.mark.parametrize(("format", "precision"), PRECISIONS)
def test_fewer_bits_are_verified_beside_float32(format, precision, tmp_path):
    require_format(format)
    model, path = trained("deeplabv3", 70), tmp_path / EXPORT_NAMES[format]
    calibration = PHOTOS if precision == "int8" else None
    report = export(model, path, precision=precision, calibration=calibration, images=PHOTOS, measure_speed=False)
    assert report["verified"] and report["checks"]["float32"]["disagreement"] < 1e-3
    (found,), (expected,) = (segment(PHOTOS[0], it) for it in (load_exported(path), model))
    assert (found.mask == expected.mask).mean() >= 1 - report["tolerance"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "network"
    export(trained(), path, images=PHOTOS, measure_speed=False)
    return path


def test_protocols_with_an_exported_network(path):
    """Pixels between preprocessing and network are rounded as Keras's preprocessing rounds them."""
    exported, model = load_exported(path), trained()
    for protocol in ("flip", "multi_scale", "sliding_window"):
        changes = {"window": 64} if protocol == "sliding_window" else {}
        (found,), (expected,) = (segment(PHOTOS[0], it, protocol, **changes) for it in (exported, model))
        assert (found.mask == expected.mask).mean() > 0.999


def test_evaluate_takes_an_exported_network(path):
    masks = segment(list(PHOTOS), model := trained())
    data = from_arrays((PHOTOS, np.stack([it.mask for it in masks])), class_names=NAMES)
    data = replace(data, test=data.train)
    found, expected = evaluate(load_exported(path), data), evaluate(model, data)
    assert expected.mean_iou == 1 and found.mean_iou > 0.999


def test_raw_networks_take_the_inputs_of_keras(tmp_path):
    model = trained(shorter_side=70)
    report = export(model, tmp_path / "net", raw=True, images=PHOTOS, measure_speed=False)
    exported = load_exported(tmp_path / "net")
    assert report["verified"] and exported.preprocessing == SegmentationPreprocessing(shorter_side=70)
    inputs = exported.preprocessing(PHOTOS[0])
    assert inputs.shape == (1, 70, 94, 3)
    np.testing.assert_allclose(exported(inputs)["logits"], model.predict(inputs, verbose=0), rtol=1e-3, atol=1e-3)
    (found,), (expected,) = (segment(PHOTOS[0], it, "multi_scale") for it in (exported, model))
    assert (found.mask == expected.mask).mean() > 0.999


@pytest.mark.parametrize("format", ["saved_model", slow("litert")])
def test_networks_for_images_of_one_size(format, tmp_path):
    """Images are stretched to it, as Pillow does it."""
    require_format(format)
    model, path = trained("deeplabv3", 70), tmp_path / EXPORT_NAMES[format]
    report = export(model, path, size=(48, 80), batch_size=2, images=PHOTOS, measure_speed=False)
    exported = load_exported(path)
    assert report["verified"] and exported.metadata.image_size == (48, 80)
    (found,) = segment(PHOTOS[0], exported)
    stretched = np.asarray(Image.fromarray(PHOTOS[0]).resize((80, 48), Image.Resampling.BILINEAR))
    logits = model.predict(SegmentationPreprocessing()(stretched), verbose=0)
    assert found.size == PHOTOS[0].shape[:2]
    assert (exported(stretched[None])["mask"] == logits.argmax(axis=-1)).mean() > 0.999
    with pytest.raises(ValueError, match="`scales` should be left out"):
        segment(PHOTOS[0], exported, "multi_scale")


def test_networks_that_resize_take_no_scales(tmp_path):
    export(trained(shorter_side=70), tmp_path / "net", images=PHOTOS, measure_speed=False)
    exported = load_exported(tmp_path / "net")
    with pytest.raises(ValueError, match="`window` should be left out: segmenter resizes images itself"):
        segment(PHOTOS[0], exported, "sliding_window")
    (found,), (expected,) = (segment(PHOTOS[0], it, "flip") for it in (exported, trained(shorter_side=70)))
    assert (found.mask == expected.mask).mean() > 0.99


@pytest.mark.parametrize(("height", "width"), [(97, 131), (131, 97), (30, 61), (520, 301)])
@pytest.mark.parametrize("side", [61, 97, 200])
def test_images_are_resized_as_pillow_does(height, width, side):
    """Antialiased when they are made smaller; differences are one level where rounding decides."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), "uint8")
    image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    expected = SegmentationPreprocessing(shorter_side=side).pixels(image)
    found = keras.ops.convert_to_numpy(ResizedShorterSide(side)(image[None]))[0]
    difference = np.abs(found - expected.astype("float32"))
    assert found.shape == expected.shape and difference.max() <= 1 and (difference > 0).mean() < 0.02


def exported_operations(tmp_path, **arguments):
    """The nodes of an ONNX file of a segmenter with dilated convolutions."""
    onnx = pytest.importorskip("onnx")
    require_format("onnx")
    path = tmp_path / "net.onnx"
    try:
        export(trained("deeplabv3"), path, images=PHOTOS, measure_speed=False, **arguments)
    except VerificationError:  # a random network of few channels
        path = tmp_path / "net.unverified.onnx"
    return onnx.load(path).graph


def test_dilated_convolutions_are_one_operation(tmp_path):
    """TensorFlow would write them as convolutions of images that are cut into a batch."""
    nodes = exported_operations(tmp_path).node
    attributes = [{it.name: it for it in node.attribute} for node in nodes if node.op_type == "Conv"]
    dilations = [it["dilations"].ints[0] for it in attributes]
    model = without_auxiliary(fold_batch_norm(trained("deeplabv3")))
    layers = [layer.dilation_rate[0] for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert sorted(dilations) == sorted(layers) and max(dilations) > 1
    assert not {"SpaceToDepth", "DepthToSpace", "BatchToSpace"} & {node.op_type for node in nodes}


@pytest.mark.slow
def test_int8_quantises_what_lies_between_convolutions(tmp_path):
    graph = exported_operations(tmp_path, precision="int8", calibration=PHOTOS)
    quantised = {output for node in graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    kernels = [node.input[1] in quantised for node in graph.node if node.op_type == "Conv"]
    assert kernels.count(False) == 1  # the classes
    makers = {output: node.op_type for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type in ("Softmax", "Resize", "ArgMax"):
            assert node.input[0] not in quantised and makers.get(node.input[0]) != "DequantizeLinear"


def test_operations_outside_of_quantised_ones():
    parents = {"a": [], "conv1": ["a"], "b": ["conv1"], "c": ["conv1"], "conv2": ["b"], "d": ["c", "conv2"]}
    assert float_operations(parents, {"conv1", "conv2"}) == ["a", "c", "d"]
    assert float_operations(parents, set()) == list(parents)


def test_the_auxiliary_head_is_not_exported(tmp_path):
    model = trained()
    assert model.spec.auxiliary
    without = fold_batch_norm(prepared_segmenter(model)).count_params()
    report = export(model, tmp_path / "net", images=PHOTOS, measure_speed=False)
    assert report["bytes"] < 4 * without + 400_000 and without < fold_batch_norm(model).count_params()


def outputs(mask, classes=3):
    """Outputs of a segmenter for a mask (H, W) of which it is certain."""
    probabilities = np.eye(classes, dtype="float32")[mask] * 0.6 + 0.4 / classes
    return {"mask": mask[None].astype("uint8"), "probabilities": probabilities[None]}


def compared(expected, received, source=None):
    """The SegmentationComparisonResult of one image in float32."""
    model = type("Model", (), {"spec": None, "info": {"class_names": list("abc")}, "layers": (), "name": "net"})()
    comparison = SegmentationComparison(model, METADATA, source)
    comparison.update_state(expected, received)
    return comparison


METADATA = Metadata("net", "onnx", "float32", SegmentationPreprocessing(), task="segmentation")
TRUE = np.array([[0, 0, 1], [1, 2, 2]])


def test_differing_pixels_are_counted():
    other = TRUE.copy()
    other[0, 0] = 2
    comparison = compared(outputs(TRUE), outputs(other))
    result = comparison.result()
    assert result.disagreement == pytest.approx(1 / 6) and result.max_error == pytest.approx(0.6)
    assert comparison.proves_little is None and result.mean_iou is None
    assert compared(outputs(TRUE), outputs(TRUE)).result().disagreement == 0
    assert compared(outputs(TRUE * 0), outputs(TRUE)).proves_little == "class is the same for every pixel"
    assert not make_report(METADATA, result, {}, [], 0, ())["verified"]


def test_probabilities_that_are_not_numbers_verify_nothing():
    broken = outputs(TRUE)
    broken["probabilities"][:] = np.nan
    result = compared(outputs(TRUE), broken).result()
    assert np.isnan(result.disagreement) and not make_report(METADATA, result, {}, [], 0, ())["verified"]


def test_the_mean_iou_of_both_is_reported(monkeypatch):
    """Of the export, a pixel of the first class is missing: IoU 1/2, 2/3 and 1."""
    other = TRUE.copy()
    other[0, 1] = 1
    image = np.zeros((1, 2, 3, 3), "uint8")
    true = np.where(TRUE == 2, 255, TRUE)  # these do not count
    source = image_source(from_arrays((image, true[None]), (image, true[None]), class_names=["a", "b"]))
    monkeypatch.setattr("keras_resnet.deployment.segmentation_comparison.class_names", lambda model: list("abc"))
    result = compared(outputs(TRUE), outputs(other), source).result()
    assert result.mean_iou == pytest.approx({"keras": 1.0, "exported": (1 / 2 + 2 / 3) / 2})
    with pytest.warns(UserWarning, match="no mIoU"):
        monkeypatch.setattr("keras_resnet.deployment.segmentation_comparison.class_names", lambda model: list("xyz"))
        assert compared(outputs(TRUE), outputs(other), source).result().mean_iou is None


@pytest.mark.parametrize("size", [(48, 80), (180, 240), (90, 60)])
def test_masks_are_stretched_as_pillow_does(size):
    mask = np.random.default_rng(0).integers(0, 12, (90, 120), "uint8")
    expected = Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST)
    np.testing.assert_array_equal(_stretched(mask, size), expected)


def test_the_report_has_the_mean_iou_of_a_folder_with_masks(tmp_path):
    model = trained()
    for index, (photo, found) in enumerate(zip(PHOTOS, segment(list(PHOTOS), model), strict=True)):
        for name, array in (("images", photo), ("masks", found.mask)):
            (tmp_path / "data" / "test" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(tmp_path / "data" / "test" / name / f"{index}.png")
    (tmp_path / "data" / "test" / "classes.txt").write_text("\n".join(NAMES))
    (tmp_path / "data" / "classes.txt").write_text("\n".join(NAMES))
    report = export(model, tmp_path / "net", images=tmp_path / "data" / "test", measure_speed=False)
    assert report["mean_iou"]["keras"] == 1 and report["mean_iou"]["exported"] > 0.99
    text = (tmp_path / "net.report.md").read_text()
    assert "| mIoU, keras | 100.00% |" in text and "same class" in text
    stored = json.loads((tmp_path / "net.report.json").read_text())
    assert stored["mean_iou"] == report["mean_iou"]


WRONG = {
    "size": ("net", {"size": 1}, "`size` should be an integer"),
    "sides": ("net", {"size": (64, 64, 3)}, "`size` should be a number of pixels, or height and width"),
    "precision": ("net", {"precision": "int8", "calibration": PHOTOS}, "`precision` should be"),
    "calibration": ("net.onnx", {"precision": "int8"}, "`calibration` should be images for int8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_clear_error_and_leaves_nothing(case, tmp_path):
    name, arguments, message = WRONG[case]
    require_format("onnx")
    with pytest.raises(ValueError, match=message):
        export(trained(), tmp_path / name, **arguments)
    assert not list(tmp_path.iterdir())


def test_images_of_several_sizes_calibrate_no_batches(tmp_path):
    require_format("onnx")
    for index, photo in enumerate((PHOTOS[0], PHOTOS[1][:50])):
        Image.fromarray(photo).save(tmp_path / f"{index}.png")
    with pytest.raises(ValueError, match="`calibration` should be images of one size"):
        export(trained(), tmp_path / "net.onnx", precision="int8", calibration=tmp_path, batch_size=2)


def test_other_functions_refuse_an_exported_segmenter(path, tmp_path):
    exported = load_exported(path)
    with pytest.raises(ValueError, match="a detector"):
        detect(PHOTOS[0], exported)
    with pytest.raises(ValueError, match="`model` should be a classifier"):
        classify(exported, PHOTOS[0])
    export(tiny_classifier(), tmp_path / "net", measure_speed=False)
    with pytest.raises(ValueError, match="a segmenter"):
        segment(PHOTOS[0], load_exported(tmp_path / "net"))
