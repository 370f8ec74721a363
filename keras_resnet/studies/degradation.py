"""The paper's central experiment: with depth plain networks degrade, residual ones improve (He et al. 2015, fig. 6)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from keras_resnet.data.sources import as_dataset
from keras_resnet.errors import unknown_name_error
from keras_resnet.files import atomic_write, read_json, write_json
from keras_resnet.studies.results import FAMILIES, Degradation, as_markdown, read_cell, read_history
from keras_resnet.studies.sizes import SIZES, subset
from keras_resnet.training.callbacks import run_in_series
from keras_resnet.training.checkpoints import OTHERWISE, check_settings
from keras_resnet.training.curves import draw_panels
from keras_resnet.training.devices import Devices
from keras_resnet.training.model_setup import check_precision
from keras_resnet.training.recipes import changed, get_recipe
from keras_resnet.training.train import check, train
from keras_resnet.training.workdir import HISTORY, REPORT, SETTINGS, prepare
from keras_resnet.variants import list_models

IMAGE, TABLE, RESULT = "degradation.png", "degradation.md", "degradation.json"


def degradation(
    workdir,
    size="digits",
    dataset=None,
    depths=None,
    recipe=None,
    images=None,
    seed=0,
    overwrite=False,
    *,
    checkpoint_every=None,
    deterministic=False,
    devices=None,
    precision=None,
    xla=None,
    progress=lambda text: None,
    **changes,
):
    """Trains plain and residual networks of several depths under one recipe (He et al. 2015, sec. 4.1, 4.2 and fig. 6).

    Each network is a run of `train` in a folder of its own, `workdir`/plain20 and so on. A study that was interrupted
    goes on where it stopped: finished networks are left alone, wherever they were trained, and one that was being
    trained goes on from its checkpoint. Image, table and result are written anew after each network.

    Args:
        workdir: folder for the networks' folders, degradation.png, degradation.md and degradation.json.
        size: a name of SIZES; None below means what its row says.
        dataset: as `train` takes it: a name, a Dataset, or a function that gives one. It is loaded once.
        depths: layers, two or more; for each, all networks of FAMILIES in VARIANTS: 20 is plain20 and resnet20.
        recipe: name of a recipe, or a Recipe, for all networks; the changes of the row go with its own.
        images: pair, how many images train and test: `subset`.
        seed: of weights, order and augmentation.
        overwrite: whether the study's networks that `workdir` already holds are removed, and trained anew.
        checkpoint_every, deterministic, devices, precision, xla: as for `train`; devices of one machine.
        progress: function that is told in words which network comes next.
        **changes: fields of the recipe to change, such as `epochs=2`.

    Returns:
        A Degradation.

    Raises:
        ValueError: for an unknown name, depth or field, and for networks in `workdir` that were trained with other
            settings; before training.
        OSError, RuntimeError, FloatingPointError: as `train`.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when a checkpoint is written; the same call then goes on.
    """
    if size not in SIZES:
        raise unknown_name_error("size", size, SIZES)
    row = SIZES[size]
    recipes = {network: _recipe(row, network, recipe, changes) for network in _networks(depths or row.depths)}
    available = Devices(devices)  # first, as in `train`: what reads images starts TensorFlow's devices
    dataset = _load(dataset or row.dataset, images or row.images)
    _check(recipes.values(), dataset, precision, available, checkpoint_every)
    settings = _settings(dataset, seed, precision or keras.config.dtype_policy().name)
    study = _Study(Path(workdir), recipes, settings)
    if overwrite:
        study.clear()
    study.check()
    options = {"checkpoint_every": checkpoint_every, "deterministic": deterministic, "devices": devices, "xla": xla}
    options |= {"precision": precision, "resume": True}
    result = study.publish()
    for network in result.missing:
        progress(f"{network}: network {len(result.cells) + 1} of {len(recipes)}")
        with run_in_series(network):
            train(network, dataset, recipes[network], study.workdir / network, seed, **options)
        result = study.publish()
    return result


@dataclass(frozen=True)
class _Study:
    """The folder of a study."""

    workdir: Path
    recipes: Mapping
    """{network: Recipe}, in the order in which they are trained."""
    settings: Mapping
    """What the settings of all networks have in common."""

    def check(self):
        """Raises ValueError if a network was trained, or begun, with other settings."""
        for network, recipe in self.recipes.items():
            path = self.workdir / network / SETTINGS
            if not path.exists():
                continue
            expected = {**self.settings, "model": network, "recipe": recipe.to_config()}
            found = {name: value for name, value in read_json(path).items() if name in expected}
            check_settings(found, expected, path, OTHERWISE.format("folder"))

    def clear(self):
        """Removes the networks; what else is in their folders stays."""
        for network in self.recipes:
            folder = self.workdir / network
            if folder.exists():
                prepare(folder, {}, size=0, overwrite=True)
                (folder / SETTINGS).unlink()
        for name in (IMAGE, TABLE, RESULT):
            (self.workdir / name).unlink(missing_ok=True)

    def publish(self):
        """The Degradation as far as networks are finished; image, table and result are written if there are any."""
        finished = [network for network in self.recipes if (self.workdir / network / REPORT).exists()]
        missing = tuple(network for network in self.recipes if network not in finished)
        recipe = next(iter(self.recipes.values())).to_config()
        cells = tuple(read_cell(self.workdir / network) for network in finished)
        result = Degradation({**self.settings, "recipe": recipe}, cells, missing)
        if finished:
            write_json(result.to_config(), self.workdir / RESULT)
            with atomic_write(self.workdir / TABLE) as partial:
                partial.write_text(as_markdown(result), "utf-8")
            draw_panels(self._panels(cells), self.workdir / IMAGE, self.settings["dataset"])
        return result

    def _panels(self, cells):
        """For each family {its depth: history}."""
        panels = {title: {} for title in FAMILIES.values()}
        for cell in cells:
            history = read_history(self.workdir / cell.network / HISTORY)
            panels[FAMILIES[cell.family]][f"{cell.depth} layers"] = history
        return panels


def _known_depths(family):
    """Depths at which VARIANTS has networks of a family: 20 for "plain20_cifar"."""
    found = [re.fullmatch(rf"{family}(\d+)(_cifar)?", name) for name in list_models()]
    return [int(match[1]) for match in found if match]


def _networks(depths):
    """Names of the networks of these depths, the shallowest first; of the same depth, the plain one first."""
    depths = np.unique(depths).tolist()
    known = {family: _known_depths(family) for family in FAMILIES}
    for depth in depths:
        if depth not in known["resnet"]:
            raise unknown_name_error("depths", depth, known["plain"])
    if len(set(depths) & {*known["plain"]}) < 2:
        raise ValueError(
            f"`depths` should be two or more of {known['plain']}: the study compares networks of different depth. "
            f"Received: depths={depths}"
        )
    return [f"{family}{depth}" for depth in depths for family in FAMILIES if depth in known[family]]


def _recipe(row, network, recipe, changes):
    """The recipe of a network: the one that was asked for, else its own, else the row's."""
    if recipe is None:
        recipe = get_recipe(row.own_recipes.get(network, row.recipe), **row.changes)
    return get_recipe(recipe, **changes) if isinstance(recipe, str) else changed(recipe, **changes)


def _check(recipes, dataset, precision, devices, checkpoint_every):
    """Raises ValueError for what `train` would refuse, before anything is removed for it."""
    check_precision(precision)
    for recipe in recipes:
        check(dataset, recipe, devices, precision, 1, checkpoint_every, "last")
    if devices.machines > 1:
        raise ValueError(
            "A study runs on one machine; several may train its networks one by one, by `keras-resnet train`. "
            f"Received: {devices.machines} machines in TF_CONFIG"
        )


def _load(dataset, images):
    dataset = as_dataset(dataset)
    return subset(dataset, *images) if images else dataset


def _settings(dataset, seed, precision):
    """What `settings_of` says of a run, as far as it is known before a network is built and the same for all."""
    return {
        "dataset": dataset.name,
        "training_images": len(dataset.train),
        "test_images": len(dataset.test),
        "classes": list(dataset.class_names),
        "seed": seed,
        "backend": keras.backend.backend(),
        "sync_batch_norm": False,
        "precision": precision,
    }
