"""TensorFlow's SavedModel, a folder, which also takes encoded image files."""

import keras

from keras_resnet.deployment.serving import INPUT, KEY, Metadata

BYTES = "image_bytes"
"""Name of the input that takes the contents of image files."""


def write(order, path):
    """Writes the ExportSpec to a folder; signatures "serving_default", and "serve_bytes" unless it is raw."""
    import tensorflow as tf

    model, (signature,) = order.graph(order.precision)
    archive = keras.export.ExportArchive()
    archive.track(model)
    images = tf.TensorSpec(signature.shape, signature.dtype, name=INPUT)
    archive.add_endpoint("serve", lambda images: model(images, training=False), [images])
    if not order.metadata.raw:
        contents = tf.TensorSpec(signature.shape[:1], tf.string, name=BYTES)
        look = order.metadata.look
        archive.add_endpoint("serve_bytes", lambda image_bytes: model(_pixels(image_bytes, look)), [contents])
    archive.write_out(str(path), verbose=False)
    extra = path / "assets.extra"
    extra.mkdir()
    (extra / f"{KEY}.json").write_text(order.metadata.to_json())


def _pixels(contents, look):
    """(B,) image files -> (B, size, size, channels) uint8, as a Preprocessing crops them."""
    import tensorflow as tf

    from keras_resnet.data.crops import image_shape, read_window, test_window

    def one(image):
        window = test_window(*image_shape(image), look)
        return read_window(image, window, look.size, look.channels, interpolation=look.interpolation)

    return tf.map_fn(one, contents, fn_output_signature=tf.uint8)


class Session:
    """A folder of this format, ready to answer."""

    def __init__(self, path):
        import tensorflow as tf

        extra = path / "assets.extra" / f"{KEY}.json"
        self.metadata = Metadata.from_json(extra.read_text() if extra.exists() else None)
        self.loaded = tf.saved_model.load(str(path))
        self.serve = self.loaded.signatures["serving_default"]
        self.batch_size = self.serve.structured_input_signature[1][INPUT].shape[0]

    def run_files(self, contents):
        """{name: array} for the contents of image files, (B,) bytes; a raw network takes none."""
        import tensorflow as tf

        found = self.loaded.signatures["serve_bytes"](**{BYTES: tf.constant(contents)})
        return {name: tensor.numpy() for name, tensor in found.items()}

    def run(self, inputs):
        """{name: array}."""
        import tensorflow as tf

        return {name: tensor.numpy() for name, tensor in self.serve(**{INPUT: tf.constant(inputs)}).items()}
