"""Metadata of others: specs, facts about weights and configs with random mutations are accepted or a ValueError."""

import copy
import json

import numpy as np
import pytest
import tensorflow as tf
import typer
from hypothesis import given
from hypothesis import strategies as st
from support import read_arrays

from keras_resnet import Preprocessing, ResNetSpec, build, create, get_spec, load_model, load_weights, save_weights
from keras_resnet.architecture.metadata import checked_metadata
from keras_resnet.architecture.spec import MAX_BLOCKS, read_spec, write_spec
from keras_resnet.cli.app import error_messages
from keras_resnet.normalization import Normalization
from keras_resnet.weights.file_formats import write_arrays
from keras_resnet.weights.weights_file import METADATA_KEY

SMALL = ResNetSpec("basic", (1, 1), (4, 8), stem="cifar", stem_width=4)
PREPROCESSING = Preprocessing(Normalization(mean=(0.5, 0.4, 0.3)), size=32, resize=None)
INFO = {"preprocessing": PREPROCESSING.to_config(), "class_names": ["ant", "bee"], "multi_label": False}
METADATA = {"spec": SMALL.to_config(), "info": INFO}
TIMM = Preprocessing("torch").to_timm()

numbers = st.integers() | st.floats() | st.sampled_from([-1, 0, 2**31, 10**30, 10**400, 3_000_000, 1e300, 5e-324])
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(), parts, max_size=4),
    max_leaves=6,
)


@st.composite
def mutations(draw, original):
    """A copy of JSON values in which up to three values, at any depth, are replaced, removed or added."""
    mutated = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        container = mutated
        while True:
            keys = list(container) if isinstance(container, dict) else list(range(len(container)))
            key = draw(st.sampled_from(keys)) if keys else None
            inner = container[key] if keys else None
            if not (inner and isinstance(inner, (dict, list)) and draw(st.booleans())):
                break
            container = inner
        action = draw(st.sampled_from(["replace", "replace", "remove", "add"])) if keys else "add"
        if action == "replace":
            container[key] = draw(values)
        elif action == "remove":
            del container[key]
        elif isinstance(container, dict):
            container[draw(st.text())] = draw(values)
        else:
            container.append(draw(values))
    return mutated


def accepted(read, mutated):
    """What `read` returns, or None after a ValueError with a message of bounded length."""
    try:
        return read(mutated)
    except ValueError as error:
        assert len(str(error)) < 2000
        return None


@given(mutations(METADATA))
def test_mutated_metadata_are_valid_or_a_value_error(mutated):
    found = accepted(checked_metadata, mutated)
    if found and found.spec:
        assert sum(found.spec.depths) <= MAX_BLOCKS and all(type(width) is int for width in found.spec.widths)
        assert ResNetSpec(**json.loads(json.dumps(found.spec.to_config()))) == found.spec
    if found and found.info.get("class_names"):
        assert all(isinstance(name, str) for name in found.info["class_names"])


@given(mutations(PREPROCESSING.to_config()))
def test_a_mutated_preprocessing_prepares_images_or_is_a_value_error(mutated):
    found = accepted(Preprocessing.from_config, mutated)
    if found and found.size <= 512 and (found.resize or 1) <= 512:
        pixels = found(np.zeros((4, 5, 3), "uint8"))
        assert pixels.shape == (1, found.size, found.size, found.channels)


