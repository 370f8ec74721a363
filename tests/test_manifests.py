"""Manifests: files that have not changed are not read again, and no manifest is trusted that is not of these files."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_resnet.data import image_checks, manifests
from keras_resnet.data.image_folders import load_folder, load_test_folder
from keras_resnet.data.manifests import cache_folder, read_files


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of manifests."""
    monkeypatch.setenv("KERAS_RESNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    """Files 0 to 9, each with its number."""
    (tmp_path / "files").mkdir()
    for number in range(10):
        (tmp_path / "files" / str(number)).write_text(str(number))
    return tmp_path / "files"


class Reader:
    """Reads integers; remembers the names of the files that it has read."""

    def __init__(self):
        self.names = []

    def __call__(self, path):
        self.names.append(os.path.basename(path))
        return int(Path(path).read_text())


def read(folder, names=range(10), kind="numbers"):
    """({name: result}, names of the files that were read)."""
    reader = Reader()
    records = read_files(reader, [str(folder / str(name)) for name in names], folder, kind)
    return {os.path.basename(path): record.result for path, record in records.items()}, sorted(reader.names)


NUMBERS = {str(number): number for number in range(10)}


def test_unchanged_files_are_not_read_again(folder):
    assert read(folder) == (NUMBERS, sorted(NUMBERS))
    assert read(folder) == (NUMBERS, [])


def test_changed_new_and_removed_files_are_noticed(folder):
    read(folder)
    (folder / "3").write_text("33")  # another size
    (folder / "4").write_text("8")
    os.utime(folder / "4", ns=(0, 12345))  # another time
    (folder / "5").unlink()
    (folder / "new").write_text("7")
    names = ["0", "1", "2", "3", "4", "6", "7", "8", "9", "new"]
    expected = {name: value for name, value in (NUMBERS | {"3": 33, "4": 8, "new": 7}).items() if name != "5"}
    assert read(folder, names) == (expected, ["3", "4", "new"])
    assert read(folder, names) == (expected, [])
    (folder / "5").write_text("5")
    assert read(folder) == (NUMBERS | {"3": 33, "4": 8}, ["5"])


def test_parts_of_a_folder_share_the_manifest(folder):
    assert read(folder, range(5))[1] == list("01234")
    assert read(folder)[1] == list("56789")
    assert read(folder, range(5))[1] == []
    assert read(folder, kind="another function")[1] == sorted(NUMBERS)


def test_errors_of_contents_are_kept_and_those_of_the_system_are_not(folder):
    (folder / "3").write_text("three")
    (folder / "4").unlink()
    os.mkfifo(folder / "5") if not (folder / "5").unlink() else None
    os.chmod(folder / "6", 0)
    unreadable = 0 if os.access(folder / "6", os.R_OK) else 1
    for again in (False, True):
        reader = Reader()
        records = read_files(reader, [str(folder / name) for name in NUMBERS], folder, "numbers")
        errors = {os.path.basename(path): record.error for path, record in records.items() if record.error}
        assert "invalid literal" in errors["3"] and "No such file" in errors["4"] and errors["5"] == "not a file"
        assert len(errors) == 3 + unreadable and len(reader.names) == (unreadable if again else 8)


@pytest.mark.parametrize("damage", [b"", b"no gzip", b'{"header": 1}', "half", "flipped"])
def test_damaged_manifests_are_ignored(folder, cache, damage):
    read(folder)
    (manifest,) = cache.iterdir()
    content = bytearray(manifest.read_bytes())
    if damage == "half":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        content = damage
    manifest.write_bytes(content)
    assert read(folder) == (NUMBERS, sorted(NUMBERS))
    assert read(folder) == (NUMBERS, [])


def test_the_manifest_of_another_folder_is_ignored(folder, cache, tmp_path):
    read(folder)
    (manifest,) = cache.iterdir()
    content = manifest.read_bytes()
    other = tmp_path / "other"
    folder.rename(other)  # sizes and times remain
    assert read(other)[1] == sorted(NUMBERS)
    for path in cache.iterdir():
        path.write_bytes(content)
    assert read(other) == (NUMBERS, sorted(NUMBERS))


def test_a_cache_that_cannot_be_written_is_no_error(folder, cache):
    cache.touch()  # root may write to any folder
    assert read(folder) == (NUMBERS, sorted(NUMBERS))
    assert read(folder) == (NUMBERS, sorted(NUMBERS))


def test_an_interrupted_start_keeps_what_it_has_read(folder):
    def interrupted(path):
        if path.endswith("9"):
            raise RuntimeError
        return int(Path(path).read_text())

    with pytest.raises(RuntimeError):
        read_files(interrupted, [str(folder / str(number)) for number in range(10)], folder, "numbers")
    assert read(folder)[1] == ["9"]


def test_a_long_start_reports_its_progress(folder, monkeypatch, capsys):
    monkeypatch.setattr(manifests, "PROGRESS_SECONDS", 0)
    read(folder)
    assert capsys.readouterr().err.splitlines() == [f"{count} of 10 files checked" for count in range(1, 11)]
    read(folder)
    assert capsys.readouterr().err == ""


def test_several_processes_at_once(folder, cache):
    """Threads here; each writes a whole manifest or none."""
    results = []
    threads = [threading.Thread(target=lambda: results.append(read(folder)[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [NUMBERS] * 8 and len(list(cache.iterdir())) == 1
    assert read(folder)[1] == []


def test_the_cache_is_in_the_folder_of_keras_unless_the_environment_says_otherwise(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("KERAS_RESNET_CACHE")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    assert cache_folder() == tmp_path / "keras" / "keras_resnet"
    monkeypatch.delenv("KERAS_HOME")
    assert cache_folder() == Path.home() / ".keras" / "keras_resnet"


def test_the_second_start_from_class_folders_decodes_no_file(tmp_path, monkeypatch):
    for number in range(20):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (number, 0, 0)).save(path)
    (tmp_path / "images/a/bad.jpg").write_text("no image")
    decoded = []
    decode = image_checks.with_pil_image
    monkeypatch.setattr(image_checks, "with_pil_image", lambda *a: decoded.append(a) or decode(*a))
    loads = []
    for start in range(2):
        with pytest.warns(UserWarning, match=r"Skipped 1 unreadable(?s:.*)bad.jpg \(not an image\)"):
            loads.append(load_folder(tmp_path / "images", skip_bad=True))
        loads.append(load_test_folder(tmp_path / "images", skip_bad=True))
        assert bool(decoded) == (start == 0)
        decoded.clear()
    for first, second in zip(loads[:2], loads[2:], strict=True):
        np.testing.assert_array_equal(first.test.images, second.test.images)
        assert first.skipped == second.skipped and len(first.skipped) == 1
