"""TASKS: what training a network depends on besides the recipe, one row for the networks of each task."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import keras

from keras_resnet.architecture.metadata import model_info
from keras_resnet.data.class_balance import class_weights, warn_if_unbalanced
from keras_resnet.data.detection_batches import detection_batches
from keras_resnet.data.labels import BACKGROUND
from keras_resnet.data.localization_batches import localization_batches
from keras_resnet.data.pipelines import StepRange, training_batches
from keras_resnet.data.segmentation_batches import segmentation_batches
from keras_resnet.errors import value_error
from keras_resnet.evaluation import evaluate
from keras_resnet.models.preprocessing import preprocessing
from keras_resnet.training.detector_setup import (
    check_objects,
    compile_detector,
    detector_for_images,
    recipe_for_start,
)
from keras_resnet.training.localizer_setup import (
    LocalizationValidation,
    check_boxes,
    compile_localizer,
    localizer_for_images,
)
from keras_resnet.training.model_setup import compile_model, model_for_images
from keras_resnet.training.objectives import OBJECTIVES
from keras_resnet.training.run_summary import describe_detector_run, describe_run, describe_segmenter_run
from keras_resnet.training.segmenter_setup import (
    SegmentationValidation,
    check_masks,
    compile_segmenter,
    facts_about_classes,
    segmenter_for_images,
    write_segmentation_sheet,
)
from keras_resnet.training.validation import DetectionValidation, KerasValidation, write_detection_sheet


@dataclass(frozen=True)
class Task:
    """How networks of one task are built for a data set, trained and tested. `data` is a RunData."""

    check: Callable
    """(Dataset, Recipe): raises ValueError for a data set on which such networks cannot be trained."""
    network: Callable
    """(Start, Dataset, Recipe) -> the network that is saved in the end, and the Dataset as it is prepared for it."""
    preprocessing: Callable
    """(data) -> the preprocessing of the network's images."""
    objective: Callable
    """(data) -> Objective."""
    compile: Callable
    """(data, jit_compile) -> the compiled model that `fit` trains."""
    training_batches: Callable
    """(data, steps, first step, share) -> batches for `fit`."""
    validation: Callable
    """(data, epochs between tests) -> what tests the model, such as a KerasValidation."""
    info: Callable
    """(Dataset) -> facts about the trained network, for its `info`."""
    recipe: Callable = lambda dataset, recipe, start: recipe
    """(Dataset, Recipe, Start) -> the Recipe with which such networks are trained on the data set."""
    describe: Callable = lambda data: describe_run(data.network, data.dataset, data.recipe)
    """(data) -> a line about what is going to be trained."""
    warn: Callable = lambda data: None
    """(data): warns of what may go wrong, before the first step."""
    finish: Callable = lambda data: {}
    """(data) -> further results; gives the trained network its final form."""
    write: Callable = lambda data, validation, folder: None
    """(data, validation, folder): writes further files of a finished run."""


def _recipe_for_labels(dataset, recipe, start):
    return replace(recipe, loss="binary_cross_entropy") if dataset.multi_label else recipe


def _check_classes(dataset, recipe):
    if len(dataset.class_names) < 2:
        raise value_error("dataset", list(dataset.class_names), "one with at least two classes")
    class_weights(dataset, recipe.class_weight)  # raises for classes that the data set does not have


def _compile_classifier(data, jit_compile):
    return compile_model(data.network, data.recipe, data.num_steps, jit_compile, data.objective)


def _training_batches(data, steps, first, share):
    return training_batches(data.dataset, data.recipe, steps, data.seed, first, share)


def _finish_classifier(data):
    """Sets the last activation; for multi-label networks, each class's threshold with the highest F1 on test images."""
    network = data.network
    network.layers[-1].activation = keras.activations.get(data.objective.activation)
    if not data.dataset.multi_label:
        return {}
    result = evaluate(data.devices.on_one(network), data.dataset)
    network.info = model_info(network) | {"thresholds": result.best_thresholds}
    return {"mean_average_precision": result.mean_average_precision}


def _detection_batches(data, steps, first, share):
    numbers, losses = StepRange.of(data.recipe, steps, data.seed, first, share), list(data.model.output)
    has_masks = data.network.spec.mask_head
    return detection_batches(data.dataset, data.recipe, data.preprocessing, numbers, losses, has_masks)


def _localization_batches(data, steps, first, share):
    numbers = StepRange.of(data.recipe, steps, data.seed, first, share)
    return localization_batches(data.dataset, data.recipe, numbers, list(data.model.output))


def _segmentation_batches(data, steps, first, share):
    numbers = StepRange.of(data.recipe, steps, data.seed, first, share)
    return segmentation_batches(data.dataset, data.recipe, data.preprocessing, numbers, list(data.model.output))


TASKS = {
    "classification": Task(
        recipe=_recipe_for_labels,
        check=_check_classes,
        network=model_for_images,
        preprocessing=lambda data: data.dataset.preprocessing,
        objective=lambda data: OBJECTIVES["multi_label" if data.dataset.multi_label else "single_label"],
        compile=_compile_classifier,
        training_batches=_training_batches,
        validation=KerasValidation,
        warn=lambda data: warn_if_unbalanced(data.dataset, data.recipe),
        info=lambda dataset: {"class_names": list(dataset.class_names), "multi_label": dataset.multi_label},
        finish=_finish_classifier,
    ),
    "detection": Task(
        recipe=recipe_for_start,
        check=check_objects,
        network=detector_for_images,
        preprocessing=lambda data: preprocessing(data.network),
        objective=lambda data: OBJECTIVES["boxes_and_masks" if data.network.spec.mask_head else "boxes"],
        compile=compile_detector,
        training_batches=_detection_batches,
        validation=DetectionValidation,
        describe=describe_detector_run,
        info=lambda dataset: {"class_names": [BACKGROUND, *dataset.class_names]},
        write=write_detection_sheet,
    ),
    "localization": Task(
        check=check_boxes,
        network=localizer_for_images,
        preprocessing=lambda data: data.dataset.preprocessing,
        objective=lambda data: OBJECTIVES["class_and_box"],
        compile=compile_localizer,
        training_batches=_localization_batches,
        validation=LocalizationValidation,
        info=lambda dataset: {"class_names": list(dataset.class_names)},
        write=write_detection_sheet,
    ),
    "segmentation": Task(
        check=check_masks,
        network=segmenter_for_images,
        preprocessing=lambda data: preprocessing(data.network),
        objective=lambda data: OBJECTIVES["semantic_masks"],
        compile=compile_segmenter,
        training_batches=_segmentation_batches,
        validation=SegmentationValidation,
        describe=describe_segmenter_run,
        info=facts_about_classes,
        write=write_segmentation_sheet,
    ),
}
"""Task, as in the rows of LOSSES -> its row."""
