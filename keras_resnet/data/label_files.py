"""Label files: text files with the class, or the classes, of each image, as CSV, Caffe and ImageNet have them."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from keras_resnet.data.image_files import SUFFIXES

MAX_BYTES = 2**26
"""Largest size of a label file; those of ImageNet's 50,000 validation images have 2 MB."""
FILE_COLUMNS = ("file", "filename", "file_name", "image", "image_id", "imageid", "image_name", "name", "path", "id")
"""Names of the column with the file names, in any case. A first line with one of them is a header."""
LABEL_COLUMNS = ("label", "labels", "class", "classes")
SPLIT_COLUMN = "split"
SEPARATOR = "|"
"""Separates several classes of an image in one column."""
ZERO_OR_ONE = {"0": False, "1": True, "0.0": False, "1.0": True}


class LabelRow(NamedTuple):
    """One line of a label file."""

    name: str | None
    """Name of the image; None in a list of classes in the order of the sorted images."""
    classes: tuple[str, ...]
    split: str = ""


@dataclass(frozen=True)
class LabelFile:
    """The contents of a label file."""

    path: str
    rows: Sequence[LabelRow]
    class_names: tuple[str, ...] | None = None
    """The header's classes, if each class is a column of zeros and ones."""
    has_splits: bool = False
    """Whether there is a column "split"."""

    @property
    def has_names(self):
        """Whether the lines name their images."""
        return self.rows[0].name is not None

    def error(self, expected, details="", error_type=ValueError):
        """The error "`labels` should EXPECTED. Received: labels=PATH DETAILS"."""
        return error_type(f"`labels` should {expected}. Received: labels={str(self.path)!r}{details}")


def read_label_file(path: str | os.PathLike) -> LabelFile:
    """Reads a label file in any of these forms:

    - CSV with a header: a column of FILE_COLUMNS, and either one of LABEL_COLUMNS (or of any name, if it is the only
      one), in which SEPARATOR separates several classes, or a column of zeros and ones for each class; optionally a
      column "split". Columns are separated by commas, tabs or semicolons.
    - without a header, a file name and a class on each line; after a blank, as in Caffe's `val.txt`, the file name has
      its suffix. An image of several classes may have several lines.
    - Kaggle's `LOC_val_solution.csv`, whose boxes are ignored.
    - a class on each line, in the order of the sorted images: `imagenet_2012_validation_synset_labels.txt`, or the
      development kit's `ILSVRC2012_validation_ground_truth.txt` with `meta.mat` beside it, which defines its numbers.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: for a file of another form, with a message about its first fault.
    """
    file = LabelFile(os.fspath(path), ())
    lines = _read_lines(file)
    delimiter = next((mark for mark in ",\t;" if mark in lines[0]), None)
    if lines[0].startswith("ImageId,PredictionString"):
        boxes = _cells(file, lines[1:], delimiter)
        return LabelFile(file.path, [LabelRow(name, tuple(text.split()[:1])) for name, text in boxes if text])
    table = _cells(file, lines, delimiter)
    words = [cell.lower() for cell in table[0]]
    if not set(words).isdisjoint(FILE_COLUMNS) and not any(word.endswith(SUFFIXES) for word in words):
        if len(table) == 1:
            raise file.error("have a line for each image", ", which is only a header")
        return _read_columns(file, table[0], table[1:])
    rows = [_headerless_row(file, cells) for cells in table]
    if len(table[0]) == 1 and all(cells[0].isdecimal() for cells in table):
        rows = [LabelRow(None, (name,)) for name in _development_kit_classes(file, [int(cells[0]) for cells in table])]
    return LabelFile(file.path, rows)


