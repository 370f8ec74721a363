"""Fine-tuning: a new classifier on a body that stays as it is, then stages from the top down that learn as well.

Howard and Ruder 2018, arXiv:1801.06146, sec. 3.3, call it gradual unfreezing. Each phase is a run of `train` in a
folder of its own, so that whatever `train` promises holds here too.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import keras
import numpy as np

from keras_resnet.analysis.grad_cam import draw_grad_cam, grad_cam
from keras_resnet.architecture.network import ResNet, height
from keras_resnet.data.preprocessing import preprocess_input
from keras_resnet.data.read_ahead import pictures_at
from keras_resnet.data.sources import as_dataset
from keras_resnet.data.views import as_shown, get_protocol
from keras_resnet.errors import unknown
from keras_resnet.evaluation import evaluate
from keras_resnet.files import replacing
from keras_resnet.models import clone, create, load_model, preprocessing
from keras_resnet.prediction import in_order_of_axes
from keras_resnet.training.building import in_precision
from keras_resnet.training.devices import Devices
from keras_resnet.training.fit import train
from keras_resnet.training.recipes import changed, get_recipe
from keras_resnet.training.workdir import MODEL, REPORT, write_json

BATCH_NORM = ("frozen", "trained")
LOOKS = "grad_cam.png"
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
    **changes,
):
    """Teaches a trained network the classes of a few hundred pictures.

    Args:
        model: name of a network, or a .keras file or Keras model with a classifier, which is replaced.
        dataset: name for `load_dataset`, a Dataset, or a function that gives one. Its test pictures choose the epoch.
        workdir: folder for model.keras, report.json and a folder for each phase; None writes nothing.
        weights: of a network given by name: a tag, the path of a file, or None for random ones.
        stages: how many of the upper stages learn in the end; 0: the classifier alone, 5: all and the stem.
        head_epochs: of the first phase; None: as many as the recipe has, which the other phases have each.
        batch_norm: "frozen": statistics, scales and offsets stay those of the body: a few pictures of one's own would
            spoil them; "trained": they are learnt where their stage is.
        recipe: name of a recipe, or a Recipe, for every phase. Of a recipe given by name, a batch is no larger than the
            data set.
        seed, overwrite, resume, precision, devices, deterministic, checkpoint_every: as for `train`.
        **changes: fields of the recipe to change, such as `epochs=5`.

    Returns:
        A FineTuning.

    Raises:
        ValueError: for names that do not exist, and what does not fit; before training.
        OSError, RuntimeError, FloatingPointError, KeyboardInterrupt: as `train`.
    """
    if batch_norm not in BATCH_NORM:
        raise unknown("batch_norm", batch_norm, BATCH_NORM)
    as_it_is = not isinstance(recipe, str) or "batch_size" in changes
    recipe = get_recipe(recipe, **changes) if isinstance(recipe, str) else changed(recipe, **changes)
    Devices(devices)  # before anything is read: what reads pictures starts TensorFlow's devices
    keras.utils.set_random_seed(seed)
    dataset = as_dataset(dataset)
    if dataset.train is not None and not as_it_is:
        recipe = replace(recipe, batch_size=min(recipe.batch_size, len(dataset.train)))
    network = _network(model, weights, dataset, precision)
    dataset = replace(dataset, preprocessing=_look(network, dataset))
    options = {"overwrite": overwrite, "resume": resume, "devices": devices, "deterministic": deterministic}
    options |= {"checkpoint_every": checkpoint_every, "keep": "best"}
    result = FineTuning(network, {})
    for number, phase in enumerate(_phases(network, stages)):
        folder = workdir and Path(workdir) / f"{number}_{phase.name}"
        begin = partial(opened, network, phase.height, batch_norm)
        run = train(begin, dataset, _recipe(recipe, number, head_epochs), folder, seed, **options)
        result, network = result.after(phase.name, run), run.model
    if workdir:
        _save(result, dataset, Path(workdir))
    return result


def _recipe(recipe, number, head_epochs):
    """The recipe of a phase: the first one, where the classifier begins from nothing, takes larger steps."""
    if number:
        return recipe
    return changed(recipe, epochs=head_epochs or recipe.epochs, learning_rate=HEAD_RATE * recipe.learning_rate)


def _save(result, dataset, folder):
    with replacing(folder / MODEL) as partial:
        result.model.save(partial)
    write_json({"best": result.best, "phases": result.phases}, folder / REPORT)
    draw_looks(result.model, dataset, folder / LOOKS)


def draw_looks(model, dataset, path, most=8):
    """Draws where a network looks in test pictures that it gets right and in those that it gets wrong, by Grad-CAM.

    Args:
        model: network of the data set's classes.
        dataset: Dataset.
        path: the PNG to write.
        most: pictures of either kind.
    """
    result = evaluate(model, dataset)
    if result.left_out:
        raise ValueError(f"Expected pictures that can be read. Received: {result.left_out[0]}")
    right = result.predicted == result.labels
    chosen = np.concatenate([_some(np.flatnonzero(right), most), _some(np.flatnonzero(~right), most)])
    (views,) = as_shown(pictures_at(dataset.test, chosen), preprocessing(model), get_protocol("center"))
    inputs = preprocess_input(views[:, 0], preprocessing(model).mode, "channels_last")
    maps = grad_cam(model, in_order_of_axes(model, inputs), result.predicted[chosen])
    names = [name for _, name in result.classes]
    titles = [
        names[taken] if taken == label else f"{names[taken]} (is {names[label]})"
        for taken, label in zip(result.predicted[chosen], result.labels[chosen], strict=True)
    ]
    draw_grad_cam(views[:, 0], maps, path, titles)


def _some(numbers, most):
    """So many of them, evenly from the first to the last: class folders come one after another."""
    places = np.linspace(0, len(numbers) - 1, min(most, len(numbers)))
    return numbers[places.astype(int)]


@dataclass(frozen=True)
class Phase:
    """Which part of a network learns."""

    name: str
    height: int
    """The lowest stage that learns; above the stages, the classifier alone."""


def _phases(network, stages):
    top = len(network.spec.stages) if getattr(network, "spec", None) else 4
    if not isinstance(stages, int) or isinstance(stages, bool) or not 0 <= stages <= top + 1:
        raise ValueError(f"`stages` should be an integer from 0 to {top + 1}. Received: stages={stages!r}")
    yield Phase("head", top + 1)
    for lowest in range(top, top - stages, -1):
        yield Phase(f"stage{lowest}" if lowest else "stem", lowest)


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
    stages = len(model.spec.stages) if getattr(model, "spec", None) else 4
    for layer in model.layers:
        frozen = batch_norm == "frozen" and isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = height(layer.name, stages) >= lowest and not frozen


def _network(model, weights, dataset, precision):
    """The network to fine-tune: its body as it was, a new classifier for the data set's classes."""
    if isinstance(model, keras.Model) or str(model).endswith(".keras"):
        for option, given, usual in (("weights", weights, "imagenet"), ("precision", precision, None)):
            if given not in (None, usual):
                raise ValueError(
                    f"`{option}` should be left out with a Keras model or a .keras file, which has its own. "
                    f"Received: {option}={given!r}"
                )
        body = model if isinstance(model, keras.Model) else load_model(model)
    else:
        body = _created(model, weights, dataset, precision)
    stages = len(body.spec.stages) if getattr(body, "spec", None) else 4
    if all(height(layer.name, stages) > stages for layer in body.layers):
        raise ValueError(
            "`model` should be a residual network with the layer names of keras.applications, by which its stages are "
            f"known. Received: {body.name}"
        )
    return with_new_head(body, len(dataset.class_names))


