"""Batches for training and validation, from a Dataset and a Recipe.

All random numbers are a function of (seed, step) and of an image's position in the batch: a run can be resumed at any
step, and the augmentation of an image does not depend on the number of machines that share a batch.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from itertools import islice

import keras
import numpy as np

from keras_resnet.data.augmentation import TRAIN_CROPS, augment_batch, sample_numbers
from keras_resnet.data.auto_augment import POLICIES
from keras_resnet.data.class_balance import Oversampling, class_weights, oversampling
from keras_resnet.data.crops import test_crop_box
from keras_resnet.data.datasets import Split, Stream
from keras_resnet.data.prefetch import map_in_threads
from keras_resnet.data.random_numbers import NumPyRandom, TensorFlowRandom
from keras_resnet.data.stored_files import StoredFiles
from keras_resnet.data.threaded_batches import (
    EvaluationBatches,
    has_input_shape,
    needs_no_crop,
    read_batch,
    shuffled_batches,
)
from keras_resnet.normalization import normalize


@dataclass(frozen=True)
class StepRange:
    """Steps of a run, and this machine's part of each batch."""

    first: int
    count: int
    batch_size: int
    """Of all machines together."""
    part: slice
    """Rows of the batch that are needed."""
    seed: int
    repeats: int = 1
    """How often each image occurs in a row."""
    oversampling: Oversampling | None = None
    """What an epoch consists of; None: each image once."""

    @classmethod
    def of(cls, recipe, count, seed=0, first=0, share=(0, 1), **order):
        """`count` steps of a recipe's run from step `first`; `order`: the fields `repeats` and `oversampling`.

        `share`: (i, n): only the i-th of n equal parts of every batch.
        """
        size = recipe.batch_size // share[1]
        part = slice(share[0] * size, (share[0] + 1) * size)
        return cls(first, count, recipe.batch_size, part, seed, **order)

    @property
    def numbers(self):
        return range(self.first, self.first + self.count)

    @property
    def copies(self):
        """How many consecutive rows have the same image, which is read once for them, wherever they begin."""
        return math.gcd(self.repeats, self.batch_size, self.part.start, self.part.stop)


