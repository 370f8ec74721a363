"""`extract`: images -> one feature vector each, batch by batch; equal pixels give bit-identical vectors."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from keras_resnet.architecture.metadata import to_data_format
from keras_resnet.data.image_files import raise_if_unreadable
from keras_resnet.data.prefetch import ViewBatch, describe_errors, prefetch_batches
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.protocols import get_protocol
from keras_resnet.data.sources import image_source
from keras_resnet.errors import check_known, is_integer, value_error
from keras_resnet.models.feature_extractor import POOLINGS, PRE_LOGITS, feature_extractor
from keras_resnet.models.layers import check_network
from keras_resnet.models.preprocessing import OTHER_TASKS, preprocessing
from keras_resnet.models.transforms import with_input_size

MAX_BATCH_BYTES = 2**31


@dataclass(frozen=True)
class Features:
    """Feature vectors of images, with the images' labels and names.

    >>> import numpy as np
    >>> from keras_resnet import transfer
    >>> features = transfer.Features(np.zeros((2, 64), "float32"), np.array([0, -1]), names=("a.png", "b.png"))
    >>> features.vectors.shape
    (2, 64)
    """

    vectors: np.ndarray
    """(N, D) float32."""
    labels: np.ndarray
    """(N,) int32: index of the class, -1 for an image without a class."""
    names: tuple[str, ...]
    """Paths of the images, or their indices if they are not files."""
    class_names: tuple[str, ...] = ()
    """Empty if the classes have no names."""
    skipped: tuple[str, ...] = ()
    """Images that could not be read, as "name: error"."""
    settings: dict[str, Any] = field(default_factory=dict)
    """How the vectors were computed, if they were read from a feature file."""


def extract(
    model: keras.Model,
    images: Any,
    endpoint: str = PRE_LOGITS,
    pooling: str = "avg",
    batch_size: int = 100,
    skip_bad: bool = False,
    progress: Callable[[int], None] | None = None,
    size: int | None = None,
) -> Features:
    """Computes the features of images.

    Threads read and preprocess the images as `predict` does, while the model computes. Every batch has the full size:
    it is padded with zeros at its end and in place of unreadable images. So a vector depends on nothing but its image;
    in batches of another size, sums could be rounded differently.

    >>> import numpy as np
    >>> import keras_resnet
    >>> from keras_resnet import transfer
    >>> model = keras_resnet.create("resnet20", input_shape=(32, 32, 3), classes=10)
    >>> model.info["preprocessing"] = keras_resnet.Preprocessing("tf", size=32, resize=None).to_config()
    >>> transfer.extract(model, np.zeros((2, 32, 32, 3), "uint8"), batch_size=2).vectors.shape
    (2, 64)

    Args:
        model: Keras model whose preprocessing is known, or a `feature_extractor`.
        images: a folder, searched recursively, in which the folder of an image names its class; a file or a list of
            files; a name for `load_test`; a Dataset, whose test images are used; a Split or Stream; or an array
            (N, H, W, C) uint8.
        endpoint: "stem", "stage1" to "stage4" (or "C2" to "C5"), or "pre_logits". See `feature_extractor`.
        pooling: "avg" or "max", how feature maps become vectors.
        batch_size: number of images in a batch.
        skip_bad: whether to skip images that cannot be read.
        progress: called with the number of images done after every batch.
        size: side of the model's input images in pixels; None: as the model was built, or its weights were trained.

    Raises:
        ValueError: for an unknown endpoint, a model with unknown preprocessing, a detector or segmenter, a batch size
            below 1, no images, and an image that cannot be read.
        OSError: if a path does not exist.
        FloatingPointError: if the model returns NaN or Inf.
    """
    model, source = with_input_size(model, size), image_source(images)
    columns, skipped = [], list(source.skipped)
    for batch, vectors in extract_batches(model, source.split, endpoint, pooling, batch_size):
        errors = describe_errors(batch.read_errors, source.names)
        raise_if_unreadable(errors, skip_bad)
        skipped += errors
        columns.append((batch.indices, batch.labels.astype("int32"), vectors))
        if progress:
            progress(batch.stop)
    check_any_read(sum(len(indices) for indices, _, _ in columns), source)
    indices, labels, vectors = (np.concatenate(column) for column in zip(*columns, strict=True))
    names = tuple(source.names[index] for index in indices)
    return Features(vectors, labels, names, source.class_names, tuple(skipped))


def check_batch_size(model, batch_size):
    """Raises ValueError for a batch size below 1, or whose batches need more than MAX_BATCH_BYTES: all are full."""
    images = _preprocessing(model)
    maximum = MAX_BATCH_BYTES // (4 * images.size**2 * images.channels)
    if not is_integer(batch_size, 1, maximum):
        hint = f"A batch has at most {MAX_BATCH_BYTES / 2**30:g} GiB of images."
        raise value_error("batch_size", batch_size, f"an integer from 1 to {maximum:,}", hint)


def _preprocessing(model) -> Preprocessing:
    """`preprocessing(model)`; raises ValueError for that of a detector or segmenter, which does not crop images."""
    found = preprocessing(model)
    if not isinstance(found, Preprocessing):
        raise value_error("model", model.name, "a classifier or localizer, or a feature extractor of one", OTHER_TASKS)
    return found


def check_any_read(count, source):
    """Raises ValueError if none of the source's images could be read."""
    if not count:
        raise ValueError(f"`images` should have images that can be read. Received: none of {len(source.split)}")


def extract_batches(
    model, split, endpoint=PRE_LOGITS, pooling="avg", batch_size=100, start=0
) -> Iterator[tuple[ViewBatch, np.ndarray]]:
    """Yields (ViewBatch, features (B, D) float32) of a split from image `start` on, a multiple of `batch_size`."""
    check_network(model)
    preprocessings, protocol = [_preprocessing(model)], get_protocol("center")
    extractor = vector_extractor(model, endpoint, pooling)
    check_batch_size(extractor, batch_size)
    for batch in prefetch_batches(split, preprocessings, protocol, batch_size, start):
        vectors = np.empty((0, extractor.outputs[0].shape[-1]), "float32")
        if len(batch):
            vectors = _compute_vectors(extractor, batch.views[0][0], batch.indices - batch.start, batch_size)
        yield batch, vectors


def vector_extractor(model, endpoint=PRE_LOGITS, pooling="avg"):
    """A `feature_extractor` with one pooled endpoint; a model that already is one is returned unchanged."""
    check_known("pooling", pooling, POOLINGS)
    if not isinstance(endpoint, str):
        raise value_error("endpoint", endpoint, "the name of one endpoint")
    check_network(model)
    if isinstance(model.output, dict) and [*model.output] == [endpoint] and len(model.output[endpoint].shape) == 2:
        return model
    return feature_extractor(model, endpoints=endpoint, pooling=pooling)


def _compute_vectors(extractor, inputs, positions, batch_size):
    """(B, H, W, C) inputs at their positions in a batch of `batch_size` -> (B, D) float32."""
    batch = np.zeros((batch_size, *inputs.shape[1:]), inputs.dtype)
    batch[positions] = inputs
    (vectors,) = extractor.predict_on_batch(to_data_format(extractor, batch)).values()
    vectors = np.asarray(keras.ops.convert_to_numpy(vectors), "float32")[positions]
    if not np.isfinite(vectors).all():
        raise FloatingPointError(f"`model` should return finite numbers. Received: NaN or Inf from {extractor.name}")
    return vectors
