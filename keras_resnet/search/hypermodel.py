"""Our space as a HyperModel of KerasTuner, which is imported here: this module is itself imported where it is used."""

import math

import keras_tuner
from keras_tuner.errors import FailedTrialError

from keras_resnet.architecture.network import build
from keras_resnet.data.datasets import Dataset
from keras_resnet.data.pipelines import evaluation_batches, training_batches
from keras_resnet.search.budget import WORDS, Budget, Candidates
from keras_resnet.search.space import SPACE, changes_of, rows_for, spec_of
from keras_resnet.training.building import compile_for
from keras_resnet.training.devices import jit_compile
from keras_resnet.training.recipes import changed, get_recipe


class ResNetHyperModel(keras_tuner.HyperModel):
    """The space of residual networks and their training, for any tuner of KerasTuner.

        tuner = keras_tuner.RandomSearch(ResNetHyperModel((8, 8, 1), 10, max_params=100_000), "val_accuracy", 20)
        tuner.search(keras_resnet.load_dataset("digits"))

    Args:
        input_shape: (side, side, channels) of the pictures.
        classes: how many there are.
        max_params, max_multiply_adds, max_latency: the budget, see `Budget`.
        recipe: name of a recipe, or a Recipe: how candidates are trained, but for what the space changes.
        space: rows as in SPACE.
        **changes: fields of the recipe to change, such as `epochs=2`.

    Raises:
        ValueError: if no candidate fits the budget; for an unknown recipe or row.
    """

    def __init__(
        self,
        input_shape,
        classes,
        max_params=None,
        max_multiply_adds=None,
        max_latency=None,
        recipe="quickstart",
        space=SPACE,
        **changes,
    ):
        super().__init__("resnet")
        budget = Budget(max_params, max_multiply_adds, max_latency)
        self.candidates = Candidates(rows_for(input_shape[0], space), budget, tuple(input_shape), classes)
        self.recipe = get_recipe(recipe, **changes) if isinstance(recipe, str) else changed(recipe, **changes)

    def declare_hyperparameters(self, hp):
        """Makes the space known to `hp`; the defaults are the smallest candidate, so that they fit."""
        self.candidates.declare(hp)

    def build(self, hp):
        """A compiled keras.Model; its learning rate is constant until `fit` knows how long it trains.

        Raises:
            keras_tuner.errors.FailedTrialError: for a candidate over the budget, before it is built.
        """
        values = self.candidates.declare(hp)
        if excess := self.candidates.excess(values):
            limit, found = excess
            raise FailedTrialError(f"`{limit}` is exceeded: the candidate has {found:,.6g} {WORDS[limit]}.")
        model = build(spec_of(values), input_shape=self.candidates.input_shape, classes=self.candidates.classes)
        compile_for(model, changed(self._recipe(hp), schedule="constant", milestones=(), warmup=0.0), 1, jit_compile())
        return model

    def fit(self, hp, model, data, *args, seed=0, **arguments):
        """Trains a candidate.

        Args:
            hp: its keras_tuner.HyperParameters.
            model: what `build` returned.
            data: Dataset: trained on as the recipe says, for its epochs, and tested on; anything else goes to
                `model.fit` as it is, with the arguments.
            seed: of order and augmentation, with a Dataset.

        Returns:
            What `model.fit` returns; "val_accuracy" is the share of the test pictures.
        """
        if not isinstance(data, Dataset):
            return super().fit(hp, model, data, *args, **arguments)
        recipe = self._recipe(hp)
        per_epoch, steps = recipe.steps(len(data.train))
        compile_for(model, recipe, steps, jit_compile())
        given = {"verbose": 0, **arguments, "epochs": math.ceil(steps / per_epoch), "initial_epoch": 0}
        return model.fit(
            training_batches(data, recipe, given["epochs"] * per_epoch, seed),
            validation_data=evaluation_batches(data.test, data, recipe.batch_size),
            steps_per_epoch=per_epoch,
            shuffle=False,  # the pipeline does
            **given,
        )

    def _recipe(self, hp):
        return changed(self.recipe, **changes_of(hp.values))
