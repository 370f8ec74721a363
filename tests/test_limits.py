"""Numbers that no machine can carry out: one message, exit status 1, and no file is written."""

import pytest
from support import cifar_network

from keras_resnet import Recipe, get_recipe

HUGE = "9" * 24
COMMANDS = [
    ("train", "--devices", "100000"),
    ("train", "--devices", HUGE),
    ("train", "--set", f"epochs={HUGE}"),
    ("train", "--set", f"epochs={'9' * 5000}"),
    ("train", "--set", "epochs=1e400"),
    ("train", "--set", f"scale={'[' * 5000}"),
    ("train", "--set", f"iterations={HUGE}"),
    ("train", "--set", f"batch_size={HUGE}"),
    ("train", "--set", f"learning_rate={HUGE * 20}"),
    ("train", "--set", f"padding={HUGE}"),
    ("train", "--size", HUGE),
    ("train", "--seed", HUGE),
    ("train", "--seed", "-1"),
    ("train", "--checkpoint-every", HUGE),
    ("train", "--validation-freq", HUGE),
    ("train", "--patience", HUGE),
    ("train", "--validation-split", HUGE),
    ("tune", "--devices", "100000"),
    ("tune", "--trials", HUGE),
    ("tune", "--seed", HUGE),
    ("tune", "--set", f"epochs={HUGE}"),
    ("tune", "--validation-split", HUGE),
    ("finetune", "--dataset", "digits", "--devices", "100000"),
    ("finetune", "--dataset", "digits", "--set", f"epochs={HUGE}"),
    ("finetune", "--dataset", "digits", "--model", "resnet20", "--weights", "none", "--head-epochs", HUGE),
    ("finetune", "--dataset", "digits", "--model", "resnet20", "--weights", "none", "--stages", HUGE),
    ("study", "degradation", "--devices", "100000"),
    ("study", "degradation", "--set", f"epochs={HUGE}"),
    ("study", "degradation", "--images", f"{HUGE},10"),
    ("study", "degradation", "--images", "999999999,10"),
    ("study", "degradation", "--depths", f"20,{'9' * 5000}"),
    ("study", "learning-rate", "--steps", HUGE),
    ("study", "learning-rate", "--devices", "100000"),
    ("study", "learning-rate", "--highest", "1e308"),
    ("benchmark", "--batch-size", "100000000"),
    ("benchmark", "--image-size", HUGE),
    ("benchmark", "--rounds", HUGE),
    ("benchmark", "--steps", HUGE),
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words)[:60])
def test_a_command_with_an_impossible_number_is_one_message(words, ended, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, answer, said = ended(*words)
    assert status == 1 and not answer and said.startswith("error: ") and said.count("\n") == 1, said
    assert "Received: " in said and len(said) < 1000
    assert not list(tmp_path.iterdir())


def test_features_of_impossible_batches(ended, tmp_path, image_folder, monkeypatch):
    model = tmp_path / "net.keras"
    cifar_network().save(model)
    for size in (100_000_000, int(HUGE), 0):
        status, _, said = ended("features", image_folder, "out.npz", "--model", model, "--batch-size", size)
        assert status == 1 and said.startswith("error: `batch_size` should be an integer from 1 to 174,762. "), said
        assert not list(tmp_path.glob("out*"))


def test_the_largest_runs():
    assert Recipe(epochs=50_000, batch_size=100).steps(1_281_167) == (12_811, 640_550_000)
    with pytest.raises(ValueError, match="`epochs` of a recipe should be short enough for 1,000,000,000 steps"):
        get_recipe("quickstart", epochs=50_000, batch_size=1).steps(1_281_167)
    with pytest.raises(ValueError, match="`iterations` of a recipe should be short enough.*50,000 epochs of 2 steps"):
        get_recipe("quickstart", iterations=100_001, batch_size=500).steps(1_437)
