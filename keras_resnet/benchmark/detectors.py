"""Tasks of detectors: whole images, and part by part."""

import time
from functools import cached_property

import keras
import numpy as np

from keras_resnet.architecture.detector_complexity import multiply_adds_of_parts
from keras_resnet.architecture.detector_spec import DetectorSpec
from keras_resnet.architecture.metadata import model_spec
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing

IMAGE_SIZE = (800, 1333)
"""Height and width of the images by default: torchvision's, of a photograph in landscape format."""
PREFIXES = {
    "": "body",
    "fpn_": "neck",
    "rpn_": "rpn",
    "proposals": "proposals",
    "box_regions": "regions",
    "box_": "heads",
    "dense_": "heads",
    "detections": "detections",
    "mask_regions": "mask_regions",
    "mask": "masks",
}
"""Beginning of a layer's name -> the part of a detector that it belongs to, in the order in which they are computed;
the longest one counts."""


class DetectorTasks:
    """The base of a network with the attributes `model`, a detector, and `job`, a Job, and the method `inference`."""

    def detection(self, steps):
        """Detects objects in `steps` batches."""
        self.inference(steps)

    def parts(self, steps):
        """Returns {part of the detector: seconds of `steps` batches}, each computed alone from what it receives."""
        return {part: _seconds(function, inputs, steps) for part, (function, inputs) in self._parts.items()}

    @cached_property
    def _parts(self):
        """{part: (compiled function, its inputs)}."""
        tensors, parts = {self.model.inputs[0].name: keras.ops.convert_to_tensor(self.job.images)}, {}
        for part, model in detector_parts(self.model).items():
            function, inputs = _compiled(model), {name: tensors[name] for name in model.input}
            tensors |= function(inputs)
            parts[part] = function, inputs
        return parts


def _compiled(model):
    if keras.backend.backend() != "tensorflow":
        return model
    import tensorflow as tf

    return tf.function(lambda inputs: model(inputs, training=False), autograph=False)


def _seconds(function, inputs, steps):
    started = time.perf_counter()
    for _ in range(steps):
        outputs = function(inputs)
    last = keras.tree.flatten(outputs)[-1]
    keras.ops.convert_to_numpy(keras.ops.reshape(last, (-1,))[:1])  # waits for the device
    return time.perf_counter() - started


def detector_parts(model: keras.Model) -> dict[str, keras.Model]:
    """Models of the parts of a detector, in the order in which they are computed.

    Inputs and outputs are dicts by the names of the tensors: the outputs of parts are inputs of later ones.
    """
    nodes = [node for nodes in model._nodes_by_depth.values() for node in nodes if not node.is_input]
    part_of = {id(node): _part(node.operation.name, model_spec(model)) for node in nodes}
    maker = {tensor.name: part_of[id(node)] for node in nodes for tensor in node.outputs}
    inputs: dict[str, dict] = {part: {} for part in PREFIXES.values()}
    outputs: dict[str, dict] = {part: {} for part in inputs}
    for node in nodes:
        part = part_of[id(node)]
        inputs[part] |= {tensor.name: tensor for tensor in node.input_tensors if maker.get(tensor.name) != part}
    for tensor in [*model.outputs, *(tensor for needed in inputs.values() for tensor in needed.values())]:
        if tensor.name in maker:
            outputs[maker[tensor.name]][tensor.name] = tensor
    return {part: keras.Model(inputs[part], outputs[part], name=part) for part in inputs if outputs[part]}


def _part(layer_name, spec):
    if spec.box_head == "stage4" and layer_name.startswith("conv5_"):
        return "heads"
    return PREFIXES[max((prefix for prefix in PREFIXES if layer_name.startswith(prefix)), key=len)]


def detection_images(batch_size, image_size):
    """A batch of normally distributed float32 numbers, padded as DetectionPreprocessing does."""
    images = np.full((batch_size, *_padded(image_size), 3), np.nan, "float32")
    inside = (batch_size, *image_size, 3)
    images[:, : image_size[0], : image_size[1]] = np.random.default_rng(0).standard_normal(inside, "float32")
    return images


def _padded(image_size):
    divisor = DetectionPreprocessing().divisor
    return [-(-side // divisor) * divisor for side in image_size]


def raise_scores(model):
    """Raises the biases of class scores, so that random weights give as many detections as the detector may return."""
    for layer in model.layers:
        if layer.name == "box_scores":
            layer.bias.assign(np.where((np.arange(layer.units) >= 1) & (np.arange(layer.units) <= 5), 5.0, 0.0))
        elif layer.name == "dense_scores":
            layer.bias.assign(np.zeros(layer.filters))


def cost_rows(seconds: dict[str, float], spec: DetectorSpec, image_size: tuple[int, int]) -> list[dict]:
    """A row of each part and their sum: seconds an image, multiply-adds, and `at_body_rate`, seconds of these alone.

    `at_body_rate` is what a part would take at the rate of the residual network, whose multiply-adds and seconds are
    known. Multiply-adds are those of the padded image.
    """
    counted = multiply_adds_of_parts(spec, (*_padded(image_size), 3))
    rate = counted["body"] / seconds["body"]
    parts = [(part, value, counted.get(part, 0)) for part, value in seconds.items()]
    total = ("all", sum(seconds.values()), sum(counted.values()))
    return [
        {"part": part, "seconds": value, "multiply_adds": count, "at_body_rate": count / rate}
        for part, value, count in [*parts, total]
    ]
