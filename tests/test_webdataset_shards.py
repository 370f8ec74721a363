"""WebDataset's tar files: classes in several forms, and hostile, damaged and incomplete files."""

import gzip
import io
import json
import os
import pickle
import random
import tarfile

import numpy as np
import pytest
from limited_process import assert_refused, run_limited
from PIL import Image
from support import damaged_copies, png_bytes, random_pixels

from keras_resnet import load_dataset
from keras_resnet.data.sources import load_test

pytest.importorskip("webdataset")

IMAGES = [png_bytes(image) for image in random_pixels(12)]


def write_tar(path, members):
    """A tar file of (name, contents)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, contents in members:
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))
    return str(path)


def samples(labels, suffix="cls"):
    """Members of one sample for each label."""
    for number, (label, image) in enumerate(zip(labels, IMAGES, strict=False)):
        yield f"{number}.png", image
        yield f"{number}.{suffix}", label if isinstance(label, bytes) else str(label).encode()


def labels_of(path, **arguments):
    dataset = load_test(path, **arguments)
    names = dataset.class_names
    return [label if names is None else names[label] for label in dataset.test.labels.tolist()]


@pytest.mark.parametrize(
    ("labels", "suffix", "expected"),
    [
        ([1, 0, 2], "cls", [1, 0, 2]),
        ([b"1\n", b" 0 ", b"2"], "cls", [1, 0, 2]),
        (["tench", "ant", "tench"], "cls", ["tench", "ant", "tench"]),
        ([b'{"label": 3}', b'{"cls": 1, "x": [1]}', b"2"], "json", [3, 1, 2]),
        ([b'{"label": "tench"}', b'{"label": "ant"}'], "json", ["tench", "ant"]),
    ],
)
def test_classes_are_numbers_or_names(labels, suffix, expected, tmp_path):
    assert labels_of(write_tar(tmp_path / "a.tar", samples(labels, suffix))) == expected


def test_the_names_of_shards_or_folders_tell_their_splits(tmp_path):
    for name, count in (("imagenet-train-0.tar", 4), ("imagenet-train-1.tar", 6), ("imagenet-VAL-0.tar", 2)):
        write_tar(tmp_path / "names" / name, samples([0, 1, 0, 1, 0, 1][:count]))
        split = "test" if "VAL" in name else "train"
        write_tar(tmp_path / "test folders" / split / name.replace("VAL", "x").replace("train", "x"), samples([0, 1]))
    write_tar(tmp_path / "none" / "0.tar", samples([0, 1] * 5))
    sizes = {name: load_dataset(tmp_path / name) for name in ("names", "test folders", "none")}
    assert {name: (len(it.train), len(it.test)) for name, it in sizes.items()} == {
        "names": (10, 2),
        "test folders": (4, 2),
        "none": (8, 2),
    }
    assert sizes["names"].class_names == ("0", "1")


def test_class_folders_beside_the_tar_files_that_they_come_from_are_read(tmp_path):
    for name in ("train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b/0.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(IMAGES[0])
    write_tar(tmp_path / "train.tar", samples([0, 1, 0, 1]))
    assert load_dataset(tmp_path).class_names == ("a", "b")
    assert load_dataset(f"{tmp_path}/*.tar", validation_split=2).class_names == ("0", "1")


class Payload:
    """Creates a folder where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_is_unpickled_or_unpacked(tmp_path):
    """The library's own decoder unpickles .pyd."""
    payload = pickle.dumps(Payload(str(tmp_path / "unpickled")))
    members = [(f"x.{suffix}", payload) for suffix in ("pyd", "pkl", "pickle", "pth")]
    escaping = [("../../escaped.png", IMAGES[3]), ("../../escaped.cls", b"1"), (f"{tmp_path}/absolute.png", IMAGES[4])]
    path = write_tar(
        tmp_path / "folder" / "a.tar",
        [*members, ("x.png", IMAGES[0]), ("x.cls", b"0"), *escaping, (f"{tmp_path}/absolute.cls", b"1")],
    )
    dataset = load_test(path)
    assert dataset.test.images.tolist() == [IMAGES[0], IMAGES[3], IMAGES[4]]
    assert sorted(os.listdir(tmp_path)) == ["folder"] and os.listdir(tmp_path / "folder") == ["a.tar"]
    pickle.loads(payload)
    assert (tmp_path / "unpickled").exists(), "the payload works"


def test_links_are_no_images(tmp_path):
    (tmp_path / "secret.png").write_bytes(IMAGES[5])
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for kind, name in ((tarfile.SYMTYPE, "link.png"), (tarfile.LNKTYPE, "hard.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(tmp_path / "secret.png")
            tar.addfile(info)
        info = tarfile.TarInfo("link.cls")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"1"))
    with pytest.raises(ValueError, match=r"1 unreadable in .*\n.*a.tar/link \(no image\)"):
        load_test(tmp_path / "a.tar")


