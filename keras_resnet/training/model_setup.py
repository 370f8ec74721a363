"""The model of a run, built for its images and compiled for its recipe, and the settings that identify the run."""

import math
import os
import warnings
from dataclasses import dataclass, replace
from typing import Any

import keras

from keras_resnet.architecture.metadata import image_shape, input_size, model_info, model_spec
from keras_resnet.architecture.network import build, num_stages, stage_index
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.errors import value_error
from keras_resnet.machine import versions
from keras_resnet.models.cloning import clone
from keras_resnet.models.create import create
from keras_resnet.models.model_files import load_model
from keras_resnet.models.preprocessing import known_preprocessing
from keras_resnet.models.transforms import check_input_size, with_new_head
from keras_resnet.precision import precision_of, precision_scope
from keras_resnet.training.detector_training import mean_loss
from keras_resnet.training.distribution import synchronize_batch_norm
from keras_resnet.training.objectives import OBJECTIVES
from keras_resnet.training.optimizers import create_optimizer
from keras_resnet.training.recipe import LOSSES
from keras_resnet.training.recipes import check_recipe
from keras_resnet.training.schedules import learning_rate
from keras_resnet.variants import VARIANTS, canonical_name

AUXILIARY = "aux_"
"""Prefix of the names of the layers of a segmenter's auxiliary head."""


@dataclass(frozen=True)
class Start:
    """What a run starts from: arguments of `train`."""

    model: Any
    weights: str | os.PathLike | None = None
    backbone_weights: str | os.PathLike | None = None
    precision: str | None = None
    sync_batch_norm: bool = False

    @property
    def is_pretrained(self) -> bool:
        """Whether a network by name gets weights, or the model is a .keras file."""
        return (self.weights, self.backbone_weights) != (None, None) or is_model_file(self.model)

    @property
    def is_random(self) -> bool:
        """Whether the model is a name or a spec without weights."""
        return not self.is_pretrained and not callable(self.model)


def model_for_images(start, dataset, recipe):
    """A model that classifies the data set's images, and the Dataset with the preprocessing of this model's input.

    Args:
        start: Start. A network given by its name or ResNetSpec is built here; a Keras model is returned unchanged.
        dataset: Dataset.
        recipe: Recipe.

    Raises:
        ValueError: for an unknown name, or a model that does not fit the images.
    """
    if start.backbone_weights is not None:
        hint = "A classifier's are `weights`."
        raise value_error("backbone_weights", start.backbone_weights, "left out, except for a detector", hint)
    model, precision = called(start.model), start.precision
    check_recipe(recipe, model)
    if start.is_pretrained:
        pretrained = load_pretrained(model, start.weights, recipe, precision)
        model, dataset = fit_to_images(with_classes(pretrained, dataset.class_names), dataset, recipe)
        _check_model(model, dataset, recipe, precision)
    elif isinstance(model, keras.Model):
        dataset = replace(dataset, preprocessing=_run_preprocessing(dataset, recipe, model))
        _check_model(model, dataset, recipe, precision)
    else:
        model, dataset = build_for_images(model, dataset, recipe, precision)
    freeze_stages(model, recipe.trainable_stages)
    return synchronize_batch_norm(model) if start.sync_batch_norm else model, dataset


def called(model):
    """What a function returns that was given as a model; any other model as it is."""
    return model() if callable(model) and not isinstance(model, keras.Model) else model


def is_model_file(model):
    """Whether this is the path of a .keras file."""
    return isinstance(model, (str, os.PathLike)) and os.fspath(model).endswith(".keras")


def raise_if_given(start, what, *arguments):
    """Raises ValueError for arguments of a Start that models of some kind, `what`, do not take."""
    for name in arguments:
        if (value := getattr(start, name)) is not None:
            raise value_error(name, value, f"left out for {what}")


def freeze_stages(model, trainable_stages):
    """Freezes the layers of all but the last stages, in place; None changes nothing.

    Args:
        model: a classifier or a detector of this package; what follows the stages stays as it is.
        trainable_stages: as in a Recipe.
    """
    if trainable_stages is None:
        return
    stages = num_stages(model)
    if not stages:
        expected = "None for a model without the layer names of keras.applications, which identify its stages"
        raise value_error("trainable_stages", trainable_stages, expected)
    for layer in model.layers:
        if stage_index(layer.name, stages) <= stages - trainable_stages:
            layer.trainable = False


