"""LiteRT, for phones and small devices: written and quantised by TensorFlow's converter."""

import shutil
import threading
import warnings

from keras_resnet.deployment.serving import INPUT_NAME, METADATA_KEY, Metadata

RESIZING = ("RESIZE_BILINEAR", "ARG_MAX", "BATCH_MATMUL", "DIV", "SUB", "ABS", "MAXIMUM", "SUM", "FLOOR")
"""Operations that resize and normalise the images of a segmenter, or make masks of its logits."""


def write(spec, path):
    """Writes an ExportSpec to a .tflite file."""
    import tensorflow as tf

    model, signature = spec.model_and_signature()
    if spec.metadata.precision == "int8":
        folder = path.with_name("float32")
        model.export(str(folder), format="tf_saved_model", verbose=False, input_signature=signature)
        contents = _quantize(folder, spec)
        shutil.rmtree(folder)
    else:
        options = {}
        if spec.metadata.precision == "float16":  # the converter stores the weights in it, and computes in float32
            options = {"optimizations": [tf.lite.Optimize.DEFAULT], "target_spec": {"supported_types": [tf.float16]}}
        model.export(str(path), format="litert", verbose=False, input_signature=signature, **options)
        contents = path.read_bytes()
    path.write_bytes(_add_metadata(contents, spec.metadata.to_json()))


def _quantize(folder, spec):
    """The contents of a .tflite file in int8, from a SavedModel.

    The softmax stays in float32: in steps of 1/256 most classes would have probability zero. So does what changes sizes
    of images and their probabilities, if some layers are not quantised.
    """
    import tensorflow as tf

    kept = ("SOFTMAX", *(RESIZING if spec.float_layers else ()))

    def dataset():
        return ([batch] for batch in spec.calibration_batches)

    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder))
    converter.optimizations, converter.representative_dataset = [tf.lite.Optimize.DEFAULT], dataset
    options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=list(kept))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprecated")  # TensorFlow 2.21 uses it
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter, debug_dataset=dataset, debug_options=options
        )
    return debugger.get_nondebug_quantized_model()


def _add_metadata(contents, text):
    """The flatbuffer with one more metadata entry."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(contents, 0))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = list(text.encode())
    entry.name, entry.buffer = METADATA_KEY, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or ()), entry]
    builder = flatbuffers.Builder(len(contents) + len(text))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _read_metadata(path):
    """The contents of the metadata entry; None if there is none."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAsModel(path.read_bytes(), 0)
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == METADATA_KEY.encode():
            return bytes(model.Buffers(entry.Buffer()).DataAsNumpy())
    return None


class Session:
    """An exported file in its runtime, which computes one batch at a time: other threads wait."""

    def __init__(self, path):
        from ai_edge_litert.interpreter import Interpreter

        self.metadata = Metadata.from_json(_read_metadata(path))
        self.interpreter = Interpreter(str(path))
        (signature,) = self.interpreter.get_signature_list()
        self.runner = self.interpreter.get_signature_runner(signature)
        batch = self.runner.get_input_details()[INPUT_NAME]["shape_signature"][0]
        self.batch_size = None if batch < 0 else int(batch)
        self.lock = threading.Lock()

    def run(self, inputs):
        with self.lock:
            return self.runner(**{INPUT_NAME: inputs})
