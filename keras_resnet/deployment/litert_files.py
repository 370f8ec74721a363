"""LiteRT, for phones and small machines: written and quantised by TensorFlow's converter."""

from keras_resnet.deployment.served import INPUT, KEY


def write(order, path):
    """Writes the Order to a file."""
    import tensorflow as tf

    options = {}
    if order.precision != "float32":
        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
    if order.precision == "float16":
        options["target_spec"] = {"supported_types": [tf.float16]}
    if order.precision == "int8":
        options["representative_dataset"] = lambda: ([batch] for batch in order.samples)
    model, signature = order.graph()
    model.export(str(path), format="litert", verbose=False, input_signature=signature, **options)
    path.write_bytes(_with_metadata(path.read_bytes(), order.metadata.to_json()))


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

        self.metadata = _metadata(path)
        self.interpreter = Interpreter(str(path))
        (signature,) = self.interpreter.get_signature_list()
        self.runner = self.interpreter.get_signature_runner(signature)
        batch = self.runner.get_input_details()[INPUT]["shape_signature"][0]
        self.batch_size = None if batch < 0 else int(batch)

    def run(self, inputs):
        """{name: array}."""
        return self.runner(**{INPUT: inputs})
