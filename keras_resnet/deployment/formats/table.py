"""FORMATS: what networks are exported to, one row each; what is written and read elsewhere."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from keras_resnet.deployment.formats import litert_format, onnx_format, openvino_format, saved_model
from keras_resnet.errors import unknown_name_error

EIGHT_BITS = "int8"


@dataclass(frozen=True)
class Format:
    """What a network can be exported to."""

    title: str
    suffix: str
    """Of its files; of a folder, none."""
    module: ModuleType
    """With `write(order, path)` and `Session(path)`."""
    precisions: tuple[str, ...]
    writes: tuple[str, ...] = ()
    """Modules that write it."""
    reads: tuple[str, ...] = ()
    """Modules that run it."""
    companions: tuple[str, ...] = ()
    """Suffixes of the files that stand beside it."""
    extra: str = ""
    """Of this package, which installs them."""


FORMATS = {
    "saved_model": Format("SavedModel", "", saved_model, ("float32", "bfloat16", "float16")),
    "onnx": Format(
        "ONNX",
        ".onnx",
        onnx_format,
        ("float32", "float16", EIGHT_BITS),
        ("onnx", "tf2onnx", "onnxruntime"),
        ("onnxruntime",),
        extra="onnx",
    ),
    "openvino": Format(
        "OpenVINO",
        ".xml",
        openvino_format,
        ("float32", "bfloat16", "float16", EIGHT_BITS),
        ("openvino", "nncf"),
        ("openvino",),
        (".bin",),
        "openvino",
    ),
    "litert": Format(
        "LiteRT",
        ".tflite",
        litert_format,
        ("float32", "float16", EIGHT_BITS),
        ("ai_edge_litert",),
        ("ai_edge_litert",),
        extra="litert",
    ),
}
SUFFIXES = [row.suffix for row in FORMATS.values() if row.suffix]
PRECISIONS = {"float32": 1e-3, "float16": 0.03, "bfloat16": 0.1, EIGHT_BITS: 0.3}
"""How far from Keras's an exported network's answers may be, as `Agreement.relative` measures it: several times what
was measured of networks of VARIANTS, and less than what a wrong order of channels or a missing mean makes."""


def find_format(name, path):
    """The key of FORMATS that a name means, or None and the name of a file; what is a folder is a SavedModel.

    Raises:
        ValueError: for an unknown name, and a file name without a suffix that is one of theirs.
    """
    if name is not None:
        key = str(name).removeprefix("tf_")  # as Keras calls its first
        if key not in FORMATS:
            raise unknown_name_error("format", name, FORMATS)
        return key
    suffix = "" if Path(path).is_dir() else Path(path).suffix
    found = [key for key, row in FORMATS.items() if row.suffix == suffix]
    if not found:
        raise unknown_name_error(
            "path", str(path), SUFFIXES, f"a file in {SUFFIXES}, or a folder: one with a dot by `format`"
        )
    return found[0]


def check_precision(form, precision):
    """Raises ValueError for a precision that a format does not have."""
    row = FORMATS[form]
    if precision not in row.precisions:
        having = [key for key, other in FORMATS.items() if precision in other.precisions]
        hint = f" ({precision} goes with {', '.join(having)})" if having else ""
        raise unknown_name_error(
            "precision", precision, row.precisions, f"one of {list(row.precisions)} for {row.title}{hint}"
        )


def check_installed(form, modules):
    """Raises ImportError, with the line that installs them, if modules are missing."""
    if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
        row = FORMATS[form]
        raise ImportError(
            f"{row.title} needs {', '.join(missing)}: not installed. Install it by "
            f"`pip install 'keras-residual[{row.extra}]'`."
        )
