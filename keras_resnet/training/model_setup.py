"""What is trained: a network for the images, compiled as the recipe says; and the settings that name the run."""

import math
import platform
from contextlib import contextmanager
from dataclasses import replace

import keras

from keras_resnet.architecture.metadata import model_spec
from keras_resnet.architecture.network import build, num_stages, stage_index
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.errors import unknown_name_error
from keras_resnet.training.distribution import synchronize_batch_norm
from keras_resnet.training.optimizers import optimizer
from keras_resnet.training.recipes import LOSSES
from keras_resnet.training.schedules import learning_rate
from keras_resnet.variants import canonical_name, get_spec

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


def network_for(model, dataset, recipe, precision, sync_batch_norm):
    """A network for these images.

    Args:
        model: name of a network or a ResNetSpec; or a Keras model, which stays as it is, or a function that gives one.
        dataset: Dataset.
        recipe: Recipe.
        precision: a name in PRECISIONS, or None for Keras's dtype policy.
        sync_batch_norm: whether batch norm sees all devices' images.

    Raises:
        ValueError: for an unknown name, or a network that does not fit the images.
    """
    check_precision(precision)
    given = callable(model)  # a Keras model is a function too
    model = model if isinstance(model, keras.Model) or not given else model()
    network = _as_it_is(model, dataset, recipe, precision) if given else _built(model, dataset, recipe, precision)
    return synchronize_batch_norm(network) if sync_batch_norm else network


def _as_it_is(model, dataset, recipe, precision):
    classes, (size, _, channels) = len(dataset.class_names), dataset.input_shape
    shapes = {(side, side, channels) for side in (size, recipe.train_size or size)}
    fits = all(_admits(model.input_shape[1:], shape) for shape in shapes)
    if not fits or model.output_shape != (None, classes) or not hasattr(model.layers[-1], "activation"):
        raise ValueError(
            f"`model` should take images of {sorted(shapes)} and end with a softmax over {classes} classes. "
            f"Received: {model.name} from {model.input_shape[1:]} to {model.output_shape[1:]}"
        )
    if recipe.drop_path and getattr(model_spec(model), "drop_path", 0) != recipe.drop_path:
        raise ValueError(
            "`drop_path` of a recipe should be 0 for a Keras model, unless it was built with it. "
            f"Received: drop_path={recipe.drop_path}"
        )
    if precision not in (None, model.dtype_policy.name):
        raise ValueError(
            f"`precision` should be left out for a Keras model, which has its own ({model.dtype_policy.name}). "
            f"Received: precision={precision!r}"
        )
    return model


def _admits(sides, shape):
    return len(sides) == len(shape) and all(side in (None, given) for side, given in zip(sides, shape, strict=True))


def _built(model, dataset, recipe, precision):
    spec = model if isinstance(model, ResNetSpec) else get_spec(model)
    name = "resnet" if isinstance(model, ResNetSpec) else canonical_name(model).removesuffix("_cifar")
    side, _, channels = dataset.input_shape
    side = side if recipe.train_size in (None, side) else None
    with in_precision(precision):
        return build(
            replace(spec, drop_path=recipe.drop_path or spec.drop_path),
            input_shape=(side, side, channels),
            classes=len(dataset.class_names),
            name=name,
        )


@contextmanager
def in_precision(precision):
    """Networks built in the block compute in this precision: a name in PRECISIONS, or None for Keras's dtype policy."""
    check_precision(precision)
    usual = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision or usual)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(usual)


def check_precision(precision):
    """Raises ValueError for an unknown precision, with the nearest known ones."""
    if precision not in (None, *PRECISIONS):
        raise unknown_name_error("precision", precision, PRECISIONS)


def compile_for(model, recipe, steps, jit_compile):
    """Compiles a network with the recipe's optimiser, loss and learning rate, for a run of so many steps."""
    loss, activation = LOSSES[recipe.loss]
    if activation:
        model.layers[-1].activation = keras.activations.get(activation)
    made = optimizer(recipe, learning_rate(recipe, steps))
    made.layer_rates = _layer_rates(model, recipe.layer_decay)
    model.compile(
        made,
        loss=loss(),
        metrics=[
            keras.metrics.CategoricalAccuracy(name="accuracy"),
            keras.metrics.TopKCategoricalAccuracy(5, name="top5_accuracy"),
        ],
        jit_compile=jit_compile,
    )
    model.optimizer.build(model.trainable_variables)


def _layer_rates(model, decay):
    """A factor of the learning rate for each trainable variable."""
    if decay == 1:
        return ()
    stages = num_stages(model)
    return [
        decay ** (stages + 1 - stage_index(layer.name, stages))
        for layer in model.layers
        for _ in layer.trainable_variables
    ]


def settings_of(model, dataset, recipe, seed, sync_batch_norm):
    """Everything that decides the outcome, as JSON values."""
    spec = model_spec(model)
    return {
        "model": model.name,
        "spec": spec and spec.to_config(),
        "parameters": sum(math.prod(weight.shape) for weight in model.trainable_weights),
        "dataset": dataset.name,
        "training_images": len(dataset.train),
        "test_images": len(dataset.test),
        "classes": list(dataset.class_names),
        "recipe": recipe.to_config(),
        "seed": seed,
        "preprocessing": dataset.preprocessing.to_config(),
        "backend": keras.backend.backend(),
        "sync_batch_norm": sync_batch_norm,
        "precision": model.dtype_policy.name,
        "versions": _versions(),
    }


def _versions():
    versions = {"python": platform.python_version(), "keras": keras.__version__}
    backend = keras.backend.backend()
    return versions | {backend: __import__(backend).__version__}


def checkpoint_size(model):
    """Bytes of what a checkpoint of a compiled model holds."""
    return sum(4 * math.prod(variable.shape) for variable in (*model.variables, *model.optimizer.variables))
