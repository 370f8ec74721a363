"""Tests of the model after each epoch and at the end of a run: by Keras, or as detectors are evaluated."""

from functools import cached_property
from pathlib import Path

import keras

from keras_resnet.architecture.detector import default_settings
from keras_resnet.data.datasets import evenly_spaced
from keras_resnet.data.pipelines import evaluation_batches
from keras_resnet.data.prefetch import images_at
from keras_resnet.data.protocols import DetectionProtocol
from keras_resnet.detection import KerasDetector, detect
from keras_resnet.detection_evaluation import evaluate_detector
from keras_resnet.drawing import draw_detections, draw_objects, draw_sheet
from keras_resnet.files import atomic_write
from keras_resnet.models.detector_transforms import with_settings
from keras_resnet.training.ema import sync_variables
from keras_resnet.training.workdir import DETECTIONS

SHEET_IMAGES = 12
"""Number of test images that are drawn."""


class KerasValidation:
    """Tests by `fit` itself: losses and metrics of a classifier.

    Args:
        data: RunData.
        frequency: epochs between tests.
    """

    def __init__(self, data, frequency):
        self.data = data
        self.fit_arguments = {"validation_data": self._batches(), "validation_freq": frequency}
        """Keywords of `fit`."""

    def _batches(self):
        dataset, num_images = self.data.dataset, len(self.data.dataset.test)
        batch_size = self.data.devices.test_batch_size(num_images, self.data.recipe.batch_size)
        return self.data.devices.distribute_test(
            lambda *share: evaluation_batches(dataset.test, dataset, batch_size, share), num_images, batch_size
        )

    def callbacks(self, weights):
        """Callbacks of `fit` that test; `weights` are callbacks that exchange the weights for a test, or none."""
        return []

    def metrics(self):
        """{name: value} for the test images."""
        return self.data.model.evaluate(self._batches(), verbose=0, return_dict=True)


class CallbackValidation:
    """Tests by a callback that calls `metrics()`; `fit` itself tests nothing. Arguments as of KerasValidation."""

    fit_arguments: dict = {}

    def __init__(self, data, frequency):
        self.data, self.frequency = data, frequency

    @cached_property
    def tested(self):
        """The trained network, or its copy on one device, made in the first test: until then, their scope is open."""
        return self.data.devices.on_one(self.data.network)

    def update(self, tested):
        """Gives a network that is tested the weights of the trained one."""
        sync_variables(self.data.model)
        if tested is not self.data.network:
            tested.set_weights(self.data.network.get_weights())

    def callbacks(self, weights):
        """Callbacks of `fit` that test; `weights` are callbacks that exchange the weights for a test, or none."""
        return [MetricsCallback(self, weights)]


class DetectionValidation(CallbackValidation):
    """Tests by `evaluate_detector`: average precisions at the usual settings, which the tested detector has."""

    @cached_property
    def detector(self):
        """The tested detector."""
        return KerasDetector(with_settings(self.tested, default_settings(self.tested.spec)))

    def detections(self, images):
        """A Detection of each image."""
        return detect(images, self.detector)

    def metrics(self):
        self.update(self.detector.model)
        batch_size = self.data.recipe.batch_size // self.data.devices.num_replicas
        result = evaluate_detector(self.detector, self.data.dataset, DetectionProtocol(), batch_size)
        parts = {"": result.boxes} | ({"mask_": result.masks} if self.tested.spec.mask_head else {})
        names = {"average_precision": "AP", "ap50": "AP50", "ap75": "AP75"}
        return {prefix + name: part[coco] for prefix, part in parts.items() for name, coco in names.items()}


class MetricsCallback(keras.callbacks.Callback):
    """Adds the metrics of a CallbackValidation to the logs of an epoch, as "val_..."."""

    def __init__(self, validation, weights):
        super().__init__()
        self.validation, self.weights = validation, weights

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.validation.frequency:
            return
        for callback in self.weights:
            callback.on_test_begin()
        logs.update({f"val_{name}": value for name, value in self.validation.metrics().items()})
        for callback in self.weights:
            callback.on_test_end()


def write_detection_sheet(data, validation, folder):
    """Writes an image in which some test images stand twice, with the true objects and with those that were found."""
    split, names = data.dataset.test, data.dataset.class_names
    indices = evenly_spaced(len(split), SHEET_IMAGES)
    images = images_at(split, indices)
    found = validation.detections([Path(it) if isinstance(it, str) else it for it in images])
    rows = []
    for index, image, detection in zip(indices, images, found, strict=True):
        rows.append((draw_objects(image, split.objects.select([index]), names), draw_detections(image, detection)))
    with atomic_write(folder / DETECTIONS) as temporary:
        draw_sheet(rows).save(temporary, "JPEG", quality=90)
