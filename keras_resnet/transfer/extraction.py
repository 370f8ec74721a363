"""Images -> a vector for each, in a stream; equal pixels give equal vectors, to the bit."""

from dataclasses import dataclass, field

import keras
import numpy as np

from keras_resnet.architecture.metadata import to_data_format
from keras_resnet.data.image_files import raise_if_unreadable
from keras_resnet.data.prefetch import describe_errors, prefetch_batches
from keras_resnet.data.protocols import get_protocol
from keras_resnet.data.sources import image_source
from keras_resnet.errors import check_integers, unknown_name_error
from keras_resnet.models.feature_extractor import POOLINGS, PRE_LOGITS, feature_extractor
from keras_resnet.models.layers import check_network
from keras_resnet.models.preprocessing import preprocessing


@dataclass(frozen=True)
class Features:
    """A vector for each image that could be read."""

    vectors: np.ndarray
    """(N, D) float32."""
    labels: np.ndarray
    """(N,) int32: number of the class, or UNLABELLED."""
    names: tuple[str, ...]
    """Of the images: their paths, or their numbers where they come from no files."""
    class_names: tuple[str, ...] = ()
    """Empty if the labels have none."""
    skipped: tuple[str, ...] = ()
    """Images that could not be read, with what is wrong with them."""
    settings: dict = field(default_factory=dict)
    """How they were made, if they come from a file."""


def extract(
    model, images, endpoint=PRE_LOGITS, pooling="avg", batch_size=100, skip_bad=False, progress=None
) -> Features:
    """The features of images, as vectors in memory.

    Images are read as `predict` reads them, while the network is at work. The network always sees batches of the full
    size, and an image that cannot be read leaves its place empty, so that a vector does not depend on what else is
    looked at: a batch of another size may be summed in another order.

    Args:
        model: a network whose preprocessing is known, or a `feature_extractor`.
        images: a folder, of which every image is taken, with the name of its class folder as its class; a file, or
            a list of them; a name for `load_test`; a Dataset, of which `test` is used; a Split or Stream; or pixels,
            (N, H, W, C) uint8.
        endpoint: see `feature_extractor`.
        pooling: "avg" or "max", what makes vectors of maps.
        batch_size: images that the network sees at a time.
        skip_bad: whether images that cannot be read are left out.
        progress: called with the number of images that are done, after every batch.

    Raises:
        ValueError: for an unknown endpoint, a network of unknown preprocessing, a batch size below 1, what holds no
            images, and an image that cannot be read.
        OSError: for a path where nothing is.
        FloatingPointError: if the network returns what is no number.
    """
    check_integers(batch_size=batch_size)
    source = image_source(images)
    found, skipped = [], list(source.skipped)
    for batch, vectors in extract_batches(model, source.split, endpoint, pooling, batch_size):
        errors = describe_errors(batch.read_errors, source.names)
        raise_if_unreadable(errors, skip_bad)
        skipped += errors
        found.append((batch.indices, batch.labels.astype("int32"), vectors))
        if progress:
            progress(batch.stop)
    check_any_read(sum(len(indices) for indices, _, _ in found), source)
    indices, labels, vectors = (np.concatenate(column) for column in zip(*found, strict=True))
    names = tuple(source.names[index] for index in indices)
    return Features(vectors, labels, names, source.class_names, tuple(skipped))


def check_any_read(count, source):
    """Raises ValueError if none of the images could be read."""
    if not count:
        raise ValueError(f"Expected images that can be read. Received: none of {len(source.split)}")


def extract_batches(model, split, endpoint=PRE_LOGITS, pooling="avg", batch_size=100, start=0):
    """The features of images, batch by batch, in order.

    Args:
        model, endpoint, pooling, batch_size: as for `extract`.
        split: Split or Stream.
        start: index of the first image; to continue an earlier run, a multiple of `batch_size`.

    Yields:
        (ImageBatch, features (B, D) float32).
    """
    extractor = vector_extractor(model, endpoint, pooling)
    preprocessings, protocol = [preprocessing(model)], get_protocol("center")
    for batch in prefetch_batches(split, preprocessings, protocol, batch_size, start):
        vectors = np.empty((0, vector_size(extractor)), "float32")
        if len(batch):
            vectors = _vectors(extractor, batch.views[0][0], batch.indices - batch.start, batch_size)
        yield batch, vectors


def vector_extractor(model, endpoint=PRE_LOGITS, pooling="avg"):
    """The extractor of one endpoint as vectors; a model that is such a one stays as it is."""
    if pooling not in POOLINGS:
        raise unknown_name_error("pooling", pooling, POOLINGS)
    if not isinstance(endpoint, str):
        raise ValueError(f"`endpoint` should be the name of one. Received: endpoint={endpoint!r}")
    check_network(model)
    if isinstance(model.output, dict) and [*model.output] == [endpoint] and len(model.output[endpoint].shape) == 2:
        return model
    return feature_extractor(model, endpoints=endpoint, pooling=pooling)


def vector_size(extractor):
    """How many numbers its vectors have."""
    return extractor.outputs[0].shape[-1]


def _vectors(extractor, inputs, places, batch_size):
    """(B, H, W, C), and their places in a full batch -> (B, D) float32."""
    if len(inputs) < batch_size:
        full = np.zeros((batch_size, *inputs.shape[1:]), inputs.dtype)
        full[places] = inputs
        return _vectors(extractor, full, slice(None), batch_size)[places]
    (vectors,) = extractor.predict_on_batch(to_data_format(extractor, inputs)).values()
    vectors = np.asarray(keras.ops.convert_to_numpy(vectors), "float32")
    if not np.isfinite(vectors).all():
        raise FloatingPointError(f"`model` should return numbers. Received: NaN or Inf from {extractor.name}")
    return vectors
