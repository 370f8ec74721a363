"""The paper's central experiment: with more depth plain networks get worse, residual ones better (fig. 6)."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.data.sources import as_dataset
from keras_resnet.errors import check_known, unknown_name_error
from keras_resnet.files import as_path, atomic_write, read_json, write_json
from keras_resnet.precision import precision_of
from keras_resnet.studies.results import FAMILIES, DegradationResult, read_network_result, to_markdown
from keras_resnet.training.callbacks import run_in_series
from keras_resnet.training.checkpoints import OVERWRITE_HINT, check_settings
from keras_resnet.training.curves import draw_curves
from keras_resnet.training.distribution import Devices
from keras_resnet.training.model_setup import dataset_settings, network_name_and_spec
from keras_resnet.training.options import RunOptions, split_options
from keras_resnet.training.recipe import Recipe
from keras_resnet.training.recipes import check_recipe_task, get_recipe
from keras_resnet.training.train import check_run, train
from keras_resnet.training.workdir import HISTORY, REPORT, SETTINGS, clear_runs, locked_workdir, read_history
from keras_resnet.weights.catalog import list_models

PLOT, TABLE, RESULT = "degradation.png", "degradation.md", "degradation.json"


@dataclass(frozen=True)
class Size:
    """Data set, networks and recipe of a degradation study."""

    dataset: str
    """A name for `load_dataset`."""
    depths: tuple[int, ...]
    recipe: str
    changes: Mapping = field(default_factory=dict)
    """Changed fields of the recipe."""
    images: tuple[int, int] | None = None
    """(training images, test images), see `subset`; None: all."""
    own_recipes: Mapping = field(default_factory=dict)
    """{network: name of the recipe that it has instead}."""


# The warm-up of the paper's ResNet-110: with few steps, residual networks from 44 layers on do not train without it
_WARMUP = {"warmup_rate": 0.01, "warmup_constant": True}
_DIGITS = {**_WARMUP, "epochs": 40, "batch_size": 64, "warmup": 0.05, "padding": 1, "flip": False}
# A warm-up of 400 of 5,850 steps; then a cosine, since the paper's milestones leave deep networks too few steps
_CIFAR = {**_WARMUP, "epochs": 15, "warmup": 0.0684, "schedule": "cosine", "milestones": ()}

SIZES = {
    # Six minutes on one core
    "digits": Size("digits", (20, 32, 44, 56), "he2015_cifar", _DIGITS),
    # Half an hour on two cores in bfloat16
    "cifar10_subset": Size("cifar10", (20, 56), "he2015_cifar", {**_CIFAR, "epochs": 20}, images=(10_000, 2_000)),
    # Two hours on two cores in bfloat16: 15 epochs instead of 164
    "cifar10": Size("cifar10", (20, 56), "he2015_cifar", _CIFAR),
    # He et al. 2015, sec. 4.2 and fig. 6, for a GPU; the paper draws no plain-110: its error stays above 60%
    "paper": Size("cifar10", (20, 32, 44, 56, 110), "he2015_cifar", own_recipes={"resnet110": "he2015_cifar_110"}),
}


def degradation(
    workdir: str | os.PathLike,
    size: str = "digits",
    dataset: str | Dataset | Callable[[], Dataset] | None = None,
    depths: Iterable[int] | None = None,
    recipe: str | Recipe | None = None,
    images: tuple[int, int] | None = None,
    *,
    options: RunOptions | None = None,
    progress: Callable[[str], Any] = lambda text: None,
    **changes: Any,
) -> DegradationResult:
    """Trains plain and residual networks of several depths with one recipe (He et al. 2015, sec. 4.1, 4.2 and fig. 6).

    Each network is a run of `train` in a folder of its own, `workdir`/plain20 and so on. The same call continues an
    interrupted study: finished networks stay, wherever they were trained, and an interrupted one continues from its
    checkpoint. Plot, table and result are written again after each network.

    Example (six minutes on one core; with its 56 layers the plain network is much worse):

    >>> from keras_resnet.studies.degradation import degradation
    >>> result = degradation("runs/degradation", "digits")  # doctest: +SKIP
    >>> print(result.effects[0])  # doctest: +SKIP
    plain networks, from 20 to 56 layers: training error +46.87, test error +41.11 percentage points

    Args:
        workdir: folder for the networks' folders, degradation.png, degradation.md and degradation.json, or a URL in
            object storage, as for `train`.
        size: a name in SIZES, whose row holds the defaults of the following arguments.
        dataset: as for `train`; loaded once.
        depths: two or more depths; for each, all networks of FAMILIES in VARIANTS: 20 is plain20 and resnet20.
        recipe: name of a recipe, or a Recipe, for all networks, instead of the row's with its changes.
        images: (training images, test images) to use, see `subset`.
        options: RunOptions of all runs, on one machine; its fields can also be given as keywords. `overwrite` trains
            networks that `workdir` already holds again; a study always resumes.
        progress: function that is called with the name of each network before its training.
        **changes: fields of RunOptions, such as `seed=3`, and fields of the recipe to change, such as `epochs=2`.

    Returns:
        A DegradationResult.

    Raises:
        ValueError: for an unknown name, depth or field, and for networks in `workdir` that were trained with other
            settings; before training.
        OSError, RuntimeError, FloatingPointError: as `train`.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is written; the same call then continues.
    """
    check_known("size", size, SIZES)
    row = SIZES[size]
    options, changes = split_options(options, changes)
    workdir = as_path(workdir, "workdir")
    recipes = {name: _recipe(row, name, recipe, changes) for name in _network_names(depths or row.depths)}
    devices = Devices(options.devices)  # first, as in `train`: reading images starts TensorFlow's devices
    dataset, images = as_dataset(dataset or row.dataset), images or row.images
    dataset = subset(dataset, *images) if images else dataset
    for network_recipe in recipes.values():
        check_run(dataset, network_recipe, devices, options)
    devices.check_one_machine(
        "A study runs on one machine; several can train its networks one by one with `keras-resnet train`."
    )
    settings = dataset_settings(dataset) | {
        "seed": options.seed,
        "backend": keras.backend.backend(),
        "sync_batch_norm": False,
        "precision": options.precision or precision_of(keras.config.dtype_policy()),
    }
    study = _Study(workdir, recipes, settings)
    with locked_workdir(workdir):
        if options.overwrite:
            study.clear()
        study.check()
        result = study.publish()
        for name in result.missing:
            progress(f"{name}: network {len(result.networks) + 1} of {len(recipes)}")
            with run_in_series(name):
                run_options = replace(options, resume=True, overwrite=False)
                train(name, dataset, recipes[name], study.workdir / name, options=run_options)
            result = study.publish()
    return result


@dataclass(frozen=True)
class _Study:
    """The folder of a study, the networks' recipes in the order of their training, and the settings that they share."""

    workdir: Path
    recipes: Mapping[str, Recipe]
    settings: Mapping[str, Any]

    def check(self):
        """Raises ValueError if the folder holds a network that was trained, or started, with other settings."""
        for name, recipe in self.recipes.items():
            path = self.workdir / name / SETTINGS
            model, _ = network_name_and_spec(name, recipe)
            expected = {**self.settings, "model": model, "recipe": recipe.to_config()}
            if path.exists():
                found = {key: value for key, value in read_json(path, dict[str, Any]).items() if key in expected}
                check_settings(found, expected, path, OVERWRITE_HINT.format("folder"))

    def clear(self):
        """Removes the runs and the results; other files in the folders stay."""
        clear_runs([self.workdir / name for name in self.recipes])
        for name in (PLOT, TABLE, RESULT):
            (self.workdir / name).unlink(missing_ok=True)

    def publish(self):
        """The DegradationResult of the finished networks; writes plot, table and result if there are any."""
        finished = [name for name in self.recipes if (self.workdir / name / REPORT).exists()]
        missing = tuple(name for name in self.recipes if name not in finished)
        recipe = next(iter(self.recipes.values())).to_config()
        networks = tuple(read_network_result(self.workdir / name) for name in finished)
        result = DegradationResult({**self.settings, "recipe": recipe}, networks, missing)
        if finished:
            write_json(result.to_config(), self.workdir / RESULT)
            with atomic_write(self.workdir / TABLE) as temporary:
                temporary.write_text(to_markdown(result), "utf-8")
            panels = {title: {} for title in FAMILIES.values()}
            for network in networks:
                history = read_history(self.workdir / network.name / HISTORY)
                panels[FAMILIES[network.family]][f"{network.depth} layers"] = history
            draw_curves(panels, self.workdir / PLOT, self.settings["dataset"])
        return result


