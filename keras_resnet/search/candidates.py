"""How candidates are trained and judged, and the best one in the end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import keras

from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.precision import precision_of
from keras_resnet.search.results import in_words
from keras_resnet.search.space import changes_of, spec_of
from keras_resnet.training.callbacks import run_in_series
from keras_resnet.training.options import RunOptions
from keras_resnet.training.recipes import Recipe, get_recipe
from keras_resnet.training.train import check_run, train
from keras_resnet.training.workdir import REPORT


@dataclass(frozen=True)
class Training:
    """What all trainings of a search have in common."""

    dataset: Dataset
    """All training images, and those that test."""
    halves: Dataset
    """The training images alone: those that train candidates, and those that judge them. See `set_aside`."""
    recipe: Recipe
    """For what a candidate does not say itself."""
    seed: int
    options: Mapping
    """For `train`."""
    progress: Callable
    """Told in words what comes next."""

    @property
    def input_shape(self):
        """(H, W, C) of one image when it is tested, as the candidates get it."""
        side, _, channels = self.dataset.input_shape
        side = self.recipe.test_size or side
        return (side, side, channels)

    @property
    def epochs(self):
        """Of a candidate's training."""
        return self.recipe.num_epochs(len(self.halves.train))

    def check(self, devices):
        """Raises ValueError for what `train` would refuse, before there is a candidate."""
        check_run(self.halves, self.recipe, devices, RunOptions(**self.options))
        if devices.num_machines > 1:
            raise ValueError(
                "A search shares its candidates by KERASTUNER_ORACLE_IP, and trains each on one machine. "
                f"Received: {devices.num_machines} machines in TF_CONFIG"
            )

    def settings(self):
        """What decides the outcome for all candidates alike, as JSON values."""
        return {
            "dataset": self.dataset.name,
            "training_images": len(self.halves.train),
            "validation_images": len(self.halves.test),
            "classes": list(self.dataset.class_names),
            "recipe": self.recipe.to_config(),
            "seed": self.seed,
            "backend": keras.backend.backend(),
            "precision": self.options["precision"] or precision_of(keras.config.dtype_policy()),
        }

    def judge(self, folder, values):
        """Trains the candidate that {name: value} is, in its folder; returns its metrics."""
        spec = spec_of(values)
        self.progress(f"{folder.name}: {in_words(spec)}")
        report = self._train(self.halves, spec, changes_of(values), folder)
        return {name: report[name] for name in ("top1_accuracy", "wall_time_s")}

    def finish(self, winner, folder):
        """Trains the best Candidate on all training images and tests it, unless that is done."""
        if (folder / REPORT).exists():
            return
        self.progress(f"{folder.name}: {in_words(winner.spec)}, on all {len(self.dataset.train):,} training images")
        self._train(self.dataset, winner.spec, winner.final_recipe, folder)

    def _train(self, dataset, spec, changes, folder):
        recipe = get_recipe(self.recipe, **changes)
        last = recipe.num_epochs(len(dataset.train))
        options = {**self.options, "resume": True, "validation_freq": 1 if recipe.schedule == "plateau" else last}
        with run_in_series(folder.name):
            return train(spec, dataset, recipe, folder, seed=self.seed, **options).report


def set_aside(dataset, validation_split):
    """The training images of a data set, in those that train candidates and those that judge them.

    Args:
        dataset: Dataset in memory.
        validation_split: share in (0, 1) or number of the latter.

    Returns:
        A Dataset; it knows nothing of the images that test.

    Raises:
        ValueError: for another share, or a data set that is read as a stream.
    """
    if not isinstance(dataset.train, Split):
        raise ValueError(f"A search should have a data set that fits in memory. Received: dataset={dataset.name!r}")
    train, validation = dataset.train.stratified_split(validation_split)
    return replace(dataset, train=train, test=validation)