def load_pretrained(model, weights, recipe, precision=None):
    """A Keras model as it is, the one in a .keras file, or a network by its name with weights, as for `create`.

    Raises:
        ValueError: for `weights` together with a model that has its own, and as `create` and `load_model`.
    """
    if isinstance(model, (keras.Model, ResNetSpec)) or is_model_file(model):
        if weights is not None:
            raise value_error("weights", weights, "left out, unless the model is the name of a network")
        model = load_model(model) if is_model_file(model) else model
        check_recipe(recipe, model)
        return model
    with precision_scope(precision):
        return create(model, weights=weights, drop_path=recipe.drop_path)


def with_classes(model, class_names):
    """The model, with a new classifier unless it has these classes already."""
    known = model_info(model).get("class_names") or class_names
    if model.output_shape == (None, len(class_names)) and [*known] == [*class_names]:
        return model
    warnings.warn(f"The classifier of {model.name} for {len(class_names)} classes is new and untrained.", stacklevel=2)
    return with_new_head(model, len(class_names))


def fit_to_images(model, dataset, recipe):
    """The model with its input as large as the images of a run, and the Dataset with their preprocessing."""
    dataset = replace(dataset, preprocessing=_run_preprocessing(dataset, recipe, model))
    for size in (dataset.preprocessing.size, recipe.train_size or dataset.preprocessing.size):
        check_input_size(model, size)
    side, channels = _input_side(dataset, recipe), image_shape(model)[-1]
    return model if input_size(model) in (None, side) else clone(model, (side, side, channels)), dataset


def build_for_images(model, dataset, recipe, precision=None):
    """A new network by its name or ResNetSpec, and the Dataset with its preprocessing."""
    name, spec = network_name_and_spec(model, recipe)
    dataset = replace(dataset, preprocessing=_run_preprocessing(dataset, recipe, spec))
    side = _input_side(dataset, recipe)
    with precision_scope(precision):
        network = build(
            replace(spec, drop_path=recipe.drop_path or spec.drop_path),
            input_shape=(side, side, dataset.preprocessing.channels),
            classes=len(dataset.class_names),
            name=name,
        )
    return network, dataset


def network_name_and_spec(model, recipe):
    """Name and ResNetSpec of the network that a recipe builds for a name or a ResNetSpec."""
    if isinstance(model, ResNetSpec):
        return "resnet", model
    name = canonical_name(model)
    if recipe.v1_5 and f"{name}_v1_5" in VARIANTS:
        name = f"{name}_v1_5"
    return name.removesuffix("_cifar"), VARIANTS[name]


def _run_preprocessing(dataset, recipe, network):
    """How the test images of a run are prepared for a Keras model, or for the network of a ResNetSpec.

    They have the size of the recipe; else the one for which the model's weights were trained; else that of the images,
    if they have one; else the one for which the network was designed.
    """
    is_model = isinstance(network, keras.Model)
    spec = model_spec(network) if is_model else network
    found = known_preprocessing(network) if is_model else None
    if found is None:
        found = dataset.preprocessing
        if dataset.has_any_size:
            found = replace(found, size=spec.default_size, resize=spec.default_resize) if spec else found
            found = found.for_size((input_size(network) if is_model else None) or found.size)
    if recipe.test_resize:
        sizes = {"size": recipe.test_size, "resize": recipe.test_resize}
        return replace(found, **sizes, interpolation=recipe.test_interpolation)
    return found.for_size(recipe.test_size or found.size)


def _input_side(dataset, recipe):
    """Side of a model's input images; None if training and test images differ in size."""
    size = dataset.preprocessing.size
    return size if recipe.train_size in (None, size) else None


