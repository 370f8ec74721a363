"""Data sets of the Hugging Face hub, Parquet files, and folders written by `datasets.save_to_disk` -> Archive.

The library `datasets` downloads them and maps their Arrow tables into memory; Parquet files are converted to such
tables once, in its cache.
"""

import os
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from keras_resnet.data.archives import Archive, ArchivedSplit, check_contents, find_archives
from keras_resnet.data.manifests import read_files
from keras_resnet.errors import check_installed, error_summary, value_error

HUB = "hf://"
SAVED = ("dataset_dict.json", "state.json")
"""Files in a folder that `save_to_disk` has written, for several splits or one."""


def is_hugging_face(name: str) -> bool:
    """Whether a name is "hf://...", a Parquet file, or a folder with Parquet files or written by `save_to_disk`."""
    if name.startswith(HUB) or (name.endswith(".parquet") and os.path.isfile(name)):
        return True
    folder = Path(name)
    is_saved = any((folder / file).is_file() for file in SAVED)
    return folder.is_dir() and (is_saved or bool(find_archives(name, ".parquet")))


def open_hugging_face(name: str, data_dir=None, download=True) -> Archive:
    """The Archive of a data set with a column of images and one of classes.

    Args:
        name: "hf://owner/name" or "hf://owner/name/config"; or a path, see `is_hugging_face`.
        data_dir: folder of the cache of `datasets`; None: its default folder.
        download: whether to download what the cache does not have.

    Raises:
        ImportError: without the library `datasets`.
        OSError: for a data set that cannot be downloaded or read.
        ValueError: for a data set that is not for image classification.
    """
    tables = _load(name, data_dir, download)
    features = next(iter(tables.values())).features
    image, label = _columns(name, next(iter(tables.values())))
    class_names = getattr(features[label], "names", None)
    return Archive(
        name.rstrip("/"),
        tuple(tables),
        tuple(class_names) if class_names else None,
        lambda split, check: _open_split(split, tables[split], image, label, check),
    )


def _load(name, data_dir, download):
    """datasets.DatasetDict."""
    check_installed("A data set of Parquet files or of Hugging Face", ["datasets"], "keras-residual[datasets]")
    import datasets

    arguments = {"cache_dir": data_dir and os.fspath(data_dir)}
    try:
        with _without_progress(datasets):
            if name.startswith(HUB):
                owner, _, rest = name.removeprefix(HUB).partition("/")
                repository, _, config = rest.partition("/")
                local = datasets.DownloadConfig(local_files_only=not download)
                found = datasets.load_dataset(
                    f"{owner}/{repository}", config or None, download_config=local, **arguments
                )
            elif any(os.path.isfile(os.path.join(name, file)) for file in SAVED):
                found = datasets.load_from_disk(name)
            else:
                files = {"data_files": name} if os.path.isfile(name) else {"data_dir": name}
                found = datasets.load_dataset("parquet", **files, **arguments)
    except Exception as error:  # of the hub, of HTTP clients and of Arrow, without a common base class
        raise OSError(
            f"Expected a data set that `datasets` can read. Received: {name!r} ({error_summary(error)})"
        ) from error
    return found if isinstance(found, dict) else {"train": found}


@contextmanager
def _without_progress(datasets):
    """Without progress bars, which `datasets` writes also where nobody reads them."""
    is_shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if is_shown:
            datasets.enable_progress_bars()


def _columns(name, table):
    """Names of the columns of images and of classes."""
    import pyarrow.types as types

    def is_image(type_):
        if types.is_struct(type_):
            return type_.get_field_index("bytes") >= 0 and is_image(type_.field("bytes").type)
        return types.is_binary(type_) or types.is_large_binary(type_)

    schema = table.data.schema
    images = [field.name for field in schema if is_image(field.type)]
    labels = [column for column, feature in table.features.items() if hasattr(feature, "names")]
    labels = labels or [field.name for field in schema if types.is_integer(field.type) or types.is_string(field.type)]
    images, labels = (
        [column] if column in found else found for column, found in (("image", images), ("label", labels))
    )
    if len(images) != 1 or len(labels) != 1:
        expected = "for image classification, with one column of images and one of classes, or named image and label"
        raise value_error("dataset", name, expected, f"Its columns are {table.column_names}.")
    return images[0], labels[0]


def _open_split(split, table, image, label, check):
    """The ArchivedSplit of a datasets.Dataset."""
    images, labels = (table.data.column(column) for column in (image, label))
    paths = [file["filename"] for file in table.cache_files]
    kind = f"arrow {image} {check.kind}"
    records = read_files(partial(_check_table, column=image, check=check), paths, os.path.dirname(paths[0]), kind)
    if damaged := [f"{path} ({record.error})" for path, record in records.items() if record.error is not None]:
        raise OSError(f"Expected a complete data set. Received: {damaged[0]}")
    checks = [row for record in records.values() for row in record.result]
    values = labels.to_pylist()
    checks = [[None, "no class"] if value is None else row for row, value in zip(checks, values, strict=True)]
    return ArchivedSplit(
        lambda index: _contents(images[index]),
        [-1 if value is None else value for value in values],
        checks,
        lambda index: f"{split}/{index}",
    )


def _contents(value):
    """Contents of an image: a scalar of Arrow that is binary, or a struct with the field "bytes"."""
    return (value["bytes"] if hasattr(value, "keys") else value).as_py() if value.is_valid else None


def _check_table(path, column, check):
    """`ArchivedSplit.checks` of the images in an Arrow file."""
    import pyarrow

    with pyarrow.memory_map(path) as file, pyarrow.ipc.open_stream(file) as batches:
        return [check_contents(_contents(value), check) for batch in batches for value in batch.column(column)]
