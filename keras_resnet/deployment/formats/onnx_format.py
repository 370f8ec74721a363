"""ONNX: written through `Model.export`, quantised by ONNX Runtime, which also runs it."""

import gc
from contextlib import contextmanager

import numpy as np

from keras_resnet.deployment.serving import INPUT, KEY, Metadata

KEPT = ("Softmax",)
"""Operations that stay in float32: what they return has too many orders of magnitude for fewer bits."""


def write(order, path):
    """Writes the ExportSpec to a file."""
    import onnx

    model, signature = order.graph()
    with _collect_between_passes():
        model.export(str(path), format="onnx", verbose=False, input_signature=signature)
    onnx.save(_avoid_pad_fusion(onnx.load(path)), path)
    if order.precision == "int8":
        _quantize(path, order.samples)
    found = onnx.load(path)
    if order.precision == "float16":
        found = _halved(found)
    for tensor in (*found.graph.input, *found.graph.output):
        if order.batch_size is None:
            tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.helper.set_model_props(found, {KEY: order.metadata.to_json()})
    onnx.save(found, path)


@contextmanager
def _collect_between_passes():
    """Frees memory between the passes of tf2onnx's optimizer (1.17): each leaves a copy of the graph in cycles.

    Objects from before are frozen: with TensorFlow loaded, collecting them takes longer than a pass. A tf2onnx without
    such passes is left as it is.
    """
    try:
        from tf2onnx.optimizer.optimizer_base import GraphOptimizerBase

        optimize = GraphOptimizerBase.optimize
    except (ImportError, AttributeError):
        yield
        return

    def collect_and_optimize(*arguments):
        gc.collect()
        return optimize(*arguments)

    gc.collect()
    gc.freeze()
    GraphOptimizerBase.optimize = collect_and_optimize
    try:
        yield
    finally:
        GraphOptimizerBase.optimize = optimize
        gc.unfreeze()


def _avoid_pad_fusion(model):
    """Replaces the zeros that are padded around a max pooling's input by the smallest positive number.

    ONNX Runtime up to 1.31 fuses a padding with zeros into the pooling, whose own padding is minus infinity: another
    result where the inputs may be negative, as in pre-activation networks. Other values are not fused. Exported files
    may be run by such a version wherever they go, so this stays until those versions are out of use.
    """
    import onnx

    pooled = {node.input[0] for node in model.graph.node if node.op_type == "MaxPool"}
    padded = [node for node in model.graph.node if node.op_type == "Pad" and node.output[0] in pooled]
    smallest = onnx.numpy_helper.from_array(np.array(np.finfo("float32").smallest_normal), "nearly_zero")
    for node in padded:
        node.input[2:] = [smallest.name]
    model.graph.initializer.extend([smallest] if padded else [])
    return model


def _halved(model):
    """The same in float16, but for inputs and outputs; in order again, as ONNX has it and its converter does not."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    found = OnnxModel(convert_float_to_float16(model, keep_io_types=True, op_block_list=list(KEPT)))
    found.topological_sort()
    return found.model


def _quantize(path, samples):
    """Weights by channel and activations by tensor in eight bits, in ONNX's QuantizeLinear and DequantizeLinear."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        rows = iter(samples)

        def get_next(self):
            batch = next(self.rows, None)
            return None if batch is None else {INPUT: batch}

    kinds = [kind for kind in quantization.registry.QDQRegistry if kind not in KEPT]
    quantization.quant_pre_process(path, path, skip_symbolic_shape=True)
    quantization.quantize_static(path, path, Reader(), op_types_to_quantize=kinds, per_channel=True)


class Session:
    """A file of this format, ready to answer."""

    def __init__(self, path):
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
        self.metadata = Metadata.from_json(self.session.get_modelmeta().custom_metadata_map.get(KEY))
        first = self.session.get_inputs()[0].shape[0]
        self.batch_size = first if isinstance(first, int) else None
        self.outputs = [output.name for output in self.session.get_outputs()]

    def run(self, inputs):
        """{name: array}."""
        return dict(zip(self.outputs, self.session.run(None, {INPUT: inputs}), strict=True))
