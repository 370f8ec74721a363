"""Flat folders of images whose classes stand in a file, as ImageNet's validation images come."""

import csv
import os
from collections import Counter
from pathlib import Path

from keras_resnet.data.image_files import find_images
from keras_resnet.data.image_folders import load_files
from keras_resnet.data.labels import imagenet_classes

MAX_BYTES = 2**26
"""Bytes of a file of labels at most; ImageNet's for 50,000 images have two million."""


def load_labelled_folder(folder, labels, skip_bad=False):
    """Images to test on, all in one folder, with their classes in a text file.

    The file has a line for each image, in one of these forms:

    - a file name, with or without its folder or suffix, and a class, with a comma, a tab or a blank between them:
      Caffe's `val.txt`, Kaggle's `LOC_val_solution.csv` (of what follows the class nothing is read). Images that are
      not there, because the folder is a part, do not matter.
    - a class, in the order of the sorted file names: `imagenet_2012_validation_synset_labels.txt`, or the development
      kit's `ILSVRC2012_validation_ground_truth.txt`, whose numbers mean what `meta.mat` beside it says.

    A class is a WordNet id or another name; or, with file names, a number from 0, in the order of the network's.

    Args:
        folder: path of the images.
        labels: path of the file.
        skip_bad: whether files that are no images are left out; the Dataset lists them.

    Returns:
        A Dataset without `train`; its class names are None where the classes are numbers.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        ValueError: for a file of another form, images without a class, and unreadable images.
    """
    folder = Path(folder)
    images = sorted(find_images(folder), key=lambda path: path.name)
    rows = _rows(labels)
    names = [{path.relative_to(folder).as_posix(), path.name, path.stem} for path in images]
    named = not set().union(*names).isdisjoint(name for name, _ in rows)
    classes = _by_name(rows, names, labels) if named else _in_order(rows, len(images), labels)
    if named and all(name.isdecimal() for name in classes):
        class_names, numbers = None, [int(name) for name in classes]
    else:
        class_names = _class_names(classes)
        places = {name: number for number, name in enumerate(class_names)}
        numbers = [places[name] for name in classes]
    labelled = [(str(path), number) for path, number in zip(images, numbers, strict=True)]
    return load_files(labelled, class_names, folder, skip_bad)


def _rows(path):
    """[(first column, second column or None)] of the lines that are no comments."""
    if not os.path.isfile(path):
        raise FileNotFoundError(
            "`labels` should be a file with a line for each image, its name and its class; there is none. "
            f"Received: labels={str(path)!r}"
        )
    if os.path.getsize(path) > MAX_BYTES:
        raise ValueError(f"`labels` should have at most {MAX_BYTES} bytes. Received: labels={str(path)!r}")
    try:
        text = Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"`labels` should be a text file. Received: labels={str(path)!r} ({error.reason})") from error
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if lines and lines[0].startswith("ImageId,"):  # Kaggle's: boxes follow the class
        return [(name, rest.split()[0]) for name, rest in map(_columns, lines[1:]) if rest]
    if not lines:
        raise ValueError(f"`labels` should have a line for each image. Received: labels={str(path)!r}, which is empty")
    return [_columns(line) for line in lines]


def _columns(line):
    """ "a.png,French horn", "a.png\tx" or "a.png x" -> its two columns; ("tench", None) of a single one."""
    separator = next((mark for mark in ",\t" if mark in line), None)
    columns = next(csv.reader([line], delimiter=separator)) if separator else line.rsplit(None, 1)
    first, second, *_ = (*(column.strip() for column in columns), None, None)
    return first, second


def _by_name(rows, names, path):
    """The class of each image, by the names that its file goes by."""
    known = {}
    for name, label in rows:
        if label is None or known.setdefault(name, label) != label:
            raise ValueError(
                f"`labels` should have one class for each image. Received: labels={str(path)!r} with "
                f"{known.get(name)!r} and {label!r} for {name!r}"
            )
    found = [{known[name] for name in of_one if name in known} for of_one in names]
    if wrong := [max(of_one, key=len) for of_one, labels in zip(names, found, strict=True) if len(labels) != 1]:
        raise ValueError(
            f"`labels` should name the class of every image. Received: labels={str(path)!r} without {len(wrong)} "
            f"of {len(names)}, such as {sorted(wrong)[:3]}"
        )
    twice = [name for name, count in Counter(name for of_one in names for name in of_one).items() if count > 1]
    if ambiguous := sorted(known.keys() & set(twice)):
        raise ValueError(
            f"`labels` should name images with their folders where several are called the same. "
            f"Received: labels={str(path)!r} with {ambiguous[0]!r}"
        )
    return [label for (label,) in found]


def _in_order(rows, count, path):
    """The class of each image, by its place."""
    if len(rows) != count:
        raise ValueError(
            f"`labels` should have a class for each of {count} images, or name the images. "
            f"Received: labels={str(path)!r} with {len(rows)} lines"
        )
    classes = [" ".join(filter(None, row)) for row in rows]
    return _by_development_kit(classes, path) if all(name.isdecimal() for name in classes) else classes


def _by_development_kit(numbers, path):
    """ILSVRC2012's own numbers -> WordNet ids, as the `meta.mat` beside the file has them."""
    from scipy.io import loadmat

    meta = Path(path).with_name("meta.mat")
    if not meta.is_file():
        raise FileNotFoundError(
            "`labels` should name images or classes, or have the development kit's meta.mat beside it, which says "
            f"what its numbers mean. Received: labels={str(path)!r}, and no {meta}"
        )
    try:
        synsets = loadmat(meta, squeeze_me=True, variable_names=["synsets"])["synsets"]
        ids = {int(number): str(name) for number, name in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
        return [ids[int(number)] for number in numbers]
    except Exception as error:  # SciPy's reader raises nearly anything on a damaged file
        raise ValueError(
            f"Expected the meta.mat of ILSVRC2012's development kit. Received: {meta} ({error!r})"
        ) from error


def _class_names(classes):
    """ImageNet's thousand if all are among them, else those that there are."""
    wordnet = tuple(wnid for wnid, _ in imagenet_classes())
    return wordnet if set(classes) <= set(wordnet) else tuple(sorted(set(classes)))
