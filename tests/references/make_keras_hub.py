"""Writes narrow ResNets of KerasHub with random weights, and their logits, into keras_hub/: python make_keras_hub.py

Run with keras-hub and a backend installed. `<kind>.weights.h5` is what `ResNetImageClassifier.save_weights` writes,
with compressed arrays; weights are multiples of a power of two, which compress well. `outputs.npz` has images `x`
(2, 33, 32, 3) and `<kind>`, the logits (2, 5). `preset/` is what `save_to_preset` writes; `preset.npz` has pixels
`images` (2, 96, 64, 3) uint8, `prepared` (2, 32, 32, 3), what its preprocessor makes of them, and `logits` (2, 5).
`segmenter/` is a preset of DeepLabV3+, and `segmenter.npz` has its `logits` (2, 32, 64, 5) for `x` (2, 32, 64, 3).
"""

from pathlib import Path

import h5py
import keras
import keras_hub
import numpy as np

FOLDER = Path(__file__).parent / "keras_hub"
DEEP = ([32, 32, 64], [3, 3, 3])
KINDS = {  # block_type, use_pre_activation, stem
    "basic": ("basic_block", False, ([64], [7])),
    "bottleneck": ("bottleneck_block", False, ([64], [7])),
    "preactivation": ("bottleneck_block", True, ([64], [7])),
    "basic_vd": ("basic_block_vd", False, DEEP),
    "bottleneck_vd": ("bottleneck_block_vd", False, DEEP),
}


def classifier(block_type, use_pre_activation, stem, second=128, preprocessor=None):
    """A network of two stages of 64 and `second` channels, with random weights."""
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=stem[0],
        input_conv_kernel_sizes=stem[1],
        stackwise_num_filters=[64, second],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type=block_type,
        use_pre_activation=use_pre_activation,
    )
    return randomized(
        keras_hub.models.ResNetImageClassifier(backbone=backbone, num_classes=5, preprocessor=preprocessor)
    )


def randomized(model):
    """The model with random weights."""
    generator = np.random.default_rng(0)
    for weight in model.weights:
        positive = weight.path.endswith(("gamma", "moving_variance"))
        scale = 0.5 if len(weight.shape) == 1 else 2.0 ** round(np.log2((1 / np.prod(weight.shape[:-1])) ** 0.5))
        weight.assign(generator.integers(1 if positive else -1, 4 if positive else 2, weight.shape) * scale)
    return model


def compress(path):
    """Rewrites an HDF5 file with compressed arrays."""
    content = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: content.update({name: (dict(item.attrs), getattr(item, "shape", None) and item[()])})
        )
    with h5py.File(path, "w", libver="latest") as file:
        for name, (attributes, array) in content.items():
            is_array = isinstance(array, np.ndarray)
            item = (
                file.create_dataset(name, data=array, compression="gzip", shuffle=True)
                if is_array
                else file.require_group(name)
            )
            item.attrs.update(attributes)


def write_preset():
    """A preset of a classifier with ImageNet's mean and standard deviation, and its outputs."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    converter = keras_hub.layers.ResNetImageConverter(
        image_size=(32, 32),
        scale=(1 / 255 / std).tolist(),
        offset=(-mean / std).tolist(),
        interpolation="bicubic",
        antialias=True,
    )
    preprocessor = keras_hub.models.ResNetImageClassifierPreprocessor(image_converter=converter)
    model = classifier(*KINDS["basic"], second=16, preprocessor=preprocessor)
    model.save_to_preset(FOLDER / "preset")
    for name in ("model", "task"):
        compress(FOLDER / "preset" / f"{name}.weights.h5")
    smooth = np.random.default_rng(2).integers(0, 256, (2, 6, 5, 3)).astype("float32")
    images = keras.ops.convert_to_numpy(keras.ops.image.resize(smooth, (96, 64))).round().astype("uint8")
    prepared = keras.ops.convert_to_numpy(converter(images))
    logits = keras.ops.convert_to_numpy(model(prepared, training=False))
    np.savez_compressed(FOLDER / "preset.npz", images=images, prepared=prepared, logits=logits)


def write_segmenter():
    """A preset of DeepLabV3+ on a ResNet of four stages, and its logits."""
    encoder = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 8, 16, 24],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
        use_pre_activation=False,
    )
    backbone = keras_hub.models.DeepLabV3Backbone(
        image_encoder=encoder,
        spatial_pyramid_pooling_key="P5",
        upsampling_size=8,
        dilation_rates=[1, 2, 3],
        low_level_feature_key="P2",
        projection_filters=4,
    )
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    converter = keras_hub.layers.DeepLabV3ImageConverter(
        image_size=(32, 64), scale=(1 / 255 / std).tolist(), offset=(-mean / std).tolist()
    )
    preprocessor = keras_hub.models.DeepLabV3ImageSegmenterPreprocessor(image_converter=converter)
    model = randomized(
        keras_hub.models.DeepLabV3ImageSegmenter(backbone=backbone, num_classes=5, preprocessor=preprocessor)
    )
    model.save_to_preset(FOLDER / "segmenter")
    for name in ("model", "task"):
        compress(FOLDER / "segmenter" / f"{name}.weights.h5")
    x = np.random.default_rng(1).integers(-4, 5, (2, 32, 64, 3)).astype("float32") / 2
    logits = keras.ops.convert_to_numpy(model(x, training=False))
    np.savez_compressed(FOLDER / "segmenter.npz", x=x, logits=logits)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    write_preset()
    write_segmenter()
    outputs = {"x": np.random.default_rng(1).integers(-4, 5, (2, 33, 32, 3)).astype("float32") / 2}
    for kind, arguments in KINDS.items():
        model = classifier(*arguments)
        outputs[kind] = keras.ops.convert_to_numpy(model(outputs["x"], training=False))
        model.save_weights(FOLDER / f"{kind}.weights.h5")
        compress(FOLDER / f"{kind}.weights.h5")
    np.savez_compressed(FOLDER / "outputs.npz", **outputs)
