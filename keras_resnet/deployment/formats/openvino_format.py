"""OpenVINO: an .xml with the graph beside a .bin with the weights; quantised by NNCF."""

import contextlib
import logging
import sys

from keras_resnet.deployment.serving import INPUT, KEY, Metadata

HINTS = {"float32": "f32", "float16": "f32", "bfloat16": "bf16", "int8": "f32"}
"""What the runtime computes in, by the precision of a file; float16 is how weights are stored, not what processors
multiply. A file of int8 computes the few operations in it that are not quantised in float32."""


def write(order, path):
    """Writes the ExportSpec to an .xml file, and its weights beside it."""
    import openvino

    model, signature = order.graph()
    whole = path.with_name(f"whole_{path.name}")
    model.export(str(whole), format="openvino", verbose=False, input_signature=signature)
    found = openvino.Core().read_model(whole)
    for tensor, name in zip(found.outputs, _in_order(model), strict=True):
        tensor.get_tensor().set_names({name})
    if order.precision == "int8":
        found = _quantized(found, order.samples)
    found.set_rt_info(order.metadata.to_json(), [KEY])
    openvino.save_model(found, path, compress_to_fp16=order.precision in ("float16", "bfloat16"))
    for file in (whole, whole.with_suffix(".bin")):
        file.unlink()


def _in_order(model):
    """Names of the outputs in the order in which they are exported: that of Keras's trees."""
    return [name for name, _ in sorted(model.output.items())]


def _quantized(model, samples):
    """Weights by channel and activations by tensor in eight bits, with ranges that nothing is cut off from.

    NNCF's own ranges are those of an average image: the logits differed two to six times as much.
    """
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    nncf.set_log_level(logging.ERROR)
    whole = nncf.AdvancedQuantizationParameters(activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX)
    with contextlib.redirect_stdout(sys.stderr):  # its progress
        return nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples), advanced_parameters=whole)


class Session:
    """A file of this format, ready to answer."""

    def __init__(self, path):
        import openvino

        core = openvino.Core()
        model = core.read_model(path)
        self.metadata = Metadata.from_json(model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None)
        first = model.inputs[0].get_partial_shape()[0]
        self.batch_size = first.get_length() if first.is_static else None
        config = {"INFERENCE_PRECISION_HINT": HINTS[self.metadata.precision], "PERFORMANCE_HINT": "LATENCY"}
        self.request = core.compile_model(model, "CPU", config).create_infer_request()

    def run(self, inputs):
        """{name: array}."""
        found = self.request.infer({INPUT: inputs}, share_inputs=True)
        return {next(iter(output.get_names())): array.copy() for output, array in found.items()}
