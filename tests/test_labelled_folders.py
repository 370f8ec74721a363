"""Training images of a folder with a label file: every form of CSV, several classes an image, splits, folds, faults."""

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold
from support import png_bytes, random_pixels

from keras_resnet import from_arrays, load_dataset
from keras_resnet.data.datasets import Split
from keras_resnet.data.sources import load_test

CLASSES = ("cat", "dog", "owl")
SINGLE = {f"{index}.png": (CLASSES[index % 3],) for index in range(12)}
SEVERAL = SINGLE | {"0.png": ("cat", "owl"), "4.png": ("cat", "dog"), "9.png": ()}


@pytest.fixture
def folder(tmp_path):
    """Twelve images, some in a subfolder; the first pixel's red value is the number in the name."""
    images = random_pixels(12)
    images[:, 0, 0, 0] = np.arange(12)
    root = tmp_path / "photos"
    for index, image in enumerate(images):
        path = root / ("more" if index > 9 else "") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(image))
    return root


def save(folder, lines, encoding="utf-8"):
    path = folder.parent / "labels.csv"
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


def columns(classes, names=CLASSES):
    return ",".join(str(int(name in classes)) for name in names)


SINGLE_FORMS = {
    "headerless": lambda classes: [f"{name},{one}" for name, (one,) in classes.items()],
    "blank": lambda classes: [f"{name} {one}" for name, (one,) in classes.items()],
    "header": lambda classes: ["Label,unused,File", *(f"{one},7,{name}" for name, (one,) in classes.items())],
    "kaggle": lambda classes: ["id,breed", *(f"{name[:-4]},{one}" for name, (one,) in classes.items())],
    "semicolons": lambda classes: ["file;label", *(f"photos/{name};{one}" for name, (one,) in classes.items())],
    "one-hot": lambda classes: [f"image_id,{','.join(CLASSES)}", *(f"{k},{columns(v)}" for k, v in classes.items())],
    "byte-order mark": lambda classes: ["\ufefffile,label", *(f'"{name}","{one}"' for name, (one,) in classes.items())],
}
SEVERAL_FORMS = {
    "columns": lambda classes: [f"image,{','.join(CLASSES)}", *(f"{k},{columns(v)}" for k, v in classes.items())],
    "separator": lambda classes: ["file,labels", *(f"{name},{'|'.join(v)}" for name, v in classes.items() if v)],
    "rows": lambda classes: ["file,label", *(f"{name},{one}" for name, v in classes.items() for one in v)],
}


def classes_by_number(dataset, splits):
    """{number of the image: its classes}."""
    from keras_resnet.data.image_files import load_image

    found = {}
    for split in splits:
        for image, label in zip(split.images, split.labels, strict=True):
            classes = np.flatnonzero(label) if split.multi_label else [label]
            found[np.asarray(load_image(image))[0, 0, 0]] = tuple(dataset.class_names[index] for index in classes)
    return found


@pytest.mark.parametrize("form", SINGLE_FORMS)
def test_forms_with_one_class(form, folder):
    (folder / "more/10.png").rename(folder / "10.png")  # so that `photos/10.png` exists
    (folder / "more/11.png").rename(folder / "11.png")
    path = save(folder, SINGLE_FORMS[form](SINGLE))
    dataset = load_dataset(folder, labels=path, validation_split=3)
    assert dataset.class_names == CLASSES and not dataset.multi_label and len(dataset.test) == 3
    expected = {int(name[:-4]): classes for name, classes in SINGLE.items()}
    assert classes_by_number(dataset, (dataset.train, dataset.test)) == expected
    assert classes_by_number(dataset, [load_test(folder, labels=path).test]) == expected


@pytest.mark.parametrize("form", SEVERAL_FORMS)
@pytest.mark.filterwarnings("ignore:.*several lines for an image")
def test_forms_with_several_classes(form, folder):
    expected = {int(name[:-4]): classes for name, classes in SEVERAL.items()}
    if form != "columns":  # the only one that can say that an image has no class
        (folder / "9.png").unlink()
        del expected[9]
    dataset = load_dataset(folder, labels=save(folder, SEVERAL_FORMS[form](SEVERAL)), validation_split=4)
    assert dataset.multi_label and dataset.train.labels.dtype == np.uint8
    assert classes_by_number(dataset, (dataset.train, dataset.test)) == expected


