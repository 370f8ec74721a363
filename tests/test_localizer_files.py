"""Weights of localizers in files: all formats, files of other networks, hostile ones, and their classifiers."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from support import SMALL, random_images, read_arrays, run_command, small_localizer

from keras_resnet import build, create, feature_extractor, load_weights, save_weights
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.models.localizers import classifier_of

NAMES = {boxes: f"localizer_resnet18_{boxes}".removesuffix("_shared") for boxes in ("shared", "per_class", "dense")}
NETWORK = {"depths": (1, 1), "widths": (8, 16), "stem": "cifar", "stem_width": 8}
INFO = {"class_names": list("abcde"), "preprocessing": Preprocessing("tf", size=24, resize=28).to_config()}


def trained(boxes):
    """A localizer with everything that training leaves in it."""
    model = small_localizer(boxes, (24, 24, 3))
    model.info = INFO
    return model


@pytest.fixture
def path(tmp_path):
    save_weights(trained("per_class"), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def assert_same_weights(found, expected):
    for ours, theirs in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("suffix", [".safetensors", ".h5", ".weights.h5", ".keras"])
@pytest.mark.parametrize("boxes", NAMES)
def test_files_restore_weights_spec_and_info(boxes, suffix, tmp_path):
    """Widths, anchors, classes and the size of the images follow from the file."""
    model, path = trained(boxes), tmp_path / f"model{suffix}"
    save_weights(model, path)
    restored = create(NAMES[boxes], weights=path, backbone=SMALL)
    assert (restored.name, restored.spec) == (NAMES[boxes], model.spec)
    assert {name: restored.info[name] for name in INFO} == INFO and restored.input_shape == model.input_shape
    assert_same_weights(restored, model)
    other = build(model.spec, input_shape=(24, 24, 3))
    load_weights(other, path)
    assert_same_weights(other, model)


def test_files_without_facts_need_the_size_of_the_images(tmp_path):
    model = trained("shared")
    save_weights(model, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"box_fc/kernel \(1728, 12\), not .*images of another size"):
        create(NAMES["shared"], weights=tmp_path / "model.pth", backbone=SMALL)
    arguments = {"weights": tmp_path / "model.pth", "backbone": SMALL, "input_shape": (24, 24, 3)}
    assert_same_weights(create(NAMES["shared"], **arguments), model)


@pytest.mark.parametrize("boxes", NAMES)
def test_layers_that_depend_on_the_classes_are_new_for_others(boxes, tmp_path):
    model = trained(boxes)
    save_weights(model, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match="has 5 classes: the classifier for 3 classes is newly"):
        new = create(NAMES[boxes], weights=tmp_path / "model.safetensors", backbone=SMALL, classes=3)
    kept = {
        layer.name: np.array_equal(layer.get_weights()[0], model.get_layer(layer.name).get_weights()[0])
        for layer in new.layers
        if layer.name.startswith("box_") and layer.weights
    }
    expected = dict.fromkeys(kept, True) | ({} if boxes == "shared" else {"box_scores": False, "box_deltas": False})
    assert kept == {name: expected[name] for name in kept}
    assert new.spec.classes == 3 and "class_names" not in new.info
    assert all(layer.get_weights()[0].any() for layer in new.layers if hasattr(layer, "kernel"))


def test_the_classifier_of_a_localizer_is_backbone_and_classifier(path):
    images, model = random_images(2, 24, 24, 3), trained("per_class")
    expected = classifier_of(model).predict(images, verbose=0)
    classifier = create("resnet18", weights=path, **NETWORK)
    np.testing.assert_array_equal(classifier.predict(images, verbose=0), expected)
    assert classifier.info["class_names"] == INFO["class_names"]
    localizer = create("localizer_resnet18_dense", backbone=SMALL, backbone_weights=path)
    np.testing.assert_array_equal(localizer.predict(images, verbose=0)["probabilities"], expected)


def test_the_name_of_a_localizer_is_that_of_its_network_for_features():
    extractor, expected = (feature_extractor(name, endpoints="C3") for name in ("localizer_resnet50", "resnet50_v1_5"))
    assert (extractor.spec, extractor.input_shape) == (expected.spec, (None, None, None, 3))


def test_localizers_are_converted(tmp_path):
    model = create("localizer_resnet18_per_class", classes=2, input_shape=(32, 32, 3), box_width=8)
    model.info = {"preprocessing": Preprocessing("tf", size=32, resize=None).to_config()}
    model.save(tmp_path / "model.keras")
    answer = run_command("convert", tmp_path / "model.keras", tmp_path / "out.h5", "--model", model.name)
    assert f"localizer_resnet18_per_class, {model.count_params():,} numbers" in answer.stdout
    assert_same_weights(create(model.name, weights=tmp_path / "out.h5"), model)


@pytest.mark.parametrize("layout", ["torchvision", "timm", "cifar", "keras_hub", "auto"])
def test_other_libraries_have_no_localizers(layout, tmp_path):
    with pytest.raises(ValueError, match=r"`layout` should be .*'box_conv/kernel'. The layout 'keras' has names"):
        save_weights(trained("shared"), tmp_path / "model.pth", layout=layout)
    assert not list(tmp_path.iterdir())


def test_files_of_other_networks_are_refused(path, tmp_path):
    classifier = create("resnet18", classes=5, input_shape=(24, 24, 3), **NETWORK)
    save_weights(classifier, tmp_path / "classifier.safetensors")
    with pytest.raises(ValueError, match="of a localizer, not of a residual network. .*`backbone_weights`"):
        create("localizer_resnet18", backbone=SMALL, weights=tmp_path / "classifier.safetensors")
    with pytest.raises(ValueError, match="of a detector, not of a localizer"):
        create("fasterrcnn_resnet18_fpn", weights=path)
    with pytest.raises(ValueError, match=r"boxes='per_class' \(not 'dense'\)"):
        create("localizer_resnet18_dense", backbone=SMALL, weights=path)
    with pytest.raises(ValueError, match=r"depths=\[1, 1\] \(not \[2, 2, 2, 2\]\)"):
        create("localizer_resnet18_per_class", weights=path)
    with pytest.raises(ValueError, match="`box_width` should be 12 for these weights"):
        create("localizer_resnet18_per_class", backbone=SMALL, weights=path, box_width=16)


def metadata(spec, info=INFO):
    return {"keras_resnet": json.dumps({"spec": spec, "info": info})}


HUGE = {"preprocessing": Preprocessing("tf", size=8_000, resize=None).to_config()}
HOSTILE = {
    "spec of a classifier": (
        SMALL.to_config(),
        INFO,
        {},
        "spec of a localizer, whose arrays it has, not of a residual",
    ),
    "images of 8,000 pixels": (None, HUGE, {}, "`input_shape` should be the size of the images"),
    "a wide box head": (None, INFO, {"box_conv/bias": 16_000}, "`input_shape` should be|box_width"),
    "a width that is too large": (None, INFO, {"box_conv/bias": 100_000}, "weights of a localizer .*box_width"),
    "many classes": (None, INFO, {"predictions/bias": 60_000}, "model.safetensors"),
    "no classes": (None, INFO, {"predictions/bias": 0}, "model.safetensors"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_files_that_contradict_themselves_are_refused(case, path):
    spec, info, lengths, message = HOSTILE[case]
    arrays = read_arrays(path) | {name: np.zeros(length, "float32") for name, length in lengths.items()}
    save_file(arrays, path, metadata(spec or trained("per_class").spec.to_config(), info))
    with pytest.raises(ValueError, match=message):
        create("localizer_resnet18_per_class", backbone=SMALL, weights=path)
