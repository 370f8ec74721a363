"""OpenVINO: an .xml with the graph beside a .bin with the weights; quantised by NNCF."""

import contextlib
import logging
import sys
from functools import cache

from keras_resnet.deployment.formats.float_operations import float_operations, quantized_kernels
from keras_resnet.deployment.serving import INPUT_NAME, METADATA_KEY, Metadata

INFERENCE_PRECISIONS = {"float32": "f32", "float16": "f32", "bfloat16": "bf16", "int8": "f32"}
"""What the runtime computes in, by the precision of a file: processors do not multiply float16, in which only the
weights are stored; in int8, float32 is for the few operations that are not quantised."""


def write(spec, path):
    """Writes an ExportSpec to an .xml file and its weights beside it."""
    import openvino

    model, signature = spec.model_and_signature()
    uncompressed = path.with_name(f"uncompressed_{path.name}")
    model.export(str(uncompressed), format="openvino", verbose=False, input_signature=signature)
    exported = _core().read_model(uncompressed)
    for tensor, name in zip(exported.outputs, sorted(model.output), strict=True):  # the order of Keras's trees
        tensor.get_tensor().set_names({name})
    for operation in exported.get_ops():
        if operation.get_type_name() == "TopK":
            operation.set_attribute("stable", False)  # takes 600 times as long, for the order of equal scores only
    if spec.metadata.precision == "int8":
        exported = _quantize(exported, spec)
    exported.set_rt_info(spec.metadata.to_json(), [METADATA_KEY])
    openvino.save_model(exported, path, compress_to_fp16=spec.metadata.precision in ("float16", "bfloat16"))
    for file in (uncompressed, uncompressed.with_suffix(".bin")):
        file.unlink()


def _quantize(model, spec):
    """Quantises weights by channel and activations by tensor to int8, with ranges that cut nothing off.

    NNCF's default ranges are those of an average image: with them, logits differed two to six times as much.
    """
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    batches, ignored = spec.calibration_batches, _float_operations(model, spec)
    nncf.set_log_level(logging.ERROR)
    ranges = nncf.AdvancedQuantizationParameters(activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX)
    with contextlib.redirect_stdout(sys.stderr):  # NNCF prints its progress
        return nncf.quantize(
            model,
            nncf.Dataset(batches),
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=ignored),
            advanced_parameters=ranges,
        )


def _float_operations(model, spec):
    """Names of the operations that are not quantised: all but those that lead from a quantised layer to another one."""
    if not spec.float_layers:
        return []
    kernels, operations = quantized_kernels(spec.model, spec.float_layers), model.get_ordered_ops()
    quantized = set()
    for operation in operations:
        inputs = [value.get_node() for value in operation.input_values()]
        is_known = len(inputs) == 2 and inputs[1].get_type_name() == "Constant" and inputs[1].data.tobytes() in kernels
        if is_known:
            quantized.add(operation.get_friendly_name())
    parents = {
        operation.get_friendly_name(): [value.get_node().get_friendly_name() for value in operation.input_values()]
        for operation in operations
    }
    return float_operations(parents, quantized)


@cache
def _core():
    """The only openvino.Core of the process: when one of several ends, signals such as Ctrl-C would crash Python.

    Each Core replaces the signal stack, and gives back the one it found, which another Core may have freed by then.
    """
    import openvino

    return openvino.Core()


def compile_model(path_or_model, precision):
    """The model, compiled for the CPU and for low latency."""
    config = {"INFERENCE_PRECISION_HINT": INFERENCE_PRECISIONS[precision], "PERFORMANCE_HINT": "LATENCY"}
    return _core().compile_model(path_or_model, "CPU", config)


class Session:
    """An exported file in OpenVINO, on the CPU, with an inference request for each call that runs at the same time."""

    def __init__(self, path):
        model = _core().read_model(path)
        known = model.has_rt_info([METADATA_KEY])
        self.metadata = Metadata.from_json(model.get_rt_info([METADATA_KEY]).astype(str) if known else None)
        batch = model.inputs[0].get_partial_shape()[0]
        self.batch_size = batch.get_length() if batch.is_static else None
        self.network = compile_model(model, self.metadata.precision)
        self.idle_requests = []

    def run(self, inputs):
        try:
            request = self.idle_requests.pop()  # of a list, one thread gets it
        except IndexError:
            request = self.network.create_infer_request()
        outputs = request.infer({INPUT_NAME: inputs}, share_inputs=True)
        results = {next(iter(output.get_names())): array.copy() for output, array in outputs.items()}
        self.idle_requests.append(request)
        return results
