"""`export`: a model is prepared, written in another format, verified against Keras, and published under its name."""

import errno
import glob
import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import keras

from keras_resnet.architecture.metadata import model_info
from keras_resnet.deployment.exported import ExportedModel
from keras_resnet.deployment.formats.table import FORMATS, SUFFIXES, check_precision, find_format
from keras_resnet.deployment.images import export_images
from keras_resnet.deployment.serving import ExportSpec
from keras_resnet.deployment.tasks import TASKS, task_of
from keras_resnet.deployment.tensorflow_process import call_with_tensorflow
from keras_resnet.deployment.verification import REPORT_SUFFIXES, failures, verify
from keras_resnet.errors import check_installed, check_integers, error_summary, value_error
from keras_resnet.files import check_writable, local_path, staging_folder
from keras_resnet.models.nested import inherited_spec
from keras_resnet.models.transforms import fold_batch_norm


class VerificationError(ValueError):
    """An exported network's outputs differ from those of its Keras model; `report` has the numbers."""

    def __init__(self, path, report):
        super().__init__(
            f"The exported network should return what its Keras model returns, but {'; '.join(failures(report))}, in "
            f"{report['precision']}. It was kept, with its report, as {path}"
        )
        self.report = report


def export(
    model: keras.Model,
    path: str | os.PathLike,
    format: str | None = None,
    precision: str = "float32",
    raw: bool = False,
    batch_size: int | None = None,
    calibration: Any = None,
    images: Any = None,
    calibration_size: int = 300,
    measure_speed: bool = True,
    overwrite: bool = False,
    size: int | tuple[int, int] | None = None,
) -> dict:
    """Writes a model for another runtime, loads it there, and compares its outputs with Keras's.

    Batch norms are folded into convolutions. The exported network takes "images", (B, size, size, C) uint8 RGB in
    0..255, and returns "probabilities", (B, classes) float32; class names and preprocessing are stored as metadata.
    An exported detector takes one image of any size, (1, H, W, 3), and returns the outputs of its Keras model, with
    boxes in pixels of that image. LiteRT has no Faster or Mask R-CNN, and only OpenVINO detectors in fewer bits. An
    exported localizer also returns the "boxes" of its Keras model. An exported segmenter takes images of any size,
    (B, H, W, 3), resizes them if its preprocessing does, and returns "probabilities" (B, H, W, K) and "mask" (B, H, W)
    uint8, the most probable class of each of their pixels.
    All formats are written by TensorFlow: on another backend, a process with TensorFlow exports the model.
    Reports are written beside it, to `path` + ".report.md" and ".report.json".

    >>> from keras_resnet import create, export
    >>> report = export(create("resnet20", weights="cifar10"), "resnet20", "saved_model", measure_speed=False)
    >>> report["verified"], report["top1_agreement"], report["nrmse"] < report["tolerance"]
    (True, 1.0, True)

    Args:
        model: Functional model with one input, whose preprocessing is known unless `raw`; detectors take neither `raw`
            nor `batch_size` nor `size`.
        path: a file that ends in .onnx, .xml (OpenVINO; its .bin is written beside it) or .tflite (LiteRT), or a
            folder (SavedModel, with a second signature "serve_bytes" that takes encoded image files, (B,) strings;
            TensorFlow reads no path that contains *, ? or [).
        format: "saved_model", "onnx", "openvino" or "litert"; None: by the suffix of `path`.
        precision: "float32", "float16", "bfloat16" or "int8". In float16 the weights are stored, a SavedModel also
            computes in it; SavedModel and OpenVINO compute in bfloat16; int8, not for SavedModel, is quantised after
            training.
        raw: whether to leave preprocessing out: inputs are those of `model`, and so are the outputs, "probabilities",
            "logits" or "features"; a segmenter's are (B, H, W, K) "logits".
        batch_size: fixed number of images in a batch; None: any number.
        calibration: for int8: images like those the network will receive, as `extract` takes them; for a data set's
            name, and a folder with boxes of objects, its training images.
        images: images for the comparison, likewise, but the test images of a data set; with their boxes, the report has
            a detector's average precision, with their masks a segmenter's mIoU. None: parts of scikit-learn's two
            photographs.
        calibration_size: largest number of images used from `calibration`.
        measure_speed: whether to measure the speed of Keras and of the export.
        overwrite: whether to replace existing files.
        size: side of the input images in pixels, for a segmenter also (height, width), which makes LiteRT faster; None:
            as the model was built, or its weights were trained, and any for a segmenter.

    Returns:
        The report, a dict: see `deployment.verification.make_report`.

    Raises:
        VerificationError: a ValueError, if outputs differ by more than the tolerance of the precision. Those of the
            same export in float32 and, for a SavedModel, on encoded files are checked as well. The file is kept under
            another name, "network.unverified.onnx" for "network.onnx".
        ValueError: for unknown names, a precision that the format does not support, a model that is not one graph of
            layers or has layers that the format cannot express, and images that cannot be read.
        FileExistsError: if `path` exists, unless `overwrite`.
        ImportError: if the format's libraries are not installed; the message has the command that installs them.
        OSError: if the files cannot be written.
    """
    format_name, target = find_format(format, path), local_path(path).resolve()
    task = TASKS[task_of(model)]
    check_precision(format_name, precision, inherited_spec(model))
    for name, given in {"raw": raw or None, "size": size, "batch_size": batch_size}.items():
        if given is not None and name in task.needless:
            raise value_error(name, given, "left out for a detector", task.needless[name])
    _check_arguments(format_name, target, precision, calibration, overwrite)
    check_integers(calibration_size=calibration_size, batch_size=1 if batch_size is None else batch_size)

    if keras.backend.backend() != "tensorflow":
        arguments = {"format": format_name, "precision": precision, "raw": raw, "batch_size": batch_size}
        arguments |= {"calibration": calibration, "images": images, "calibration_size": calibration_size}
        arguments |= {"measure_speed": measure_speed, "overwrite": overwrite, "size": size}
        return call_with_tensorflow(export, model, path=target, **arguments)
    model, batch_size = task.prepare(model, size), batch_size or task.batch_size
    folded = fold_batch_norm(model)
    unfolded = model_info(folded)["unfolded"]
    metadata = task.metadata(model, format_name, precision, raw)
    image_preprocessing = task.preprocessing(model, raw)
    source = export_images(task.sample_images() if images is None else images, masks=task.has_masks)
    inputs = None
    if calibration is not None:
        pixels = task.calibration(calibration, image_preprocessing, calibration_size)
        inputs = _calibration_inputs(pixels, metadata, image_preprocessing, batch_size)
    spec = ExportSpec(folded, metadata, batch_size, inputs, task.float_layers(folded), task.serving_model)

    with staging_folder(target) as folder, staging_folder(target) as float32_folder:
        exported, float32_export = _write(spec, folder / target.name, float32_folder / target.name)
        report = verify(model, exported, float32_export, image_preprocessing, source, measure_speed, unfolded)
        published = _publish(folder, target, report)
    if not report["verified"]:
        raise VerificationError(published, report)
    return report


