"""The detector of a run, built for its images, and the training model that is made from it."""

from dataclasses import replace

import keras

from keras_resnet.architecture.detector import freeze_batch_norm
from keras_resnet.architecture.detector_spec import DetectorSpec
from keras_resnet.architecture.metadata import model_info
from keras_resnet.data.datasets import Split
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.data.labels import BACKGROUND
from keras_resnet.detection_metrics import check_coco_eval
from keras_resnet.errors import value_error
from keras_resnet.models.detector_transforms import with_new_predictors
from keras_resnet.models.detectors import build_with_backbone, create_detector
from keras_resnet.models.model_files import load_model
from keras_resnet.models.preprocessing import known_preprocessing
from keras_resnet.precision import precision_of, precision_scope
from keras_resnet.training.detector_training import training_model
from keras_resnet.training.distribution import synchronize_batch_norm
from keras_resnet.training.model_setup import called, compile_losses, freeze_stages, is_model_file, raise_if_given
from keras_resnet.training.recipe import LOSSES
from keras_resnet.training.recipes import check_recipe


def check_objects(dataset, recipe):
    """Raises ValueError for a data set on which detectors cannot be trained and tested; ImportError as `evaluate`."""
    check_coco_eval()
    for split in (dataset.train, dataset.test):
        objects = split.objects if isinstance(split, Split) else None
        if objects is None or objects.crowd.all():
            expected = "one with boxes of objects in its training and its test images, such as COCO, PASCAL VOC or YOLO"
            raise value_error("dataset", dataset.name, expected, "Without boxes, classifiers can be trained.")


def recipe_for_start(dataset, recipe, start):
    """The recipe: of a network that starts from random weights nothing is frozen, as in torchvision."""
    return replace(recipe, trainable_stages=None) if start.is_random else recipe


def detector_for_images(start, dataset, recipe):
    """A detector of the data set's classes, which knows the sizes of its images, and the Dataset.

    Args:
        start: Start. A detector in a file gets new predictors if its classes are others; a Keras model is changed only
            in which of its layers are trainable.
        dataset: a Dataset with objects.
        recipe: a Recipe for detectors.

    Raises:
        ValueError: for an unknown name, weights of another network, or a model that does not fit the data set.
    """
    model, names = called(start.model), [BACKGROUND, *dataset.class_names]
    check_recipe(recipe, model)
    if isinstance(model, keras.Model):
        _check_given(model, start, names)
    elif is_model_file(model) or start.weights is not None:
        model = _with_classes(_load(replace(start, model=model), recipe), names)
    else:
        with precision_scope(start.precision):
            model = _new_detector(model, start, len(names))
    _check_masks(model, dataset)
    prepared = (known_preprocessing(model) or DetectionPreprocessing()).for_size(recipe.test_size)
    model.info = model_info(model) | {"class_names": names, "preprocessing": prepared.to_config()}
    freeze_stages(model, recipe.trainable_stages)
    return synchronize_batch_norm(model) if start.sync_batch_norm else model, dataset


def _new_detector(model, start, classes):
    """A detector by its name or DetectorSpec, whose neck and heads are random."""
    if isinstance(model, DetectorSpec):
        return build_with_backbone(replace(model, classes=classes), start.backbone_weights, name="detector")
    frozen = {"frozen_batch_norm": False} if start.is_random else {}
    return create_detector(model, classes=classes, backbone_weights=start.backbone_weights, **frozen)


def _load(start, recipe):
    """The detector in a .keras file, or one by its name with weights, as it was before layers were frozen by a run."""
    if is_model_file(start.model):
        raise_if_given(start, "a .keras file, which has its own", "weights", "backbone_weights", "precision")
        model = load_model(start.model)
        check_recipe(recipe, model)
        for layer in model.layers:  # an earlier run may have frozen others
            layer.trainable = True
        freeze_batch_norm(model)
        return model
    if isinstance(start.model, DetectorSpec):
        raise value_error("weights", start.weights, "left out, unless the model is the name of a network")
    with precision_scope(start.precision):
        return create_detector(start.model, weights=start.weights, backbone_weights=start.backbone_weights)


def _with_classes(model, names):
    """The detector, with new predictors unless it has these classes already."""
    known = model_info(model).get("class_names") or names
    if model.spec.classes == len(names) and [*known] == names:
        return model
    return with_new_predictors(model, len(names))


def _check_given(model, start, names):
    """Raises ValueError for a Keras model of other classes, and for arguments that only other models take."""
    raise_if_given(start, "a Keras model, which has its own", "weights", "backbone_weights")
    if start.precision not in (None, precision_of(model.dtype_policy)):
        raise_if_given(start, "a Keras model, which has its own", "precision")
    if model.spec.classes != len(names):
        expected = f"a detector of {len(names)} classes, with the background"
        raise value_error("model", f"{model.name} of {model.spec.classes}", expected, f"They are {names}.")


def _check_masks(model, dataset):
    """Raises ValueError for objects without masks, if the detector predicts masks."""
    for split in (dataset.train, dataset.test) if model.spec.mask_head else ():
        masks = split.objects.masks
        alone = len(split.objects) if masks is None else sum(mask is None for mask in masks)
        if alone:
            hint = "Train a Faster R-CNN, such as 'fasterrcnn_resnet50_fpn', on boxes alone."
            expected = f"one in which every object has a mask, to train {model.name}"
            raise value_error("dataset", f"{dataset.name}, {alone:,} objects without", expected, hint)


def compile_detector(data, jit_compile):
    """The compiled model that `fit` trains: the detector's layers, from images and objects to losses of each image.

    XLA compiles it only on request, because images of every size would be compiled anew.
    """
    model = training_model(data.network, LOSSES[data.recipe.loss].function)
    return compile_losses(model, data, jit_compile is True)
