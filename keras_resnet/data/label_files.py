"""Flat folders of pictures whose classes stand in a file, as ImageNet's validation pictures come."""

import os
from pathlib import Path

from keras_resnet.data.folders import load_files
from keras_resnet.data.labels import imagenet_classes
from keras_resnet.data.pictures import find_pictures

LARGEST = 2**26
"""Bytes of a file of labels at most; ImageNet's for 50,000 pictures have two million."""


def load_labelled_folder(folder, labels, skip_bad=False):
    """Pictures to test on, all in one folder, with their classes in a text file.

    The file has a line for each picture, in one of these forms:

    - a file name, with or without its suffix, and a class: Caffe's `val.txt`, Kaggle's `LOC_val_solution.csv` (of what
      follows the class nothing is read). Pictures that are not there, because the folder is a part, do not matter.
    - a class, in the order of the sorted file names: `imagenet_2012_validation_synset_labels.txt`, or the development
      kit's `ILSVRC2012_validation_ground_truth.txt`, whose numbers mean what `meta.mat` beside it says.

    A class is a WordNet id or another name; or, with file names, a number from 0, in the order of the network's.

    Args:
        folder: path of the pictures.
        labels: path of the file.
        skip_bad: whether unreadable pictures are left out, with a warning that lists them.

    Returns:
        A Dataset without `train`; its class names are None where the classes are numbers.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        ValueError: for a file of another form, pictures without a class, and unreadable pictures.
    """
    rows = _rows(labels)
    folder = Path(folder)
    pictures = sorted(find_pictures(folder), key=lambda path: path.name)
    named = min(map(len, rows)) > 1
    classes = _by_name(rows, pictures, labels) if named else _in_order(rows, pictures, labels)
    if named and all(name.isdecimal() for name in classes):
        names, numbers = None, [int(name) for name in classes]
    else:
        names = _class_names(classes)
        number = {name: number for number, name in enumerate(names)}
        numbers = [number[name] for name in classes]
    return load_files(
        [(str(path), label) for path, label in zip(pictures, numbers, strict=True)], names, folder, skip_bad
    )


def _rows(path):
    """Non-empty lines, in their first two columns; a head line of Kaggle's is left out."""
    if not os.path.isfile(path):
        raise FileNotFoundError(
            "`labels` should be a file with a line for each picture, its name and its class; there is none. "
            f"Received: labels={str(path)!r}"
        )
    if os.path.getsize(path) > LARGEST:
        raise ValueError(f"`labels` should have at most {LARGEST} bytes. Received: labels={str(path)!r}")
    try:
        text = Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"`labels` should be a text file. Received: labels={str(path)!r} ({error.reason})") from error
    rows = [line.replace(",", " ").replace("\t", " ").split()[:2] for line in text.splitlines()]
    rows = [row for row in rows if row and row[0] != "ImageId" and not row[0].startswith("#")]
    if not rows:
        raise ValueError(
            f"`labels` should have a line for each picture. Received: labels={str(path)!r}, which is empty"
        )
    return rows


def _by_name(rows, pictures, path):
    """The class of each picture, by its file's name."""
    known = {os.path.basename(name): label for name, label in rows}
    classes = [known.get(picture.name, known.get(picture.stem)) for picture in pictures]
    if missing := [picture.name for picture, label in zip(pictures, classes, strict=True) if label is None]:
        raise ValueError(
            f"`labels` should name the class of every picture. Received: labels={str(path)!r} without {len(missing)} "
            f"of {len(pictures)}, such as {missing[:3]}"
        )
    return classes


def _in_order(rows, pictures, path):
    """The class of each picture, by its place."""
    if len(rows) != len(pictures):
        raise ValueError(
            f"`labels` should have a class for each of {len(pictures)} pictures, or name the pictures. "
            f"Received: labels={str(path)!r} with {len(rows)} lines"
        )
    classes = [label for (label,) in rows]
    return _by_development_kit(classes, path) if all(name.isdecimal() for name in classes) else classes


def _by_development_kit(numbers, path):
    """ILSVRC2012's own numbers -> WordNet ids, as the `meta.mat` beside the file has them."""
    from scipy.io import loadmat

    meta = Path(path).with_name("meta.mat")
    if not meta.is_file():
        raise FileNotFoundError(
            "`labels` should name pictures or classes, or have the development kit's meta.mat beside it, which says "
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
