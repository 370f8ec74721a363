"""A full disk while weights are written: one error with the file's name, and nothing is left behind."""

import os

import pytest
from limited_process import assert_refused, run_limited

SAVE = "import keras_resnet as k; k.save_weights(k.create('resnet20'), args[0])"
MODEL = """
from keras_resnet import create
from keras_resnet.training.workdir import write_run
write_run(create("resnet20"), {}, args[0].parent)
"""
CONVERT = """
import sys
from keras_resnet.cli import main
sys.argv = ["keras-resnet", "convert", "cifar10", str(args[0]), "--model", "resnet20"]
main()
"""


@pytest.mark.parametrize("name", ["net.h5", "net.weights.h5", "net.keras", "net.safetensors", "net.pth"])
@pytest.mark.parametrize("room", [0, 500_000])
def test_saved_weights_do_not_fit_on_the_disk(small_disk, name, room):
    (small_disk / "mine").write_bytes(bytes(2**20 - 8192 - room))
    assert_refused(run_limited(SAVE, small_disk / name, memory=2e9), "No space left on device", name)
    assert os.listdir(small_disk) == ["mine"]


@pytest.mark.parametrize("code, name", [(MODEL, "model.keras"), (CONVERT, "net.h5"), (CONVERT, "net.keras")])
def test_models_and_converted_files_do_not_fit_on_the_disk(small_disk, code, name):
    (small_disk / "mine").write_bytes(bytes(2**20 - 8192))
    assert_refused(run_limited(code, small_disk / name, memory=2e9), "No space left on device", name)
    assert os.listdir(small_disk) == ["mine"]