def _read_lines(file):
    """The lines that are neither empty nor comments."""
    if not os.path.isfile(file.path):
        raise file.error("be a file with a line for each image", ", not found", FileNotFoundError)
    if os.path.getsize(file.path) > MAX_BYTES:
        raise file.error(f"have at most {MAX_BYTES} bytes")
    try:
        text = Path(file.path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise file.error("be a text file in UTF-8", f" ({error.reason} at byte {error.start})") from error
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise file.error("have a line for each image", ", which is empty")
    return lines


def _cells(file, lines, delimiter):
    """The columns of each line. Without a delimiter: file name and class, or the class alone if no line has a name."""
    if delimiter is None:
        pairs = [line.rsplit(None, 1) for line in lines]
        table = pairs if any(pair[0].lower().endswith(SUFFIXES) for pair in pairs) else [[line] for line in lines]
    else:
        try:
            table = [[cell.strip() for cell in cells] for cells in csv.reader(lines, delimiter=delimiter)]
        except csv.Error as error:
            raise file.error("be a CSV file", f" ({error})") from error
    if odd := next((cells for cells in table if len(cells) != len(table[0])), None):
        details = f" with {len(table[0])} in the first and {len(odd)} in {' '.join(odd)!r}"
        raise file.error("have the same number of columns in each line", details)
    return table


def _headerless_row(file, cells):
    if len(cells) > 2:
        expected = f"have two columns, or a header with one of {', '.join(FILE_COLUMNS)}"
        raise file.error(expected, f" with {len(cells)} columns in {cells}")
    if len(cells) == 1:
        return LabelRow(None, (cells[0],))
    return LabelRow(cells[0], _split_classes(file, *cells))


def _split_classes(file, name, cell):
    """ "cat|dog" -> ("cat", "dog")."""
    classes = tuple(word.strip() for word in cell.split(SEPARATOR))
    if not all(classes):
        hint = ", with columns of zeros and ones if an image may have none"
        raise file.error(f"have a class for every image{hint}", f" with {cell!r} for {name!r}")
    return classes


def _read_columns(file, header, table):
    """The LabelFile of a table with a header."""
    words = [name.lower() for name in header]
    name_column = next(words.index(word) for word in FILE_COLUMNS if word in words)
    split_column = words.index(SPLIT_COLUMN) if SPLIT_COLUMN in words else None
    others = [i for i, name in enumerate(header) if name and i not in (name_column, split_column)]
    label_columns = [i for i in others if words[i] in LABEL_COLUMNS] or others
    if len(label_columns) == 1:
        class_names, (column,) = None, label_columns
    elif label_columns and all(cells[i] in ZERO_OR_ONE for cells in table for i in label_columns):
        class_names = tuple(header[i] for i in label_columns)
    else:
        expected = f"have one column of {', '.join(LABEL_COLUMNS)}, or a column of zeros and ones for each class"
        raise file.error(expected, f" with the columns {header}")
    if len(set(class_names or ())) < len(class_names or ()):
        raise file.error("have different names of its columns", f" with {header}")

    def row(cells):
        name, split = cells[name_column], cells[split_column].lower() if split_column is not None else ""
        if class_names is None:
            return LabelRow(name, _split_classes(file, name, cells[column]), split)
        return LabelRow(name, tuple(header[i] for i in label_columns if ZERO_OR_ONE[cells[i]]), split)

    return LabelFile(file.path, [row(cells) for cells in table], class_names, split_column is not None)


def _development_kit_classes(file, numbers):
    """Class numbers of ILSVRC2012 -> WordNet ids, as defined by `meta.mat` beside the file."""
    from scipy.io import loadmat

    meta = Path(file.path).with_name("meta.mat")
    if not meta.is_file():
        expected = "name images or classes, or have the development kit's meta.mat beside it, which defines its numbers"
        raise file.error(expected, f", and no {meta}", FileNotFoundError)
    try:
        synsets = loadmat(meta, squeeze_me=True, variable_names=["synsets"])["synsets"]
        ids = {int(number): str(name) for number, name in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
        return [ids[number] for number in numbers]
    except Exception as error:  # on damaged files SciPy's reader raises exceptions of almost any type
        raise ValueError(
            f"Expected the meta.mat of ILSVRC2012's development kit. Received: {meta} ({error!r})"
        ) from error
