"""`export`: a network into a file of another format, loaded back and compared before it gets its name."""

import errno
import glob
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from keras_resnet.data.datasets import natural_preprocessing
from keras_resnet.deployment.agreement import compare, speed, taken
from keras_resnet.deployment.exported import Exported
from keras_resnet.deployment.folding import fold_batch_norm
from keras_resnet.deployment.formats import EIGHT_BITS, FORMATS, check_installed, check_precision, find_format
from keras_resnet.deployment.order import Order
from keras_resnet.deployment.pictures import in_batches, shown, spread
from keras_resnet.deployment.report import as_json, as_markdown, report
from keras_resnet.deployment.served import metadata
from keras_resnet.files import check_target
from keras_resnet.models import preprocessing
from keras_resnet.prediction import channels_first

DISAGREES = ".disagrees"
"""Stands in the name of a file that does not say what its Keras network says."""


class Disagreement(ValueError):
    """An exported network says something else than its Keras network; `report` has the numbers."""

    def __init__(self, message, values):
        super().__init__(message)
        self.report = values


def export(
    model,
    path,
    format=None,
    precision="float32",
    raw=False,
    batch_size=None,
    calibration=None,
    pictures=None,
    samples=300,
    timed=True,
    overwrite=False,
):
    """Writes a network for another runtime, loads it back there, and compares it with Keras.

    Batch norms are folded into convolutions. What is written takes "images", (B, size, size, C) uint8 RGB in 0..255,
    and returns "probabilities", (B, classes) float32; class names and preprocessing go along as metadata. Beside it
    stand its reports, `path` + ".report.md" and ".report.json".

    Args:
        model: Functional model with one input, whose preprocessing is known unless `raw`.
        path: of a file that ends in .onnx, .xml (OpenVINO; its .bin stands beside it) or .tflite (LiteRT), or of a
            folder (SavedModel, whose signature "serve_bytes" takes encoded picture files, (B,) strings).
        format: a name in FORMATS; None: by the name of the file.
        precision: "float32", "float16" (weights; under SavedModel what it computes in), "bfloat16" (what it computes
            in; SavedModel and OpenVINO) or "int8" (quantised after training; not SavedModel).
        raw: whether preprocessing is left out: it takes what `model` takes, and returns "probabilities", "logits" or
            "features", what `model` returns.
        batch_size: pictures that it takes at a time; None: any number.
        calibration: pictures like those it will see, for int8: what `extract` takes; of a data set by its name, those
            that train.
        pictures: pictures that both networks are compared on, what `extract` takes; None: a few that scikit-learn has.
        samples: how many pictures of `calibration` are taken at most.
        timed: whether both are timed.
        overwrite: whether what stands at `path` is replaced.

    Returns:
        The report as a dict; see `deployment.report.report`.

    Raises:
        Disagreement: a ValueError, if the answers differ by more than the precision explains. The file is left under
            another name, "network.disagrees.onnx" for "network.onnx".
        ValueError: for unknown names, a precision that the format does not have, what is no one graph of layers or has
            layers that the format cannot express, and pictures that are none or cannot be read.
        FileExistsError: if something stands at `path`, without `overwrite`.
        ImportError: if what writes the format is not installed, with the line that installs it.
        OSError: if it cannot be written.
    """
    key, target = find_format(format, path), Path(path)
    _check(key, target, precision, calibration, overwrite)
    _check_count("samples", samples)
    _check_count("batch_size", 1 if batch_size is None else batch_size)
    unfolded = fold_batch_norm(model).info["unfolded"]
    facts = metadata(model, key, precision, raw)
    look = _look(model, raw)
    inputs = None if calibration is None else taken(facts, look, spread(calibration, look, samples))
    if inputs is not None and len(inputs) < (batch_size or 1):
        raise ValueError(
            f"`calibration` should be {batch_size} pictures or more, a whole batch. Received: {len(inputs)} pictures"
        )
    with _beside(target) as folder:
        with _told(key, model, folder):
            FORMATS[key].module.write(Order(model, facts, batch_size, inputs), folder / target.name)
            exported = Exported(folder / target.name)
        agreement = compare(model, exported, look, pictures)
        pixels = next(in_batches(shown(pictures), look, 8))[0] if timed else None
        speeds = speed(model, exported, look, pixels) if timed else []
        values = report(facts, agreement, speeds, _size(folder), unfolded)
        (folder / f"{target.name}.report.md").write_text(as_markdown(values))
        (folder / f"{target.name}.report.json").write_text(as_json(values))
        _place(folder, target, values)
    return values


