"""Where pictures with labels come from, and the tf.data pipeline that carries them to the device."""

from dataclasses import dataclass

import numpy as np

from keras_resnet.data.augmentation import pad_and_crop
from keras_resnet.data.preprocessing import Preprocessing, preprocess_input
from keras_resnet.errors import unknown


@dataclass(frozen=True)
class Dataset:
    """Labelled pictures in memory, split into those that train and those that test."""

    name: str
    train: tuple[np.ndarray, np.ndarray]
    """Pictures (N, H, W, C) uint8 and labels (N,) int32."""
    test: tuple[np.ndarray, np.ndarray]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    """How a network wants these pictures, also those that come later from files."""

    @property
    def input_shape(self):
        """(H, W, C) of one picture."""
        return self.train[0].shape[1:]


def digits():
    """scikit-learn's handwritten digits: 1,797 grey pictures of 8x8 pixels in ten classes, no download.

    Alpaydin and Kaynak 1998, https://archive.ics.uci.edu/dataset/80. A fifth of them tests; the split is stratified and
    always the same, so that two runs are tested on the same pictures.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    pictures = np.round(found.images[..., None] * (255 / 16)).astype("uint8")
    labels = found.target.astype("int32")
    train_x, test_x, train_y, test_y = train_test_split(
        pictures, labels, test_size=0.2, stratify=labels, random_state=0
    )
    names = tuple(str(name) for name in found.target_names)
    grey = Preprocessing(mode="tf", size=8, resize=None, channels=1)
    return Dataset("digits", (train_x, train_y), (test_x, test_y), names, grey)


DATASETS = {"digits": digits}


def load_dataset(name):
    """A Dataset by its name.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    return DATASETS[name]()


def training_pipeline(dataset, batch_size, padding=0, seed=0):
    """Shuffled, augmented, normalised batches, the same for the same seed.

    Args:
        dataset: Dataset.
        batch_size: pictures a batch; a smaller last one is dropped, so that all steps weigh the same.
        padding: pixels of `pad_and_crop`.
        seed: of the order and the crops.

    Returns:
        tf.data.Dataset of (B, H, W, C) float32 and (B,) int32.
    """
    import tensorflow as tf

    pictures, labels = dataset.train
    pipeline = tf.data.Dataset.from_tensor_slices((pictures, labels)).shuffle(len(labels), seed=seed)
    if padding:
        seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2, drop_remainder=True)
        pipeline = tf.data.Dataset.zip(pipeline, seeds).map(
            lambda example, seed: (pad_and_crop(example[0], padding, tf.cast(seed, "int32")), example[1]),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
    return _normalised(pipeline.batch(batch_size, drop_remainder=True), dataset.preprocessing)


def evaluation_pipeline(dataset, batch_size):
    """All test pictures in order, normalised: tf.data.Dataset of (B, H, W, C) float32 and (B,) int32."""
    import tensorflow as tf

    return _normalised(tf.data.Dataset.from_tensor_slices(dataset.test).batch(batch_size), dataset.preprocessing)


def _normalised(pipeline, preprocessing):
    import tensorflow as tf

    return pipeline.map(
        lambda pictures, labels: (preprocess_input(pictures, preprocessing.mode), labels),
        num_parallel_calls=tf.data.AUTOTUNE,
    ).prefetch(tf.data.AUTOTUNE)
