"""`evaluate`: the predictions of a model, or of an ensemble, for test images, under the paper's test protocols."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from keras_resnet.architecture.metadata import to_data_format
from keras_resnet.data.datasets import Dataset, Split, evenly_spaced
from keras_resnet.data.image_files import raise_if_unreadable
from keras_resnet.data.labels import are_placeholders, class_ids_and_names, match_class_indices
from keras_resnet.data.prefetch import ViewBatch, describe_errors, prefetch_batches
from keras_resnet.data.protocols import (
    DetectionProtocol,
    LocalizationProtocol,
    Protocol,
    SegmentationProtocol,
    get_detection_protocol,
    get_localization_protocol,
    get_protocol,
    get_segmentation_protocol,
    is_localization,
)
from keras_resnet.data.sources import image_source, load_dataset, load_test
from keras_resnet.detection import is_detector
from keras_resnet.detection_evaluation import evaluate_detector
from keras_resnet.detection_results import DetectionEvaluation
from keras_resnet.errors import value_error
from keras_resnet.evaluation_results import Evaluation, MultiLabelEvaluation
from keras_resnet.localization import is_localizer
from keras_resnet.localization_evaluation import evaluate_localizer
from keras_resnet.localization_results import LocalizationEvaluation
from keras_resnet.models.cloning import as_functional
from keras_resnet.models.preprocessing import class_names, preprocessing, thresholds
from keras_resnet.models.transforms import with_input_size
from keras_resnet.prediction import Classifier, ProtocolPredictor
from keras_resnet.segmentation import is_segmenter
from keras_resnet.segmentation_evaluation import evaluate_segmenter
from keras_resnet.segmentation_results import SegmentationEvaluation

MAX_PROBABILITIES = 2**28
"""Probabilities that are kept for the metrics, 1 GiB; of more images and classes, only the errors are computed."""


def evaluate(
    models: Any,
    dataset: Dataset | str,
    protocol: Protocol | DetectionProtocol | LocalizationProtocol | SegmentationProtocol | str | None = None,
    batch_size: int | None = None,
    skip_bad: bool = False,
    progress: Callable[[int], Any] | None = None,
    size: int | None = None,
    ignore_index: int | None = None,
    **changes: Any,
) -> Evaluation | MultiLabelEvaluation | DetectionEvaluation | LocalizationEvaluation | SegmentationEvaluation:
    """Computes the top-1 and top-5 errors of a model, or of an ensemble whose probabilities are averaged.

    Beside them stand precision, recall, F1, balanced accuracy and ROC AUC; for a multi-label model, mean average
    precision and the metrics at its thresholds. For a detector, COCO's and PASCAL VOC's average precisions; for a
    localizer, or with the protocol "localization", ImageNet's localization errors; for a segmenter, mIoU.

    >>> import numpy as np
    >>> from keras_resnet import create, evaluate, from_arrays
    >>> arrays = np.zeros((10, 32, 32, 3), "uint8"), np.arange(10)
    >>> result = evaluate(create("resnet20", weights="cifar10"), from_arrays(arrays, arrays))
    >>> result.num_images, result.top1_error
    (10, 0.9)

    Images are read as `predict` reads them, by threads while the model computes; a few batches are in memory at a time.
    All probabilities are kept, if they are at most 2**28.

    Args:
        models: a Keras model whose preprocessing is known, or a list of them: an ensemble, but not of
            detectors or segmenters.
        dataset: a Dataset, whose test images are used, or a name for `load_test`; for a detector, with objects, for a
            segmenter, with masks of classes. For localization a name for `load_dataset`: the mean box of the training
            images is a baseline.
        protocol: a name in PROTOCOLS, or a Protocol; for a detector, a DetectionProtocol; for localization, a name in
            LOCALIZATION_PROTOCOLS or a LocalizationProtocol; for a segmenter, a name in SEGMENTATION_PROTOCOLS or a
            SegmentationProtocol; None: "center", or the default one of a detector, localizer or segmenter.
        batch_size: number of views in a batch; None: 100, or 1 for a detector or segmenter.
        skip_bad: whether images that cannot be read are skipped instead of raising an error.
        progress: called after every batch with the number of images evaluated or skipped so far.
        size: side of the models' input images in pixels, of a segmenter's their shorter side; None: as each was built,
            or its weights were trained.
        ignore_index: value of pixels that do not count, besides 255, in the masks of a data set given by its name.
        **changes: fields of the protocol to change, such as `scales=(224, 320)`, or `refine=True` for a detector.

    Returns:
        An Evaluation; a MultiLabelEvaluation for a multi-label model, a DetectionEvaluation for a detector, a
        LocalizationEvaluation for localization, a SegmentationEvaluation for a segmenter.

    Raises:
        ImportError: for a detector, without faster-coco-eval.
        ValueError: for a dataset's labels that are not classes of the model, an ensemble with different classes, a
            scale that is too small for a model, a model of unknown preprocessing, an image that cannot be read, a
            detector with a data set without objects, and a segmenter with one without masks.
        FloatingPointError: if a model returns NaN or Inf.
    """
    models = list(models) if isinstance(models, (list, tuple)) else [models]
    if any(map(is_segmenter, models)):
        segmenter, averaged = _only(models, "segmenter"), get_segmentation_protocol(protocol or "whole", **changes)
        data = _with_masks(dataset, skip_bad, ignore_index)
        return evaluate_segmenter(segmenter, data, averaged, batch_size or 1, skip_bad, progress, size)
    if ignore_index is not None:
        raise value_error("ignore_index", ignore_index, "left out for networks that are no segmenters")
    if any(map(is_detector, models)):
        detector, tested = _only(models, "detector", size), get_detection_protocol(protocol, **changes)
        return evaluate_detector(detector, _loaded(dataset, skip_bad), tested, batch_size or 1, skip_bad, progress)
    if is_localization(protocol) or any(map(is_localizer, models)):
        model, used = _only(models, "localizer"), get_localization_protocol(protocol or "localization", **changes)
        data = dataset if isinstance(dataset, Dataset) else load_dataset(dataset, skip_bad=skip_bad)
        return evaluate_localizer(with_input_size(model, size), data, used, batch_size or 100, skip_bad, progress)
    views, batch_size = get_protocol(protocol or "center", **changes), batch_size or 100
    models = [with_input_size(as_functional(model), size) for model in models]
    dataset = _loaded(dataset, skip_bad)
    classes, multi_label = _common_classes(models), _is_multi_label(models, dataset)
    class_indices = match_class_indices(dataset.class_names, classes)
    keep = multi_label or keeps_probabilities(dataset, len(classes))
    skipped, batches = list(dataset.skipped), []
    for batch, probabilities in batch_probabilities(models, dataset, views, batch_size, skip_bad):
        skipped += describe_errors(batch.read_errors)
        labels = _to_model_labels(batch.labels, class_indices, len(classes))
        results = () if multi_label else (probabilities.argmax(axis=1), _ranks(labels, probabilities))
        batches.append((batch.indices, probabilities if keep else probabilities[:, :0], labels, *results))
        if progress:
            progress(batch.stop)
    indices, probabilities, labels, *columns = (np.concatenate(column) for column in zip(*batches, strict=True))
    all_names = image_source(dataset).names
    names = tuple(all_names[index] for index in indices)
    if multi_label:
        labels = labels if dataset.multi_label else np.eye(len(classes))[labels]
        limits = tuple(np.mean([thresholds(model) or () for model in models], axis=0).tolist())
        return MultiLabelEvaluation(classes, labels.astype("uint8"), probabilities, limits, tuple(skipped), names)
    labels, predicted, ranks = (column.astype("int32") for column in (labels, *columns))
    return Evaluation(classes, labels, predicted, ranks, tuple(skipped), probabilities if keep else None, names)


def _loaded(dataset, skip_bad):
    return dataset if isinstance(dataset, Dataset) else load_test(dataset, skip_bad=skip_bad)


def _with_masks(dataset, skip_bad, ignore_index):
    """The Dataset with masks of classes."""
    if not isinstance(dataset, Dataset):
        return load_test(dataset, skip_bad=skip_bad, masks=True, ignore_index=ignore_index)
    if ignore_index is not None:
        raise value_error("ignore_index", ignore_index, "given to `load_dataset` or `from_arrays`, not with a Dataset")
    return dataset


def _only(models, kind, size=None):
    """The detector, localizer or segmenter in a list of it alone; images of a detector have no single size."""
    if len(models) > 1:
        raise value_error("models", [model.name for model in models], f"one {kind}, or classifiers")
    if size is not None:
        raise value_error("size", size, "None for a detector", "Pass its shorter side, as in `scales=(800,)`.")
    return models[0]


def _is_multi_label(models, dataset):
    """Whether the models are multi-label; raises ValueError if they differ, or are not and the data set is."""
    kinds = {thresholds(model) is not None for model in models}
    if len(kinds) > 1:
        raise ValueError("`models` should all be multi-label, or none of them, to be an ensemble.")
    (multi_label,) = kinds
    if dataset.multi_label and not multi_label:
        raise ValueError(
            "`dataset` should have one class for each image, as the model predicts one, or the model be trained on "
            f"multi-label images. Received: {dataset.name}, multi-label, and {models[0].name}"
        )
    return multi_label


def keeps_probabilities(dataset: Dataset, num_classes: int) -> bool:
    """Whether `evaluate` keeps all probabilities of a data set's test images, up to MAX_PROBABILITIES."""
    return len(dataset.test) * num_classes <= MAX_PROBABILITIES


