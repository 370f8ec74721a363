"""Our space as a HyperModel of KerasTuner, which is imported here: this module is itself imported where it is used."""

import keras_tuner

from keras_resnet.architecture.network import build
from keras_resnet.data.datasets import Dataset
from keras_resnet.data.pipelines import evaluation_batches, training_batches
from keras_resnet.search.budget import Budget, Candidates
from keras_resnet.search.space import SPACE, changes_of, rows_for, settle, spec_of
from keras_resnet.training.distribution import jit_compile
from keras_resnet.training.model_setup import compile_model
from keras_resnet.training.recipes import get_recipe


class ResNetHyperModel(keras_tuner.HyperModel):
    """The space of residual networks and their training, for any tuner of KerasTuner.

        tuner = keras_tuner.RandomSearch(ResNetHyperModel((8, 8, 1), 10, max_params=100_000), "val_accuracy", 20)
        tuner.search(keras_resnet.load_dataset("digits", validation_split=0.2))

    A tuner knows nothing of a budget. What it draws above that is made smaller until it fits, before it is built: the
    width first, then depth after depth, then what follows in the space. The trial says what was built.

    Args:
        input_shape: (side, side, channels) of the images.
        classes: how many there are.
        max_params, max_multiply_adds, max_latency: the budget, see `Budget`.
        recipe: name of a recipe, or a Recipe: how candidates are trained, but for what the space changes.
        space: rows as in SPACE.
        **changes: fields of the recipe to change, such as `epochs=2`; one that the space has is not searched then.

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
        self.recipe, space = settle(recipe, space, changes)
        budget = Budget(max_params, max_multiply_adds, max_latency)
        self.candidates = Candidates(rows_for(input_shape[0], space), budget, tuple(input_shape), classes)

    def declare_hyperparameters(self, hp):
        """Makes the space known to `hp`; the defaults are the smallest candidate, so that they fit."""
        self.candidates.declare(hp)

    def build(self, hp):
        """A compiled keras.Model, within the budget; `hp` then has its values. Its learning rate is constant until
        `fit` knows how long it trains."""
        values = self.candidates.within(self.candidates.declare(hp))
        hp.values.update(values)
        model = build(spec_of(values), input_shape=self.candidates.input_shape, classes=self.candidates.classes)
        compile_model(
            model, get_recipe(self._recipe(hp), schedule="constant", milestones=(), warmup=0.0), 1, jit_compile()
        )
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
            What `model.fit` returns; "val_accuracy" is the share of the test images.
        """
        if not isinstance(data, Dataset):
            return super().fit(hp, model, data, *args, **arguments)
        recipe = self._recipe(hp)
        per_epoch, steps = recipe.steps(len(data.train))
        compile_model(model, recipe, steps, jit_compile())
        given = {"verbose": 0, **arguments, "epochs": recipe.num_epochs(len(data.train)), "initial_epoch": 0}
        return model.fit(
            training_batches(data, recipe, given["epochs"] * per_epoch, seed),
            validation_data=evaluation_batches(data.test, data, recipe.batch_size),
            steps_per_epoch=per_epoch,
            shuffle=False,  # the pipeline does
            **given,
        )

    def _recipe(self, hp):
        return get_recipe(self.recipe, **changes_of(hp.values))
