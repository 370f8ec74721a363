"""Training of candidates for a search, and of the best one on all training images."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import keras

from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.precision import precision_of
from keras_resnet.search.results import describe
from keras_resnet.search.space import to_recipe_changes, to_spec
from keras_resnet.training.callbacks import run_in_series
from keras_resnet.training.distribution import Devices
from keras_resnet.training.options import RunOptions
from keras_resnet.training.recipes import Recipe, get_recipe
from keras_resnet.training.train import check_run, train
from keras_resnet.training.workdir import REPORT


@dataclass(frozen=True)
class CandidateTrainer:
    """Trains the candidates of a search, all on the same images and from the same recipe.

    Raises:
        ValueError: on construction, for arguments that `train` would refuse, and for several machines.
    """

    dataset: Dataset
    """All training images, and the test images."""
    search_dataset: Dataset
    """The training images only, as `split_for_search` returns them: some train candidates, the others validate them."""
    recipe: Recipe
    """For everything that a candidate does not change."""
    devices: Devices
    options: RunOptions
    progress: Callable[[str], None]
    """Called with a description of each training before it starts."""

    def __post_init__(self):
        check_run(self.search_dataset, self.recipe, self.devices, self.options)
        if self.devices.num_machines > 1:
            raise ValueError(
                "A search distributes its candidates by KERASTUNER_ORACLE_IP, and trains each on one machine. "
                f"Received: {self.devices.num_machines} machines in TF_CONFIG"
            )

    @property
    def input_shape(self):
        """(H, W, C) of the test images, with the recipe's test size."""
        side, _, channels = self.dataset.input_shape
        side = self.recipe.test_size or side
        return (side, side, channels)

    @property
    def num_epochs(self):
        """Epochs of a candidate's training, unless Hyperband decides them."""
        return self.recipe.num_epochs(len(self.search_dataset.train))

    def settings(self):
        """What determines the results of all candidates, as JSON values."""
        return {
            "dataset": self.dataset.name,
            "training_images": len(self.search_dataset.train),
            "validation_images": len(self.search_dataset.test),
            "class_names": list(self.dataset.class_names),
            "recipe": self.recipe.to_config(),
            "seed": self.options.seed,
            "backend": keras.backend.backend(),
            "precision": self.options.precision or precision_of(keras.config.dtype_policy()),
        }

    def evaluate_candidate(self, folder, values):
        """Trains a candidate in its folder; returns its validation accuracy and the time that it took."""
        spec = to_spec(values)
        self.progress(f"{folder.name}: {describe(spec)}")
        report = self._train(self.search_dataset, spec, to_recipe_changes(values), folder)
        return {name: report[name] for name in ("top1_accuracy", "wall_time_s")}

    def train_winner(self, winner, folder):
        """Trains the best candidate on all training images and tests it, unless the folder holds that run."""
        if (folder / REPORT).exists():
            return
        self.progress(f"{folder.name}: {describe(winner.spec)}, on all {len(self.dataset.train):,} training images")
        self._train(self.dataset, winner.spec, winner.final_recipe, folder)

    def _train(self, dataset, spec, changes, folder):
        recipe = get_recipe(self.recipe, **changes)
        last_epoch = recipe.num_epochs(len(dataset.train))
        validation_freq = 1 if recipe.schedule == "plateau" else last_epoch
        options = replace(self.options, resume=True, overwrite=False)
        with run_in_series(folder.name):
            return train(spec, dataset, recipe, folder, options=options, validation_freq=validation_freq).report


def split_for_search(dataset, validation_split):
    """A Dataset without the test images: some training images train candidates, the others validate them.

    Args:
        dataset: Dataset in memory.
        validation_split: fraction in (0, 1) or number of the training images for validation.

    Returns:
        A Dataset whose `test` images are the validation images.

    Raises:
        ValueError: for another fraction, or a data set that is read as a stream.
    """
    if not isinstance(dataset.train, Split):
        raise ValueError(f"`dataset` should fit in memory for a search. Received: dataset={dataset.name!r}")
    train_split, validation = dataset.train.stratified_split(validation_split)
    return replace(dataset, train=train_split, test=validation)