def training_batches(dataset, recipe, steps, seed=0, first=0, share=(0, 1)):
    """Shuffled, augmented and normalised batches for some steps of a run.

    Args:
        steps: number of batches.
        seed: of the order and the augmentation.
        first: first step of the run; earlier ones are not computed.
        share: (i, n): only the i-th of n equal parts of every batch.

    Returns:
        Images (B, H, W, C) float32, labels (B, K) float32 and, if the recipe has `class_weight`, weights (B,) float32:
        on the TensorFlow backend a tf.data.Dataset; otherwise an iterator, of images that threads read with Pillow.
    """
    order = {"repeats": recipe.repeats, "oversampling": oversampling(dataset, recipe)}
    steps = StepRange.of(recipe, steps, seed, first, share, **order)
    num_classes, preprocessing = len(dataset.class_names), dataset.preprocessing
    weights, is_batchwise = class_weights(dataset, recipe.class_weight), _is_batchwise(dataset, recipe)
    compiled = compiled_augmentation(replace(recipe, class_weight=None), num_classes, preprocessing.mode)

    def augment(random, images, labels):
        return compiled(images, labels, sample_numbers(recipe, random), weights)

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        def finish(step, images, labels):
            return augment(TensorFlowRandom(seed, step, (steps.batch_size, steps.part)), images, labels)

        return _tensorflow_batches(dataset, recipe, steps).map(finish, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def read_and_augment(batch):
        step, images, labels = batch
        random = NumPyRandom(seed, step, (steps.batch_size, steps.part))
        return augment(random, images if is_batchwise else read_batch(images, recipe, preprocessing, random), labels)

    make_batches = shuffled_batches if isinstance(dataset.train, Split) else _stream_batches
    return map_in_threads(read_and_augment, make_batches(dataset.train, steps))


def generated_batches(make_iterator, inputs, losses, steps):
    """Batches of a model whose outputs are its losses: of an iterator, on the TensorFlow backend as a tf.data.Dataset.

    Args:
        make_iterator: function that returns an iterator of ({input: array}, {loss: (B,) zeros}).
        inputs: {input: (shape of an example, dtype)}; sides that differ from batch to batch are None.
        losses: names of the losses.
        steps: StepRange of the batches.
    """
    if keras.backend.backend() != "tensorflow":
        return make_iterator()
    import tensorflow as tf

    size = steps.part.stop - steps.part.start
    signature = (
        {name: tf.TensorSpec((size, *shape), dtype) for name, (shape, dtype) in inputs.items()},
        {name: tf.TensorSpec((size,)) for name in losses},
    )
    batches = tf.data.Dataset.from_generator(make_iterator, output_signature=signature)
    return batches.apply(tf.data.experimental.assert_cardinality(steps.count)).prefetch(1)


@lru_cache(8)
def compiled_augmentation(recipe, num_classes, mode):
    """`augment_batch` of (images, labels, numbers, class weights), compiled by XLA where the backend has it.

    XLA makes one pass over the pixels instead of one for each operation, and compiles once for several runs.
    """

    def augment(images, labels, numbers, class_weights):
        return augment_batch(images, labels, recipe, num_classes, mode, numbers, class_weights)

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(augment, jit_compile=True, autograph=False)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(augment)
    return augment


def _is_batchwise(dataset, recipe):
    """Whether images are decoded, of the input size, and only augmented in batches."""
    crop, size = TRAIN_CROPS[recipe.crop], recipe.train_size or dataset.preprocessing.size
    unchanged = crop.function is None and recipe.policy == "none"
    return unchanged and has_input_shape(dataset.train, size, dataset.preprocessing.channels)


def _tensorflow_batches(dataset, recipe, steps):
    """tf.data.Dataset of (step, uint8 images (B, H, W, C), labels (B,))."""
    import tensorflow as tf

    counter = tf.data.Dataset.range(steps.first, steps.numbers.stop)
    rows = tf.range(steps.batch_size, dtype="int64")[steps.part]
    if _is_batchwise(dataset, recipe):
        with tf.device("CPU"):
            images, labels = tf.constant(dataset.train.images), tf.constant(dataset.train.labels)

        def batch(step):
            indices = _shuffled_indices(step * steps.batch_size + rows, dataset.train, steps)
            return step, tf.gather(images, indices), tf.gather(labels, indices)

        return counter.map(batch, tf.data.AUTOTUNE)

    def in_one_batch(step, batch):
        return step, *(tf.reshape(column, (len(rows), *column.shape[2:])) for column in batch)

    examples = _examples(dataset.train, steps, rows).map(_crop_reader(dataset, recipe, steps), tf.data.AUTOTUNE)
    batches = examples.batch(len(rows) // steps.copies, drop_remainder=True)
    return tf.data.Dataset.zip(counter, batches).map(in_one_batch)


def _crop_reader(dataset, recipe, steps):
    """A function of an example of `_examples`: (uint8 crops (copies, H, W, C), augmented by the policy, and labels)."""
    import tensorflow as tf

    from keras_resnet.data.tensorflow_images import decode, image_size, read_crop
    from keras_resnet.data.tensorflow_operations import apply_operation

    preprocessing, crop, policy = dataset.preprocessing, TRAIN_CROPS[recipe.crop], POLICIES[recipe.policy]
    size = recipe.train_size or preprocessing.size

    def augmented_crop(position, image, orientation):
        random = TensorFlowRandom.of_image(steps.seed, position)
        box = crop.crop_box(*image_size(image, orientation), recipe, preprocessing, random)
        pixels = read_crop(image, box, size, preprocessing.channels, orientation=orientation, fast=True)
        for operation in zip(*map(tf.unstack, policy.sample(random, recipe)), strict=True):
            pixels = apply_operation(pixels, policy, *operation)
        return pixels

    def read(position, image, label, orientation=None):
        image, orientation = _contents(dataset.train, image, orientation)
        if steps.copies > 1 and image.dtype == tf.string:
            image = decode(image, preprocessing.channels, fast=True)
        crops = [augmented_crop(position + copy, image, orientation) for copy in range(steps.copies)]
        return tf.stack(crops), tf.stack([label] * steps.copies)

    return read


def _shuffled_indices(positions, split, steps):
    """Positions in the run -> indices of images: another permutation in each epoch, computed without storing it."""
    import tensorflow as tf

    positions, length = positions // steps.repeats, len(steps.oversampling or split)
    epochs = positions // length
    seeds = [tf.fill(tf.shape(epochs), tf.constant(steps.seed, "int64")), epochs, tf.zeros_like(epochs)]
    places = tf.raw_ops.RandomIndexShuffle(
        index=positions % length,
        seed=tf.stack(seeds, axis=-1),
        max_index=tf.constant(length - 1, "int64"),
        rounds=8,  # 4 shuffle few images badly
    )
    return steps.oversampling.image_indices(places, epochs, tf.gather) if steps.oversampling else places


def _examples(split, steps, rows):
    """tf.data.Dataset of (position in the run, *columns of `_columns`), one for all copies that are read together."""
    import tensorflow as tf

    if not isinstance(split, Split):
        return _stream_examples(split, steps)
    with tf.device("CPU"):
        columns = [tf.constant(column) for column in _columns(split)]
    positions = tf.data.Dataset.range(steps.first, steps.numbers.stop).flat_map(
        lambda step: tf.data.Dataset.from_tensor_slices(step * steps.batch_size + rows[:: steps.copies])
    )

    def example(position):
        index = _shuffled_indices(position[None], split, steps)[0]
        return position, *(column[index] for column in columns)

    return positions.map(example)


def _stream_examples(split, steps):
    """`_examples` of a Stream; a resumed run begins in the middle of an epoch."""
    import tensorflow as tf

    start, stop = steps.first * steps.batch_size, steps.numbers.stop * steps.batch_size
    position = start // steps.repeats
    epochs = range(position // len(split), (stop - 1) // steps.repeats // len(split) + 1)
    # SeedSequence makes unrelated seeds for neighbouring epochs
    states = (np.random.SeedSequence((steps.seed, epoch)).generate_state(1)[0] for epoch in epochs)
    stream = reduce(lambda a, b: a.concatenate(b), (split.examples(int(state >> 1)) for state in states))
    examples = stream.skip(position % len(split)).flat_map(
        lambda *example: tf.data.Dataset.from_tensors(example).repeat(steps.repeats)
    )
    examples = examples.skip(start - position * steps.repeats).enumerate(start).take(stop - start)

    def in_part(position, _):
        row = position % steps.batch_size
        return (row >= steps.part.start) & (row < steps.part.stop) & (row % steps.copies == 0)

    return examples.filter(in_part).map(lambda position, example: (position, *example))


def _stream_batches(split, steps):
    """Yields (step, images, labels) of a Stream as NumPy arrays."""
    examples = _stream_examples(split, steps).as_numpy_iterator()
    for step in steps.numbers:
        _, images, labels = zip(*islice(examples, (steps.part.stop - steps.part.start) // steps.copies), strict=True)
        yield step, [image for image in images for _ in range(steps.copies)], np.repeat(labels, steps.copies, axis=0)


def _columns(split):
    """Pixels, files, paths or indices of a Split, their labels, and their orientations if not all are upright."""
    images = split.images
    if not split.is_decoded:
        images = images.indices if isinstance(images, StoredFiles) else images.tolist()
    return (images, split.labels) if split.orientations is None else (images, split.labels, split.orientations)


def _contents(split, image, orientation):
    """(pixels or the contents of the file, orientation or None)."""
    import tensorflow as tf

    from keras_resnet.data.tensorflow_limits import check_image
    from keras_resnet.data.tensorflow_orientations import exif_orientation

    if isinstance(split, Stream):
        return (check_image(image), exif_orientation(image)) if image.dtype == tf.string else (image, None)
    if isinstance(split.images, StoredFiles):
        contents = tf.numpy_function(lambda index: split.images.read(int(index)), [image], tf.string)
        return tf.ensure_shape(contents, ()), orientation
    return tf.io.read_file(image) if split.has_paths else image, orientation


def evaluation_batches(split, dataset, batch_size, share=(0, 1)):
    """All images of a split of a dataset in order, normalised; of `share` = (i, n), every n-th image, from the i-th.

    Returns:
        (B, H, W, C) float32 and one-hot (B, K) float32 or multi-label (B, K) uint8, where the last batch may be
        smaller: a tf.data.Dataset; on other backends, unless the split is a Stream, a keras.utils.PyDataset.
    """
    if isinstance(split, Split) and keras.backend.backend() != "tensorflow":
        return EvaluationBatches(split[share[0] :: share[1]], dataset, batch_size)
    import tensorflow as tf

    mode = dataset.preprocessing.mode

    def finish(images, labels):
        if keras.backend.backend() == "tensorflow":
            images = normalize(images, mode, "channels_last")
        else:
            shape = images.shape
            images = tf.numpy_function(lambda x: normalize(x, mode, "channels_last"), [images], "float32")
            images.set_shape(shape)
        return images, labels if dataset.multi_label else tf.one_hot(labels, len(dataset.class_names))

    batches = _test_examples(split, dataset.preprocessing, share).batch(batch_size)
    return batches.map(finish, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _test_examples(split, preprocessing, share):
    """tf.data.Dataset of (uint8 (H, W, C), label), cropped as the Preprocessing of the dataset says."""
    import tensorflow as tf

    from keras_resnet.data.tensorflow_images import image_size, read_crop

    size, channels, interpolation = preprocessing.size, preprocessing.channels, preprocessing.interpolation
    is_split = isinstance(split, Split)
    examples = tf.data.Dataset.from_tensor_slices(_columns(split)) if is_split else split.examples(None)
    examples = examples.shard(share[1], share[0])
    if needs_no_crop(split, preprocessing):
        return examples

    def read(image, label, orientation=None):
        contents, orientation = _contents(split, image, orientation)
        box = test_crop_box(*image_size(contents, orientation), preprocessing)
        crop = read_crop(contents, box, size, channels, orientation=orientation, interpolation=interpolation)
        return crop, label

    return examples.map(read, tf.data.AUTOTUNE)