@given(mutations(TIMM))
def test_a_mutated_config_of_timm_is_a_preprocessing_or_a_value_error(mutated):
    found = accepted(Preprocessing.from_timm, mutated)
    assert found is None or 1 <= found.size <= 8192


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"spec": SMALL.to_config() | {"depths": [3_000_000, 1]}}, "depths"),
        ({"spec": {name: value for name, value in METADATA["spec"].items() if name != "block"}}, "block"),
        ({"spec": SMALL.to_config() | {"kernel_initializer": {"class_name": "Constant", "config": {}}}}, "initializer"),
        ({"info": {"preprocessing": 5}}, "preprocessing"),
        ({"info": {"preprocessing": {"mode": 5}}}, "mode"),
        ({"info": INFO | {"class_names": [0, 1]}}, "class_names"),
        ({"info": INFO | {"thresholds": "high"}}, "thresholds"),
        ({"info": [1]}, "info"),
    ],
)
def test_files_with_damaged_metadata_are_one_message_and_leave_the_model_as_it_was(changes, field, tmp_path):
    model = build(SMALL, classes=2)
    path, damaged = tmp_path / "weights.safetensors", tmp_path / "damaged.safetensors"
    save_weights(model, path)
    before = [weight + 1 for weight in model.get_weights()]
    model.set_weights(before)
    for metadata in (json.dumps(METADATA | changes), "[" * 100_000, json.dumps(METADATA | changes)[:-3]):
        write_arrays(read_arrays(path), damaged, metadata={METADATA_KEY: metadata})
        with pytest.raises(ValueError) as error:
            load_weights(model, damaged)
        assert field in str(error.value) or metadata[-1] != "}"
    for found, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("info", [{"preprocessing": 5}, {"class_names": [0, 1]}, {"multi_label": "yes"}])
def test_models_with_damaged_facts_are_refused(info, tmp_path):
    model = build(SMALL, classes=2)
    model.info = info
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=next(iter(info))):
        load_model(tmp_path / "model.keras")


@pytest.mark.parametrize(
    ("build_network", "message"),
    [
        (lambda: build(ResNetSpec("basic", (3, 3), (40_000, 40_000))), "2,147,483,648 parameters"),
        (lambda: create("resnet20", classes=10**9), "classes"),
        (lambda: create("resnet20", input_shape=(10**9, 32, 3)), "input_shape"),
        (lambda: create("resnet20", input_shape=(32, 32, 10**9)), "input_shape"),
        (lambda: create("resnet50", depths=(MAX_BLOCKS, 1, 1, 1)), "blocks"),
        (lambda: create("resnet50", group_width=2**16, groups=2**16), "parameters"),
    ],
)
def test_networks_beyond_the_limits_are_refused_before_a_layer_is_made(build_network, message):
    with pytest.raises(ValueError, match=message):
        build_network()


def test_networks_far_deeper_and_wider_than_published_ones_are_within_the_limits():
    assert ResNetSpec("basic", (600, 600, 600), (16, 32, 64), stem="cifar", stem_width=16).depth == 3602
    assert ResNetSpec(widths=(1024, 2048, 4096, 8192)).widths[-1] == 8192


def test_numpy_integers_are_taken():
    spec = ResNetSpec("basic", tuple(np.array([1, 1])), np.array([4, 8]).tolist(), stem="cifar", stem_width=np.int64(4))
    assert spec == SMALL and json.dumps(spec.to_config())
    assert build(spec, classes=np.int64(3)).output_shape == (None, 3)


def test_a_spec_file_names_the_field_and_the_file(tmp_path):
    path = tmp_path / "spec.json"
    write_spec(get_spec("resnet20"), path)
    assert read_spec(path) == get_spec("resnet20")
    path.write_text(path.read_text().replace('"he_normal"', '{"class_name": "Constant", "config": {"value": "x"}}'))
    with pytest.raises(ValueError, match=r"kernel_initializer.*spec\.json"):
        read_spec(path)
    path.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ValueError, match="100 levels"):
        read_spec(path)


@pytest.mark.parametrize("name", ["Constant", "Initializer", "Identity", "STFT", "keras_resnet>ResNet"])
def test_initializers_that_cannot_make_a_kernel_are_refused(name):
    with pytest.raises(ValueError, match="kernel_initializer"):
        ResNetSpec(kernel_initializer=name)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating\n[[node]]"), "not enough memory (OOM when"),
        (tf.errors.InvalidArgumentError(None, None, "filter is empty\n[[node]]"), "filter is empty"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_errors_of_libraries_are_one_line_on_the_command_line(error, message, capsys):
    with pytest.raises(typer.Exit) as ended, error_messages():
        raise error
    printed = capsys.readouterr().err
    assert ended.value.exit_code == 1 and message in printed and printed.count("\n") == 1
