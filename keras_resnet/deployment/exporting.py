"""`export`: a network into a file of another format, loaded back and compared before it gets its name."""

import errno
import glob
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import keras

from keras_resnet.architecture.metadata import image_shape, model_info
from keras_resnet.data.datasets import natural_preprocessing
from keras_resnet.deployment.exported import Exported
from keras_resnet.deployment.formats.table import (
    EIGHT_BITS,
    FORMATS,
    SUFFIXES,
    check_installed,
    check_precision,
    find_format,
)
from keras_resnet.deployment.images import in_batches, shown, spread
from keras_resnet.deployment.order import ExportSpec
from keras_resnet.deployment.parts import compare_parts, in_float32
from keras_resnet.deployment.places import REPORTS, beside, check_place, place
from keras_resnet.deployment.report import as_json, as_markdown, differences, report
from keras_resnet.deployment.serving import metadata
from keras_resnet.deployment.timing import speed
from keras_resnet.deployment.verification import compare
from keras_resnet.errors import check_integers, error_summary
from keras_resnet.models.preprocessing import preprocessing
from keras_resnet.models.transforms import as_functional, cast_model, fold_batch_norm


class Disagreement(ValueError):
    """An exported network says something else than its Keras network; `report` has the numbers."""

    def __init__(self, path, values):
        super().__init__(
            f"The exported network should say what its Keras network says: {'; '.join(differences(values))}, for "
            f"{values['precision']}. Received: {path}, and its report"
        )
        self.report = values


def export(
    model,
    path,
    format=None,
    precision="float32",
    raw=False,
    batch_size=None,
    calibration=None,
    images=None,
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
            folder (SavedModel, whose signature "serve_bytes" takes encoded image files, (B,) strings; TensorFlow
            reads none whose path has *, ? or [ in it).
        format: a name in FORMATS; None: by the name of the file.
        precision: "float32", "float16" (weights; under SavedModel what it computes in), "bfloat16" (what it computes
            in; SavedModel and OpenVINO) or "int8" (quantised after training; not SavedModel).
        raw: whether preprocessing is left out: it takes what `model` takes, and returns "probabilities", "logits" or
            "features", what `model` returns.
        batch_size: images that it takes at a time; None: any number.
        calibration: images like those it will see, for int8: what `extract` takes; of a data set by its name, those
            that train.
        images: images that both networks are compared on, what `extract` takes; None: a few that scikit-learn has.
        samples: how many images of `calibration` are taken at most.
        timed: whether both are timed.
        overwrite: whether what stands at `path` is replaced.

    Returns:
        The report as a dict; see `deployment.report.report`.

    Raises:
        Disagreement: a ValueError, if the answers differ by more than the precision explains, or those of the same
            export in float32 or to encoded files do. The file is left under another name, "network.disagrees.onnx" for
            "network.onnx".
        ValueError: for unknown names, a precision that the format does not have, what is no one graph of layers or has
            layers that the format cannot express, and images that are none or cannot be read.
        FileExistsError: if something stands at `path`, without `overwrite`.
        ImportError: if what writes the format is not installed, with the line that installs it.
        OSError: if it cannot be written.
    """
    key, target = find_format(format, path), Path(path).resolve()
    row = FORMATS[key]
    _check(key, target, precision, calibration, overwrite)
    check_integers(samples=samples, batch_size=1 if batch_size is None else batch_size)
    model = as_functional(model)
    _check_outputs(model)
    facts, folded, look = metadata(model, key, precision, raw), fold_batch_norm(model), _look(model, raw)
    source, order = shown(images), _order(folded, facts, look, batch_size, calibration, samples)
    with beside(target) as folder, beside(target) as spare:
        with _told(row, model, folder):
            row.module.write(order, folder / target.name)
            exported, plain = Exported(folder / target.name), in_float32(row, order, spare / target.name)
        measure = _in_float32(model)
        agreement = compare(measure, exported, look, source)
        parts = compare_parts(measure, exported, plain, look, source)
        speeds = speed(model, exported, look, next(in_batches(source, look, 8))[0]) if timed else []
        values = report(facts, agreement, parts, speeds, _size(folder), folded.info["unfolded"])
        for suffix, text in zip(REPORTS, (as_markdown(values), as_json(values)), strict=True):
            (folder / f"{target.name}{suffix}").write_text(text, "utf-8")
        left = place(folder, target, row, values["agrees"])
    if not values["agrees"]:
        raise Disagreement(left, values)
    return values


def _order(model, facts, look, batch_size, calibration, samples):
    """The ExportSpec, with its calibration images read."""
    if calibration is None:
        return ExportSpec(model, facts, batch_size)
    inputs = facts.taken(look, spread(calibration, look, samples))
    if len(inputs) < (batch_size or 1):
        raise ValueError(
            f"`calibration` should be {batch_size} images or more, a whole batch. Received: {len(inputs)} images"
        )
    return ExportSpec(model, facts, batch_size, inputs)


def _in_float32(model):
    """The model itself if it computes in float32: one that rounds is no measure."""
    exact = all(layer.compute_dtype == "float32" for layer in model.layers if hasattr(layer, "compute_dtype"))
    return model if exact else cast_model(model, "float32")


def _check(key, target, precision, calibration, overwrite):
    """The errors that need no work."""
    row = FORMATS[key]
    if keras.backend.backend() != "tensorflow":
        raise ValueError(f"Keras should run on TensorFlow to export. Received: KERAS_BACKEND={keras.backend.backend()}")
    check_precision(key, precision)
    check_installed(key, row.writes)
    if target.suffix != row.suffix and (row.suffix or target.suffix in SUFFIXES):
        raise ValueError(
            f"`path` should end in {row.suffix or 'no suffix'} for {row.title}. Received: path={str(target)!r}"
        )
    if not row.suffix and glob.escape(str(target)) != str(target):
        raise ValueError(
            "`path` should have none of *, ? and [ in it: TensorFlow would look for a pattern. "
            f"Received: path={str(target)!r}"
        )
    if (precision == EIGHT_BITS) != (calibration is not None):
        raise ValueError(
            f"`calibration` should be images for {EIGHT_BITS}, and for no other precision. "
            f"Received: precision={precision!r}, calibration={calibration!r}"
        )
    check_place(target, row, overwrite)


def _check_outputs(model):
    """Names are what tells one from another."""
    if len(model.outputs) > 1 and not isinstance(model.output, dict):
        raise ValueError(
            f"`model` should have one output, or a dict of them. Received: {model.name} with {len(model.outputs)}"
        )


def _look(model, raw):
    """The Preprocessing of the model; of a raw one that does not know it, any for its images."""
    known = model_info(model).get("preprocessing")
    if known or not raw:
        return preprocessing(model)
    return natural_preprocessing(image_shape(model))


@contextmanager
def _told(row, model, folder):
    """Exporters and runtimes raise what their parsers raise: here it becomes one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise
        full = os.strerror(errno.ENOSPC)
        if full in str(error) or shutil.disk_usage(folder).free < 2**20:
            raise OSError(errno.ENOSPC, full, str(folder.parent)) from error
        own = sorted({type(layer).__name__ for layer in model.layers if not type(layer).__module__.startswith("keras")})
        layers = f", with layers of its own: {', '.join(own)}" if own else ""
        raise ValueError(
            f"`model` should be one that {row.title} can express ({error_summary(error)}). "
            f"Received: {model.name}{layers}"
        ) from error


def _size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
