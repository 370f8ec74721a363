"""Vectors in files: NumPy's .npz and Parquet. Neither is believed when it is read: no pickle, sizes are checked."""

import json
import math
import os
import zipfile
from pathlib import Path

import numpy as np

from keras_resnet.errors import unknown_name_error
from keras_resnet.transfer.extraction import UNLABELLED, Features
from keras_resnet.weights.zip_members import member_size

KINDS = {"features": ("f", 2), "names": ("UO", 1), "labels": ("iu", 1), "class_names": ("UO", 1), "settings": ("U", 0)}
"""Arrays of a .npz: name -> kinds of numbers, axes. Texts from elsewhere are objects (O), each as long as it is."""
LISTS = {"shape": int, "class_names": str, "left_out": str}
"""Lists among the settings: name -> what is in them."""
SETTINGS = b"keras_resnet"
"""Key of the JSON in a Parquet file."""
GROUP = 4096
"""Rows that are written to Parquet at a time."""


def check_format(path):
    """Raises unless there is a format for the suffix of `path`, and what writes it is installed.

    Raises:
        ValueError: for another suffix.
        ImportError: for Parquet without pyarrow.
    """
    suffix = Path(path).suffix
    if suffix not in FORMATS:
        raise unknown_name_error("out", str(path), FORMATS, f"a file that ends in {' or '.join(FORMATS)}")
    if suffix == ".parquet":
        _parquet()


def write_vectors(path, features, settings):
    """Writes Features; of their vectors, which may lie in a file themselves, a part is in memory at a time.

    Args:
        path: the file, .npz or .parquet.
        features: Features.
        settings: JSON values that say how they were made, the `class_names` among them.
    """
    FORMATS[Path(path).suffix][0](path, features, json.dumps(settings))


def read_features(path):
    """Reads what `write_features` wrote, or anybody in the same form.

    Args:
        path: .npz with the arrays of KINDS; or .parquet with the columns features (fixed-size lists of float32), names
            and labels, and JSON in its metadata.

    Returns:
        Features, with their `settings`.

    Raises:
        ValueError: for another file, or a damaged one.
        OSError: if it cannot be read.
    """
    arrays = _read(path, KINDS)
    settings = arrays["settings"]
    return Features(
        np.asarray(arrays["features"], "float32"),
        np.asarray(arrays["labels"], "int32"),
        tuple(arrays["names"].tolist()),
        tuple(arrays["class_names"].tolist()),
        tuple(settings.get("left_out", ())),
        settings,
    )


def read_settings(path):
    """The JSON values alone; errors as of `read_features`."""
    return _read(path, ["settings"])["settings"]


def _read(path, names):
    """{name: array} of some of KINDS, checked; the settings as a dict."""
    check_format(path)
    with open(path, "rb") as file:
        try:
            arrays = FORMATS[Path(path).suffix][1](file, names)
            _check(arrays)
            return arrays | {"settings": _settings(str(arrays["settings"]))}
        except Exception as error:  # on damaged files zipfile, NumPy and pyarrow raise nearly anything
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"Expected features as `keras-resnet features` writes them ({reason}). Received: {path}"
            ) from error


def _settings(text):
    """JSON -> dict; raises ValueError if it is none, or its LISTS are of something else."""
    settings = json.loads(text)
    if not isinstance(settings, dict):
        raise ValueError("its settings are no JSON object")
    for name, kind in LISTS.items():
        values = settings.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
            raise ValueError(f"{name} in its settings is no list of {kind.__name__}")
    return settings


def _check(arrays):
    """Raises ValueError for arrays that are of another kind, or do not go together."""
    for name, array in arrays.items():
        kinds, axes = KINDS[name]
        if array.dtype.kind not in kinds or array.ndim != axes:
            raise ValueError(f"{name} of {array.dtype} with {array.ndim} axes")
        if array.dtype.hasobject and not all(isinstance(value, str) for value in array):
            raise ValueError(f"{name} that are no text")
    lengths = {name: len(arrays[name]) for name in ("features", "names", "labels") if name in arrays}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"rows of {lengths}")
    labels, classes = arrays.get("labels", np.empty(0)), len(arrays.get("class_names", ()))
    if labels.size and not UNLABELLED <= labels.min() <= labels.max() < max(classes, 1):
        raise ValueError(f"labels from {labels.min()} to {labels.max()} of {classes} classes")


