"""Folders of images and masks of classes: layouts, classes, checks of every file, compared with Pillow and NumPy."""

import re
import warnings

import numpy as np
import pytest
from annotated_images import save_image, write_text, write_voc
from PIL import Image, ImageOps

from keras_resnet.data import mask_folders
from keras_resnet.data.image_files import load_image
from keras_resnet.data.mask_folders import find_masks, read_classes
from keras_resnet.data.source_kinds import LoadOptions, find_source
from keras_resnet.data.sources import as_dataset, image_source, load_dataset, load_test
from keras_resnet.data.voc_files import VOC_CLASSES

HEIGHT, WIDTH = 6, 9
SPLITS = {"train": ("a", "d", "b/c"), "val": ("e", "f")}
LAYOUTS = {
    "splits first": ("{split}/images", "{split}/masks"),
    "splits last": ("images/{split}", "masks/{split}"),
    "voc": ("JPEGImages", "SegmentationClass"),
}
"""Folders of the images and masks of a split."""
COLORS = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]


def mask_of(name, classes=3, shape=(HEIGHT, WIDTH)):
    """Random indices of all classes, and 255."""
    mask = np.random.default_rng(sum(name.encode())).integers(0, classes, shape, "uint8")
    mask.flat[: classes + 1] = [*range(classes), 255]
    return mask


