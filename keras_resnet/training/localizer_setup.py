"""The localizer of a run, built for its images, the model that trains it, and its tests after each epoch."""

from dataclasses import replace
from functools import cached_property

import keras

from keras_resnet.architecture.localizer import localizer_backbone, with_box_head
from keras_resnet.architecture.localizer_spec import LocalizerSpec
from keras_resnet.architecture.metadata import model_info
from keras_resnet.data.datasets import Split
from keras_resnet.data.protocols import LOCALIZATION_PROTOCOLS
from keras_resnet.errors import value_error
from keras_resnet.localization import ImageLocalizer, localize
from keras_resnet.localization_evaluation import evaluate_localizer
from keras_resnet.models.localizers import backbone_classifier, create_localizer
from keras_resnet.models.model_files import load_model
from keras_resnet.precision import precision_of, precision_scope
from keras_resnet.training.distribution import synchronize_batch_norm
from keras_resnet.training.model_setup import (
    build_for_images,
    called,
    compile_losses,
    fit_to_images,
    freeze_stages,
    is_model_file,
    raise_if_given,
    with_classes,
)
from keras_resnet.training.recipe import LOSSES
from keras_resnet.training.recipes import check_recipe
from keras_resnet.training.validation import CallbackValidation
from keras_resnet.variants import get_spec


def check_boxes(dataset, recipe):
    """Raises ValueError for a data set on which localizers cannot be trained and tested."""
    for split in (dataset.train, dataset.test):
        objects = split.objects if isinstance(split, Split) and not split.multi_label else None
        if objects is None or not len(objects):
            expected = "one of images with one class and boxes, such as ImageNet's or Tiny ImageNet's"
            raise value_error("dataset", dataset.name, expected)


def localizer_for_images(start, dataset, recipe):
    """A localizer of the data set's classes, and the Dataset with the preprocessing of its images.

    Args:
        start: Start. A name or LocalizerSpec becomes a classifier with a new box head; with `backbone_weights`, a
            trained classifier, which stays as it is if no stage is trained; a name with `weights`, that localizer.
        dataset: a Dataset of images with one class and boxes.
        recipe: a Recipe for localizers.

    Raises:
        ValueError: for an unknown name, weights of another network, or a model that does not fit the data set.
    """
    model = called(start.model)
    check_recipe(recipe, model)
    if isinstance(model, keras.Model) or is_model_file(model) or start.weights is not None:
        model, dataset = _given(model, start, dataset, recipe)
    else:
        model, dataset = _new_localizer(model, start, dataset, recipe)
    freeze_stages(model, recipe.trainable_stages)
    return synchronize_batch_norm(model) if start.sync_batch_norm else model, dataset


def _given(model, start, dataset, recipe):
    """A localizer as a Keras model or in a file, which has the classes and the size of the data set's images."""
    if isinstance(model, LocalizerSpec):
        raise value_error("weights", start.weights, "left out, unless the model is the name of a network")
    if isinstance(model, keras.Model) or is_model_file(model):
        raise_if_given(start, "a model that has its own", "weights", "backbone_weights")
    else:
        with precision_scope(start.precision):
            model = create_localizer(model, start.weights, backbone_weights=start.backbone_weights)
    if is_model_file(model):
        model = load_model(model)
        check_recipe(recipe, model)
        model.trainable = True  # an earlier run may have frozen layers
    if start.precision not in (None, precision_of(model.dtype_policy)):
        raise_if_given(start, "a model that has its own", "precision")
    names, known = list(dataset.class_names), model_info(model).get("class_names")
    if model.spec.classes != len(names) or (known and [*known] != names):
        expected = f"a localizer of the data set's {len(names)} classes, not of {model.spec.classes} or of others"
        raise value_error("model", model.name, expected, "`backbone_weights` takes a network with other classes.")
    return fit_to_images(model, dataset, recipe)


def _new_localizer(model, start, dataset, recipe):
    """A localizer by its name or LocalizerSpec, with a new box head."""
    spec, name = (model, "localizer") if isinstance(model, LocalizerSpec) else (get_spec(model), model.lower())
    with precision_scope(start.precision):
        if start.backbone_weights is None:
            classifier, dataset = build_for_images(localizer_backbone(spec), dataset, recipe, start.precision)
        else:
            loaded = backbone_classifier(spec, start.backbone_weights)
            classifier, dataset = fit_to_images(with_classes(loaded, dataset.class_names), dataset, recipe)
            is_trained = model_info(classifier).get("class_names") is not None
            classifier.get_layer("predictions").trainable = not (is_trained and recipe.trainable_stages == 0)
        if spec.boxes != "dense" and classifier.input_shape[1] is None:
            expected = f"{recipe.test_size}, the size in testing, for a box head of images of one size"
            raise value_error("train_size", recipe.train_size, expected)
        fitted = replace(spec, backbone=classifier.spec, classes=len(dataset.class_names))
        return with_box_head(classifier, fitted, name), dataset


def compile_localizer(data, jit_compile):
    """The compiled model that `fit` trains: the localizer's layers, from images and boxes to losses of each image."""
    return compile_losses(LOSSES[data.recipe.loss].function(data.network), data, jit_compile)


class LocalizationValidation(CallbackValidation):
    """Tests by `evaluate_localizer`, with one crop of each image."""

    def __init__(self, data, frequency):
        super().__init__(data, frequency)
        self.protocol = LOCALIZATION_PROTOCOLS["localization"]
        data.network.info = model_info(data.network) | {
            "class_names": list(data.dataset.class_names),
            "preprocessing": data.preprocessing.to_config(),
        }

    @cached_property
    def localizer(self):
        """The tested localizer."""
        return ImageLocalizer(self.tested, self.protocol)

    def detections(self, images):
        """A Detection of each image: its most probable class, with the box."""
        return localize(images, self.tested)

    def metrics(self):
        """{name: accuracy} for the test images, 1 - each error of a LocalizationEvaluation."""
        self.update(self.tested)
        result = evaluate_localizer(self.localizer, self.data.dataset, self.protocol, self.data.recipe.batch_size)
        return {name.replace("_error", "_accuracy"): 1 - error for name, error in result.errors.items()}
