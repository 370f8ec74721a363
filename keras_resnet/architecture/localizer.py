"""`with_box_head`: a classifier with a box head on its last stage; `build_localizer`: a LocalizerSpec as a model."""

from dataclasses import replace
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from keras_resnet.architecture.boxes import decode_boxes, gather_rows, top_scores
from keras_resnet.architecture.complexity import complexity
from keras_resnet.architecture.detection_layers import Parameterless
from keras_resnet.architecture.heads import LINEAR, NORMAL, HeadLayer, head_layer
from keras_resnet.architecture.layers import chain, restore_initializers
from keras_resnet.architecture.localizer_spec import LocalizerSpec
from keras_resnet.architecture.metadata import model_info
from keras_resnet.architecture.network import ResNet, build, check_parameters
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.errors import value_error


@keras.saving.register_keras_serializable("keras_resnet")
class Localizer(ResNet):
    """A Functional model of a LocalizerSpec: images in, classes and boxes out.

    >>> import keras_resnet, numpy as np
    >>> model = keras_resnet.create("localizer_resnet18_per_class", classes=5, input_shape=(64, 64, 3))
    >>> outputs = model.predict(np.zeros((2, 64, 64, 3)), verbose=0)
    >>> {name: values.shape for name, values in outputs.items()}
    {'probabilities': (2, 5), 'boxes': (2, 5, 4)}

    Outputs are `probabilities` (B, K) and `boxes` (B, 1, 4) or (B, K, 4): x1, y1, x2, y2 as shares of the width and
    height of the input, from 0 to 1 (in training not clipped). A dense localizer also has `scores` (B, K): how probable
    the object of a class is in its box.
    """

    spec: Any = None
    """The LocalizerSpec it was built from."""
    spec_class: type = LocalizerSpec


