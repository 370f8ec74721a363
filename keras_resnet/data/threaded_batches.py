"""Batches without TensorFlow: NumPy's random order, and images that threads read with Pillow."""

from functools import lru_cache

import keras
import numpy as np

from keras_resnet.data.augmentation import TRAIN_CROPS
from keras_resnet.data.auto_augment import POLICIES
from keras_resnet.data.prefetch import THREADS
from keras_resnet.normalization import normalize


def shuffled_batches(split, steps):
    """Yields (step, images, labels) of a Split for a StepRange, in the order of `shuffled_indices`."""
    for step, indices in shuffled_indices(split, steps):
        yield step, split.images[indices], split.labels[indices]


def shuffled_indices(split, steps):
    """Yields (step, indices of images) of a Split for a StepRange, in the order of one permutation per epoch."""
    length = len(steps.oversampling or split)

    @lru_cache(1)
    def order(epoch):
        places = np.random.default_rng((steps.seed, epoch, 0)).permutation(length)
        return steps.oversampling.image_indices(places, epoch, np.take) if steps.oversampling else places

    for step in steps.numbers:
        positions = np.arange(step * steps.batch_size, (step + 1) * steps.batch_size)[steps.part] // steps.repeats
        yield step, [order(int(position // length))[position % length] for position in positions]


def read_batch(images, recipe, preprocessing, random):
    """Crops a batch of images and applies the recipe's policy: (B, size, size, channels) uint8.

    Args:
        images: sequence of paths, contents of files, or (H, W, C) uint8.
        recipe: Recipe.
        preprocessing: Preprocessing.
        random: NumPyRandom for the batch.

    Raises:
        ValueError, OSError: for an image that cannot be read.
    """
    from keras_resnet.data.pillow_images import image_size

    sizes = np.array([image_size(image) for image in images], "int32")
    return read_crops(images, sample_crops(sizes, recipe, preprocessing, random), recipe, preprocessing)


def sample_crops(sizes, recipe, preprocessing, random):
    """(crop boxes (B, 4), indices and strengths of the policy's operations (B, layers)) of images, as NumPy arrays.

    `sizes` are their heights and widths, (B, 2) int32; the others are arguments of `read_batch`.
    """
    heights, widths = sizes.T
    with keras.device("cpu:0"):  # few numbers, which an accelerator would compute after the steps in its queue
        boxes = TRAIN_CROPS[recipe.crop].crop_box(heights, widths, recipe, preprocessing, random)
        operations = POLICIES[recipe.policy].sample(random, recipe)
    return tuple(keras.ops.convert_to_numpy(values) for values in (boxes, *operations))


def read_crops(images, crops, recipe, preprocessing):
    """Reads crops of `sample_crops` and applies their operations; see `read_batch`."""
    from keras_resnet.data.pillow_images import read_crop
    from keras_resnet.data.pillow_operations import apply_operation

    policy, size = POLICIES[recipe.policy], recipe.train_size or preprocessing.size
    batch = np.empty((len(images), size, size, preprocessing.channels), "uint8")
    for row, image, box, *layers in zip(batch, images, *(values.tolist() for values in crops), strict=True):
        crop = read_crop(image, box, size, preprocessing.channels)
        for operation in zip(*layers, strict=True):
            crop = apply_operation(crop, policy, *operation)
        row[:] = np.asarray(crop).reshape(row.shape)
    return batch


def has_input_shape(split, size, channels):
    """Whether the images of a Split or Stream are pixels of the input's shape."""
    return split.is_decoded and split.images.shape[1:] == (size, size, channels)


def needs_no_crop(split, preprocessing):
    """Whether the images of a Split or Stream are the pixels that a Preprocessing would return."""
    return preprocessing.resize is None and has_input_shape(split, preprocessing.size, preprocessing.channels)


class EvaluationBatches(keras.utils.PyDataset):
    """All images of a Split in order, as batches of `evaluation_batches`; with the pixels of `Preprocessing`."""

    def __init__(self, split, dataset, batch_size):
        self.is_cropped = needs_no_crop(split, dataset.preprocessing)
        super().__init__(workers=1 if self.is_cropped else THREADS, max_queue_size=THREADS)
        self.split, self.dataset, self.batch_size = split, dataset, batch_size

    def __len__(self):
        return -(-len(self.split) // self.batch_size)

    def __getitem__(self, index):
        part = self.split[index * self.batch_size : (index + 1) * self.batch_size]
        pixels = part.images
        if not self.is_cropped:
            pixels = self.dataset.preprocessing.pixels(pixels if part.is_decoded else pixels.tolist())
        images = normalize(pixels, self.dataset.preprocessing.mode, "channels_last")
        one_hot = np.eye(len(self.dataset.class_names), dtype="float32")
        return images, part.labels if self.dataset.multi_label else one_hot[part.labels]
