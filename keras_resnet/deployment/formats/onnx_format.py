"""ONNX: written through `Model.export`, quantised by ONNX Runtime, which also runs it."""

import gc
from contextlib import contextmanager

import numpy as np

from keras_resnet.deployment.formats.float_operations import float_operations, quantized_kernels
from keras_resnet.deployment.serving import INPUT_NAME, METADATA_KEY, Metadata

KEPT_IN_FLOAT32 = ("Softmax", "Resize")
"""Operations whose results have too many orders of magnitude for fewer bits, or that ONNX Runtime only has in float32.
"""


def write(spec, path):
    """Writes an ExportSpec to an .onnx file."""
    import onnx

    model, signature = spec.model_and_signature()
    with _collect_between_passes():
        model.export(str(path), format="onnx", verbose=False, input_signature=signature)
    onnx.save(_pad_dilated(_avoid_pad_fusion(onnx.load(path))), path)
    if spec.metadata.precision == "int8":
        _quantize(path, spec)
    exported = onnx.load(path)
    if spec.metadata.precision == "float16":
        exported = _to_float16(exported)
    for tensor in (*exported.graph.input, *exported.graph.output):
        if spec.batch_size is None:
            tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.helper.set_model_props(exported, {METADATA_KEY: spec.metadata.to_json()})
    onnx.save(exported, path)


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


def _pad_dilated(model):
    """States the padding of dilated convolutions that are "same": ONNX Runtime up to 1.32 refuses to compute it."""
    import onnx

    for node in model.graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        same = "auto_pad" in attributes and attributes["auto_pad"].s == b"SAME_UPPER"
        if node.op_type == "Conv" and same and max(dilations := attributes["dilations"].ints) > 1:
            sides = zip(dilations, attributes["kernel_shape"].ints, strict=True)
            padding = np.array([dilation * (side - 1) for dilation, side in sides])  # their stride is 1
            pads = onnx.helper.make_attribute("pads", [*(padding // 2), *(padding - padding // 2)])
            node.attribute.remove(attributes["auto_pad"])
            node.attribute.append(pads)
    return model


def _to_float16(model):
    """The model in float16 except for its inputs and outputs; the converter leaves its nodes unsorted."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    converted = OnnxModel(convert_float_to_float16(model, keep_io_types=True, op_block_list=list(KEPT_IN_FLOAT32)))
    converted.topological_sort()
    return converted.model


def _quantize(path, spec):
    """Quantises weights by channel and activations by tensor to int8, as QuantizeLinear and DequantizeLinear nodes."""
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        rows = iter(spec.calibration_batches)

        def get_next(self):
            batch = next(self.rows, None)
            return None if batch is None else {INPUT_NAME: batch}

    operations = [kind for kind in quantization.registry.QDQRegistry if kind not in KEPT_IN_FLOAT32]
    quantization.quant_pre_process(path, path, skip_symbolic_shape=True)
    options = {"op_types_to_quantize": operations, "nodes_to_exclude": _float_nodes(onnx.load(path).graph, spec)}
    quantization.quantize_static(path, path, Reader(), per_channel=True, **options)


def _float_nodes(graph, spec):
    """Names of the nodes that are not quantised: all but those that lead from a quantised layer to another one."""
    if not spec.float_layers:
        return []
    import onnx

    kernels = quantized_kernels(spec.model, spec.float_layers)
    known = {tensor.name for tensor in graph.initializer if onnx.numpy_helper.to_array(tensor).tobytes() in kernels}
    maker = {output: node.name for node in graph.node for output in node.output}
    parents = {node.name: [maker[name] for name in node.input if name in maker] for node in graph.node}
    return float_operations(parents, {node.name for node in graph.node if known.intersection(node.input)})


class Session:
    """An exported file in ONNX Runtime, on the best of its execution providers."""

    def __init__(self, path):
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
        self.metadata = Metadata.from_json(self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY))
        batch = self.session.get_inputs()[0].shape[0]
        self.batch_size = batch if isinstance(batch, int) else None
        self.outputs = [output.name for output in self.session.get_outputs()]

    def run(self, inputs):
        return dict(zip(self.outputs, self.session.run(None, {INPUT_NAME: inputs}), strict=True))