@keras.saving.register_keras_serializable("keras_resnet")
class RelativeBoxes(Parameterless):
    """Offsets (B, N * 4) from the whole image -> boxes (B, N, 4) as shares of its sides."""

    def call(self, deltas, training=None):
        deltas = ops.reshape(ops.cast(deltas, "float32"), (-1, deltas.shape[-1] // 4, 4))
        return _clip(decode_boxes(deltas, ops.array([0.0, 0.0, 1.0, 1.0])), training)

    def compute_output_shape(self, shape):
        return shape[0], shape[-1] // 4, 4


@keras.saving.register_keras_serializable("keras_resnet")
class AnchoredBoxes(Parameterless):
    """For each class, the box with the highest score, of those at all positions of a feature map.

    Args:
        anchor_sizes: sides of the A anchors at each position, in pixels.
        stride: pixels between two positions.

    Inputs are `images` (B, H, W, 3), `scores` (B, h, w, A * K), logits, and `deltas` (B, h, w, A * K * 4), offsets from
    the anchors. Outputs are boxes (B, K, 4) as shares of the sides of the image, and their scores (B, K), 0 to 1.
    """

    arguments = {"anchor_sizes": tuple[int, ...], "stride": int}

    def call(self, inputs, training=None):
        scores, deltas = flat_predictions(inputs["scores"], inputs["deltas"], len(self.anchor_sizes))
        anchors = relative_anchors(
            self.anchor_sizes, self.stride, ops.shape(inputs["scores"])[1:3], ops.shape(inputs["images"])[1:3]
        )
        positions, classes = ops.shape(scores)[1], scores.shape[2]
        scores, best = (it[..., 0] for it in top_scores(ops.transpose(scores, (0, 2, 1)), 1))
        rows = best * classes + ops.arange(classes, dtype=best.dtype)
        deltas = gather_rows(ops.reshape(deltas, (-1, positions * classes, 4)), rows)
        return _clip(decode_boxes(deltas, ops.take(anchors, best, axis=0)), training), ops.sigmoid(scores)

    def compute_output_shape(self, shapes):
        batch, _, _, filters = shapes["scores"]
        classes = filters // len(self.anchor_sizes)
        return (batch, classes, 4), (batch, classes)


def flat_predictions(scores: Any, deltas: Any, num_anchors: int) -> tuple[Any, Any]:
    """Maps (B, h, w, A * K) and (B, h, w, A * K * 4) -> (B, h * w * A, K) and (B, h * w * A, K, 4) float32.

    Args:
        scores: logits.
        deltas: offsets.
        num_anchors: A.
    """
    classes = scores.shape[-1] // num_anchors
    positions = ops.shape(scores)[1] * ops.shape(scores)[2] * num_anchors
    scores = ops.reshape(ops.cast(scores, "float32"), (-1, positions, classes))
    return scores, ops.reshape(ops.cast(deltas, "float32"), (-1, positions, classes, 4))


def relative_anchors(sizes: tuple[int, ...], stride: int, map_size: Any, image_size: Any) -> Any:
    """Squares around the centres of the positions of a feature map: (h * w * A, 4), as shares of the image's sides.

    >>> relative_anchors((64,), 32, (1, 2), (32, 64)).tolist()
    [[-0.25, -0.5, 0.75, 1.5], [0.25, -0.5, 1.25, 1.5]]

    Args:
        sizes: sides of the A squares, in pixels.
        stride: pixels between two positions.
        map_size: (h, w) of the feature map.
        image_size: (H, W).
    """
    y, x = ((ops.cast(ops.arange(side), "float32") + 0.5) * stride for side in map_size)
    y, x = ops.meshgrid(y, x, indexing="ij")
    halves = np.array(sizes, "float32")[:, None] / 2 * np.array([-1, -1, 1, 1], "float32")
    boxes = ops.stack([x, y, x, y], axis=-1)[:, :, None] + ops.convert_to_tensor(halves)
    height, width = (ops.cast(side, "float32") for side in image_size)
    return ops.reshape(boxes / ops.stack([width, height, width, height]), (-1, 4))


def _clip(boxes, training):
    """Boxes inside the image; in training as they are, since clipped sides would have no gradient."""
    return boxes if training else ops.clip(boxes, 0.0, 1.0)


def box_rows(spec: LocalizerSpec) -> list[HeadLayer]:
    """The layers of the box head; of "dense", the last two are beside each other, scores and offsets."""
    convolution = HeadLayer("box_conv", spec.box_width, 3, activation="relu", initializer="he_normal")
    if spec.boxes == "dense":
        scores = HeadLayer("box_scores", spec.classes * len(spec.anchor_sizes), initializer=NORMAL)
        return [convolution, scores, replace(scores, name="box_deltas", filters=4 * scores.filters)]
    dense = HeadLayer("box_fc", spec.box_width, 0, activation="relu", initializer=LINEAR)
    return [convolution, dense, HeadLayer("box_deltas", 4 * spec.num_boxes, 0, initializer=NORMAL)]


def with_box_head(
    classifier: ResNet, spec: LocalizerSpec, name: str | None = None, initialize: bool = True
) -> Localizer:
    """A Localizer of the layers of a classifier and a new box head on the last feature map.

    Args:
        classifier: a network of `spec.backbone`; it shares its layers with the localizer.
        spec: LocalizerSpec.
        name: name of the model; None for that of the classifier.
        initialize: False leaves the kernels of the box head zero.

    Raises:
        ValueError: for a localizer of more than MAX_PARAMETERS parameters, and images of any size, unless the boxes are
            "dense".
    """
    height, width, channels = image_shape = classifier.inputs[0].shape[1:]
    if spec.boxes != "dense" and None in image_shape:
        expected = "(H, W, C), all known, since the box head needs images of one size"
        raise value_error("input_shape", image_shape, expected, 'The boxes "dense" have no such head.')
    sides = height or spec.minimum_size, width or spec.minimum_size
    check_parameters(spec, complexity(spec, input_shape=(*sides, channels)).parameters)
    features = classifier.get_layer("avg_pool").input
    convolution, *others = box_rows(spec)
    heads = [head_layer(row) for row in others]
    hidden = head_layer(convolution)(features)
    outputs = {"probabilities": classifier.outputs[0]}
    if spec.boxes == "dense":
        scores, deltas = (head(hidden) for head in heads)
        layer = AnchoredBoxes(anchor_sizes=spec.anchor_sizes, stride=spec.backbone.stride, name="boxes")
        inputs = {"images": classifier.inputs[0], "scores": scores, "deltas": deltas}
        outputs["boxes"], outputs["scores"] = layer(inputs)
    else:
        deltas = chain(layers.Flatten(name="box_flatten"), *heads)(hidden)
        outputs["boxes"] = RelativeBoxes(name="boxes")(deltas)
    model = Localizer(classifier.inputs[0], outputs, name=name or classifier.name)
    restore_initializers(model, initialize)
    model.spec, model.info = spec, model_info(classifier)
    return model


@build.register
def build_localizer(
    spec: LocalizerSpec,
    input_shape: tuple[int | None, ...] | None = None,
    name: str = "localizer",
    initialize: bool = True,
) -> Localizer:
    """Builds the localizer that `spec` describes, with random weights; `build` calls it for a LocalizerSpec.

    Args:
        spec: LocalizerSpec.
        input_shape: (H, W, C); None: (224, 224, 3), or what the network was designed for. A "dense" localizer takes
            images of any size, if H and W are None.
        name: name of the model.
        initialize: False leaves all kernels zero, which is faster if weights are loaded next.

    Raises:
        ValueError: for a localizer of more than MAX_PARAMETERS parameters, and an input shape that does not fit.
    """
    backbone = localizer_backbone(spec)
    classifier = build(backbone, classes=spec.classes, input_shape=input_shape, initialize=initialize)
    return with_box_head(classifier, spec, name, initialize)


def localizer_backbone(spec: LocalizerSpec) -> ResNetSpec:
    """The residual network of a localizer, channels last."""
    return replace(spec.backbone, data_format="channels_last")