def test_several_lines_for_an_image_warn(folder):
    path = save(folder, [*SINGLE_FORMS["header"](SINGLE), "dog,7,0.png"])
    with pytest.warns(UserWarning, match=r"several lines for an image, such as '0.png' \(cat, dog\).*multi-label"):
        assert load_dataset(folder, labels=path).multi_label


def test_numbers_are_classes_in_their_order(folder):
    path = save(folder, [f"{index}.png,{8 + index % 3}" for index in range(12)])
    dataset = load_dataset(folder, labels=path)
    assert dataset.class_names == ("8", "9", "10")
    assert load_test(folder, labels=path).class_names is None


def test_column_split(folder):
    splits = ["train"] * 6 + ["Val"] * 3 + ["test"] * 3
    lines = [f"{index}.png,{CLASSES[index % 3]},{split}" for index, split in enumerate(splits)]
    path = save(folder, ["file,label,split", *lines])
    dataset = load_dataset(folder, labels=path)
    assert sorted(classes_by_number(dataset, [dataset.train])) == [0, 1, 2, 3, 4, 5]
    assert sorted(classes_by_number(dataset, [dataset.test])) == [6, 7, 8]
    for split, numbers in ((None, [6, 7, 8]), ("test", [9, 10, 11]), ("train", [0, 1, 2, 3, 4, 5])):
        test = load_test(folder, split, labels=path)
        assert sorted(classes_by_number(test, [test.test])) == numbers
    held_out = load_dataset(folder, labels=path, fold="1/2")
    assert len(held_out.train) == len(held_out.test) == 3
    with pytest.raises(ValueError, match=r"`split` should be one of \['test', 'train', 'val'\]"):
        load_test(folder, "valid", labels=path)


