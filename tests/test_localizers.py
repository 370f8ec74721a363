"""Localizers: specs, layers, costs, files, and the weights of trained classifiers."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from support import SMALL, narrow, random_images, randomize_weights, small_localizer

from keras_resnet import (
    Localizer,
    LocalizerSpec,
    build,
    complexity,
    create,
    feature_extractor,
    finetune,
    fold_batch_norm,
    get_spec,
    list_models,
    load_model,
    predict,
    save_pretrained,
    save_weights,
)
from keras_resnet.architecture.boxes import box_iou
from keras_resnet.architecture.localizer import relative_anchors
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.models.localizers import as_localizer, classifier_of

BOXES = ("shared", "per_class", "dense")


@pytest.mark.parametrize("boxes", BOXES)
def test_outputs_and_costs(boxes):
    model = small_localizer(boxes)
    outputs = model.predict(random_images(3, 24, 32, 3), verbose=0)
    assert isinstance(model, Localizer) and model.spec.boxes == boxes
    assert outputs["boxes"].shape == (3, 1 if boxes == "shared" else 5, 4)
    assert outputs["boxes"].min() >= 0 and outputs["boxes"].max() <= 1
    np.testing.assert_allclose(outputs["probabilities"].sum(axis=1), 1, rtol=1e-5)
    cost = complexity(model.spec, input_shape=(24, 32, 3))
    assert cost.parameters + cost.statistics == model.count_params()
    assert ("scores" in outputs) == (boxes == "dense")


@pytest.mark.parametrize("name", list_models("localizer_resnet18*", task="localization"))
def test_the_networks_of_the_registry(name):
    model = create(name, classes=3, input_shape=(64, 64, 3))
    assert model.spec == replace(get_spec(name), classes=3) and model.name == name
    layers = {layer.name for layer in model.layers}
    classifier = build(narrow(get_spec("resnet18")))
    assert {layer.name for layer in classifier.layers[1:]} <= layers


@pytest.mark.parametrize("boxes", BOXES)
def test_a_saved_localizer_is_the_same(tmp_path, boxes):
    model, images = small_localizer(boxes), random_images(2, 24, 32, 3)
    model.info = {"class_names": list("abcde")}
    model.save(tmp_path / "localizer.keras")
    loaded = load_model(tmp_path / "localizer.keras")
    assert (type(loaded), loaded.spec, loaded.info) == (Localizer, model.spec, model.info)
    for name, values in model.predict(images, verbose=0).items():
        np.testing.assert_array_equal(loaded.predict(images, verbose=0)[name], values)


def numpy_decode(deltas, anchors):
    """Boxes by the formulas of Girshick et al. 2014, appendix C."""
    sides = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + deltas[..., :2] * sides
    sides = sides * np.exp(deltas[..., 2:])
    return np.clip(np.concatenate([centre - sides / 2, centre + sides / 2], axis=-1), 0, 1)


@pytest.mark.parametrize("boxes", ["shared", "per_class"])
def test_boxes_are_offsets_from_the_whole_image(boxes):
    model, images = small_localizer(boxes), random_images(2, 24, 32, 3)
    head = keras.Model(model.inputs, [model.get_layer("box_deltas").output, model.output["boxes"]])
    deltas, found = head.predict(images, verbose=0)
    expected = numpy_decode(deltas.reshape(2, -1, 4).astype(float), np.array([0.0, 0, 1, 1]))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_dense_boxes_are_those_of_the_best_position():
    model, images = small_localizer("dense"), random_images(2, 24, 32, 3)
    layers = [model.get_layer(name).output for name in ("box_scores", "box_deltas")]
    scores, deltas, boxes, best = keras.Model(
        model.inputs, [*layers, model.output["boxes"], model.output["scores"]]
    ).predict(images, verbose=0)
    assert scores.shape == (2, 12, 16, 2 * 5) and deltas.shape == (2, 12, 16, 2 * 5 * 4)
    for image in range(2):
        for number in range(5):
            of_class = scores[image].reshape(12, 16, 2, 5)[..., number]
            row, column, anchor = np.unravel_index(of_class.argmax(), of_class.shape)
            side = (8, 16)[anchor]
            x, y = (column + 0.5) * 2, (row + 0.5) * 2
            square = np.array([x - side / 2, y - side / 2, x + side / 2, y + side / 2]) / [32, 24, 32, 24]
            offsets = deltas[image].reshape(12, 16, 2, 5, 4)[row, column, anchor, number].astype(float)
            np.testing.assert_allclose(boxes[image, number], numpy_decode(offsets, square), atol=1e-6)
            np.testing.assert_allclose(best[image, number], 1 / (1 + np.exp(-of_class.max())), rtol=1e-5)


def test_anchors_of_the_same_size_tile_the_image():
    anchors = np.array(relative_anchors((16,), 16, (3, 2), (48, 32)))
    np.testing.assert_allclose(anchors[0], [0, 0, 0.5, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(anchors[-1], [0.5, 2 / 3, 1, 1], rtol=1e-6)
    overlaps = keras.ops.convert_to_numpy(box_iou(anchors, anchors))
    np.testing.assert_allclose(overlaps, np.eye(6), atol=1e-6)


def classifier_file(folder, classes=4):
    classifier = randomize_weights(build(SMALL, classes=classes, input_shape=(24, 24, 3)))
    names = [f"class {letter}" for letter in "abcdefgh"[:classes]]
    preprocessing = Preprocessing("torch", size=24, resize=28)
    classifier.info = {"class_names": names, "preprocessing": preprocessing.to_config()}
    path = folder / "classifier.safetensors"
    save_weights(classifier, path)
    return classifier, path


@pytest.mark.parametrize("boxes", BOXES)
def test_a_trained_classifier_becomes_a_localizer(tmp_path, boxes):
    classifier, path = classifier_file(tmp_path)
    suffix = "" if boxes == "shared" else f"_{boxes}"
    model = create(f"localizer_resnet18{suffix}", backbone=SMALL, backbone_weights=path, box_width=12)
    assert model.input_shape == (None, 24, 24, 3) and model.spec.classes == 4
    assert model.info["class_names"] == classifier.info["class_names"]
    images = random_images(2, 24, 24, 3)
    expected = classifier.predict(images, verbose=0)
    np.testing.assert_allclose(model.predict(images, verbose=0)["probabilities"], expected, rtol=1e-5)
    np.testing.assert_allclose(classifier_of(model).predict(images, verbose=0), expected, rtol=1e-5)
    shared = as_localizer(classifier, boxes=boxes, box_width=12)
    assert shared.get_layer("conv2_block1_1_conv") is classifier.get_layer("conv2_block1_1_conv")


def test_a_classifier_of_other_classes_is_new(tmp_path):
    _, path = classifier_file(tmp_path)
    with pytest.warns(UserWarning, match="classifier for 3 classes is newly"):
        model = create("localizer_resnet18", backbone=SMALL, backbone_weights=path, classes=3)
    assert model.output["probabilities"].shape == (None, 3) and "class_names" not in model.info


def test_a_localizer_predicts_classes(tmp_path):
    classifier, path = classifier_file(tmp_path)
    model = create("localizer_resnet18", backbone=SMALL, backbone_weights=path)
    image = tmp_path / "image.png"
    keras.utils.save_img(image, np.random.default_rng(0).integers(0, 256, (30, 40, 3)), scale=False)
    (found,), (expected,) = predict(model, image), predict(classifier, image)
    assert [name for name, *_ in found.classes] == [name for name, *_ in expected.classes]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"boxes": "both"}, "`boxes` should be one of"),
        ({"box_width": 0}, "`box_width`"),
        ({"classes": 0}, "`classes`"),
        ({"anchor_sizes": ()}, "`anchor_sizes`"),
        ({"backbone": replace(SMALL, data_format="channels_first")}, "channels last"),
    ],
)
def test_invalid_specs(arguments, message):
    with pytest.raises(ValueError, match=message):
        LocalizerSpec(**{"backbone": SMALL} | arguments)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"weights": "imagenet"}, ValueError, "`weights` should be None, as localizer_resnet18 has no published"),
        ({"weights": "a", "backbone_weights": "b"}, ValueError, "`backbone_weights` should be None with `weights`"),
        ({"input_shape": (None, None, 3)}, ValueError, "all known, since the box head needs images of one size"),
        ({"input_shape": (25_000, 25_000, 3)}, ValueError, "at most 2,147,483,648 parameters"),
        ({"pooling": "avg"}, ValueError, "left out for a localizer"),
        ({"box_widht": 3}, TypeError, "box_width"),
        ({"backbone": "resnet51"}, ValueError, "`backbone`.*resnet50"),
        ({"backbone_weights": "nothing"}, ValueError, "nothing"),
    ],
)
def test_invalid_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        create("localizer_resnet18", **arguments)


def test_functions_that_do_not_take_localizers(tmp_path):
    model = small_localizer()
    for function in (
        lambda: save_pretrained(model, tmp_path / "folder"),
        lambda: finetune(model, "digits"),
    ):
        with pytest.raises(ValueError, match="`model` should be a classifier"):
            function()
    assert not list(tmp_path.iterdir())


def test_a_localizer_is_folded_and_has_features():
    model, images = small_localizer("dense"), random_images(2, 24, 32, 3)
    folded = fold_batch_norm(model)
    assert isinstance(folded, Localizer) and folded.spec == model.spec
    for name, values in model.predict(images, verbose=0).items():
        np.testing.assert_allclose(folded.predict(images, verbose=0)[name], values, atol=1e-5)
    assert feature_extractor(model, endpoints="stage2").output_shape == (None, 12, 16, 16)