def _check_arguments(format_name, target, precision, calibration, overwrite):
    """Raises the errors that can be found without any work."""
    row = FORMATS[format_name]
    check_installed(row.title, row.libraries, f"keras-residual[{format_name}]")
    if target.suffix != row.suffix and (row.suffix or target.suffix in SUFFIXES):
        raise value_error("path", str(target), f"a path that ends in {row.suffix or 'no suffix'} for {row.title}")
    if not row.suffix and glob.escape(str(target)) != str(target):
        hint = "TensorFlow would take it for a pattern."
        raise value_error("path", str(target), "a path with none of *, ? and [", hint)
    if (precision == "int8") != (calibration is not None):
        hint = f"The precision is {precision}."
        raise value_error("calibration", calibration, "images for int8, and None for other precisions", hint)
    if row.suffix or not target.is_dir():
        check_writable(target)
    companions = [target.with_suffix(suffix) for suffix in row.companions]
    reports = [target.with_name(target.name + suffix) for suffix in REPORT_SUFFIXES]
    existing = [path for path in (target, *companions, *reports) if path.exists()]
    if existing and not overwrite:
        raise FileExistsError(
            "`path` already exists; pass `overwrite=True` (--overwrite) to replace it. "
            f"Received: path={str(existing[0])!r}"
        )
    if not row.suffix and target.exists() and not (target / "saved_model.pb").exists():
        raise FileExistsError(
            f"A folder is only replaced if it is a {row.title}; this one is not. Received: path={str(target)!r}"
        )


def _calibration_inputs(pixels, metadata, image_preprocessing, batch_size):
    """Inputs of the exported network for its calibration."""
    if len(pixels) < (batch_size or 1):
        expected = f"at least {batch_size} images, a whole batch"
        raise ValueError(f"`calibration` should be {expected}. Received: {len(pixels)} images")
    if (batch_size or 1) > 1 and len(sizes := {image.shape[:2] for image in pixels}) > 1:
        hint = f"There are {batch_size} of them in a batch; `size` makes them equal."
        raise value_error("calibration", sorted(sizes)[:5], "images of one size", hint)
    return [metadata.to_inputs(image_preprocessing, image[None])[0] for image in pixels]


def _write(spec, path, float32_path):
    """Writes the export, and the same in float32 -> two ExportedModels, or (ExportedModel, None) for float32 itself."""
    row = FORMATS[spec.metadata.format]

    def write_and_load(spec, path):
        row.write(spec, path)
        return ExportedModel(path)

    with _clear_errors(row, spec.model, path.parent):
        exported = write_and_load(spec, path)
        if spec.metadata.precision == "float32":
            return exported, None
        metadata = replace(spec.metadata, precision="float32")
        return exported, write_and_load(replace(spec, metadata=metadata, calibration=None), float32_path)


@contextmanager
def _clear_errors(row, model, folder):
    """Turns the errors of exporters and runtimes into a ValueError, or an OSError for a full disk."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise
        full = os.strerror(errno.ENOSPC)
        if full in str(error) or shutil.disk_usage(folder).free < 2**20:
            raise OSError(errno.ENOSPC, full, str(folder.parent)) from error
        custom = {type(layer).__name__ for layer in model.layers if not type(layer).__module__.startswith("keras.")}
        layers = f", with custom layers: {', '.join(sorted(custom))}" if custom else ""
        raise ValueError(
            f"`model` should have layers that {row.title} can express ({error_summary(error)}). "
            f"Received: {model.name}{layers}"
        ) from error


def _publish(folder, target, report):
    """Moves the files of a staging folder beside `target`, renamed if not verified; returns the network's path."""
    stem = target.name.removesuffix(FORMATS[report["format"]].suffix)
    final_stem = stem if report["verified"] else stem + ".unverified"
    names = {path.name: final_stem + path.name.removeprefix(stem) for path in folder.iterdir()}
    for name in sorted(names, key=lambda name: name == target.name):  # the network last: it marks a complete export
        destination = target.with_name(names[name])
        if destination.is_dir():
            os.replace(destination, folder / "replaced")
        os.replace(folder / name, destination)
    return target.with_name(names[target.name])
