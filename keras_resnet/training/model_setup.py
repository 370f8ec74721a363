"""The model of a run, built for its images and compiled for its recipe, and the settings that identify the run."""

import math
from dataclasses import replace

import keras

from keras_resnet.architecture.metadata import model_spec
from keras_resnet.architecture.network import build, num_stages, stage_index
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.machine import versions
from keras_resnet.precision import precision_of, precision_scope
from keras_resnet.training.distribution import synchronize_batch_norm
from keras_resnet.training.optimizers import create_optimizer
from keras_resnet.training.recipes import LOSSES
from keras_resnet.training.schedules import learning_rate
from keras_resnet.variants import canonical_name, get_spec


def model_for_images(model, dataset, recipe, precision=None, sync_batch_norm=False):
    """A model that classifies the data set's images, for training by the recipe.

    Args:
        model: name of a network or a ResNetSpec, built here; or a Keras model, returned unchanged, or a function that
            returns one.
        dataset: Dataset.
        recipe: Recipe.
        precision: see `RunOptions`.
        sync_batch_norm: whether batch norm uses the statistics of all devices' images.

    Raises:
        ValueError: for an unknown name, or a model that does not fit the images.
    """
    if not isinstance(model, keras.Model) and callable(model):
        model = model()
    if isinstance(model, keras.Model):
        _check_model(model, dataset, recipe, precision)
    else:
        model = _build(model, dataset, recipe, precision)
    return synchronize_batch_norm(model) if sync_batch_norm else model


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


def _build(model, dataset, recipe, precision):
    is_spec = isinstance(model, ResNetSpec)
    spec = model if is_spec else get_spec(model)
    side, _, channels = dataset.input_shape
    side = side if recipe.train_size in (None, side) else None
    with precision_scope(precision):
        return build(
            replace(spec, drop_path=recipe.drop_path or spec.drop_path),
            input_shape=(side, side, channels),
            classes=len(dataset.class_names),
            name="resnet" if is_spec else canonical_name(model).removesuffix("_cifar"),
        )


def compile_model(model, recipe, steps, jit_compile):
    """Compiles a model with the recipe's optimizer, loss and learning rate, for a run of `steps` steps."""
    loss, activation = LOSSES[recipe.loss]
    if activation:
        model.layers[-1].activation = keras.activations.get(activation)
    optimizer = create_optimizer(recipe, learning_rate(recipe, steps))
    optimizer.layer_rates = _layer_rates(model, recipe.layer_decay)
    top1 = keras.metrics.CategoricalAccuracy("accuracy")
    top5 = keras.metrics.TopKCategoricalAccuracy(min(5, model.output_shape[-1]), "top5_accuracy")
    model.compile(optimizer, loss(), metrics=[top1, top5], jit_compile=jit_compile)
    model.optimizer.build(model.trainable_variables)


def _layer_rates(model, decay):
    """A factor of the learning rate for each trainable variable; () for 1 everywhere."""
    if decay == 1:
        return ()
    stages = num_stages(model)
    powers = [(layer, stages + 1 - stage_index(layer.name, stages)) for layer in model.layers]
    return [decay**power for layer, power in powers for _ in layer.trainable_variables]


def run_settings(model, dataset, recipe, seed, sync_batch_norm=False):
    """Everything that decides the outcome of a run, as JSON values."""
    spec, backend = model_spec(model), keras.backend.backend()
    return {
        "model": model.name,
        "spec": spec and spec.to_config(),
        "parameters": sum(math.prod(weight.shape) for weight in model.trainable_weights),
        **dataset_settings(dataset),
        "recipe": recipe.to_config(),
        "seed": seed,
        "preprocessing": dataset.preprocessing.to_config(),
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
