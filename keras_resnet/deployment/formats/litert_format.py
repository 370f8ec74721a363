"""LiteRT, for phones and small machines: written and quantised by TensorFlow's converter."""

import shutil
import warnings

from keras_resnet.deployment.serving import INPUT, KEY, Metadata


def write(order, path):
    """Writes the ExportSpec to a file."""
    model, signature = order.graph()
    if order.precision == "int8":
        folder = path.with_name("float32")
        model.export(str(folder), format="tf_saved_model", verbose=False, input_signature=signature)
        contents = _quantized(folder, order.samples)
        shutil.rmtree(folder)
    else:
        model.export(str(path), format="litert", verbose=False, input_signature=signature, **_options(order.precision))
        contents = path.read_bytes()
    path.write_bytes(_with_metadata(contents, order.metadata.to_json()))


def _options(precision):
    """Of the converter; float16 is how weights are stored."""
    import tensorflow as tf

    half = {"optimizations": [tf.lite.Optimize.DEFAULT], "target_spec": {"supported_types": [tf.float16]}}
    return half if precision == "float16" else {}


def _quantized(folder, samples):
    """A SavedModel -> the same in eight bits, but for the softmax: of 256 steps most classes would get none."""
    import tensorflow as tf

    def dataset():
        return ([batch] for batch in samples)

    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder))
    converter.optimizations, converter.representative_dataset = [tf.lite.Optimize.DEFAULT], dataset
    kept = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=["SOFTMAX"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprecated")  # which the debugger uses
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter, debug_dataset=dataset, debug_options=kept
        )
    return debugger.get_nondebug_quantized_model()


def _with_metadata(contents, text):
    """The flatbuffer with one more entry in its metadata."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(contents, 0))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = list(text.encode())
    entry.name, entry.buffer = KEY, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or ()), entry]
    builder = flatbuffers.Builder(len(contents) + len(text))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _metadata(path):
    """The text of our entry; None without one."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAsModel(path.read_bytes(), 0)
    for number in range(model.MetadataLength()):
        entry = model.Metadata(number)
        if entry.Name() == KEY.encode():
            return bytes(model.Buffers(entry.Buffer()).DataAsNumpy()).decode()
    return None


class Session:
    """A file of this format, ready to answer."""

    def __init__(self, path):
        from ai_edge_litert.interpreter import Interpreter

        self.metadata = Metadata.from_json(_metadata(path))
        self.interpreter = Interpreter(str(path))
        (signature,) = self.interpreter.get_signature_list()
        self.runner = self.interpreter.get_signature_runner(signature)
        batch = self.runner.get_input_details()[INPUT]["shape_signature"][0]
        self.batch_size = None if batch < 0 else int(batch)

    def run(self, inputs):
        """{name: array}."""
        return self.runner(**{INPUT: inputs})