def _write_npz(path, features, settings):
    np.savez(
        path,
        features=features.vectors,
        names=np.array(features.names, str),
        labels=features.labels,
        class_names=np.array(features.class_names, str),
        settings=np.array(settings),
    )


def _read_npz(file, names):
    with zipfile.ZipFile(file) as archive:
        return {name: _member(archive, archive.getinfo(f"{name}.npy")) for name in names}


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _member(archive, info):
    """An array, after a look at whether it has as many bytes as it says."""
    size = member_size(archive, info)
    with archive.open(info) as file:
        shape, by_columns, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
        stored, said = size - file.tell(), math.prod(shape) * dtype.itemsize
        if dtype.hasobject or not dtype.itemsize or 0 in shape[1:] or stored != said:
            raise ValueError(f"{info.filename} of {stored} bytes says it is {shape} of {dtype}")
        return np.ndarray(shape, dtype, file.read(said), order="F" if by_columns else "C")


def _parquet():
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: pip install pyarrow") from error
    return pyarrow.parquet


def _write_parquet(path, features, settings):
    parquet = _parquet()
    import pyarrow

    count, numbers = features.vectors.shape
    columns = {"features": pyarrow.list_(pyarrow.float32(), numbers), "names": pyarrow.string()}
    schema = pyarrow.schema(columns | {"labels": pyarrow.int32()}, metadata={SETTINGS: settings.encode()})
    with parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, count, GROUP):
            part = slice(start, start + GROUP)
            flat = pyarrow.array(np.asarray(features.vectors[part]).reshape(-1))
            vectors = pyarrow.FixedSizeListArray.from_arrays(flat, numbers)
            names = [name.encode("utf-8", "replace").decode() for name in features.names[part]]
            rows = [vectors, pyarrow.array(names), pyarrow.array(features.labels[part])]
            writer.write_table(pyarrow.table(rows, schema=schema))


def _read_parquet(file, names):
    import pyarrow

    size = os.fstat(file.fileno()).st_size
    table = _parquet().ParquetFile(file)
    settings = table.schema_arrow.metadata[SETTINGS].decode()
    found = {"settings": np.array(settings), "class_names": np.array(json.loads(settings)["class_names"], object)}
    wanted = [name for name in names if name not in found]
    if wanted:
        _check_columns(table, size)
        read = {name: table.read([name]).column(name).combine_chunks() for name in wanted}
        if any(column.null_count for column in read.values()):
            raise pyarrow.ArrowInvalid("rows are missing")
        found |= {name: _column(name, column) for name, column in read.items()}
    return {name: found[name] for name in names}


def _check_columns(table, size):
    """Raises ValueError for what might be larger in memory than in the file: compressed, or the same many times."""
    vectors, about = table.schema_arrow.field("features").type, table.metadata
    names, labels = (table.schema_arrow.field(name).type for name in ("names", "labels"))
    if str(names) not in ("string", "large_string") or not str(labels).startswith(("int", "uint")):
        raise ValueError(f"names of {names}, labels of {labels}")
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    if any(column.compression != "UNCOMPRESSED" for column in columns):
        raise ValueError("a compressed one")
    if any(set(column.encodings) - {"PLAIN", "RLE"} for column in columns):
        raise ValueError("one with dictionaries")
    if getattr(vectors, "list_size", 0) < 1 or vectors.value_type.bit_width != 32:
        raise ValueError(f"features of {vectors}")
    if about.num_rows * vectors.list_size * 4 > size:
        raise ValueError(f"{about.num_rows} rows of {vectors.list_size} numbers in {size} bytes")


def _column(name, column):
    if name == "names":
        return np.array(column.to_pylist(), object)
    if name == "labels":
        return column.to_numpy()
    return column.flatten().to_numpy().reshape(-1, column.type.list_size)


FORMATS = {".npz": (_write_npz, _read_npz), ".parquet": (_write_parquet, _read_parquet)}
"""Suffix -> (write, read)."""