def save_mask(path, mask, palette=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    if palette:
        image = image.convert("P")
        image.putpalette([channel for color in palette for channel in color] + [0] * 3 * (256 - len(palette)))
        image.frombytes(mask.tobytes())
    image.save(path, **options)
    return path


def write_masks(folder, layout="splits first", splits=SPLITS, palette=None):
    """Images and masks of some splits in one of LAYOUTS; returns the folder."""
    for split, names in splits.items():
        images, masks = (folder / place.format(split=split) for place in LAYOUTS[layout])
        for name in names:
            save_image(images / f"{name}.jpg", (WIDTH, HEIGHT))
            save_mask(masks / f"{name}.png", mask_of(name), palette)
        if layout == "voc":
            write_text(folder / f"ImageSets/Segmentation/{split}.txt", "\n".join(names))
    return folder


def assert_has_masks(split, names, classes=3, ignored=()):
    assert len(split) == len(split.masks) == len(names)
    for index, name in enumerate(names):
        mask = np.where(np.isin(mask_of(name), ignored), 255, mask_of(name))
        np.testing.assert_array_equal(split.masks.read(index), mask)
        assert split.labels[index].tolist() == [int((mask == label).any()) for label in range(split.labels.shape[1])]
    masks = np.stack([split.masks.read(index) for index in range(len(split))])
    assert split.masks.class_counts(classes).tolist() == [(masks == label).sum() for label in range(classes)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    folder = write_masks(tmp_path / "data", layout, palette=COLORS)
    data = load_dataset(folder)
    assert_has_masks(data.train, SPLITS["train"])
    assert_has_masks(data.test, SPLITS["val"])
    named = layout == "voc"
    assert data.class_names == (VOC_CLASSES if named else ("class 0", "class 1", "class 2"))
    assert data.name == "data" and data.colors[:3] == tuple(COLORS[:3])
    tests = load_test(folder, masks=True)
    assert_has_masks(tests.test, SPLITS["val"])
    assert (tests.class_names, tests.colors) == (data.class_names, data.colors)
    assert_has_masks(load_test(folder, "train").test, SPLITS["train"])
    with pytest.raises(ValueError, match="`split` should be one of"):
        load_test(folder, "trian")
    held_out = load_dataset(folder, validation_split=1)
    assert (len(held_out.train), len(held_out.test), len(held_out.test.masks)) == (2, 1, 1)
    assert image_source(str(folder)).class_names == data.class_names  # the masks are no images
    assert len(image_source(str(folder)).names) == 2


def test_a_folder_without_splits_and_folds(tmp_path):
    for name in "abcdefghij":
        save_image(tmp_path / f"images/{name}.webp", (WIDTH, HEIGHT))
        save_mask(tmp_path / f"masks/{name}.png", mask_of(name))
    data = load_dataset(tmp_path)
    assert (len(data.train), len(data.test)) == (8, 2)
    parts = [as_dataset(lambda fold=fold: load_dataset(tmp_path, fold=f"{fold}/5"), masks=True).test for fold in (1, 2)]
    found = [part.masks.read(index).tobytes() for part in parts for index in range(len(part))]
    assert len({*found}) == 4 <= len([mask_of(name).tobytes() for name in "abcdefghij"])
    assert_has_masks(load_test(tmp_path).test, "abcdefghij")


def test_camvid(test_data):
    data, unlimited = (load_dataset(test_data / "camvid", ignore_index=index) for index in (11, None))
    assert (len(data.train), len(data.test), len(load_test(test_data / "camvid", "test").test)) == (367, 101, 233)
    assert (len(data.class_names), len(unlimited.class_names)) == (11, 12)
    paths = sorted((test_data / "camvid/train/masks").iterdir())
    stored = np.stack([np.asarray(Image.open(path)) for path in paths])
    counts = np.bincount(stored.ravel(), minlength=12)
    assert data.train.masks.class_counts(11).tolist() == counts[:11].tolist()
    assert unlimited.train.masks.class_counts(12).tolist() == counts.tolist()
    np.testing.assert_array_equal(data.train.masks.read(5), np.where(stored[5] == 11, 255, stored[5]))
    np.testing.assert_array_equal(data.train.masks.sizes, [[180, 240]] * 367)
    assert data.colors is None


def test_colours_of_voc(tmp_path):
    """The palette of VOC has the bits of the index in the highest bits of red, green and blue (VOClabelcolormap.m)."""
    palette = [
        tuple(sum((index >> 3 * bit + channel & 1) << 7 - bit for bit in range(8)) for channel in range(3))
        for index in range(256)
    ]
    folder = write_masks(tmp_path / "data", "voc", palette=palette)
    assert load_dataset(folder).colors == tuple(palette[:21])
    assert palette[:4] == COLORS and palette[15] == (192, 128, 128)


@pytest.mark.parametrize("ignore_index, names, kept", [(2, "ab", "ab"), (1, "abc", "abc"), (7, "abc", "abc")])
def test_an_ignored_index(tmp_path, ignore_index, names, kept):
    """If it is the last class there is one class less; other classes keep their indices."""
    folder = write_masks(tmp_path)
    data = load_dataset(folder, ignore_index=ignore_index)
    assert data.class_names == tuple(f"class {number}" for number in range(len(kept)))
    assert_has_masks(data.train, SPLITS["train"], ignored=[ignore_index])
    (tmp_path / "classes.txt").write_text("\n".join("abc"))
    data = load_dataset(folder, ignore_index=ignore_index)
    assert data.class_names == tuple(names)
    assert_has_masks(load_test(folder, ignore_index=ignore_index).test, SPLITS["val"], ignored=[ignore_index])


@pytest.mark.parametrize(
    "text, names, colors",
    [
        ("sky\ntraffic light\n\n road ", ("sky", "traffic light", "road"), None),
        ("1 traffic light\n0 sky\n255 void", ("sky", "traffic light"), None),
        ("0: sky\n2: road", ("sky", "class 1", "road"), None),
        ("sky 1 2 3\ntraffic light 40 50 60", ("sky", "traffic light"), ((1, 2, 3), (40, 50, 60))),
        ("0, sky, 1, 2, 3\n1, road, 4, 5, 255", ("sky", "road"), ((1, 2, 3), (4, 5, 255))),
        ("3 wheeler\nroad", ("3 wheeler", "road"), None),
        ("0\n1\n2", ("0", "1", "2"), None),
        ("\ufeffHimmel\r\nStraße", ("Himmel", "Straße"), None),
    ],
)
def test_files_with_the_classes(tmp_path, text, names, colors):
    (tmp_path / "classes.txt").write_text(text, "utf-8")
    assert read_classes(tmp_path / "classes.txt") == (names, colors)


@pytest.mark.parametrize(
    "text",
    ["", "255 void", "sky\nsky", "0 sky\n0 road", "0 sky\n300 road", "a 1 2 256", "\n".join(map(str, range(256)))],
)
def test_invalid_files_with_the_classes(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match="`classes` should be lines with different names.*classes.txt"):
        read_classes(tmp_path / "classes.txt")


def test_names_and_colours_from_the_file(tmp_path):
    folder = write_masks(tmp_path / "data", palette=COLORS)
    (folder / "classes.txt").write_text("0 sky 1 1 1\n1 road 2 2 2\n2 car 3 3 3\n3 bus 4 4 4")
    data = load_dataset(folder)
    assert data.class_names == ("sky", "road", "car", "bus") and data.colors[3] == (4, 4, 4)
    assert data.train.labels[:, 3].tolist() == [0, 0, 0]
    assert load_dataset(folder, ignore_index=3).colors == data.colors[:3]
    (folder / "classes.txt").write_text("sky\nroad\ncar")
    assert load_dataset(folder).colors == tuple(COLORS[:3])


def test_every_invalid_file_is_listed_and_skipped(tmp_path):
    folder = write_masks(tmp_path / "data", splits={"train": "abcdefghij", "val": "k"})
    images, masks = folder / "train/images", folder / "train/masks"
    sixteen = Image.fromarray(mask_of("a").astype("uint16"))
    sixteen.save(masks / "a.png")
    Image.new("RGB", (WIDTH, HEIGHT)).save(masks / "b.png")
    save_mask(masks / "c.png", mask_of("c", shape=(HEIGHT, WIDTH + 1)))
    (masks / "d.png").unlink()
    (images / "e.jpg").unlink()
    (masks / "f.png").write_bytes((masks / "f.png").read_bytes()[:50])
    (images / "g.jpg").write_bytes(b"no image")
    save_image(images / "h.bmp", (WIDTH, HEIGHT))
    save_image(masks / "i.jpg", (WIDTH, HEIGHT))
    save_mask(folder / "val/masks/k.png", np.full((HEIGHT, WIDTH), 3, "uint8"))
    save_image(folder / "val/images/l.jpg", (WIDTH, HEIGHT))
    save_mask(folder / "val/masks/l.png", mask_of("l"))
    expected = [
        "a.png (it is grey with 16 bits; the pixels of a mask should be class indices in eight bits, grey or a ",
        "b.png (it is colours without a palette (RGB); the pixels",
        "c.png (has 10 x 6 pixels, but its image",
        "d.jpg (has no mask",
        "e.png (has no image",
        "f.png (",
        "g.jpg (not an image)",
        "h.jpg (has the name of",
        "i.jpg (a mask should be a PNG file, .png)",
        "k.png (has the indices [3], but there are 3 classes, from index 0)",
    ]
    with pytest.raises(ValueError, match="readable images with valid masks; pass `skip_bad=True`") as raised:
        load_dataset(folder)
    assert f"{len(expected)} invalid in {folder}" in str(raised.value)
    for text in expected:
        assert text in str(raised.value)
    with pytest.warns(UserWarning, match=f"Left out {len(expected)} invalid"):
        data = load_dataset(folder, skip_bad=True)
    assert_has_masks(data.train, "hij")
    assert_has_masks(data.test, "l")
    assert len(data.skipped) == len(expected)
    with pytest.raises(ValueError, match=r"2 invalid(?s:.*)k\.png(?s:.*)"):
        load_test(write_masks_without(folder, images / "a.jpg"))


def write_masks_without(folder, image):
    """The folder with one more error in the split val, and others in the split train, which do not count there."""
    image.unlink()
    (folder / "val/images/k2.jpg").write_bytes(b"no image")
    save_mask(folder / "val/masks/k2.png", mask_of("k2"))
    return folder


@pytest.mark.parametrize("orientation", [2, 3, 5, 6, 7, 8])
@pytest.mark.parametrize("form", ["stored", "upright"])
def test_masks_of_images_that_are_stored_turned(tmp_path, orientation, form):
    """A mask of the stored size is turned as its image if the size says so; others are upright."""
    stored = np.random.default_rng(0).integers(0, 3, (HEIGHT, WIDTH), "uint8")
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(stored * 100)
    image.save(tmp_path / "turned.png", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "turned.png"))) // 100
    shown = stored if form == "stored" and orientation > 4 else upright
    for name in "abcde":
        (tmp_path / "images").mkdir(exist_ok=True)
        image.save(tmp_path / f"images/{name}.png", exif=exif)
        save_mask(tmp_path / f"masks/{name}.png", shown)
    for split in (load_dataset(tmp_path).train, load_test(tmp_path).test):
        assert split.masks.sizes[0].tolist() == list(upright.shape)
        pixels = np.asarray(load_image(split.images[0], channels=1)) // 100
        np.testing.assert_array_equal(split.masks.read(0), pixels)
    assert load_dataset(tmp_path).train.orientations.tolist() == [orientation] * 4


