"""FORMATS: the file formats that networks are exported to, one row each."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from keras_resnet.architecture.detector_spec import DetectorSpec
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.deployment.checksums import write_checksum
from keras_resnet.deployment.formats import litert_format, onnx_format, openvino_format, saved_model
from keras_resnet.deployment.serving import ExportSpec
from keras_resnet.errors import unknown_name_error, value_error


@dataclass(frozen=True)
class Format:
    """A file format."""

    title: str
    suffix: str
    """Suffix of its files; empty for a folder."""
    module: ModuleType
    """Module with `write(spec, path)` and `Session(path)`, whose `run(inputs)` returns {output name: array}."""
    precisions: tuple[str, ...]
    """The names in PRECISIONS that it supports."""
    one_stage: tuple[str, ...] = ("float32",)
    """Those for RetinaNet."""
    two_stage: tuple[str, ...] = ("float32",)
    """Those for Faster and Mask R-CNN; none where the format has no operation that samples features in boxes."""
    libraries: tuple[str, ...] = ()
    """Names of the modules that write it; the first also runs it."""
    companions: tuple[str, ...] = ()
    """Suffixes of the files that stand beside it."""
    contents: tuple[str, ...] = ()
    """Of a folder: the file with its metadata, and patterns of the files that its runtime reads."""

    def write(self, spec: ExportSpec, path: Path) -> None:
        """Writes a network in this format, with its checksum."""
        self.module.write(spec, path)
        write_checksum(self.files(path))

    def precisions_for(self, spec: ResNetSpec | DetectorSpec | None) -> tuple[str, ...]:
        """The names in PRECISIONS that it supports for networks of this spec."""
        if not isinstance(spec, DetectorSpec):
            return self.precisions
        return self.one_stage if spec.box_head == "dense" else self.two_stage

    def files(self, path: Path) -> list[Path]:
        """The files of an export in this format, first the one with its metadata."""
        if self.suffix:
            return [path, *map(path.with_suffix, self.companions)]
        first, *patterns = self.contents
        return [path / first, *sorted(file for pattern in patterns for file in path.glob(pattern))]


FORMATS = {
    "saved_model": Format(
        "SavedModel",
        "",
        saved_model,
        ("float32", "bfloat16", "float16"),
        contents=(saved_model.METADATA_FILE, "saved_model.pb", "fingerprint.pb", "variables/*", "assets/*"),
    ),
    "onnx": Format(
        "ONNX",
        ".onnx",
        onnx_format,
        ("float32", "float16", "int8"),
        libraries=("onnxruntime", "onnx", "tf2onnx"),
    ),
    "openvino": Format(
        "OpenVINO",
        ".xml",
        openvino_format,
        ("float32", "bfloat16", "float16", "int8"),
        one_stage=("float32", "bfloat16", "float16", "int8"),
        two_stage=("float32", "bfloat16", "float16", "int8"),
        libraries=("openvino", "nncf"),
        companions=(".bin",),
    ),
    "litert": Format(
        "LiteRT",
        ".tflite",
        litert_format,
        ("float32", "float16", "int8"),
        two_stage=(),
        libraries=("ai_edge_litert",),
    ),
}
"""The rows. Each but the first has an extra of this package, of its name, that installs its modules."""
SUFFIXES = [row.suffix for row in FORMATS.values() if row.suffix]


def find_format(name, path) -> str:
    """The name in FORMATS that is meant by a name, or by a path where the name is None; a folder is a SavedModel.

    Raises:
        ValueError: for an unknown name, and for a path with an unknown suffix.
    """
    if name is not None:
        format = str(name).removeprefix("tf_")  # Keras calls SavedModel "tf_saved_model"
        if format not in FORMATS:
            raise unknown_name_error("format", name, FORMATS)
        return format
    suffix = "" if Path(path).is_dir() else Path(path).suffix
    formats = [format for format, row in FORMATS.items() if row.suffix == suffix]
    if not formats:
        expected = f"a file in {SUFFIXES}, or a folder; for a folder with a dot in its name, give `format`"
        raise unknown_name_error("path", str(path), SUFFIXES, expected)
    return formats[0]


def check_precision(format, precision, spec=None):
    """Raises ValueError for a precision or a format that does not support the networks of a spec."""
    supported = {name: row.precisions_for(spec) for name, row in FORMATS.items()}
    row = FORMATS[format]
    title = f"{row.title} of such a detector" if isinstance(spec, DetectorSpec) else row.title
    if not supported[format]:
        others = [name for name, precisions in supported.items() if precisions]
        hint = f"{row.title} has no operation that samples features in boxes; it has those of RetinaNet."
        raise value_error("format", format, f"one of {others} for Faster and Mask R-CNN", hint)
    if precision not in supported[format]:
        others = [name for name, precisions in supported.items() if precision in precisions]
        hint = f" ({precision} is supported by {', '.join(others)})" if others else ""
        expected = f"one of {list(supported[format])} for {title}{hint}"
        raise unknown_name_error("precision", precision, supported[format], expected)
