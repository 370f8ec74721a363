"""Evaluation of detectors: detections of all test images, at one scale or several, as a DetectionEvaluation."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resnet.architecture.detector import default_settings
from keras_resnet.architecture.detector_spec import DetectionSettings
from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.data.image_files import raise_if_unreadable
from keras_resnet.data.labels import class_ids_and_names, match_class_indices, placeholder_names
from keras_resnet.data.masks import encode_mask
from keras_resnet.data.prefetch import describe_errors, images_at
from keras_resnet.data.protocols import DetectionProtocol
from keras_resnet.detection import Detection, as_detector, iterate_detections
from keras_resnet.detection_metrics import DetectedObjects, check_coco_eval, overlaps
from keras_resnet.detection_results import DetectionEvaluation
from keras_resnet.errors import value_error
from keras_resnet.models.detector_transforms import with_refinement, with_settings


def evaluate_detector(
    model: Any,
    dataset: Dataset,
    protocol: DetectionProtocol,
    batch_size: int = 1,
    skip_bad: bool = False,
    progress: Callable[[int], Any] | None = None,
) -> DetectionEvaluation:
    """Computes COCO's and PASCAL VOC's average precision of a detector; `evaluate` calls it.

    Images are read by threads while the model computes, in the order of their shapes. All detections are kept in
    memory, their masks as RLE.

    Args:
        model: a detector.
        dataset: a Dataset with objects, whose test images are used.
        protocol: DetectionProtocol.
        batch_size: number of images in a batch.
        skip_bad: whether images that cannot be read are skipped instead of raising an error.
        progress: called after every image with the number of images evaluated or skipped so far.

    Raises:
        ImportError: without faster-coco-eval.
        ValueError: for a data set without objects, or with classes that are not the model's, for an image that cannot
            be read, and for an exported detector with a higher threshold of scores than the protocol's.
    """
    check_coco_eval()
    split = dataset.test
    if not isinstance(split, Split) or split.objects is None:
        expected = "one with boxes of objects, such as a folder in the format of COCO, PASCAL VOC or YOLO"
        raise value_error("dataset", dataset.name, expected, "Without boxes, only classifiers can be evaluated.")
    detectors = _detectors(model, protocol)
    names = dataset.class_names or ()
    labels = dataset_labels(detectors[0].class_names, names)
    found: dict[int, DetectedObjects] = {}
    errors: dict[int, str] = {}
    for index, detection in _detections(detectors, split, batch_size, protocol.score_threshold):
        if detection.error is None:
            found[index] = detected_objects(detection, labels)
        else:
            errors[index] = detection.error
            raise_if_unreadable(describe_errors(errors), skip_bad)
        if progress:
            progress(len(found) + len(errors))
    if not found:
        raise ValueError(f"Expected images that can be read. Received: none of {len(split)} in {dataset.name}")
    readable = sorted(found)
    objects, skipped = split.objects.select(readable), (*dataset.skipped, *describe_errors(errors))
    detected = concatenate_detections([found[index] for index in readable])
    evaluation = DetectionEvaluation(tuple(names), objects, detected, skipped)
    if detected.masks is not None and objects.masks is not None and not evaluation.has_masks:
        alone = sum(mask is None for mask in objects.masks)
        warnings.warn(f"Masks are not evaluated: {alone} of {len(objects)} objects have none", stacklevel=3)
    return evaluation


def dataset_labels(model_names: Sequence[str], dataset_names: Sequence[str]) -> np.ndarray:
    """The index of a data set's class for each label of a detector, by name; -1 for a label without one.

    >>> from keras_resnet.detection_evaluation import dataset_labels
    >>> dataset_labels(["__background__", "person", "N/A", "car"], ["car", "person"])
    array([-1,  1, -1,  0], dtype=int32)

    If the names of the model's classes are not known, its labels are the data set's classes in their order, from 1.

    Args:
        model_names: names of the labels, the background first.
        dataset_names: names of the data set's classes.

    Raises:
        ValueError: for a class that the detector does not have.
    """
    names = list(model_names[1:])
    if names == placeholder_names(len(model_names))[1:] and len(names) == len(dataset_names):
        pairs = ", ".join(f"{number}: {name}" for number, name in enumerate(dataset_names[:5], start=1))
        text = "The names of the model's classes are not known: its labels are taken as the data set's classes in order"
        warnings.warn(f"{text}, {pairs}{', ...' if len(names) > 5 else ''}", stacklevel=2)
        return np.arange(-1, len(names), dtype="int32")
    labels = np.full(len(model_names), -1, "int32")
    labels[1 + match_class_indices(dataset_names, class_ids_and_names(names))] = np.arange(len(dataset_names))
    return labels


def _detectors(model, protocol):
    """A KerasDetector for each scale of the protocol."""
    if protocol.score_threshold > DetectionProtocol.score_threshold:
        warnings.warn(
            f"Objects with scores below {protocol.score_threshold} count as not found: the average precision is lower "
            f"than that at the usual threshold, {DetectionProtocol.score_threshold}",
            stacklevel=4,
        )
    if isinstance(model, keras.Model):
        model = _changed(model, protocol)
    elif protocol != DetectionProtocol(score_threshold=protocol.score_threshold):
        raise value_error("protocol", protocol, "left out for an exported detector, which cannot be changed")
    detector = as_detector(model)
    if protocol.score_threshold < detector.score_threshold:
        expected = f"at least {detector.score_threshold}, below which {detector.name} returns no scores"
        raise value_error("score_threshold", protocol.score_threshold, expected)
    if not protocol.scales:
        return [detector]
    longest = [detector.preprocessing.for_size(scale).max_size for scale in protocol.scales]
    return [
        as_detector(model, min_size=scale, max_size=size) for scale, size in zip(protocol.scales, longest, strict=True)
    ]


def _changed(model, protocol):
    """The Keras detector with the thresholds and the refinement of a protocol."""
    if protocol.context and not model.spec.global_context:
        expected = "a detector whose predictors receive regions and the whole image: `create(..., global_context=True)`"
        raise value_error("model", model.name, expected, "Weights of other detectors have no such inputs.")
    count = protocol.detections or default_settings(model.spec).detections
    changes = {"score_threshold": protocol.score_threshold, "detections": count}
    model = with_settings(model, replace(model.settings, **changes))
    return with_refinement(model) if protocol.refine else model


def _detections(detectors, split, batch_size, score_threshold) -> Iterator[tuple[int, Detection]]:
    """Yields (index of the image, Detection) of all images, in the order of their shapes."""
    order = _by_shape(split.objects.sizes, detectors[0].preprocessing)
    streams = [iterate_detections(it, _images(split, order), batch_size, score_threshold) for it in detectors]
    for index, *found in zip(order, *streams, strict=True):
        yield index, merge_detections(found, detectors[0].model.settings) if len(found) > 1 else found[0]


def _by_shape(sizes, preprocessing):
    """Indices of images, ordered by their shape as inputs of a model."""

    def shape(index):
        return [-(-side // preprocessing.divisor) for side in preprocessing.resized(*sizes[index].tolist())]

    return sorted(range(len(sizes)), key=shape)


def _images(split, order):
    """Yields images of a split as `detect` takes them, paths as Path."""
    for index in order:
        (image,) = images_at(split, [index])
        yield Path(image) if isinstance(image, str) else image


def merge_detections(found: Sequence[Detection], settings: DetectionSettings) -> Detection:
    """The detections of an image at several scales as one Detection: the best ones by non-maximum suppression.

    Args:
        found: a Detection of the image at each scale.
        settings: whose `nms_threshold` and `detections` count.
    """
    if errors := [it for it in found if it.error is not None]:
        return errors[0]
    if not any(map(len, found)):
        return found[0]
    boxes, scores, labels = (_joined(found, name) for name in ("boxes", "scores", "labels"))
    kept = _best(boxes, scores, labels, settings)
    masks = None if found[0].mask_probabilities is None else _joined(found, "mask_probabilities")[kept]
    names = [name for it in found for name in it.names]
    return replace(
        found[0],
        boxes=boxes[kept],
        scores=scores[kept],
        labels=labels[kept],
        names=tuple(names[index] for index in kept),
        mask_probabilities=masks,
    )


def _best(boxes, scores, labels, settings):
    """Indices of the detections that non-maximum suppression keeps, as of torchvision: overlaps rounded to float32.

    In NumPy, since JAX would compile `suppress_overlaps` for each number of detections.
    """
    kept, remaining = [], np.argsort(-scores, kind="stable")
    threshold = np.float64(settings.nms_threshold)
    while len(remaining) and len(kept) < settings.detections:
        best, others = remaining[0], remaining[1:]
        kept.append(best)
        shares = overlaps(boxes[best], boxes[others]).astype("float32")
        remaining = others[(labels[others] != labels[best]) | (shares <= threshold)]
    return np.array(kept)


def _joined(parts, name):
    """One array of those with this name, one after another."""
    return np.concatenate([getattr(part, name) for part in parts])


def detected_objects(detection: Detection, labels: np.ndarray) -> DetectedObjects:
    """A Detection as DetectedObjects of image 0, without objects whose classes the data set does not have.

    Args:
        detection: of one image.
        labels: what `dataset_labels` returns.
    """
    of_dataset = labels[detection.labels]
    kept = np.flatnonzero(of_dataset >= 0)
    masks = None
    if detection.mask_probabilities is not None:
        masks = np.empty(len(kept), object)
        masks[:] = [encode_mask(detection.mask(index)) for index in kept.tolist()]
    return DetectedObjects(
        np.zeros(len(kept), int), detection.boxes[kept], of_dataset[kept], detection.scores[kept], masks
    )


def concatenate_detections(images: Sequence[DetectedObjects]) -> DetectedObjects:
    """The detections of several images, one after another, as those of one data set."""
    image = np.repeat(np.arange(len(images)), [len(found) for found in images])
    masks = None if images[0].masks is None else _joined(images, "masks")
    boxes, labels, scores = (_joined(images, name) for name in ("boxes", "labels", "scores"))
    return DetectedObjects(image, boxes, labels, scores, masks)