def test_masks_are_read_again_only_if_they_change(tmp_path, monkeypatch):
    folder, described = write_masks(tmp_path / "data"), []
    original = mask_folders.describe_mask
    monkeypatch.setattr(mask_folders, "describe_mask", lambda path: described.append(path) or original(path))
    load_dataset(folder)
    assert len(described) == 5
    load_test(folder, ignore_index=2)
    assert len(described) == 5
    save_mask(folder / "train/masks/a.png", mask_of("another"))
    data = load_dataset(folder)
    assert described[5:] == [str(folder / "train/masks/a.png")]
    assert data.train.masks.class_counts(3)[0] == sum((mask_of(name) == 0).sum() for name in ("another", "b/c", "d"))


def test_large_data_is_read_from_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(mask_folders, "fits_in_memory", lambda num_bytes: False)
    data = load_dataset(write_masks(tmp_path))
    assert data.train.has_paths
    (tmp_path / "train/masks/a.png").unlink()
    with pytest.raises(ValueError, match=r"train/masks/a\.png .No such file"):
        data.train.masks.read(0)
    np.testing.assert_array_equal(data.train.masks.read(1), mask_of("d"))


def test_palettes_that_differ_or_say_nothing(tmp_path):
    folder = write_masks(tmp_path / "data", palette=COLORS)
    save_mask(folder / "train/masks/d.png", mask_of("d"), COLORS[::-1])
    with pytest.warns(UserWarning, match="palettes of 1 masks have other colours for the same indices"):
        assert load_dataset(folder).colors is None
    grey = write_masks(tmp_path / "grey", palette=[(index,) * 3 for index in range(256)])
    assert load_dataset(grey).colors is None
    some = write_masks(tmp_path / "some")
    save_mask(some / "train/masks/d.png", mask_of("d"), COLORS)
    assert load_dataset(some).colors == tuple(COLORS[:3])


