"""Networks of every variant and of random specs: building, training, saving, and properties of their outputs."""

import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import narrow, narrow_variants, random_images, randomize_weights

from keras_resnet import ResNet, ResNetSpec, build, endpoints, get_spec


def predict(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False))


@pytest.mark.parametrize("eager", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", narrow_variants().values())
def test_every_variant_builds_trains_one_step_and_round_trips(name, eager, tmp_path):
    spec = narrow(get_spec(name))
    model = build(spec, classes=5, input_shape=(32, 40, 3), name=name)
    x, y = random_images(4, 32, 40, 3), np.array([0, 1, 2, 3])
    before = [np.array(weight) for weight in model.weights]
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=eager)
    model.fit(x, y, verbose=0)
    assert all(np.isfinite(weight).all() for weight in model.weights)
    assert sum(not np.array_equal(old, new) for old, new in zip(before, model.weights, strict=True)) > 0.8 * len(before)

    randomize_weights(model).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert (
        isinstance(loaded, ResNet)
        and loaded.spec == model.spec
        and loaded.spec == replace(spec, data_format="channels_last")
    )
    np.testing.assert_array_equal(predict(loaded, x), predict(model, x))


@st.composite
def specs(draw):
    """Valid specs of small networks."""
    stages = draw(st.integers(1, 4))
    block = draw(st.sampled_from(["basic", "bottleneck"]))
    shortcut = draw(st.sampled_from(["A", "B", "C", "pooled", None]))
    stem = draw(st.sampled_from(["imagenet", "imagenet_torch", "deep", "deep_conv", "cifar"]))
    widths = st.lists(st.sampled_from([4, 8, 12, 16]), min_size=stages, max_size=stages)
    widths = tuple(sorted(draw(widths)) if shortcut == "A" else draw(widths))
    grouped = block == "bottleneck" and draw(st.booleans())
    return ResNetSpec(
        block=block,
        depths=tuple(draw(st.lists(st.integers(1, 2), min_size=stages, max_size=stages))),
        widths=widths,
        stem=stem,
        stem_width=draw(st.sampled_from([2, 4])),
        shortcut=shortcut,
        preactivation=draw(st.booleans()),
        stride_on=draw(st.sampled_from(["1x1", "3x3"])),
        downsample_at=draw(st.sampled_from(["first", "last"])),
        groups=2 if grouped else 1,
        group_width=48 if grouped else 64,
        se_ratio=draw(st.sampled_from([0.0, 0.25])),
        conv_bias=draw(st.booleans()),
        zero_init_residual=draw(st.booleans()),
        drop_path=draw(st.sampled_from([0.0, 0.3])),
        dropout=draw(st.sampled_from([0.0, 0.3])),
        block_dropout=draw(st.sampled_from([0.0, 0.3])),
        merge="add" if shortcut is None else draw(st.sampled_from(["add", "concat"])),
        output_stride=draw(st.sampled_from([4, 8, 16, 32])),
        explicit_padding=draw(st.booleans()),
    )


