"""ResNetHyperModel: the search space as a HyperModel of KerasTuner.

This module imports KerasTuner, and is itself imported only where it is used.
"""

from typing import Any

import keras
import keras_tuner

from keras_resnet.architecture.network import build
from keras_resnet.data.class_balance import images_per_epoch
from keras_resnet.data.datasets import Dataset
from keras_resnet.data.pipelines import evaluation_batches, training_batches
from keras_resnet.search.budget import Budget, BudgetedSpace
from keras_resnet.search.space import SPACE, Space, resolve_space, space_for_images, to_recipe_changes, to_spec
from keras_resnet.training.distribution import jit_compile
from keras_resnet.training.model_setup import compile_model
from keras_resnet.training.recipe import Recipe
from keras_resnet.training.recipes import get_recipe


class ResNetHyperModel(keras_tuner.HyperModel):
    """Residual networks and their training within a budget, as a HyperModel for any tuner of KerasTuner.

    >>> import keras_resnet, keras_tuner
    >>> hypermodel = keras_resnet.ResNetHyperModel((8, 8, 1), 10, max_params=25_000, epochs=2)
    >>> hypermodel.build(keras_tuner.HyperParameters()).count_params() < 30_000
    True

    A search takes three lines:

        hypermodel = keras_resnet.ResNetHyperModel((8, 8, 1), 10, max_params=100_000)
        tuner = keras_tuner.RandomSearch(hypermodel, "val_accuracy", max_trials=20)
        tuner.search(keras_resnet.load_dataset("digits", validation_split=0.2))

    KerasTuner's tuners ignore the budget: `build` shrinks a candidate that exceeds it, first the width, then the depth
    of one stage after another, then the other values in the order of the space. The trial records the shrunk values.

    Args:
        input_shape: (side, side, channels) of the images.
        classes: number of classes.
        max_params, max_multiply_adds, max_latency: limits, see `Budget`.
        recipe: name of a recipe, or a Recipe: how candidates are trained, except for what the space changes.
        space: rows as in SPACE.
        **changes: fields of the recipe to change, such as `epochs=2`; fields of the space that are given here are not
            searched.

    Raises:
        ValueError: if no candidate fits the budget; for an unknown recipe or row.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        max_params: int | None = None,
        max_multiply_adds: int | None = None,
        max_latency: float | None = None,
        recipe: str | Recipe = "quickstart",
        space: Space = SPACE,
        **changes: Any,
    ):
        super().__init__("resnet")
        self.recipe, space = resolve_space(recipe, space, changes)
        budget = Budget(max_params, max_multiply_adds, max_latency)
        space = space_for_images(input_shape[0], space)
        self.budgeted_space = BudgetedSpace(space, budget, (*input_shape,), classes)

    def declare_hyperparameters(self, hp: keras_tuner.HyperParameters):
        """Declares the space to `hp`; the defaults are the smallest candidate, so they fit the budget."""
        self.budgeted_space.declare(hp)

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """A compiled model within the budget; updates `hp` if the candidate was shrunk.

        The learning rate is constant until `fit` compiles the model again with the number of steps.
        """
        space = self.budgeted_space
        values = space.shrink_to_fit(space.declare(hp))
        hp.values.update(values)
        model = build(to_spec(values), input_shape=space.input_shape, classes=space.num_classes)
        constant = get_recipe(self._recipe(hp), schedule="constant", milestones=(), warmup=0.0)
        compile_model(model, constant, 1, jit_compile())
        return model

    def fit(self, hp: keras_tuner.HyperParameters, model: keras.Model, data: Any, *args, seed: int = 0, **arguments):
        """Trains the model that `build` returned; "val_accuracy" is the accuracy on the test images, 0 to 1.

        Args:
            hp, model: hyperparameters and model of the candidate.
            data: a Dataset, to train as the recipe says, for its number of epochs, and to validate on its test images.
                Anything else is passed to `model.fit` with the arguments.
            seed: of the order and the augmentation, with a Dataset.
        """
        if not isinstance(data, Dataset):
            return super().fit(hp, model, data, *args, **arguments)
        recipe = self._recipe(hp)
        num_images = images_per_epoch(data, recipe) if data.train else 0
        (steps_per_epoch, num_steps), num_epochs = recipe.steps(num_images), recipe.num_epochs(num_images)
        compile_model(model, recipe, num_steps, jit_compile())
        return model.fit(
            training_batches(data, recipe, num_epochs * steps_per_epoch, seed),
            validation_data=evaluation_batches(data.test, data, recipe.batch_size),
            steps_per_epoch=steps_per_epoch,
            shuffle=False,  # the pipeline shuffles
            **{"verbose": 0, **arguments, "epochs": num_epochs, "initial_epoch": 0},
        )

    def _recipe(self, hp):
        return get_recipe(self.recipe, **to_recipe_changes(hp.values))
