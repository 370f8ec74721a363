"""Necks and heads of detectors as rows of layers, from which they are built and counted."""

from dataclasses import dataclass, replace

import keras
from keras import layers, ops

from keras_resnet.architecture.layers import BatchNormalization, Conv2D, Convolution, DeferredInitializer, chain

NORMAL = {"class_name": "RandomNormal", "config": {"stddev": 0.01}}
LINEAR = {"class_name": "VarianceScaling", "config": {"scale": 1 / 3, "mode": "fan_in", "distribution": "uniform"}}
"""Initializers of the convolutions of the RPN and of RetinaNet, and of torch's dense layers."""
EPSILON = 1e-5
"""Epsilon of the normalisations, as in torch."""
NORMS = {
    "batch": lambda name: BatchNormalization(momentum=0.9, epsilon=EPSILON, name=f"{name}_bn"),
    "group": lambda name: layers.GroupNormalization(32, epsilon=EPSILON, name=f"{name}_gn"),
}
"""Normalisation -> its layer for a name."""


@dataclass(frozen=True)
class HeadLayer:
    """A convolution or dense layer of a neck or head as data, with what follows it."""

    name: str
    filters: int
    kernel_size: int = 1
    """Side of the kernel; 0 for a dense layer."""
    stride: int = 1
    norm: str | None = None
    """A name in NORMS; such convolutions have no bias."""
    activation: str | None = None
    initializer: str | dict = "he_normal"
    bias_initializer: str | keras.Initializer = "zeros"
    transposed: bool = False
    """Whether it is a transposed convolution, which enlarges the map by its stride."""
    dilation: int = 1

    @property
    def convolution(self) -> Convolution:
        """The layer as a Convolution, as `conv` and `complexity` take it; a dense layer is a 1x1 convolution."""
        return Convolution(self.filters, max(1, self.kernel_size), self.stride, self.dilation)

    @property
    def use_bias(self) -> bool:
        """Whether there is a bias: not before a normalisation."""
        return self.norm is None


def head_layer(row: HeadLayer):
    """A function of a tensor: x -> activation(norm(layer(x))), whose layers are made once and may be called often.

    Kernels are zeros until `restore_initializers` is called.
    """
    shared = {
        "use_bias": row.use_bias,
        "kernel_initializer": DeferredInitializer(row.initializer),
        "bias_initializer": row.bias_initializer,
        "name": row.name if row.norm is None else f"{row.name}_conv",
    }
    pad = None
    if row.kernel_size == 0:
        layer = layers.Dense(row.filters, **shared)
    elif row.transposed:
        layer = layers.Conv2DTranspose(row.filters, row.kernel_size, strides=row.stride, **shared)
    else:
        strided = row.stride > 1
        pad = layers.ZeroPadding2D(row.convolution.padding, name=f"{row.name}_pad") if strided else None
        padding = "valid" if strided else "same"
        arguments = {"strides": row.stride, "padding": padding, "dilation_rate": row.dilation}
        layer = Conv2D(row.filters, row.kernel_size, **arguments, **shared)
    norm = NORMS[row.norm](row.name) if row.norm else None
    activation = layers.Activation(row.activation, name=f"{row.name}_{row.activation}") if row.activation else None
    return chain(pad, layer, norm, activation)


def fpn_rows(spec):
    """(lateral 1x1, output 3x3) convolutions of each level of a feature pyramid (arXiv:1612.03144, fig. 3)."""
    shared = {"norm": spec.neck_norm, "initializer": "lecun_uniform"}
    return [
        (
            HeadLayer(f"fpn_inner{number}", spec.neck_width, 1, **shared),
            HeadLayer(f"fpn_layer{number}", spec.neck_width, 3, **shared),
        )
        for number in range(len(spec.levels))
    ]


def extra_rows(spec):
    """Strided convolutions for levels 6 and 7 (RetinaNet, arXiv:1708.02002, sec. 4)."""
    if spec.extra_levels not in ("c5", "p5"):
        return []
    return [HeadLayer(f"fpn_p{level}", spec.neck_width, 3, stride=2, initializer="lecun_uniform") for level in (6, 7)]


def rpn_rows(spec):
    """Convolutions of the region proposal network, then those of the objectness and of the offsets."""
    shared = {"initializer": NORMAL}
    return (
        [HeadLayer(f"rpn_conv{i}", spec.rpn_width, 3, activation="relu", **shared) for i in range(spec.rpn_convs)],
        HeadLayer("rpn_objectness", spec.num_anchors, **shared),
        HeadLayer("rpn_deltas", 4 * spec.num_anchors, **shared),
    )