def _check_model(model, dataset, recipe, precision):
    num_classes, (size, _, channels) = len(dataset.class_names), dataset.input_shape
    shapes, taken = {(side, side, channels) for side in (size, recipe.train_size or size)}, model.input_shape[1:]
    fits = len(taken) == 3 and all(a in (None, b) for shape in shapes for a, b in zip(taken, shape, strict=True))
    if not fits or model.output_shape != (None, num_classes) or not hasattr(model.layers[-1], "activation"):
        raise ValueError(
            f"`model` should take images of {sorted(shapes)} and end with a softmax over {num_classes} classes. "
            f"Received: {model.name} from {taken} to {model.output_shape[1:]}"
        )
    spec = model_spec(model)
    if recipe.drop_path and (spec is None or spec.drop_path != recipe.drop_path):
        raise ValueError(
            "`drop_path` of a recipe should be 0 for a Keras model, unless the model was built with the same value. "
            f"Received: drop_path={recipe.drop_path}"
        )
    own_precision = precision_of(model.dtype_policy)
    if precision not in (None, own_precision):
        raise ValueError(
            f"`precision` should be left out for a Keras model, which has its own ({own_precision}). "
            f"Received: precision={precision!r}"
        )


def compile_model(model, recipe, steps, jit_compile, objective=OBJECTIVES["single_label"]):
    """Compiles a classifier with the recipe's optimizer, loss and learning rate, for a run of `steps` steps."""
    loss = LOSSES[recipe.loss]
    model.layers[-1].activation = keras.activations.get(loss.activation)
    optimizer = create_optimizer(recipe, learning_rate(recipe, steps))
    optimizer.layer_rates = _layer_rates(model, recipe)
    metrics = objective.metrics(model.output_shape[-1])
    model.compile(optimizer, loss.function(), metrics=metrics, jit_compile=jit_compile)
    model.optimizer.build(model.trainable_variables)
    return model


def compile_losses(model, data, jit_compile):
    """Compiles a model whose outputs are the losses of each image, with optimizer and learning rate of a RunData."""
    optimizer = create_optimizer(data.recipe, learning_rate(data.recipe, data.num_steps))
    optimizer.layer_rates = _layer_rates(model, data.recipe)
    model.compile(optimizer, dict.fromkeys(model.output, mean_loss), jit_compile=jit_compile)
    model.optimizer.build(model.trainable_variables)
    return model


def create_metrics(model):
    """Creates the variables of a compiled model's metrics; for Keras to do it, the step would be traced twice."""
    output = model.outputs[0] if isinstance(model, keras.Sequential) else model.output  # a Sequential has no `output`
    outputs = keras.tree.map_structure(lambda tensor: keras.ops.zeros((1, *tensor.shape[1:])), output)
    model.compute_loss(None, outputs, outputs)  # several losses have a metric each
    model.compute_metrics(None, outputs, outputs)
    model.reset_metrics()


def _layer_rates(model, recipe):
    """A factor of the learning rate for each trainable variable; () for 1 everywhere."""
    if recipe.layer_decay == recipe.auxiliary_rate == 1:
        return ()
    stages = num_stages(model)

    def rate(layer):
        of_head = recipe.auxiliary_rate if layer.name.startswith(AUXILIARY) else 1.0
        return of_head * recipe.layer_decay ** (stages + 1 - stage_index(layer.name, stages))

    return [rate(layer) for layer in model.layers for _ in layer.trainable_variables]


def run_settings(model, data, sync_batch_norm=False):
    """Everything that decides the outcome of a run, as JSON values, from its RunData."""
    spec, backend = model_spec(model), keras.backend.backend()
    return {
        "model": model.name,
        "spec": spec and spec.to_config(),
        "parameters": sum(math.prod(weight.shape) for weight in model.trainable_weights),
        **dataset_settings(data.dataset),
        "recipe": data.recipe.to_config(),
        "seed": data.seed,
        "preprocessing": data.preprocessing.to_config(),
        "backend": backend,
        "sync_batch_norm": sync_batch_norm,
        "precision": precision_of(model.dtype_policy),
        "versions": versions() | {backend: __import__(backend).__version__},
    }


def dataset_settings(dataset):
    """The part of a run's settings that names its images, as JSON values."""
    return {
        "dataset": dataset.name,
        "training_images": len(dataset.train),
        "test_images": len(dataset.test),
        "class_names": list(dataset.class_names),
    }
