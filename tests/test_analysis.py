"""Costs, receptive fields, AlexNet and plots, against closed forms, published numbers and impulse responses."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from support import random_images

from keras_resnet import analysis, build, complexity, create, endpoints, get_spec
from keras_resnet.analysis.alexnet import LocalResponseNormalization
from keras_resnet.analysis.features import mosaic

FAMILIES = {
    "resnet18_a": {},
    "resnet50": {"output_stride": 8},
    "resnet50v2": {},
    "resnext50_32x4d": {},
    "seresnet50": {},
    "resnetrs50": {},
    "plain20": {},
    "wrn28_10_cifar": {"widths": (16, 32, 64)},
}
PAPER = {  # He et al. 2015, table 1 and sec. 3.3: depth, multiply-adds in units of 1e9
    "VGG-19": (19, 19.6),
    "plain-18": (18, 1.8),
    "plain-34": (34, 3.6),
    "ResNet-18": (18, 1.8),
    "ResNet-34": (34, 3.6),
    "ResNet-50": (50, 3.8),
    "ResNet-101": (101, 7.6),
    "ResNet-152": (152, 11.3),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_layer_costs_add_up_to_the_closed_form(name):
    spec = replace(get_spec(name), **FAMILIES[name])
    model = build(spec, classes=7, input_shape=(39, 50, 3), initialize=False)
    found = analysis.total_cost(analysis.layer_costs(model))
    assert found == complexity(spec, classes=7, input_shape=(39, 50, 3))
    assert found.parameters + found.statistics == model.count_params()


def test_unknown_input_sizes_are_taken_from_the_argument():
    spec = get_spec("resnet18")
    model = build(spec, include_top=False, initialize=False)
    costs = analysis.layer_costs(model, (64, 96, 3))
    assert analysis.total_cost(costs) == complexity(spec, include_top=False, input_shape=(64, 96, 3))
    assert costs[-1].output_shape == (2, 3, 512)
    for shape in (None, (None, 64, 3), (64, 64, 1), (64, 64), 64):
        with pytest.raises(ValueError, match=r"`input_shape` should be .* Received: input_shape="):
            analysis.layer_costs(model, shape)


LINEAR = {  # without padding, so that every kernel element is multiplied by an input at every position
    "1d": (keras.layers.Conv1D(3, 3, strides=2), (9, 2)),
    "strided": (keras.layers.Conv2D(3, (3, 2), strides=2), (7, 6, 2)),
    "dilated": (keras.layers.Conv2D(3, 3, dilation_rate=2), (7, 6, 2)),
    "grouped": (keras.layers.Conv2D(6, 3, groups=2), (5, 6, 4)),
    "3d": (keras.layers.Conv3D(2, 2), (4, 3, 3, 2)),
    "depthwise": (keras.layers.DepthwiseConv2D(3, depth_multiplier=2), (5, 6, 3)),
    "transposed": (keras.layers.Conv2DTranspose(3, 3, strides=2), (3, 4, 2)),
    "dense": (keras.layers.Dense(5), (7,)),
    "dense at every pixel": (keras.layers.Dense(5), (3, 2, 4)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_multiply_adds_are_the_nonzero_elements_of_the_matrix_of_a_layer(name):
    """A linear layer is a product with a matrix: each nonzero element of the matrix is multiplied and added once."""
    layer, shape = LINEAR[name]
    model = keras.Sequential([keras.layers.Input(shape), layer])
    for weight in layer.weights:
        weight.assign(np.full(weight.shape, 0.0 if weight.name == "bias" else 1.0))
    basis = np.eye(np.prod(shape), dtype="float32").reshape(-1, *shape)
    nonzero = np.count_nonzero(keras.ops.convert_to_numpy(model(basis)))
    assert analysis.total_cost(analysis.layer_costs(model)).multiply_adds == nonzero


def test_a_separable_convolution_costs_as_much_as_its_two_convolutions():
    layers = keras.layers
    separate = [layers.DepthwiseConv2D(3, strides=2, use_bias=False), layers.Conv2D(5, 1)]
    whole, parts = (
        analysis.total_cost(analysis.layer_costs(keras.Sequential([layers.Input((9, 8, 4)), *row])))
        for row in ([layers.SeparableConv2D(5, 3, strides=2)], separate)
    )
    assert whole == parts


@pytest.mark.parametrize("kind", ["sequential", "functional"])
def test_the_layers_of_inner_models_are_counted(kind):
    inner = keras.Sequential([keras.layers.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="c")], name="inner")
    inner = keras.Model(inner.inputs, inner.outputs[0], name="inner") if kind == "functional" else inner
    outer = keras.Sequential([keras.layers.Input((8, 8, 3)), inner, keras.layers.Flatten(), keras.layers.Dense(2)])
    costs = analysis.layer_costs(outer)
    assert costs[0].name == "inner/c" and costs[0].multiply_adds == 36 * 27 * 4 and costs[0].parameters == 112
    assert analysis.total_cost(costs).parameters == outer.count_params()


def test_mobilenet_has_its_published_cost():
    """Sandler et al. 2018, arXiv:1801.04381, table 4: 3.4 M parameters, 300 M multiply-adds."""
    cost = analysis.total_cost(analysis.layer_costs(keras.applications.MobileNetV2(weights=None)))
    assert cost.parameters == 3_504_872  # torchvision's
    assert cost.multiply_adds / 1e6 == pytest.approx(300, abs=1)


def test_frozen_layers_cost_the_same():
    model = create("resnet20")
    before = analysis.layer_costs(model)
    model.trainable = False
    assert analysis.layer_costs(model) == before


def test_network_costs_are_those_of_the_paper():
    rows = {row.name: row for row in analysis.network_costs()}
    alexnet, vgg16, vgg19 = (rows[name] for name in ("AlexNet", "VGG-16", "VGG-19"))
    assert (alexnet.depth, alexnet.parameters, alexnet.multiply_adds) == (8, 60_965_224, 724_406_816)  # Caffe's
    assert (vgg16.depth, vgg16.parameters, vgg16.multiply_adds) == (16, 138_357_544, 15_470_264_320)  # torchvision's
    assert (vgg19.parameters, vgg19.multiply_adds) == (143_667_240, 19_632_062_464)
    for name, (depth, giga) in PAPER.items():
        assert rows[name].depth == depth and rows[name].multiply_adds / 1e9 == pytest.approx(giga, abs=0.06)
    assert rows["ResNet-34"].fraction_of_vgg19 == pytest.approx(0.18, abs=0.01)  # sec. 3.3: "only 18% of VGG-19"


def test_models_without_a_graph_are_refused():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    for model in (Subclassed(), keras.Sequential([keras.layers.Dense(2)]), None):
        with pytest.raises(ValueError, match="`model` should be a built Functional or Sequential model"):
            analysis.layer_costs(model)


def test_alexnet_predicts_and_can_be_saved(tmp_path):
    model = analysis.alexnet(classes=5, input_shape=(67, 70, 3))
    inputs = random_images(2, 67, 70, 3)
    scores = model.predict(inputs, verbose=0)
    assert scores.shape == (2, 5) and np.allclose(scores.sum(axis=1), 1)
    assert model.get_layer("conv2").bias.numpy().all() and not model.get_layer("conv1").bias.numpy().any()
    model.save(tmp_path / "alexnet.keras")
    assert np.array_equal(keras.models.load_model(tmp_path / "alexnet.keras").predict(inputs, verbose=0), scores)
    for shape in ((66, 224, 3), (227, 227), (None, None, 3)):
        with pytest.raises(ValueError, match="`input_shape` should be"):
            analysis.alexnet(input_shape=shape)


def test_local_response_normalization_is_that_of_tensorflow():
    tf = pytest.importorskip("tensorflow")
    inputs = 30 * random_images(2, 3, 4, 9)
    expected = tf.nn.local_response_normalization(inputs, depth_radius=2, bias=2, alpha=1e-4, beta=0.75)
    np.testing.assert_allclose(LocalResponseNormalization()(inputs), expected, rtol=1e-5)


SMALL = get_spec("resnet18").__class__("basic", depths=(1, 2, 1), widths=(4, 4, 4), stem_width=4, shortcut="A")
NECK = replace(SMALL, block="bottleneck", shortcut="B")
SPECS = {
    "basic": SMALL,
    "plain": replace(SMALL, shortcut=None),
    "bottleneck, stride on 1x1": replace(NECK, stride_on="1x1"),
    "bottleneck, stride on 3x3": NECK,
    "V2": replace(NECK, preactivation=True, downsample_at="last", explicit_padding=True),
    "V2 of timm": replace(NECK, preactivation=True, stem="imagenet_torch"),
    "D": replace(NECK, stem="deep", shortcut="pooled"),
    "D, 1x1": replace(NECK, stem="deep", shortcut="pooled", stride_on="1x1"),
    "RS": replace(NECK, stem="deep_conv", shortcut="pooled", se_ratio=0.25),
    "dilated": replace(SMALL, output_stride=8),
    "dilated twice, D": replace(NECK, output_stride=4, shortcut="pooled"),
    "dilated V2": replace(NECK, preactivation=True, downsample_at="last", output_stride=4),
    "dilated, 1x1": replace(NECK, output_stride=4, stride_on="1x1"),
    "CIFAR": replace(SMALL, stem="cifar"),
    "side by side": replace(SMALL, merge="concat", shortcut="B"),
}


def _dependence_on_columns(spec, width):
    """{endpoint: (pixels, columns) bool}: whether a pixel of the middle row depends on a column of the image.

    All kernels are positive, so that nothing cancels, and each input is zero except for one column.
    """
    inputs = keras.layers.Input((32, width, 1))
    model = keras.Model(inputs, endpoints(spec, inputs))
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            shape = layer.kernel.shape
            layer.kernel.assign(generator.uniform(0.5, 1.5, shape) / np.prod(shape[:-1]))
    columns = np.broadcast_to(np.eye(width, dtype="float32")[:, None, :, None], (width, 32, width, 1))
    maps = model.predict(columns, batch_size=32, verbose=0)
    return {name: (values[:, values.shape[1] // 2].max(axis=-1) > 0).T for name, values in maps.items()}


@pytest.mark.parametrize("name", SPECS)
def test_receptive_fields_are_the_columns_that_a_pixel_depends_on(name):
    fields = analysis.receptive_fields(SPECS[name])
    width = 32 * (fields["stage3"].size // 32 + 3)
    for endpoint, depends in _dependence_on_columns(SPECS[name], width).items():
        middle = len(depends) // 2
        first, following = (np.flatnonzero(depends[i]) for i in (middle, middle + 1))
        assert fields[endpoint].size == first[-1] - first[0] + 1
        assert fields[endpoint].stride == following[0] - first[0]


@pytest.mark.parametrize(("name", "size"), [("resnet50", 483), ("resnet101", 1027), ("resnet152", 1507)])
def test_receptive_fields_are_the_published_ones(name, size):
    """Araujo, Norris and Sim 2019, distill.pub/2019/computing-receptive-fields; strides on the first 1x1."""
    assert analysis.receptive_fields(get_spec(name))["stage4"] == analysis.ReceptiveField(size, stride=32)


def test_receptive_fields_need_a_spec():
    with pytest.raises(ValueError, match="`spec` should be a ResNetSpec"):
        analysis.receptive_fields("resnet50")


def test_a_mosaic_contains_every_tile():
    tiles = np.random.default_rng(0).uniform(size=(5, 4, 3, 2))
    sheet = mosaic(tiles)
    assert sheet.shape == (2 * 4 + 1, 3 * 3 + 2, 2)
    np.testing.assert_array_equal(sheet[5:9, 4:7], tiles[4].astype("float32"))
    assert (sheet[4] == 1).all() and (sheet[5:, 8:] == 1).all()


NETWORKS = {"plain": {"a": 1.0, "b": 3.0}, "residual": {"a": 2.0, "b": 0.5}}
PLOTS = {
    "layer costs": lambda path: analysis.plot_layer_costs(analysis.layer_costs(create("resnet20")), path, "ResNet-20"),
    "network costs": lambda path: analysis.plot_network_costs([analysis.NetworkCost("net", 3, 10, 100, 1.0)], path),
    "receptive fields": lambda path: analysis.plot_receptive_fields(analysis.receptive_fields(SMALL), path),
    "responses": lambda path: analysis.plot_responses(NETWORKS, path),
    "signals": lambda path: analysis.plot_signals(NETWORKS, path),
    "filters": lambda path: analysis.plot_filters(np.linspace(0, 1, 144).reshape(4, 3, 3, 4), path),
    "feature maps": lambda path: analysis.plot_feature_maps(np.arange(64).reshape(8, 8, 1), path),
    "Grad-CAM": lambda path: analysis.plot_grad_cam(np.zeros((3, 9, 8, 3)), np.ones((3, 4, 4)), path, "abc"),
}


@pytest.mark.parametrize("name", PLOTS)
def test_plots_are_written_as_png(name, tmp_path):
    from PIL import Image

    PLOTS[name](tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.format == "PNG" and len(image.convert("RGB").getcolors(1 << 24)) > 2
    with pytest.raises(FileNotFoundError, match="The folder of `path` should exist"):
        PLOTS[name](tmp_path / "nowhere" / "plot.png")


def test_plots_of_invalid_values_are_refused(tmp_path):
    path = tmp_path / "plot.png"
    for plot, value in (
        (analysis.plot_layer_costs, []),
        (analysis.plot_responses, {}),
        (analysis.plot_signals, {"net": {}}),
        (analysis.plot_feature_maps, np.zeros((2, 4, 4, 3))),
    ):
        with pytest.raises(ValueError, match="should"):
            plot(value, path)
    with pytest.raises(ValueError, match="the same length"):
        analysis.plot_grad_cam(np.zeros((2, 4, 4, 3)), np.zeros((3, 4, 4)), path)
    assert not path.exists()