def _check(key, target, precision, calibration, overwrite):
    """The errors that need no work."""
    row = FORMATS[key]
    check_precision(key, precision)
    check_installed(key, row.writes)
    if target.suffix != row.suffix and (row.suffix or target.suffix in _suffixes()):
        raise ValueError(
            f"`path` should end in {row.suffix or 'no suffix'} for {row.title}. Received: path={str(target)!r}"
        )
    if (precision == EIGHT_BITS) != (calibration is not None):
        raise ValueError(
            f"`calibration` should be pictures for {EIGHT_BITS}, and for no other precision. "
            f"Received: precision={precision!r}, calibration={calibration!r}"
        )
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"Something is there already; `overwrite` (--overwrite) replaces it. Received: path={str(target)!r}"
        )
    check_target(target.with_name(f"{target.name}.report.json"))


def _check_count(argument, value):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{argument}` should be an integer, 1 or more. Received: {argument}={value!r}")


def _suffixes():
    return {row.suffix for row in FORMATS.values() if row.suffix}


def _look(model, raw):
    """The Preprocessing of the model; of a raw one that does not know it, any for its pictures."""
    known = (getattr(model, "info", None) or {}).get("preprocessing")
    if known or not raw:
        return preprocessing(model)
    *sides, channels = (
        (*model.input_shape[2:], model.input_shape[1]) if channels_first(model) else model.input_shape[1:]
    )
    return natural_preprocessing((*sides, channels))


@contextmanager
def _beside(target):
    """A folder in that of `target`, in which files become whole; what an export that was killed left goes first."""
    for left in target.parent.glob(f".exporting.{glob.escape(target.name)}.*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".exporting.{target.name}.", dir=target.parent) as folder:
        yield Path(folder)


@contextmanager
def _told(key, model, folder):
    """Exporters and runtimes raise what their parsers raise: here it becomes one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise
        if shutil.disk_usage(folder).free < 2**20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.parent)) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        own = sorted({type(layer).__name__ for layer in model.layers if not type(layer).__module__.startswith("keras")})
        layers = f", with layers of its own: {', '.join(own)}" if own else ""
        raise ValueError(
            f"`model` should be one that {FORMATS[key].title} can express ({reason}). Received: {model.name}{layers}"
        ) from error


def _size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _place(folder, target, values):
    """Gives the files in a folder their places: the names of `target`, or others if they disagree with Keras."""
    stem = target.name.removesuffix(FORMATS[values["format"]].suffix)
    final = stem if values["agrees"] else stem + DISAGREES
    main = target.name.replace(stem, final, 1)
    names = {path.name: path.name.replace(stem, final, 1) for path in folder.iterdir()}
    for name in sorted(names, key=lambda name: name == target.name):  # what says that all is there comes last
        place = target.with_name(names[name])
        if place.is_dir():
            os.replace(place, folder / "replaced")
        os.replace(folder / name, place)
    if not values["agrees"]:
        raise Disagreement(
            f"The exported network should say what its Keras network says: the differences of its logits are "
            f"{values['relative']:.2g} of their spread, {values['tolerance']:g} at most for {values['precision']}. "
            f"Received: {target.with_name(main)}, and its report",
            values,
        )