def batch_probabilities(
    models: list[keras.Model],
    dataset: Dataset,
    protocol: Protocol | str = "center",
    batch_size: int = 100,
    skip_bad: bool = False,
    **changes: Any,
) -> Iterator[tuple[ViewBatch, np.ndarray]]:
    """Yields each batch of a dataset's test images, in order, with its (B, K) float32 probabilities, as `evaluate`."""
    protocol = get_protocol(protocol, **changes)
    predictors = [ProtocolPredictor(Classifier(model), protocol) for model in models]
    preprocessings = list(dict.fromkeys(predictor.preprocessing for predictor in predictors))
    for batch in _readable_batches(dataset, preprocessings, protocol, batch_size, skip_bad):
        probabilities = np.empty((0, models[0].output_shape[-1]), "float32")
        if len(batch):
            views = (batch.views[preprocessings.index(predictor.preprocessing)] for predictor in predictors)
            probabilities = np.mean(
                [predict(scales) for predict, scales in zip(predictors, views, strict=True)], axis=0
            )
        yield batch, probabilities


def _readable_batches(dataset, preprocessings, protocol, batch_size, skip_bad):
    """`prefetch_batches` of the test images; raises for unreadable ones unless `skip_bad`, and if none is readable."""
    done = 0
    for batch in prefetch_batches(dataset.test, preprocessings, protocol, batch_size):
        raise_if_unreadable(describe_errors(batch.read_errors), skip_bad)
        done += len(batch)
        yield batch
    if not done:
        raise ValueError(f"Expected images that can be read. Received: none of {len(dataset.test)} in {dataset.name}")


