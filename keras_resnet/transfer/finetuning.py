"""Fine-tuning: a new classifier on a body that stays as it is, then stages from the top down that learn as well.

Howard and Ruder 2018, arXiv:1801.06146, sec. 3.3, call it gradual unfreezing. Each phase is a run of `train` in a
folder of its own, so that whatever `train` promises holds here too.
"""

import re
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import keras
import numpy as np

from keras_resnet.analysis.grad_cam import grad_cam, plot_grad_cam
from keras_resnet.architecture.metadata import to_data_format
from keras_resnet.architecture.network import num_stages, stage_index
from keras_resnet.data.prefetch import images_at
from keras_resnet.data.preprocessing import preprocess_input
from keras_resnet.data.protocols import get_protocol, image_views
from keras_resnet.data.sources import as_dataset
from keras_resnet.errors import is_integer, unknown_name_error
from keras_resnet.evaluation import evaluate
from keras_resnet.models.create import create, load_model
from keras_resnet.models.preprocessing import preprocessing, set_preprocessing, weights_digest
from keras_resnet.models.transforms import clone, with_new_head
from keras_resnet.precision import precision_scope
from keras_resnet.training.distribution import Devices
from keras_resnet.training.recipes import get_recipe
from keras_resnet.training.train import train
from keras_resnet.training.workdir import prepare_workdir, write_run

BATCH_NORM = ("frozen", "trained")
LOOKS = "grad_cam.png"
PHASE = re.compile(r"\d_(head|stage\d|stem)")
"""Name of a phase's folder."""
HEAD_RATE = 3.0
"""Learning rate of the first phase, where only the classifier learns, in units of the recipe's."""


@dataclass(frozen=True)
class FineTuning:
    """What fine-tuning leaves."""

    model: keras.Model
    """With the weights of the best epoch of all phases, its class names and its preprocessing."""
    phases: dict
    """{name of the phase: report of its run}, in their order."""

    @property
    def best(self):
        """Name of the phase that tested best, of several the first."""
        return max(self.phases, key=lambda name: self.phases[name]["top1_accuracy"])

    def after(self, phase, run):
        """With one more phase, of which this is the Run."""
        result = FineTuning(run.model, {**self.phases, phase: run.report})
        return result if result.best == phase else replace(result, model=self.model)


def finetune(
    model="resnet50",
    dataset=None,
    workdir=None,
    *,
    weights="imagenet",
    stages=2,
    head_epochs=None,
    batch_norm="frozen",
    recipe="finetune",
    seed=0,
    overwrite=False,
    resume=False,
    precision=None,
    devices=None,
    deterministic=False,
    checkpoint_every=None,
    mode=None,
    **changes,
):
    """Teaches a trained network the classes of a few hundred images.

    Args:
        model: name of a network, or a .keras file or Keras model with a classifier, which is replaced.
        dataset: name for `load_dataset`, a Dataset, or a function that gives one. Its test images choose the epoch.
        workdir: folder for model.keras, report.json and a folder for each phase; None writes nothing.
        weights: of a network given by name: a tag, the path of a file, or None for random ones.
        stages: how many of the upper stages learn in the end; 0: the classifier alone, 5: all and the stem.
        head_epochs: of the first phase; None: as many as the recipe has, which the other phases have each.
        batch_norm: "frozen": statistics, scales and offsets stay those of the body: a few images of one's own would
            spoil them; "trained": they are learnt where their stage is.
        recipe: name of a recipe, or a Recipe, for every phase. Of a recipe given by name, a batch is no larger than the
            data set.
        seed, overwrite, resume, precision, devices, deterministic, checkpoint_every: as for `train`, on one machine.
        mode: how images are prepared where the weights do not say it, a name in MODES.
        **changes: fields of the recipe to change, such as `epochs=5`.

    Returns:
        A FineTuning.

    Raises:
        ValueError: for names that do not exist, and what does not fit; before training.
        OSError, RuntimeError, FloatingPointError, KeyboardInterrupt: as `train`.
    """
    if batch_norm not in BATCH_NORM:
        raise unknown_name_error("batch_norm", batch_norm, BATCH_NORM)
    whole_batches = not isinstance(recipe, str) or "batch_size" in changes
    recipe = get_recipe(recipe, **changes)
    _check(recipe, Devices(devices))  # before anything is read: what reads images starts TensorFlow's devices
    keras.utils.set_random_seed(seed)
    dataset = as_dataset(dataset)
    if dataset.train is not None and not whole_batches:
        recipe = replace(recipe, batch_size=min(recipe.batch_size, len(dataset.train)))
    network, look = _network(model, weights, dataset, precision, mode)
    recipes = _recipes(recipe, head_epochs, _phases(network, stages))
    if workdir:
        about = {"stages": stages, "batch_norm": batch_norm, "seed": seed, "weights_sha256": weights_digest(network)}
        about |= {name: recipe.to_config() for (name, _), recipe in recipes.items()}
        _prepare(Path(workdir), about, overwrite, resume)
    options = {"overwrite": overwrite, "resume": resume, "devices": devices, "deterministic": deterministic}
    options |= {"checkpoint_every": checkpoint_every, "keep": "best"}
    dataset, result = replace(dataset, preprocessing=look), FineTuning(network, {})
    for number, ((name, lowest), recipe) in enumerate(recipes.items()):
        folder = workdir and Path(workdir) / f"{number}_{name}"
        run = train(partial(opened, network, lowest, batch_norm), dataset, recipe, folder, seed=seed, **options)
        result, network = result.after(name, run), run.model
    if workdir:
        write_run(result.model, {"best": result.best, "phases": result.phases}, Path(workdir))
        draw_looks(result.model, dataset, Path(workdir) / LOOKS)
    return result