def box_head_rows(spec):
    """Layers between a region's features and its prediction; none for the backbone's last stage."""
    dense = HeadLayer("box_fc6", spec.box_width, 0, activation="relu", initializer=LINEAR)
    convolution = HeadLayer("", spec.neck_width, 3, norm=spec.head_norm, activation="relu")
    return {
        "mlp": [dense, replace(dense, name="box_fc7")],
        "conv": [
            *(replace(convolution, name=f"box_conv{i}") for i in range(spec.head_convs)),
            replace(dense, name="box_fc_after_convs"),
        ],
        "stage4": [],
    }[spec.box_head]


def box_predictor_rows(spec):
    """The dense layers of the class scores and, for each class, the offsets."""
    scores = HeadLayer("box_scores", spec.classes, 0, initializer=LINEAR)
    return scores, replace(scores, name="box_deltas", filters=4 * spec.classes)


def mask_rows(spec):
    """Layers of the mask head: convolutions, upsampling by two, a mask for each class (arXiv:1703.06870, fig. 4)."""
    convolution = HeadLayer("", spec.mask_width, 3, norm=spec.head_norm, activation="relu")
    return [
        *(replace(convolution, name=f"mask_conv{i}") for i in range(spec.mask_convs)),
        replace(convolution, name="mask_deconv", kernel_size=2, stride=2, norm=None, transposed=True),
        HeadLayer("mask_logits", spec.classes),
    ]


def dense_rows(spec):
    """{"classes": rows, "boxes": rows} of RetinaNet's heads; the last row predicts (arXiv:1708.02002, fig. 3)."""
    convolution = HeadLayer("", spec.neck_width, 3, norm=spec.head_norm, activation="relu", initializer=NORMAL)
    predictor = HeadLayer("", 0, 3, initializer=NORMAL)
    prior = keras.initializers.Constant(-4.59511985013459)  # log(0.01 / 0.99): a probability of 0.01
    last = {
        "classes": replace(
            predictor, name="dense_scores", filters=spec.num_anchors * spec.classes, bias_initializer=prior
        ),
        "boxes": replace(predictor, name="dense_deltas", filters=4 * spec.num_anchors),
    }
    return {
        kind: [*(replace(convolution, name=f"dense_{kind}{i}") for i in range(spec.head_convs)), row]
        for kind, row in last.items()
    }


@keras.saving.register_keras_serializable("keras_resnet")
class AddUpsampled(layers.Layer):
    """large + small enlarged by two: every pixel of the small map is added to the four that it covers.

    If a side of the large map is odd, the last row or column of the enlarged map is cut off, as by torch's
    `interpolate(mode="nearest")`.
    """

    def call(self, large, small):
        height, width = ops.shape(large)[1:3]
        enlarged = ops.repeat(ops.repeat(small, 2, axis=1), 2, axis=2)
        return large + enlarged[:, :height, :width]

    def compute_output_shape(self, large_shape, small_shape):
        return large_shape


def feature_pyramid(maps, spec):
    """Feature maps of the backbone -> maps of `neck_width` channels for each level (arXiv:1612.03144, fig. 3)."""
    rows = fpn_rows(spec)
    inner = [head_layer(row)(level) for (row, _), level in zip(rows, maps, strict=True)]
    for number in range(len(inner) - 2, -1, -1):
        inner[number] = AddUpsampled(name=f"fpn_add{number}")(inner[number], inner[number + 1])
    outputs = [head_layer(row)(level) for (_, row), level in zip(rows, inner, strict=True)]
    return [*outputs, *_extra_levels(maps[-1], outputs[-1], spec)]


def _extra_levels(c5, p5, spec):
    if spec.extra_levels == "pool":
        return [layers.MaxPooling2D(1, 2, name="fpn_pool")(p5)]
    if spec.extra_levels is None:
        return []
    p6, p7 = (head_layer(row) for row in extra_rows(spec))
    sixth = p6(c5 if spec.extra_levels == "c5" else p5)
    return [sixth, p7(layers.Activation("relu", name="fpn_p6_relu")(sixth))]


NECKS = {"fpn": feature_pyramid, "c4": lambda maps, spec: maps, "dc5": lambda maps, spec: maps}
"""Neck -> function of the backbone's maps and the spec that returns the maps for the heads."""
