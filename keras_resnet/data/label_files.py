"""Flat folders of test images with a label file, as ImageNet's validation images -> Dataset."""

import csv
import os
from collections import Counter
from pathlib import Path

from keras_resnet.data.image_files import find_images
from keras_resnet.data.image_folders import load_test_files
from keras_resnet.data.labels import imagenet_classes

MAX_BYTES = 2**26
"""Largest size of a label file; those of ImageNet's 50,000 validation images have 2 MB."""


def load_labelled_folder(folder, labels, skip_bad=False):
    """Loads test images from one folder, and their classes from a text file.

    Each line of the file has one of these forms:

    - a file name, with or without its folder or suffix, and a class, separated by a comma, a tab or a blank: Caffe's
      `val.txt`, Kaggle's `LOC_val_solution.csv` (whose boxes are ignored). Images that do not exist are ignored.
    - a class, in the order of the sorted file names: `imagenet_2012_validation_synset_labels.txt`, or the development
      kit's `ILSVRC2012_validation_ground_truth.txt` with `meta.mat` beside it, which defines its numbers.

    A class is a WordNet id, any other name, or, after a file name, the index of a class from 0.

    Returns:
        A Dataset without `train`; its class names are None if the classes are indices.

    Raises:
        FileNotFoundError: if the folder or file does not exist.
        ValueError: for a file of another form, images without a class, and unreadable images, unless `skip_bad`.
    """
    folder = Path(folder)
    images = sorted(find_images(folder), key=lambda path: path.name)
    rows = _read_rows(labels)
    names = [{path.relative_to(folder).as_posix(), path.name, path.stem} for path in images]
    has_names = not set().union(*names).isdisjoint(name for name, _ in rows)
    classes = _classes_by_name(rows, names, labels) if has_names else _classes_in_order(rows, len(images), labels)
    if has_names and all(name.isdecimal() for name in classes):
        class_names, indices = None, [int(name) for name in classes]
    else:
        wordnet_ids = tuple(wnid for wnid, _ in imagenet_classes())
        class_names = wordnet_ids if set(classes) <= set(wordnet_ids) else tuple(sorted(set(classes)))
        index = {name: i for i, name in enumerate(class_names)}
        indices = [index[name] for name in classes]
    labelled_paths = [(str(path), label) for path, label in zip(images, indices, strict=True)]
    return load_test_files(labelled_paths, class_names, folder, skip_bad)


def _read_rows(path):
    """[(first column, second column or None)] of the lines that are not comments."""
    if not os.path.isfile(path):
        raise _error(path, "be a file with a line for each image", ", not found", FileNotFoundError)
    if os.path.getsize(path) > MAX_BYTES:
        raise _error(path, f"have at most {MAX_BYTES} bytes")
    try:
        text = Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _error(path, "be a text file", f" ({error.reason})") from error
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if lines and lines[0].startswith("ImageId,"):  # Kaggle: the class is followed by boxes
        return [(name, rest.split()[0]) for name, rest in map(_columns, lines[1:]) if rest]
    if not lines:
        raise _error(path, "have a line for each image", ", which is empty")
    return [_columns(line) for line in lines]


def _error(path, expected, details="", error_type=ValueError):
    return error_type(f"`labels` should {expected}. Received: labels={str(path)!r}{details}")


def _columns(line):
    """The two columns of "a.png,French horn", "a.png\tx" or "a.png x"; ("tench", None) for a single column."""
    separator = next((mark for mark in ",\t" if mark in line), None)
    columns = next(csv.reader([line], delimiter=separator)) if separator else line.rsplit(None, 1)
    padded: list[str | None] = [*(column.strip() for column in columns), None, None]
    return padded[0], padded[1]


def _classes_by_name(rows, names, path):
    """The class of each image; `names` has the set of names of each image."""
    classes = {}
    for name, label in rows:
        if label is None or classes.setdefault(name, label) != label:
            details = f" with {classes.get(name)!r} and {label!r} for {name!r}"
            raise _error(path, "have one class for each image", details)
    found = [{classes[name] for name in aliases if name in classes} for aliases in names]
    if missing := sorted(max(aliases, key=len) for aliases, one in zip(names, found, strict=True) if len(one) != 1):
        details = f" without {len(missing)} of {len(names)}, such as {missing[:3]}"
        raise _error(path, "have the class of every image", details)
    counts = Counter(name for aliases in names for name in aliases)
    if ambiguous := sorted(name for name in classes if counts[name] > 1):
        raise _error(path, "include the folders of images with equal names", f" with {ambiguous[0]!r}")
    return [label for (label,) in found]


def _classes_in_order(rows, num_images, path):
    """The class of each image, one per line."""
    if len(rows) != num_images:
        expected = f"have a class for each of {num_images} images, or name the images"
        raise _error(path, expected, f" with {len(rows)} lines")
    classes = [" ".join(filter(None, row)) for row in rows]
    return _development_kit_classes(classes, path) if all(name.isdecimal() for name in classes) else classes


def _development_kit_classes(numbers, path):
    """Class numbers of ILSVRC2012 -> WordNet ids, as defined by `meta.mat` beside the file."""
    from scipy.io import loadmat

    meta = Path(path).with_name("meta.mat")
    if not meta.is_file():
        expected = "name images or classes, or have the development kit's meta.mat beside it, which defines its numbers"
        raise _error(path, expected, f", and no {meta}", FileNotFoundError)
    try:
        synsets = loadmat(meta, squeeze_me=True, variable_names=["synsets"])["synsets"]
        ids = {int(number): str(name) for number, name in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
        return [ids[int(number)] for number in numbers]
    except Exception as error:  # on damaged files SciPy's reader raises exceptions of almost any type
        raise ValueError(
            f"Expected the meta.mat of ILSVRC2012's development kit. Received: {meta} ({error!r})"
        ) from error