def _created(name, weights, dataset, precision):
    with in_precision(precision):
        if weights is None:
            return create(name, input_shape=dataset.input_shape, classes=len(dataset.class_names))
        return create(name, weights=weights)


def with_new_head(model, classes):
    """The same layers with another, untrained classifier in place of the last one.

    Args:
        model: Functional classifier that ends in a Dense layer; its layers become part of the result.
        classes: number of classes.

    Raises:
        ValueError: for a model that ends otherwise.
    """
    last = model.layers[-1] if getattr(model, "layers", None) else None
    if not isinstance(last, keras.layers.Dense) or last.output is not model.outputs[0]:
        raise ValueError(f"`model` should end in a Dense classifier. Received: {model.name}, which ends in {last}")
    head = keras.layers.Dense(
        classes, "softmax", kernel_initializer=last.kernel_initializer, dtype=last.dtype_policy, name=last.name
    )
    kind = ResNet if isinstance(model, ResNet) else keras.Model
    network = kind(model.inputs[0], head(last.input), name=model.name)
    network.spec, network.info = getattr(model, "spec", None), dict(getattr(model, "info", None) or {})
    return network


def _look(network, dataset):
    """How pictures are prepared: as the weights want it; for random ones, as the data set does."""
    if "preprocessing" in network.info:
        return preprocessing(network)
    return dataset.preprocessing