FAULTS = {
    "missing file": (lambda lines: [*lines, "13.png,cat"], "1 unmatched:\n  13.png .not found"),
    "no label": (lambda lines: lines[:-1], r"1 unmatched:\n  more/11.png .not in the file"),
    "empty label": (lambda lines: [*lines[:-1], "11.png,"], "class for every image.*'' for '11.png'"),
    "empty one of several": (lambda lines: [*lines[:-1], "11.png,cat|"], "class for every image.*'cat|' for '11.png'"),
    "duplicate": (lambda lines: [*lines, lines[0]], "each line once.*2 for '0.png'"),
    "one image": (lambda lines: [*lines[:-1], "11.png,emu"], r"2 training images of each class.*1 classes.*\['emu'\]"),
    "one class": (lambda lines: [f"{line.split(',')[0]},cat" for line in lines], r"two classes.*\['cat'\]"),
    "three columns": (lambda lines: [f"{line},x" for line in lines], "header with one of file, .*3 columns"),
    "odd columns": (lambda lines: [*lines[:-1], "11.png,cat,x"], "same number of columns.*3 in '11.png cat x'"),
    "only a header": (lambda lines: ["file,label"], "only a header"),
    "unknown split": (lambda lines: ["file,label,split", *(f"{line},dev" for line in lines)], "split.*'dev' for '0"),
    "no training images": (lambda lines: ["file,label,split", *(f"{line},val" for line in lines)], 'split "train"'),
    "two label columns": (
        lambda lines: ["file,a,b", *(f"{line},1" for line in lines)],
        r"columns \['file', 'a', 'b'\]",
    ),
    "two equal columns": (lambda lines: ["file,a,a", *(f"{line[:-4]},0,1" for line in lines)], "different names"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_raise_one_message(fault, folder):
    change, message = FAULTS[fault]
    path = save(folder, change(SINGLE_FORMS["headerless"](SINGLE)))
    with pytest.raises(ValueError, match=r"`labels` should") as caught:
        load_dataset(folder, labels=path)
    assert caught.match(message) and caught.match("labels.csv")


def test_other_encodings_raise(folder):
    lines = SINGLE_FORMS["header"](dict.fromkeys(SINGLE, ("Bär",)))
    for encoding in ("latin-1", "utf-16"):
        with pytest.raises(ValueError, match=r"text file in UTF-8.*at byte"):
            load_dataset(folder, labels=save(folder, lines, encoding))


def test_skip_bad_skips_missing_files_and_images_without_a_line(folder):
    path = save(folder, [*SINGLE_FORMS["headerless"](SINGLE)[:-1], "13.png,cat"])
    with pytest.warns(UserWarning, match="13.png .not found"):
        dataset = load_dataset(folder, labels=path, skip_bad=True)
    assert len(dataset.train) + len(dataset.test) == 11
    assert dataset.skipped == ("13.png (not found)", "more/11.png (not in the file)")


def test_labels_need_a_folder():
    with pytest.raises(ValueError, match="`labels` should be left out"):
        load_dataset("digits", labels="labels.csv")


def test_multi_label_split_is_stratified_by_the_rarest_class():
    """Every class is held out in its share: exactly for the rarest ones, within four standard deviations for others."""
    shares = np.array([0.9, 0.5, 0.1, 0.02])
    labels = (np.random.default_rng(0).random((1000, 4)) < shares).astype("uint8")
    split = Split(np.zeros((1000, 1, 1, 1), "uint8"), labels)
    rest, held_out = split.stratified_split(0.2)
    assert len(held_out) == 200 and len(rest) == 800
    counts = labels.sum(axis=0)
    assert abs(held_out.labels[:, 3].sum() - 0.2 * counts[3]) < 1
    deviations = np.sqrt(counts * 0.2 * 0.8)
    np.testing.assert_array_less(abs(held_out.labels.sum(axis=0) - 0.2 * counts), 4 * deviations)
    with pytest.raises(ValueError, match="`validation_split` should be .* each of the 4 classes.*1 in the smallest"):
        split[np.r_[np.flatnonzero(labels[:, 3])[:1], np.flatnonzero(1 - labels[:, 3])]].stratified_split(0.2)


def test_folds_are_those_of_scikit_learn():
    everything = load_dataset("digits").train
    expected = StratifiedKFold(5, shuffle=True, random_state=0).split(everything.labels, everything.labels)
    for number, (rest, held_out) in enumerate(expected, start=1):
        dataset = load_dataset("digits", fold=f"{number}/5")
        assert dataset.name == f"digits, fold {number}/5"
        np.testing.assert_array_equal(dataset.test.images, everything.images[held_out])
        np.testing.assert_array_equal(dataset.train.labels, everything.labels[rest])


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/1", "2", "a/b", 2, "1/2/3", "-1/5"])
def test_invalid_folds_raise(fold):
    with pytest.raises(ValueError, match="`fold` should be a fold and the number of folds"):
        load_dataset("digits", fold=fold)


def test_folds_that_cannot_be_raise(folder):
    with pytest.raises(ValueError, match="`fold` should be an amount.*4 in the smallest class.*fold='1/5'"):
        load_dataset(folder, labels=save(folder, SINGLE_FORMS["headerless"](SINGLE)), fold="1/5")
    with pytest.raises(ValueError, match="`validation_split` should be left out with `fold`"):
        load_dataset("digits", fold="1/5", validation_split=0.1)


def test_arrays_with_several_classes():
    labels = np.array([[1, 0], [1, 1]] * 10)
    dataset = from_arrays((random_pixels(20), labels))
    assert dataset.multi_label and dataset.class_names == ("class 0", "class 1")
    with pytest.raises(ValueError, match="zeros and ones"):
        from_arrays((random_pixels(20), labels + 1))
    one_hot = (random_pixels(20), np.eye(2)[labels[:, 1]])
    assert from_arrays(one_hot, one_hot).test.labels.tolist() == labels[:, 1].tolist()