def test_values_that_are_no_indices(tmp_path):
    binary = write_masks(tmp_path / "binary")
    for path in binary.rglob("*.png"):
        save_mask(path, (mask_of("a") > 0) * np.uint8(255))
    with pytest.raises(ValueError, match="masks have 2 to 255 classes, not 1.*have the values 0 and 1"):
        load_dataset(binary)
    grey = write_masks(tmp_path / "grey")
    for path in grey.rglob("*.png"):
        save_mask(path, (mask_of("a") == 1) * np.uint8(100))
    with pytest.warns(UserWarning, match="Only 2 of the 101 indices up to the highest occur"):
        load_dataset(grey)


def test_kinds_of_data_sets(tmp_path):
    """Masks are read if they are asked for, or if there is nothing else."""
    folder = write_voc(tmp_path / "voc")
    assert load_dataset(folder).train.masks is None
    with pytest.raises(ValueError, match="`dataset` should be a data set with masks: a folder"):
        load_dataset(folder, masks=True)
    with pytest.raises(ValueError, match="`ignore_index` should be left out for .*voc.*, read without masks"):
        load_dataset(folder, ignore_index=3)
    for path in (folder / "JPEGImages").iterdir():
        save_mask(folder / f"SegmentationClass/{path.stem}.png", mask_of(path.stem, shape=(30, 40)))
    assert load_dataset(folder).train.objects is not None
    data = load_dataset(folder, masks=True)  # no lists for segmentation: all masks are one split
    assert data.train.objects is None and len(data.train.masks) + len(data.test.masks) == 5
    assert as_dataset(folder, masks=True).class_names == VOC_CLASSES
    with pytest.raises(ValueError, match="digits"):
        load_dataset("digits", masks=True)
    with pytest.raises(FileNotFoundError, match="a folder with images and masks"):
        load_dataset(tmp_path / "missing", masks=True)
    assert find_masks(tmp_path) == {}
    kinds = [find_source(folder, LoadOptions(masks=masks))[0] for masks in (False, True)]
    assert kinds == ["voc", "voc masks"]


def test_files_that_lists_name_and_that_are_missing(tmp_path):
    folder = write_masks(tmp_path / "data", "voc")
    (folder / "JPEGImages/a.jpg").unlink()
    (folder / "SegmentationClass/d.png").unlink()
    with pytest.raises(ValueError, match=r"2 invalid") as raised:
        load_dataset(folder)
    assert re.search(r"JPEGImages/a\.jpg \(No such file", str(raised.value))
    assert re.search(r"SegmentationClass/d\.png \(No such file", str(raised.value))
    write_text(folder / "ImageSets/Segmentation/val.txt", "../../secret")
    with pytest.raises(ValueError, match="a path inside the folder"):
        load_dataset(folder)


def test_no_valid_mask(tmp_path):
    folder = write_masks(tmp_path / "data")
    for path in (folder / "val/masks").glob("*.png"):
        path.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"a data set with valid images and masks; \['val'\] has none"):
            load_dataset(folder, skip_bad=True)
