"""TensorFlow's SavedModel, a folder, which also takes the contents of JPEG and PNG files."""

import keras

from keras_resnet.deployment.serving import INPUT_NAME, MAX_METADATA_BYTES, METADATA_KEY, Metadata

BYTES_INPUT_NAME = "image_bytes"
"""Name of the input that takes the contents of JPEG and PNG files."""
METADATA_FILE = f"assets.extra/{METADATA_KEY}.json"
"""TensorFlow reads nothing in this folder, which is for such files."""


def write(spec, path):
    """Writes an ExportSpec to a folder: signature "serving_default", and "serve_bytes" for images of one size."""
    import tensorflow as tf

    model, (signature,) = spec.model_and_signature(spec.metadata.precision)
    archive = keras.export.ExportArchive()  # without `track`, with which Keras 3.15 writes every variable twice
    images = tf.TensorSpec(signature.shape, signature.dtype, name=INPUT_NAME)
    archive.add_endpoint("serve", lambda images: model(images, training=False), [images])
    if spec.metadata.crops_images:
        contents = tf.TensorSpec(signature.shape[:1], tf.string, name=BYTES_INPUT_NAME)
        preprocessing = spec.metadata.preprocessing
        archive.add_endpoint("serve_bytes", lambda image_bytes: model(_decode(image_bytes, preprocessing)), [contents])
    archive.write_out(str(path), verbose=False)
    (path / METADATA_FILE).parent.mkdir()
    (path / METADATA_FILE).write_text(spec.metadata.to_json())


def _decode(contents, preprocessing):
    """(B,) contents of JPEG or PNG files -> (B, size, size, channels) uint8, cropped as a Preprocessing does."""
    import tensorflow as tf

    from keras_resnet.data.crops import test_crop_box
    from keras_resnet.data.tensorflow_images import image_size, read_crop
    from keras_resnet.data.tensorflow_limits import check_jpeg_or_png

    def decode(image):
        image = check_jpeg_or_png(image)
        size, channels, interpolation = preprocessing.size, preprocessing.channels, preprocessing.interpolation
        box = test_crop_box(*image_size(image), preprocessing)
        return read_crop(image, box, size, channels, interpolation=interpolation)

    return tf.map_fn(decode, contents, fn_output_signature=tf.uint8)


class Session:
    """An exported folder in TensorFlow."""

    def __init__(self, path):
        import tensorflow as tf

        with (path / METADATA_FILE).open("rb") as file:
            self.metadata = Metadata.from_json(file.read(MAX_METADATA_BYTES + 1))
        self.loaded = tf.saved_model.load(str(path))  # its signatures do not keep its variables alive
        signature = self.loaded.signatures["serving_default"]
        self.batch_size = signature.structured_input_signature[1][INPUT_NAME].shape[0]

    def run_files(self, contents):
        """Contents of image files, (B,) bytes -> {output name: array}; not for a raw network."""
        return self._run("serve_bytes", BYTES_INPUT_NAME, contents)

    def run(self, inputs):
        return self._run("serving_default", INPUT_NAME, inputs)

    def _run(self, signature, input_name, values):
        import tensorflow as tf

        outputs = self.loaded.signatures[signature](**{input_name: tf.constant(values)})
        return {name: tensor.numpy() for name, tensor in outputs.items()}
