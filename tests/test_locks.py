"""The lock of a run's folder: other processes are refused while its process lives, and continue when it is killed."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import digits_network

import keras_resnet
from keras_resnet import ResNetSpec, train
from keras_resnet.locks import LOCK, folder_lock, wait_for_lock
from keras_resnet.studies.degradation import degradation

SPEC = ResNetSpec("basic", (1,), (4,), stem="cifar", stem_width=4)
RUN = {"epochs": 1, "batch_size": 500, "checkpoint_every": 1}
"""Two steps."""
LIVE_RUN = """
import sys, time
import keras, keras_resnet

class Wait(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        if batch == 1:
            print("one step", flush=True)
            time.sleep(1000)

spec = keras_resnet.ResNetSpec("basic", (1,), (4,), stem="cifar", stem_width=4)
keras_resnet.train(spec, workdir=sys.argv[1], callbacks=[Wait()], epochs=1, batch_size=500, checkpoint_every=1)
"""
OTHERS = {
    "resume": lambda folder: train(SPEC, workdir=folder, resume=True, **RUN),
    "overwrite": lambda folder: train(SPEC, workdir=folder, overwrite=True, **RUN),
    "finetune": lambda folder: keras_resnet.finetune(digits_network(), "digits", folder, overwrite=True, stages=0),
    "tune": lambda folder: keras_resnet.tune(workdir=folder, trials=1, overwrite=True),
    "study": lambda folder: degradation(folder, depths=(20, 32), overwrite=True),
}


@pytest.fixture(scope="module")
def live_run(tmp_path_factory):
    """The folder and the process of a run that has written a checkpoint and does not end."""
    folder = tmp_path_factory.mktemp("live")
    process = subprocess.Popen([sys.executable, "-c", LIVE_RUN, folder], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"one step\n"
    yield folder, process
    process.kill()
    process.communicate()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", OTHERS)
def test_a_live_run_is_neither_continued_nor_overwritten(name, live_run):
    folder, process = live_run
    (folder / ".0123abcd.checkpoint.safetensors").write_text("being written by the live run")
    before = contents(folder)
    with pytest.raises(BlockingIOError) as refusal:
        OTHERS[name](folder)
    owner = f"process {process.pid} on {socket.gethostname()} has used it since 20"
    assert owner in str(refusal.value) and str(refusal.value).endswith(f"Received: workdir={str(folder)!r}")
    assert contents(folder) == before and process.poll() is None


def test_networks_of_a_study_that_another_process_trains_are_not_removed(live_run, tmp_path):
    folder, _ = live_run
    (tmp_path / "plain20").mkdir()
    (tmp_path / "plain20" / "report.json").write_text("{}")
    (tmp_path / "resnet32").symlink_to(folder)
    with pytest.raises(BlockingIOError, match="`workdir` should be used by one process at a time"):
        OTHERS["study"](tmp_path)
    assert (tmp_path / "plain20" / "report.json").exists() and (folder / "checkpoint.safetensors").exists()


def test_a_killed_run_continues(live_run):
    """The last test: it ends the live run."""
    folder, process = live_run
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / LOCK).exists(), "the file stays, the lock does not"
    wait_for_lock(folder)
    assert OTHERS["resume"](folder).history["step"] == [2]
    assert not {LOCK, ".0123abcd.checkpoint.safetensors"} & set(contents(folder))


@pytest.mark.parametrize("text", [b"", b"\x1b[2J", b"\xff\xfe", b"x" * 10**6])
def test_the_owner_is_not_known_from_a_damaged_file(text, tmp_path):
    with folder_lock(tmp_path):
        (tmp_path / LOCK).write_bytes(text)
        with pytest.raises(BlockingIOError, match="at a time: (another process uses it|x{200})") as refusal:
            folder_lock(tmp_path).__enter__()
        assert str(refusal.value).isprintable()


def test_a_lock_that_the_block_removes_is_not_taken_from_the_next_process(tmp_path):
    with folder_lock(tmp_path):
        (tmp_path / LOCK).unlink()
        with folder_lock(tmp_path):
            pass
        (tmp_path / LOCK).write_text("another process's")
    assert (tmp_path / LOCK).read_text() == "another process's"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_to_write_is_one_message(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="`workdir` should be a folder that can be written .Permission denied"):
        train(SPEC, workdir=tmp_path, **RUN)


def test_object_storage_has_no_locks():
    with folder_lock(None), folder_lock(None):
        assert not Path(LOCK).exists()
