"""Segmenters of torchvision, reproduced from their weights; tests/references/make_segmenters.py wrote the files."""

import json
import os
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from support import REFERENCES, assert_same_arrays, read_arrays

from keras_resnet import complexity, create, get_spec, list_models, save_weights

pytestmark = pytest.mark.portable
NARROW = REFERENCES / "segmenters"
INDEX = json.loads((NARROW / "index.json").read_text())
RELATIVE = 1e-5
FULL_RELATIVE = 1e-4


def narrow(name):
    """The segmenter of a reference; widths, classes and the auxiliary head follow from the file."""
    row = INDEX["segmenters"][name]
    backbone = replace(get_spec(row["variant"]).backbone, **row["backbone"])
    changes = {"rates": row["spec"]["rates"]} if "rates" in row["spec"] else {}
    return create(row["variant"], weights=NARROW / f"{name}.safetensors", backbone=backbone, **changes)


def assert_close(ours, theirs, relative=RELATIVE):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= relative * np.abs(theirs).max()


def outputs(model, images):
    """{name of a layer: its output}: logits, and those of the auxiliary head if there is one."""
    layers = [layer for layer in model.layers if layer.name in ("logits", "aux_logits")]
    twin = keras.Model(model.input, {layer.name: layer.output for layer in layers})
    return {name: keras.ops.convert_to_numpy(output) for name, output in twin(images.astype("float32")).items()}


def check_outputs(model, expected, relative):
    sizes = [name.removeprefix("x") for name in expected if name.startswith("x")]
    for size in sizes:
        found = outputs(model, expected[f"x{size}"])
        assert_close(found["logits"], expected[f"logits{size}"], relative)
        if f"aux{size}" in expected:
            assert_close(found["aux_logits"], expected[f"aux{size}"], relative)
    assert len(sizes) == 2 and ("aux_logits" in found) == any(name.startswith("aux") for name in expected)


@pytest.mark.parametrize("name", INDEX["segmenters"])
def test_narrow_segmenters_reproduce_the_logits(name):
    """Of images whose sides are multiples of 8, and of others."""
    check_outputs(narrow(name), dict(np.load(NARROW / f"{name}.npz")), RELATIVE)


@pytest.mark.parametrize("name", INDEX["segmenters"])
def test_the_spec_follows_from_the_file(name):
    row, spec = INDEX["segmenters"][name], narrow(name).spec
    changes = row["spec"] | {"classes": row["classes"]}
    expected = replace(get_spec(row["variant"]), backbone=spec.backbone, **changes)
    assert replace(expected, rates=tuple(expected.rates)) == spec
    assert all(
        getattr(spec.backbone, key) == (tuple(value) if isinstance(value, list) else value)
        for key, value in row["backbone"].items()
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", INDEX["segmenters"])
def test_saved_files_equal_those_of_torchvision(name, suffix, tmp_path):
    """The same names and values, with and without an auxiliary head."""
    save_weights(narrow(name), tmp_path / f"out{suffix}", layout="torchvision")
    assert_same_arrays(read_arrays(tmp_path / f"out{suffix}"), read_arrays(NARROW / f"{name}.safetensors"))


@pytest.mark.parametrize("name", INDEX["published"])
def test_parameters_and_multiply_adds_are_those_that_torchvision_states(name):
    """torchvision counts the auxiliary head, too: convolutions from 1024 to 256 channels, and to 21, on 65x65 maps."""
    stated, counted = INDEX["published"][name], complexity(get_spec(name))
    assert counted.parameters == stated["num_params"]
    auxiliary = 65**2 * (9 * 1024 * 256 + 256 * 21)
    assert (counted.multiply_adds + auxiliary) / 1e9 == pytest.approx(stated["giga_multiply_adds"], abs=0.0006)


FULL = [
    path
    for path in sorted(Path(os.environ.get("KERAS_RESNET_FULL_REFERENCES", "-")).glob("*.safetensors"))
    if path.stem in list_models(task="segmentation")
]


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="KERAS_RESNET_FULL_REFERENCES names no folder of `make_segmenters.py --full`")
@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_full_size_segmenters_equal_those_of_torchvision(path):
    """At 520x520 pixels, and at 97x131, no multiples of 8."""
    check_outputs(create(path.stem, weights=path), dict(np.load(path.with_suffix(".npz"))), FULL_RELATIVE)
