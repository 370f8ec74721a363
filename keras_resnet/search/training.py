"""How candidates are trained and judged, and the best one in the end."""

import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import keras

from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.search.results import in_words
from keras_resnet.search.space import changes_of, spec_of
from keras_resnet.training.building import check_precision
from keras_resnet.training.callbacks import Interrupted
from keras_resnet.training.fit import check, train
from keras_resnet.training.recipes import Recipe, changed
from keras_resnet.training.workdir import REPORT


@dataclass(frozen=True)
class Training:
    """What all trainings of a search have in common."""

    dataset: Dataset
    """All training pictures, and those that test."""
    halves: Dataset
    """The training pictures alone: those that train candidates, and those that judge them. See `set_aside`."""
    recipe: Recipe
    """For what a candidate does not say itself."""
    seed: int
    options: Mapping
    """For `train`."""
    progress: Callable
    """Told in words what comes next."""

    @property
    def input_shape(self):
        """(H, W, C) of one picture when it is tested, as the candidates get it."""
        side, _, channels = self.dataset.input_shape
        side = self.recipe.test_size or side
        return (side, side, channels)

    @property
    def epochs(self):
        """Of a candidate's training."""
        return _epochs(self.recipe, self.halves)

    def check(self, devices):
        """Raises ValueError for what `train` would refuse, before there is a candidate."""
        precision, names = self.options["precision"], self.dataset.class_names
        if len(names) < 2:
            raise ValueError(f"`dataset` should have two classes at least. Received: {list(names)}")
        check_precision(precision)
        self.recipe.steps(len(self.halves.train))
        check(self.recipe, devices, precision, 1, self.options["checkpoint_every"], "last")
        if devices.machines > 1:
            raise ValueError(
                "A search shares its candidates by KERASTUNER_ORACLE_IP, and trains each on one machine. "
                f"Received: {devices.machines} machines in TF_CONFIG"
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
            "precision": self.options["precision"] or keras.config.dtype_policy().name,
        }

    def judge(self, folder, values):
        """Trains the candidate that {name: value} is, in its folder; returns its metrics."""
        spec = spec_of(values)
        self.progress(f"{folder.name}: {in_words(spec)}")
        report = self._train(self.halves, spec, changes_of(values), folder)
        return {name: report[name] for name in ("top1_accuracy", "wall_time_s")}

    def finish(self, winner, folder):
        """Trains the best Candidate on all training pictures and tests it, unless that is done."""
        if (folder / REPORT).exists():
            return
        self.progress(f"{folder.name}: {in_words(winner.spec)}, on all {len(self.dataset.train):,} training pictures")
        recipe = {name: value for name, value in winner.recipe.items() if name != "epochs"}  # Hyperband's, to choose
        self._train(self.dataset, winner.spec, recipe, folder)

    def _train(self, dataset, spec, changes, folder):
        recipe = changed(self.recipe, **changes)
        every = 1 if recipe.schedule == "plateau" else _epochs(recipe, dataset)  # one look, in the end
        try:
            return train(
                spec, dataset, recipe, folder, self.seed, resume=True, validation_freq=every, **self.options
            ).report
        except Interrupted:
            raise Interrupted(f"Stopped in {folder.name}. To go on, repeat the command without --overwrite.") from None
        finally:
            gc.collect()  # as after the networks of a study


def _epochs(recipe, dataset):
    """Of a training; one that `iterations` cuts short counts."""
    per_epoch, steps = recipe.steps(len(dataset.train))
    return math.ceil(steps / per_epoch)


def set_aside(dataset, validation_split):
    """The training pictures of a data set, in those that train candidates and those that judge them.

    Args:
        dataset: Dataset in memory.
        validation_split: share in (0, 1) or number of the latter.

    Returns:
        A Dataset; it knows nothing of the pictures that test.

    Raises:
        ValueError: for another share, or a data set that is read as a stream.
    """
    if not isinstance(dataset.train, Split):
        raise ValueError(f"A search should have a data set that fits in memory. Received: dataset={dataset.name!r}")
    train, validation = dataset.train.set_aside(validation_split)
    return replace(dataset, train=train, test=validation)