def _check(recipe, devices):
    """Raises ValueError for what cannot keep the best epoch."""
    if recipe.ema_decay or devices.num_machines > 1:
        raise ValueError(
            "`recipe` should have `ema_decay` 0, and the run one machine: the weights of the best epoch are kept. "
            f"Received: ema_decay={recipe.ema_decay}, {devices.num_machines} machines"
        )


def _phases(network, stages):
    """Name of each phase -> the lowest stage that learns in it; above the stages, the classifier alone."""
    top = num_stages(network)
    if not is_integer(stages, 0) or stages > top + 1:
        raise ValueError(f"`stages` should be an integer from 0 to {top + 1}. Received: stages={stages!r}")
    opens = {f"stage{lowest}" if lowest else "stem": lowest for lowest in range(top, top - stages, -1)}
    return {"head": top + 1} | opens


def _recipes(recipe, head_epochs, phases):
    """{phase: its recipe}: the first one, where the classifier begins from nothing, takes larger steps."""
    epochs = recipe.epochs if head_epochs is None else head_epochs
    first = get_recipe(recipe, epochs=epochs, learning_rate=HEAD_RATE * recipe.learning_rate)
    return {phase: recipe if number else first for number, phase in enumerate(phases.items())}


def _prepare(folder, settings, overwrite, resume):
    """As for a run; phases that an earlier fine-tuning left go with it."""
    if overwrite and folder.is_dir():
        for path in folder.iterdir():
            if PHASE.fullmatch(path.name) and path.is_dir():
                shutil.rmtree(path)
    prepare_workdir(folder, settings, 0, overwrite, resume)


def draw_looks(model, dataset, path, most=8):
    """Draws where a network looks in test images that it gets right and in those that it gets wrong, by Grad-CAM.

    Args:
        model: network of the data set's classes.
        dataset: Dataset.
        path: the PNG to write.
        most: images of either kind.
    """
    result = evaluate(model, dataset)
    if result.skipped:
        raise ValueError(f"Expected images that can be read. Received: {result.skipped[0]}")
    right = result.predicted == result.labels
    chosen = np.concatenate([_some(np.flatnonzero(right), most), _some(np.flatnonzero(~right), most)])
    (views,) = image_views(images_at(dataset.test, chosen), preprocessing(model), get_protocol("center"))
    inputs = preprocess_input(views[:, 0], preprocessing(model).mode, "channels_last")
    maps = grad_cam(model, to_data_format(model, inputs), result.predicted[chosen])
    names = [name for _, name in result.classes]
    titles = [
        names[taken] if taken == label else f"{names[taken]} (is {names[label]})"
        for taken, label in zip(result.predicted[chosen], result.labels[chosen], strict=True)
    ]
    plot_grad_cam(views[:, 0], maps, path, titles)


def _some(numbers, most):
    """So many of them, evenly from the first to the last: class folders come one after another."""
    places = np.linspace(0, len(numbers) - 1, min(most, len(numbers)))
    return numbers[places.astype(int)]


def opened(model, lowest, batch_norm):
    """A copy of the network in which the layers from a stage upward learn, see `open_stages`."""
    copy = clone(model)
    open_stages(copy, lowest, batch_norm)
    return copy


def open_stages(model, lowest, batch_norm="frozen"):
    """Lets the layers from a stage upward learn, and no other.

    Args:
        model: network with the layer names of keras.applications.
        lowest: number of the stage; 0 for the stem, one more than there are stages for the classifier alone.
        batch_norm: "frozen": none of the batch norms learns, or adapts its statistics; or "trained".
    """
    stages = num_stages(model)
    for layer in model.layers:
        frozen = batch_norm == "frozen" and isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = stage_index(layer.name, stages) >= lowest and not frozen


def _network(model, weights, dataset, precision, mode):
    """The network to fine-tune (its body as it was, a new classifier) and how its images are prepared."""
    if isinstance(model, keras.Model) or str(model).endswith(".keras"):
        for option, given, usual in (("weights", weights, "imagenet"), ("precision", precision, None)):
            if given not in (None, usual):
                raise ValueError(
                    f"`{option}` should be left out with a Keras model or a .keras file, which has its own. "
                    f"Received: {option}={given!r}"
                )
        body = model if isinstance(model, keras.Model) else load_model(model)
    else:
        body = _created(model, weights, dataset, precision, mode)
    if not num_stages(body):
        raise ValueError(
            "`model` should be a residual network with the layer names of keras.applications, by which its stages are "
            f"known. Received: {body.name}"
        )
    network = with_new_head(body, len(dataset.class_names))
    set_preprocessing(network, dataset.preprocessing, mode)
    return network, preprocessing(network)


def _created(name, weights, dataset, precision, mode):
    """By its name; random weights take images as the data set has them."""
    with precision_scope(precision):
        if weights is not None:
            return create(name, weights=weights)
        network = create(name, input_shape=dataset.input_shape, classes=len(dataset.class_names))
        set_preprocessing(network, dataset.preprocessing, mode or dataset.preprocessing.mode)
        return network
