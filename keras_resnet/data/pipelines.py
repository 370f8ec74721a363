"""Data set and recipe -> batches on their way to the device.

Everything random is a function of (seed, step), and of an image's place in the step. So a run can go on at any step,
and what an image looks like does not depend on how many machines share a batch.
"""

from functools import reduce

import keras
import numpy as np

from keras_resnet.data import augmentation
from keras_resnet.data.datasets import Split
from keras_resnet.data.preprocessing import preprocess_input
from keras_resnet.data.random_numbers import NumPyRandom, TensorFlowRandom


def training_batches(dataset, recipe, steps, seed=0, first=0, share=(0, 1)):
    """Shuffled, augmented, normalised batches for some steps of a run.

    Args:
        dataset: Dataset.
        recipe: Recipe.
        steps: number of batches.
        seed: of the order and the augmentation.
        first: step of the run with which they begin; earlier ones are not computed.
        share: (i, n): of every batch, only the i-th of n equal parts.

    Returns:
        Pairs of images (B, H, W, C) float32 and labels (B, K) float32, a share of 1 for each class: a tf.data.Dataset
        on the TensorFlow backend; else an iterator, which for pixels in memory needs no TensorFlow.
    """
    part = recipe.batch_size // share[1]
    rows = (recipe.batch_size, slice(share[0] * part, (share[0] + 1) * part))

    def augmented(draws, step, images, labels):
        return _augmented(images, labels, draws(seed, step, rows), dataset, recipe)

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        raw = _tensorflow_batches(dataset, recipe, steps, seed, first, rows)
        return raw.map(lambda *batch: augmented(TensorFlowRandom, *batch), tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    if _whole_batches(dataset, recipe):
        raw = _numpy_batches(dataset.train, recipe, steps, seed, first, rows)
    else:
        raw = _tensorflow_batches(dataset, recipe, steps, seed, first, rows).as_numpy_iterator()
    return (augmented(NumPyRandom, *batch) for batch in raw)


def _augmented(images, labels, draws, dataset, recipe):
    """What is done to a batch at once: uint8 (B, H, W, C) and int (B,) -> float32 and float32 (B, K)."""
    if recipe.crop == "pad":
        images = augmentation.pad_and_crop(images, recipe.padding, draws.uniform(2))
    if recipe.flip:
        images = augmentation.flip(images, draws.uniform())
    if recipe.lighting:
        images = augmentation.lighting(images, draws.normal(3), recipe.lighting)
    images = preprocess_input(images, dataset.preprocessing.mode, data_format="channels_last")
    if recipe.erasing:
        images = augmentation.erase(images, draws.uniform(5), recipe.erasing)
    labels = augmentation.soft_labels(labels, len(dataset.class_names), recipe.label_smoothing)
    if recipe.mixup or recipe.cutmix:
        images, labels = augmentation.mix(images, labels, recipe.mixup, recipe.cutmix, draws)
    if recipe.target_threshold is not None:
        labels = augmentation.threshold(labels, recipe.target_threshold)
    return images, labels


def _train_size(dataset, recipe):
    return recipe.train_size or dataset.preprocessing.size


def _whole_batches(dataset, recipe):
    """Whether images are pixels that need nothing done to them one by one."""
    one_by_one = recipe.crop not in ("none", "pad") or recipe.policy != "none"
    return not one_by_one and _is_ready(dataset.train, _train_size(dataset, recipe), dataset.preprocessing.channels)


def _is_ready(split, size, channels):
    """Whether images are pixels as a network takes them, but for their range."""
    return split.decoded and split.images.shape[1:] == (size, size, channels)


def _numpy_batches(split, recipe, steps, seed, first, rows):
    """(step, images, labels) as NumPy arrays, in the order of a permutation for each pass through the data."""
    order, known = None, None
    for step in range(first, first + steps):
        slots = np.arange(step * rows[0], (step + 1) * rows[0])[rows[1]] // recipe.repeats
        chosen = np.empty(len(slots), int)
        for epoch in np.unique(slots // len(split)):
            if epoch != known:
                order, known = np.random.default_rng((seed, epoch, 0)).permutation(len(split)), epoch
            here = slots // len(split) == epoch
            chosen[here] = order[slots[here] % len(split)]
        yield step, split.images[chosen], split.labels[chosen]


def _tensorflow_batches(dataset, recipe, steps, seed, first, rows):
    """tf.data.Dataset of (step, uint8 images (B, H, W, C), labels (B,))."""
    import tensorflow as tf

    counter = tf.data.Dataset.range(first, first + steps)
    positions = tf.range(rows[0], dtype="int64")[rows[1]]
    if _whole_batches(dataset, recipe):
        with tf.device("CPU"):
            images, labels = tf.constant(dataset.train.images), tf.constant(dataset.train.labels)

        def batch(step):
            chosen = _chosen(step * rows[0] + positions, len(dataset.train), recipe.repeats, seed)
            return step, tf.gather(images, chosen), tf.gather(labels, chosen)

        return counter.map(batch, tf.data.AUTOTUNE)
    read = _reader(dataset, recipe, seed)
    examples = _examples(dataset.train, recipe.repeats, steps, seed, first, rows, positions)
    batches = examples.map(read, tf.data.AUTOTUNE).batch(len(positions), drop_remainder=True)
    return tf.data.Dataset.zip(counter, batches).map(lambda step, batch: (step, *batch))


def _chosen(positions, count, repeats, seed):
    """Places in the run -> numbers of images: for each pass through the data another permutation, none stored."""
    import tensorflow as tf

    slots = positions // repeats
    epochs = slots // count
    seeds = tf.stack([tf.fill(tf.shape(epochs), tf.constant(seed, "int64")), epochs, tf.zeros_like(epochs)], axis=-1)
    last, rounds = tf.constant(count - 1, "int64"), 8  # 4 mix few images badly
    return tf.raw_ops.RandomIndexShuffle(index=slots % count, seed=seeds, max_index=last, rounds=rounds)


def _examples(split, repeats, steps, seed, first, rows, positions):
    """tf.data.Dataset of (place in the run, encoded file or pixels, label), one by one."""
    import tensorflow as tf

    if not isinstance(split, Split):
        return _streamed(split, repeats, steps, seed, first, rows)
    with tf.device("CPU"):
        images = tf.constant(split.images if split.decoded else split.images.tolist())
        labels = tf.constant(split.labels)
    places = tf.data.Dataset.range(first, first + steps).flat_map(
        lambda step: tf.data.Dataset.from_tensor_slices(step * rows[0] + positions)
    )

    def example(place):
        chosen = _chosen(place[None], len(split), repeats, seed)[0]
        return place, images[chosen], labels[chosen]

    return places.map(example)


def _streamed(split, repeats, steps, seed, first, rows):
    """The same from a Stream, from the middle of a pass where the run goes on there."""
    import tensorflow as tf

    start, stop = first * rows[0], (first + steps) * rows[0]
    slot = start // repeats
    passes = range(slot // len(split), (stop - 1) // repeats // len(split) + 1)
    stream = reduce(lambda a, b: a.concatenate(b), (split.examples(_pass_seed(seed, number)) for number in passes))
    examples = stream.skip(slot % len(split)).flat_map(lambda *one: tf.data.Dataset.from_tensors(one).repeat(repeats))
    numbered = examples.skip(start - slot * repeats).enumerate(start).take(stop - start)
    wanted = numbered.filter(lambda place, _: (place % rows[0] >= rows[1].start) & (place % rows[0] < rows[1].stop))
    return wanted.map(lambda place, one: (place, *one))


def _pass_seed(seed, number):
    """Seed of the n-th pass through the data: far apart for neighbours."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0] >> 1)


def _reader(dataset, recipe, seed):
    """(place, image, label) -> (uint8 (H, W, C), label): a window of the image, as training shows it."""
    import tensorflow as tf

    from keras_resnet.data import auto_augment, crops

    size, channels = _train_size(dataset, recipe), dataset.preprocessing.channels
    policies = {
        "none": lambda image, seed: image,
        "trivial_augment": auto_augment.trivial_augment,
        "rand_augment": lambda image, seed: auto_augment.rand_augment(
            image, recipe.policy_layers, recipe.policy_magnitude, recipe.policy_std, seed
        ),
    }

    def read(place, image, label):
        window_seed, policy_seed = (tf.stack([tf.constant(1000 * seed + i, "int64"), place]) for i in range(2))
        contents = _contents(dataset.train, image)
        sides = crops.image_shape(contents)
        window = crops.CROPS[recipe.crop](*sides, recipe, dataset.preprocessing, window_seed)
        pixels = crops.read_window(contents, window, size, channels, fast=True)
        return policies[recipe.policy](pixels, policy_seed), label

    return read


def _contents(split, image):
    """A path -> the file; what is no path stays."""
    import tensorflow as tf

    return tf.io.read_file(image) if split.paths else image


def evaluation_batches(split, dataset, batch_size, share=(0, 1)):
    """All images of a split in order, normalised, the last batch smaller.

    Args:
        split: a Split or Stream of `dataset`.
        dataset: Dataset.
        batch_size: images a batch.
        share: (i, n): only every n-th image, from the i-th.

    Returns:
        (B, H, W, C) float32 and (B, K) float32, one for the class: a tf.data.Dataset; without TensorFlow a
        keras.utils.PyDataset, for pixels in memory.
    """
    if split.decoded and keras.backend.backend() != "tensorflow":
        return _NumPyBatches(split, dataset, batch_size)
    import tensorflow as tf

    def finished(images, labels):
        if keras.backend.backend() == "tensorflow":
            images = preprocess_input(images, dataset.preprocessing.mode, data_format="channels_last")
        else:
            shape = images.shape
            mode = dataset.preprocessing.mode
            images = tf.numpy_function(lambda x: preprocess_input(x, mode, "channels_last"), [images], "float32")
            images.set_shape(shape)
        return images, tf.one_hot(labels, len(dataset.class_names))

    batches = _in_order(split, dataset, share).batch(batch_size)
    return batches.map(finished, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _in_order(split, dataset, share):
    """tf.data.Dataset of (uint8 (H, W, C), label): the middle of every image, as the Preprocessing wants it."""
    import tensorflow as tf

    from keras_resnet.data import crops

    wanted = dataset.preprocessing
    if isinstance(split, Split):
        images = split.images if split.decoded else split.images.tolist()
        examples = tf.data.Dataset.from_tensor_slices((images, split.labels))
    else:
        examples = split.examples(None)
    examples = examples.shard(share[1], share[0])
    if wanted.resize is None and _is_ready(split, wanted.size, wanted.channels):
        return examples

    def read(image, label):
        contents = _contents(split, image)
        window = crops.test_window(*crops.image_shape(contents), wanted)
        interpolation = wanted.interpolation
        return crops.read_window(contents, window, wanted.size, wanted.channels, interpolation=interpolation), label

    return examples.map(read, tf.data.AUTOTUNE)


class _NumPyBatches(keras.utils.PyDataset):
    """What `evaluation_batches` returns without TensorFlow."""

    def __init__(self, split, dataset, batch_size):
        super().__init__()
        self.split, self.dataset, self.batch_size = split, dataset, batch_size

    def __len__(self):
        return -(-len(self.split) // self.batch_size)

    def __getitem__(self, index):
        part = slice(index * self.batch_size, (index + 1) * self.batch_size)
        images = preprocess_input(self.split.images[part], self.dataset.preprocessing.mode, "channels_last")
        return images, np.eye(len(self.dataset.class_names), dtype="float32")[self.split.labels[part]]