def _network_names(depths):
    """Names of the networks of these depths, the shallowest first; of the same depth, the plain one first."""
    depths = np.unique(depths).tolist()
    found = [re.fullmatch(r"(plain|resnet)(\d+)(_cifar)?", name) for name in list_models()]
    known = {family: [int(name[2]) for name in found if name and name[1] == family] for family in FAMILIES}
    for depth in depths:
        if depth not in known["resnet"]:
            raise unknown_name_error("depths", depth, known["plain"])
    if len(set(depths) & {*known["plain"]}) < 2:
        raise ValueError(
            f"`depths` should be two or more of {known['plain']}: the study compares networks of different depth. "
            f"Received: depths={depths}"
        )
    return [f"{family}{depth}" for depth in depths for family in FAMILIES if depth in known[family]]


def _recipe(row, name, recipe, changes):
    """The recipe of a network: the given one, or else its own, or else the row's."""
    if recipe is None:
        recipe = get_recipe(row.own_recipes.get(name, row.recipe), **row.changes)
    recipe = get_recipe(recipe, **changes)
    check_recipe_task(recipe, "classification", "to compare classifiers")
    return recipe


def subset(dataset, train, test):
    """Part of a Dataset with the same class proportions, the same part every time, and the numbers in its name.

    Args:
        dataset: Dataset in memory.
        train, test: number or fraction of its training and of its test images, see `Split.stratified_split`.

    Raises:
        ValueError: for more images than a split has, or a data set that is read as a stream.
    """
    splits = (dataset.train, dataset.test)
    sizes = [*map(len, splits)]
    if not all(isinstance(split, Split) for split in splits):
        raise ValueError(f"`dataset` should fit in memory to take a part of it. Received: dataset={dataset.name!r}")
    try:
        train, test = (split.stratified_split(amount)[1] for split, amount in zip(splits, (train, test), strict=True))
    except ValueError as error:
        raise ValueError(
            f"`images` should be the numbers of training and test images, of {sizes}, that include each class and not "
            f"all of its images. Received: images={(train, test)}"
        ) from error
    part = f"{len(train):,} of {sizes[0]:,} training and {len(test):,} of {sizes[1]:,} test images"
    return replace(dataset, name=f"{dataset.name}, {part}", train=train, test=test)