def labelled_inputs(
    model: keras.Model, dataset: Dataset, batch_size: int = 100, skip_bad: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields a dataset's test images in order as (inputs, labels), prepared for a model.

    Inputs are (B, H, W, C) float32, or (B, C, H, W) for a channels-first model; labels are (B,) int32, the indices of
    the model's classes.

    Raises:
        ValueError: for labels that are not classes of the model, and for images that cannot be read without `skip_bad`.
    """
    if dataset.multi_label:
        raise ValueError(f"`dataset` should have one class for each image. Received: {dataset.name}, multi-label")
    class_indices = match_class_indices(dataset.class_names, _common_classes([model]))
    for batch in _readable_batches(dataset, [preprocessing(model)], get_protocol("center"), batch_size, skip_bad):
        if len(batch):
            ((images,),) = batch.views
            yield to_data_format(model, images), _to_model_labels(batch.labels, class_indices, model.output_shape[-1])


def _to_model_labels(labels, class_indices, num_classes):
    """The dataset's labels, (B,) or multi-label (B, K), as those of the model's classes."""
    if labels.ndim == 2:
        of_model = np.zeros((len(labels), num_classes), labels.dtype)
        of_model[:, class_indices] = labels
        return of_model
    outside = labels[(labels < 0) | (labels >= len(class_indices))]
    if outside.size:
        last = len(class_indices) - 1
        raise ValueError(f"Labels should be from 0 to {last}, one for each class. Received: {outside[0]}")
    found = class_indices[labels]
    if (found < 0).any():
        raise ValueError(f"Labels should be names of the model's classes. Received: {labels[found < 0][0]}")
    return found


def evenly_spaced_subset(dataset: Dataset, count: int) -> Dataset:
    """The dataset with `count` of its test images, evenly spaced from first to last; a Stream is not changed."""
    if not isinstance(dataset.test, Split) or len(dataset.test) <= count:
        return dataset
    return replace(dataset, test=dataset.test[evenly_spaced(len(dataset.test), count)])


def _common_classes(models):
    """(id, name) of the classes that all models of an ensemble have."""
    if not models:
        raise ValueError("`models` should have at least one model. Received: models=[]")
    rows = [class_ids_and_names(class_names(model)) for model in models]
    expected = next((classes for classes in rows if not are_placeholders(classes)), rows[0])
    for model, classes in zip(models, rows, strict=True):
        differing = [(ours[0], theirs[0]) for ours, theirs in zip(expected, classes, strict=False) if ours != theirs]
        if len(classes) != len(expected) or (differing and not are_placeholders(classes)):
            raise ValueError(
                f"`models` should have the same {len(expected)} classes to be an ensemble. Received: {model.name} with "
                f"{len(classes)} classes, that differ as {differing[:1]}"
            )
    return expected


def _ranks(labels, probabilities):
    """(B,) numbers of classes that are more probable than the true one; see `Evaluation.ranks`."""
    true = np.take_along_axis(probabilities, labels[:, None], axis=1)
    before = np.arange(probabilities.shape[1]) < labels[:, None]
    return ((probabilities > true) | ((probabilities == true) & before)).sum(axis=1)
