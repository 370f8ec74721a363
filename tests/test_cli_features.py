"""`keras-resnet features`, `probe`, `nearest` and `finetune`."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics.pairwise import cosine_similarity
from support import digits_network, run_command

from keras_resnet import load_dataset
from keras_resnet.transfer import extract, read_features


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A network, class folders with 10 training and 4 test images of three digits, and the feature files of both."""
    folder = tmp_path_factory.mktemp("transfer")
    digits_network().save(folder / "small.keras")
    data = load_dataset("digits")
    for part, split, count in (("train", data.train, 10), ("val", data.test, 4)):
        for label, name in enumerate(("zero", "one", "two")):
            (folder / "digits" / part / name).mkdir(parents=True)
            for number, image in enumerate(split.images[split.labels == label][:count]):
                Image.fromarray(image[..., 0]).save(folder / "digits" / part / name / f"{number}.png")
    for part in ("train", "val"):
        done = run_command(
            "features", folder / "digits" / part, folder / f"{part}.npz", "--model", folder / "small.keras"
        )
        assert done.exit_code == 0, done.output
    return folder


def error_of(*words):
    """The message, on one line, of a command that ends with exit status 1."""
    done = run_command(*words)
    assert done.exit_code == 1, done.output
    return " ".join(done.stderr.split())


def test_features_equal_those_of_extract(home):
    found = read_features(home / "train.npz")
    expected = extract(digits_network(), home / "digits" / "train")
    np.testing.assert_array_equal(found.vectors, expected.vectors)
    assert found.class_names == ("one", "two", "zero") and found.names[0] == "one/0.png"


def test_unreadable_files_are_listed_and_make_the_exit_status_1(home, tmp_path):
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((8, 8), "uint8")).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"no image")
    words = ("features", tmp_path, tmp_path / "out.npz", "--model", home / "small.keras", "--json")
    assert "`vectors` should be at least four" in error_of(*words, "--map", tmp_path / "map.png")
    assert "c.png: " in error_of(*words)
    assert read_features(tmp_path / "out.npz").names == ("a.png", "b.png")


def test_probe_and_nearest(home):
    words = (home / "train.npz", home / "val.npz")
    said = json.loads(run_command("probe", *words, "-k", 3, "--json").stdout)
    assert set(said) == {"linear probe", "3 nearest neighbours"}
    table = run_command("probe", *words, "-k", 3).stdout
    assert all(f"{found['top1_accuracy']:.2%} of 12" in table for found in said.values())

    train = read_features(home / "train.npz")
    cosines = cosine_similarity(train.vectors)[train.names.index("two/3.png")]
    best = [number for number in np.argsort(-cosines) if train.names[number] != "two/3.png"][:4]
    answers = json.loads(run_command("nearest", home / "train.npz", "two/3.png", "-k", 4, "--json").stdout)
    np.testing.assert_allclose([answer["cosine"] for answer in answers], cosines[best], atol=1e-5)
    assert "two/3.png" not in [answer["name"] for answer in answers]


def test_finetune_then_predict_with_class_names(home):
    words = ("--model", home / "small.keras", "--dataset", home / "digits", "--workdir", home / "run", "--stages", 1)
    done = run_command("finetune", *words, "--set", "epochs=1", "--set", "crop=none", "--set", "flip=false")
    assert "head" in done.stdout and "stage3" in done.stdout and "(kept)" in done.stdout
    report = json.loads((home / "run" / "report.json").read_text())
    assert report["phases"]["head"]["recipe"]["batch_size"] == 30, "no larger than there are images"
    image = home / "digits" / "val" / "one" / "0.png"
    answer = json.loads(run_command("predict", image, "--model", home / "run" / "model.keras", "--json").stdout)
    assert {row["name"] for row in answer[0]["classes"]} == {"zero", "one", "two"}
    assert Image.open(home / "run" / "grad_cam.png").size[0] > 100
    assert "overwrite" in error_of("finetune", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["features", "{home}/nowhere", "out.npz"], "`folder` should be a folder of images"),
        (["features", "{home}/digits", "out.txt"], "ends in .npz"),
        (["features", "{home}/digits", "out.npz", "--endpoint", "stage9"], "stage3"),
        (["features", "{home}/digits", "out.npz", "--pooling", "mean"], "avg"),
        (["features", "{home}/digits", "{home}/train.npz"], "--overwrite"),
        (["finetune", "--dataset", "{home}/digits/train/one"], "a folder for each class"),
        (["finetune", "--dataset", "{home}/digits", "--stages", "9"], "`stages` should be an integer from 0 to 4"),
        (["finetune", "--dataset", "{home}/digits", "--batch-norm", "off"], "frozen"),
        (["finetune", "--dataset", "{home}/digits", "--weights", "imagenet_"], "`weights` should be left out"),
    ],
)
def test_invalid_input_is_one_message(home, words, message, tmp_path):
    words = [word.format(home=home).replace("out.", f"{tmp_path}/out.") for word in words]
    workdir = ["--workdir", tmp_path / "run"] if words[0] == "finetune" else []
    assert message in error_of(*words, *workdir, "--model", home / "small.keras")
    assert not list(tmp_path.iterdir())


def test_features_with_other_settings_are_not_compared(home, tmp_path):
    digits_network(1).save(tmp_path / "other.keras")
    run_command("features", home / "digits" / "val", tmp_path / "other.npz", "--model", tmp_path / "other.keras")
    assert "the same network" in error_of("probe", home / "train.npz", tmp_path / "other.npz")
    with np.load(home / "val.npz") as file:
        arrays = dict(file)
    for name in ("preprocessing", "precision"):
        settings = json.loads(str(arrays["settings"])) | {name: "another one"}
        np.savez(tmp_path / "other.npz", **arrays | {"settings": np.array(json.dumps(settings))})
        assert f"Received: {{'{name}': [" in error_of("probe", home / "train.npz", tmp_path / "other.npz")
    assert "one image" in error_of("nearest", home / "train.npz", "3.png")


def test_class_folders_of_train_and_val_must_agree(home, tmp_path):
    for name in ("train/a", "train/b", "val/a", "val/c"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(np.zeros((8, 8), "uint8")).save(tmp_path / "set" / name / f"{number}.png")
    words = ("finetune", "--dataset", tmp_path / "set", "--model", home / "small.keras", "--workdir", tmp_path / "run")
    assert "classes" in error_of(*words)
    (tmp_path / "one" / "a").mkdir(parents=True)
    Path(tmp_path / "set" / "train" / "a" / "0.png").rename(tmp_path / "one" / "a" / "0.png")
    words = (*words[:2], tmp_path / "one", *words[3:])
    assert "class" in error_of(*words) and not (tmp_path / "run").exists()