def test_unreadable_samples_raise_or_are_skipped(tmp_path):
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    bad = {
        "text": [("png", b"no image"), ("cls", b"0")],
        "cut": [("png", IMAGES[0][:200]), ("cls", b"0")],
        "bomb": [("png", bomb.getvalue()), ("cls", b"0")],
        "unlabelled": [("png", IMAGES[0])],
        "negative": [("png", IMAGES[0]), ("cls", b"")],
        "list": [("png", IMAGES[0]), ("json", b"[1, 2]")],
        "no_key": [("png", IMAGES[0]), ("json", b'{"caption": "a fish"}')],
        "nested": [("png", IMAGES[0]), ("json", b"[" * 100_000)],
        "true": [("png", IMAGES[0]), ("json", b'{"label": true}')],
        "empty": [("png", b""), ("cls", b"0")],
        "caption": [("txt", b"a fish")],
    }
    members = [(f"{key}.{suffix}", contents) for key, parts in bad.items() for suffix, contents in parts]
    path = write_tar(tmp_path / "a.tar", [*members, *samples([0, 1] * 5)])
    with pytest.raises(ValueError, match=f"--skip-bad.*Received: {len(bad)} unreadable") as caught:
        load_dataset(path)
    assert all(f"a.tar/{key} (" in str(caught.value) for key in bad)
    with pytest.warns(UserWarning, match=f"Skipped {len(bad)} unreadable"):
        dataset = load_dataset(path, skip_bad=True)
    assert sorted(dataset.train.images.tolist() + dataset.test.images.tolist()) == sorted(IMAGES[:10])


def test_other_files_raise(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples([0, 1] * 5))
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "gzip.tar").write_bytes(gzip.compress(content))
    (tmp_path / "text.tar").write_text("no tar file" * 100)
    (tmp_path / "half.tar").write_bytes(content[: len(content) // 2])
    for name in ("gzip", "text", "half"):
        with pytest.raises(ValueError, match=f"uncompressed tar files that can be read.*{name}.tar"):
            load_test(tmp_path / f"{name}.tar")
    write_tar(tmp_path / "twice.tar", [*samples([0]), *samples([0])])
    with pytest.raises(ValueError, match="twice.tar"):
        load_test(tmp_path / "twice.tar")
    assert len(load_test(path).test) == 10


@pytest.mark.filterwarnings("ignore:Skipped")
def test_damaged_shards_raise_or_are_read(tmp_path):
    """Some damage only changes pixels, which is found when they are decoded."""
    write_tar(tmp_path / "a.tar", samples([0, 1] * 4))
    for copy in damaged_copies((tmp_path / "a.tar").read_bytes(), 60, random.Random(0)):
        (tmp_path / "b.tar").write_bytes(copy)
        try:
            load_dataset(tmp_path / "b.tar", skip_bad=True)
        except ValueError as error:
            assert "Received: " in str(error)


def test_sizes_and_classes_that_need_memory_are_refused(tmp_path):
    """A header that announces a name of 8 GB, and a class number for which a billion names would be made."""
    info = tarfile.TarInfo("0.png")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8**11 - 1
    (tmp_path / "name.tar").write_bytes(info.tobuf() + bytes(1024))
    write_tar(tmp_path / "class.tar", samples([0, 10**9] * 4))
    write_tar(tmp_path / "negative.tar", samples([b'{"label": -5}', b"0"] * 4, "json"))
    for name in ("name.tar", "class.tar", "negative.tar"):
        run = run_limited("import keras_resnet; keras_resnet.load_dataset(args[0])", tmp_path / name)
        assert_refused(run, "Received")


def test_a_shard_that_is_cut_after_the_start_is_an_error(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples([0, 1]))
    split = load_test(path).test
    os.truncate(path, 100)
    with pytest.raises(ValueError, match="the tar file is incomplete"):
        split.images.tolist()


def test_orientations_are_known(tmp_path):
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(random_pixels(1)[0]).save(file, "JPEG", exif=exif)
    members = [("t.jpg", file.getvalue()), ("t.json", json.dumps({"label": 0}).encode()), *samples([0, 1] * 5)]
    dataset = load_dataset(write_tar(tmp_path / "a.tar", members), validation_split=2)
    both = [split for split in (dataset.train, dataset.test) if split.orientations is not None]
    turned = [image for split in both for image in np.array(split.images.tolist(), object)[split.orientations == 6]]
    assert turned == [file.getvalue()]
