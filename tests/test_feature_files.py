"""Feature files: written by runs that may be killed and continued, read without trusting their contents."""

import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support import cifar_network, png_bytes, random_pixels

from keras_resnet.models.feature_extractor import feature_extractor
from keras_resnet.precision import precision_scope
from keras_resnet.transfer.extraction import extract
from keras_resnet.transfer.feature_files import read_features, write_features


def test_written_features_are_those_of_extract(image_folder, tmp_path):
    model, out, seen = cifar_network(), tmp_path / "out.npz", []
    settings = write_features(model, image_folder, out, batch_size=4, progress=lambda *done: seen.append(done))
    assert seen == [(0, 12), (4, 12), (8, 12), (12, 12)] and settings["shape"] == [10, 16]
    expected, found = extract(model, image_folder, batch_size=4, skip_bad=True), read_features(out)
    np.testing.assert_array_equal(found.vectors, expected.vectors)
    np.testing.assert_array_equal(found.labels, expected.labels)
    for name in ("names", "class_names", "skipped"):
        assert getattr(found, name) == getattr(expected, name)
    assert found.settings == settings == write_features(model, image_folder, out, batch_size=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out.npz"]
    with np.load(out, allow_pickle=False) as file:
        assert set(file) == {"features", "names", "labels", "class_names", "settings"}
        assert json.loads(str(file["settings"]))["weights"] == "seed 0"


def test_a_file_with_other_settings_is_replaced_only_with_overwrite(image_folder, tmp_path):
    out = tmp_path / "out.npz"
    write_features(cifar_network(), image_folder, out, batch_size=4)
    before = out.read_bytes()
    with precision_scope("bfloat16"):
        mixed = cifar_network()
    for model, settings, name in (
        (cifar_network(seed=1), {}, "weights was 'seed 0'"),
        (mixed, {}, "precision was 'float32' there. Received: precision='bfloat16'"),
        (cifar_network(), {"endpoint": "stage2"}, "endpoint was 'pre_logits'"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*--overwrite"):
            write_features(model, image_folder, out, batch_size=4, **settings)
    (image_folder / "new.png").write_bytes(png_bytes(random_pixels(1)[0]))
    with pytest.raises(ValueError, match="files was 12 there. Received: files=13"):
        write_features(cifar_network(), image_folder, out, batch_size=4)
    assert out.read_bytes() == before
    write_features(cifar_network(), image_folder, out, batch_size=4, overwrite=True)
    assert read_features(out).labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, -1, 2, 2]  # new.png has no class


KILLED_RUN = """
import os, signal, sys
from support import cifar_network
from keras_resnet.transfer import write_features

def kill(done, total):
    if done == 8:
        os.kill(os.getpid(), signal.SIGKILL)

write_features(cifar_network(), sys.argv[1], sys.argv[2], batch_size=4, progress=kill)
"""


def test_a_killed_run_continues_and_writes_the_same_file(image_folder, tmp_path):
    whole, out, seen = tmp_path / "whole.npz", tmp_path / "out.npz", []
    write_features(cifar_network(), image_folder, whole, batch_size=4)
    command = [sys.executable, "-c", KILLED_RUN, str(image_folder), str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    assert subprocess.run(command, env=environment, capture_output=True).returncode == -signal.SIGKILL
    assert not out.exists() and (tmp_path / "out.npz.partial").is_dir()
    with pytest.raises(ValueError, match="endpoint was 'pre_logits'"):
        write_features(cifar_network(), image_folder, out, "stage3", batch_size=4)
    with open(tmp_path / "out.npz.partial" / "rows.float32", "ab") as rows:  # as if it had been killed while writing
        rows.write(b"half a row")
    with open(tmp_path / "out.npz.partial" / "journal.jsonl", "ab") as journal:
        journal.write(b'[12, {"9": "')
    write_features(cifar_network(), image_folder, out, batch_size=4, progress=lambda *done: seen.append(done[0]))
    assert seen == [8, 12] and members(out) == members(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out.npz", "whole.npz"]


@pytest.mark.parametrize(
    "line", [b"5", b"[1, 2]", b"[12, []]", b"[8, {}]", b"[9, {}]", b"[99, {}]", b'[12, {"1": "of another batch"}]']
)
def test_invalid_journal_lines_are_truncated(image_folder, tmp_path, line, extractor):
    out, seen = tmp_path / "out.npz", []

    def stop(done, total):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(extractor, image_folder, out, batch_size=4, progress=stop)
    for name, more in (("journal.jsonl", line + b"\n"), ("rows.float32", bytes(10_000))):
        with open(tmp_path / "out.npz.partial" / name, "ab") as file:
            file.write(more)
    write_features(extractor, image_folder, out, batch_size=4, progress=lambda *done: seen.append(done[0]))
    assert seen == [8, 12]
    np.testing.assert_array_equal(
        read_features(out).vectors, extract(extractor, random_pixels(10), batch_size=4).vectors
    )


@pytest.fixture(scope="module")
def extractor():
    return feature_extractor(cifar_network(), endpoints="pre_logits", pooling="avg")


def test_only_one_process_at_a_time_writes_a_file(image_folder, tmp_path, extractor):
    out, messages = tmp_path / "out.npz", []

    def write_again(done, total):
        for overwrite in (False, True):
            with pytest.raises(
                OSError, match=rf"one process at a time: process {os.getpid()} on .* since 20"
            ) as refusal:
                write_features(extractor, image_folder, out, batch_size=4, overwrite=overwrite)
            messages.append(str(refusal.value))

    write_features(extractor, image_folder, out, batch_size=4, progress=write_again)
    assert len(messages) == 8 and messages[0].endswith(f"Received: out={str(out)!r}")
    found = read_features(out).vectors
    np.testing.assert_array_equal(found, extract(extractor, random_pixels(10), batch_size=4).vectors)
    assert not (tmp_path / "out.npz.partial").exists()


def members(path):
    """{name: contents} of the archive's members."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_invalid_folders_and_outputs(image_folder, tmp_path):
    for name, error in (("out.csv", ValueError), ("nowhere/out.npz", OSError), ("images/", ValueError)):
        with pytest.raises(error):
            write_features(cifar_network(), image_folder, tmp_path / name)
    with pytest.raises(NotADirectoryError, match="`folder` should be a folder of images"):
        write_features(cifar_network(), image_folder / "ants" / "0.png", tmp_path / "out.npz")
    for path in image_folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of 12"):
        write_features(cifar_network(), image_folder, tmp_path / "out.npz", batch_size=4)
    assert not (tmp_path / "out.npz").exists()


def npz_bytes(**changes):
    """Contents of a .npz file with two vectors; `changes` replace arrays, None removes one."""
    usual = {
        "features": np.zeros((2, 3), "float32"),
        "names": np.array(["a", "b"]),
        "labels": np.zeros(2, "int32"),
        "class_names": np.array(["x"]),
        "settings": np.array("{}"),
    }
    file = io.BytesIO()
    np.savez(file, **{name: array for name, array in (usual | changes).items() if array is not None})
    return file.getvalue()


def with_claimed_shape(shape, before=(2, 3)):
    """Contents of a .npz file whose header claims another shape of the vectors."""
    content = npz_bytes()
    texts = [f"{size}, }}".encode() for size in (before, shape)]
    return content.replace(texts[0] + b" " * (len(texts[1]) - len(texts[0])), texts[1])


BAD_FILES = {
    "empty": b"",
    "text": b"not a zip file",
    "half": npz_bytes()[:300],
    "pickle": npz_bytes(names=np.array(["a", {}], object)),
    "missing": npz_bytes(labels=None),
    "integers": npz_bytes(features=np.zeros((2, 3), "int64")),
    "axes": npz_bytes(features=np.zeros((2, 3, 1), "float32")),
    "no columns": npz_bytes(features=np.zeros((10**9, 0), "float32")),
    "rows": npz_bytes(names=np.array(["a"])),
    "labels": npz_bytes(labels=np.array([0, 1])),
    "JSON": npz_bytes(settings=np.array("[" * 100_000)),
    "list": npz_bytes(settings=np.array("[]")),
    "skipped, a number": npz_bytes(settings=np.array('{"skipped": 5}')),
    "skipped, numbers": npz_bytes(settings=np.array('{"skipped": [5]}')),
    "shape": npz_bytes(settings=np.array('{"shape": "23"}')),
    "no characters": npz_bytes(names=np.full(2, 2**31, "uint32").view("<U1")),
    "larger": with_claimed_shape((2, 3 * 10**12)),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_damaged_and_malicious_files_are_refused(name, tmp_path):
    path = tmp_path / "in.npz"
    path.write_bytes(npz_bytes())
    assert read_features(path).vectors.shape == (2, 3)
    assert BAD_FILES[name] != npz_bytes()
    path.write_bytes(BAD_FILES[name])
    with pytest.raises(ValueError, match="should be a file written by `keras-resnet features`"):
        read_features(path)