def check_random_spec(spec, size, channels, known, tmp_path_factory):
    """Channels, strides, probabilities and saving are as the spec says."""
    shape = (*(size if known else (None, None)), channels)
    model = build(spec, classes=3, input_shape=shape)
    _, *stages = endpoints(spec, keras.Input((*size, channels))).values()
    assert [maps.shape[-1] for maps in stages] == [blocks[-1].out_channels for blocks in spec.stages]
    assert stages[-1].shape[1:3] == tuple(-(-side // spec.stride) for side in size)
    assert spec.stride <= spec.output_stride

    x = random_images(2, *size, channels)
    answer = predict(randomize_weights(model), x)
    assert answer.shape == (2, 3)
    np.testing.assert_allclose(answer.sum(axis=1), 1, rtol=1e-4)
    path = tmp_path_factory.mktemp("specs") / "model.keras"
    model.save(path)
    np.testing.assert_array_equal(predict(keras.saving.load_model(path), x), answer)


SIZES = st.tuples(st.integers(32, 50), st.integers(32, 50))
given_random_spec = given(spec=specs(), size=SIZES, channels=st.integers(1, 5), known=st.booleans())


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given_random_spec
def test_random_specs_build_what_they_say(spec, size, channels, known, tmp_path_factory):
    check_random_spec(spec, size, channels, known, tmp_path_factory)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given_random_spec
def test_many_random_specs_build_what_they_say(spec, size, channels, known, tmp_path_factory):
    check_random_spec(spec, size, channels, known, tmp_path_factory)


DENSE = ["resnet18", "resnet50", "resnet50_v1_5", "resnet50v2", "resnetv2_50"]


@pytest.mark.parametrize(  # a dilated pooled shortcut counts zeros at odd borders, as timm's does: 64 only
    ("name", "size"), [(name, size) for name in DENSE for size in ((64, 64), (97, 65))] + [("resnet50d", (64, 64))]
)
def test_a_dilated_network_is_the_dense_form_of_the_strided_one(name, size):
    """At output stride 16, every other pixel of the last maps is a pixel of the strided network's."""
    spec = narrow(get_spec(name))
    strided, dense = (
        build(replace(spec, output_stride=stride), include_top=False, input_shape=(*size, 3)) for stride in (32, 16)
    )
    dense.set_weights(randomize_weights(strided).get_weights())
    x = random_images(1, *size, 3)
    np.testing.assert_allclose(predict(dense, x)[:, ::2, ::2], predict(strided, x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", ["resnet50", "resnet50v2", "resnext50_32x4d"])
def test_output_stride_is_the_resolution_of_the_last_maps(name, output_stride):
    model = build(replace(narrow(get_spec(name)), output_stride=output_stride), False, input_shape=(64, 96, 3))
    assert model.output_shape[1:3] == (64 // output_stride, 96 // output_stride)


def test_zero_init_makes_every_block_the_identity():
    for name in ("resnet50", "resnet18", "resnet50v2"):
        spec = replace(narrow(get_spec(name)), zero_init_residual=True)
        model = build(spec, include_top=False, input_shape=(32, 32, 3))
        last, first = (model.get_layer(f"conv5_block{i}_out").output for i in (2, 1))
        probe = keras.Model(model.input, [first, last])
        first, last = (keras.ops.convert_to_numpy(y) for y in probe(random_images(2, 32, 32, 3)))
        if name != "resnet50v2":
            np.testing.assert_allclose(np.maximum(first, 0), last, atol=1e-6)
        else:
            np.testing.assert_array_equal(first, last)


def test_shortcut_a_subsamples_and_pads_with_zeros():
    spec = replace(get_spec("resnet20"), depths=(1, 1, 1))
    model = randomize_weights(build(spec, classes=10))
    block = model.get_layer("conv3_block1_add")
    around = keras.Model(model.input, [block.input[0], model.get_layer("conv2_block1_out").output])
    shortcut, x = (keras.ops.convert_to_numpy(y) for y in around(random_images(2, 32, 32, 3)))
    np.testing.assert_array_equal(shortcut[..., 8:24], x[:, ::2, ::2])
    assert not shortcut[..., :8].any() and not shortcut[..., 24:].any()


def test_he_initialisation():
    """Standard deviation sqrt(2 / fan_in) for every kernel large enough to tell (He et al. 2015, arXiv:1502.01852)."""
    for layer in build(get_spec("resnext50_32x4d"), input_shape=(32, 32, 3)).layers:
        kernel = getattr(layer, "kernel", None)
        if kernel is not None and np.prod(kernel.shape) > 1e5:
            assert np.std(kernel) == pytest.approx((2 / np.prod(kernel.shape[:-1])) ** 0.5, rel=0.02)


def test_without_initialization_kernels_are_zero_and_clones_are_initialized():
    model = build(get_spec("resnet20"), classes=10, initialize=False)
    kernels = [layer for layer in model.layers if hasattr(layer, "kernel")]
    assert all(not np.any(layer.kernel) for layer in kernels)
    clone = keras.models.clone_model(model)
    assert all(np.any(clone.get_layer(layer.name).kernel) for layer in kernels)


def test_drop_path_drops_whole_images():
    spec = replace(get_spec("resnet20"), drop_path=0.5)
    layer = build(spec, classes=10).get_layer("conv4_block3_drop_path")
    y = keras.ops.convert_to_numpy(layer(np.ones((200, 4, 4, 3), "float32"), training=True)).reshape(200, -1)
    assert set(np.unique(y)) == {0.0, 2.0} and (y == y[:, :1]).all() and 60 < (y[:, 0] == 0).sum() < 140


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet50",
        "resnet50d",
        "seresnet50",
        "resnet50v2",
        pytest.param("resnet20", marks=pytest.mark.portable),
    ],
)
def test_channels_first_computes_the_same(name):
    spec = narrow(get_spec(name))
    last = randomize_weights(build(spec, classes=4, input_shape=(33, 40, 3)))
    first = build(replace(spec, data_format="channels_first"), classes=4, input_shape=(3, 33, 40))
    first.set_weights(last.get_weights())
    x = random_images(2, 33, 40, 3)
    np.testing.assert_allclose(predict(first, np.moveaxis(x, -1, 1)), predict(last, x), rtol=1e-4, atol=1e-5)


def test_mixed_precision_computes_in_bfloat16_and_outputs_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = build(narrow(get_spec("resnet50")), classes=4, input_shape=(32, 32, 3))
    assert model.get_layer("conv5_block1_out").output.dtype == "bfloat16"
    assert model.output.dtype == "float32"
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(random_images(4, 32, 32, 3), np.arange(4), verbose=0)
    assert all(np.isfinite(weight).all() for weight in model.weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (32, 32)}, "three integers"),
        ({"input_shape": 224}, "three integers"),
        ({"input_shape": ("64", 64, 3)}, "three integers"),
        ({"input_shape": (32, 32, None)}, "channels"),
        ({"input_shape": (31, 32, 3)}, "at least 32x32"),
        ({"input_shape": (32, 32, 0)}, "channels"),
        ({"pooling": "mean"}, "pooling"),
        ({"classes": 0}, "classes"),
        ({"classes": True}, "classes"),
    ],
)
def test_invalid_arguments_raise_value_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(get_spec("resnet18"), **arguments)


def test_a_model_for_images_of_any_size():
    model = randomize_weights(build(get_spec("resnet20"), classes=10, input_shape=(None, None, 3)))
    fixed = build(get_spec("resnet20"), classes=10, input_shape=(48, 33, 3))
    fixed.set_weights(model.get_weights())
    x = random_images(1, 48, 33, 3)
    np.testing.assert_allclose(predict(model, x), predict(fixed, x), rtol=1e-5)


def test_the_first_activation_of_a_preactivation_network_precedes_both_paths():
    """He et al. 2016, appendix: the identity of the first block reads relu(bn(x)), later ones read x."""
    model = build(get_spec("preact_resnet110"))
    sources = [model.get_layer(f"conv2_block{i}_out").input[0] for i in (1, 2)]
    assert sources[0] is model.get_layer("conv2_block1_preact_relu").output
    assert sources[1] is model.get_layer("conv2_block1_out").output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet1202", "preact_resnet1001"])
def test_the_deepest_networks_save_load_and_clone(name, tmp_path):
    """In a new process, whose recursion limit has not been raised."""
    model = randomize_weights(build(get_spec(name), input_shape=(8, 8, 3)))
    model.save(tmp_path / "deep.keras")
    script = (
        "import sys, keras, keras_resnet; m = keras.saving.load_model(sys.argv[1]); keras.models.clone_model(m);"
        "print(keras.Model(m.input, m.get_layer('conv4_block1_out').output).output_shape, m.spec.depth)"
    )
    path = str(tmp_path / "deep.keras")
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == str(get_spec(name).depth)
