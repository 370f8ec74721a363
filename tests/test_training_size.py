"""What `train`, `finetune` and the study start from: the size of the images, pretrained weights, the network."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from PIL import Image
from support import CIFAR_PREPROCESSING, cifar_network, png_bytes, run_command

from keras_resnet import (
    Recipe,
    ResNetSpec,
    create,
    finetune,
    from_arrays,
    get_recipe,
    get_spec,
    load_dataset,
    load_model,
    predict,
    preprocessing,
    save_weights,
    train,
)
from keras_resnet.analysis.costs import layer_costs, total_cost
from keras_resnet.data.datasets import Dataset, Split, default_preprocessing
from keras_resnet.data.pipelines import evaluation_batches
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.studies.degradation import degradation
from keras_resnet.training.model_setup import Start, build_for_images, model_for_images, network_name_and_spec
from keras_resnet.training.recipes import RECIPES
from keras_resnet.training.run_summary import describe_run

SMALL = ResNetSpec("basic", (1, 1), (4, 8), stem="cifar", stem_width=4)
LARGE = replace(SMALL, stem="imagenet")
STEPS = {"iterations": 1, "batch_size": 8}
NAMES = ("ants", "bees")


def pixels(count, side):
    return np.random.default_rng(side).integers(0, 256, (count, side, side, 3), "uint8")


def files(side=32):
    """A Dataset of files that may have any size, as `load_folder` returns it."""
    images = np.array([png_bytes(image) for image in pixels(16, side)], object)
    split = Split(images, np.arange(16, dtype="int32") % 2)
    return Dataset("files", split, split, NAMES, default_preprocessing((None, None, 3)))


def arrays(side=32):
    part = pixels(16, side), np.arange(16) % 2
    return from_arrays(part, part, NAMES)


@pytest.mark.parametrize(
    ("spec", "dataset", "size", "changes", "expected"),
    [
        # (test size, shorter side before the crop, training size): the user, the recipe, the images, the network
        (SMALL, files(), None, {}, (32, 32, 32)),
        (LARGE, files(), None, {}, (224, 256, 224)),
        (SMALL, arrays(20), None, {}, (20, None, 20)),
        (LARGE, arrays(40), None, {}, (40, None, 40)),
        (LARGE, files(), None, {"test_size": 64}, (64, 73, 64)),
        (LARGE, files(), None, {"train_size": 48, "test_size": 64, "test_resize": 70}, (64, 70, 48)),
        (SMALL, arrays(20), None, {"test_size": 24}, (24, None, 24)),
        (LARGE, files(), 96, {}, (96, 109, 96)),
        (LARGE, files(), 96, {"train_size": 176, "test_size": 224, "test_resize": 232}, (96, 99, 96)),
        (SMALL, arrays(20), 12, {"test_size": 24}, (12, None, 12)),
    ],
)
def test_size_is_that_of_the_user_the_recipe_the_images_or_the_network(spec, dataset, size, changes, expected):
    recipe = get_recipe(Recipe(epochs=1, **changes), size=size)
    model, dataset = build_for_images(spec, dataset, recipe)
    found = dataset.preprocessing
    assert (found.size, found.resize, recipe.train_size or found.size) == expected
    side = expected[0] if expected[0] == expected[2] else None
    assert model.input_shape == (None, side, side, 3)


def test_files_of_the_size_of_a_small_network_are_not_resized():
    """Pixel by pixel, in testing as in training."""
    _, dataset = build_for_images("resnet20", files(32), get_recipe("quickstart"))
    prepared = keras.ops.convert_to_numpy(next(iter(evaluation_batches(dataset.test, dataset, 16)))[0])
    mean, std = (np.array(values) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    np.testing.assert_allclose(prepared, (pixels(16, 32) / 255 - mean) / std, rtol=1e-4, atol=1e-5)


def test_scale_jitter_and_shares_follow_the_size():
    """Half the size of the recipe: everything in pixels is halved, and given fields win."""
    recipe = get_recipe("he2015_imagenet", size=112)
    assert (recipe.train_size, recipe.test_size, recipe.test_resize, recipe.scale) == (112, 112, 128, (128, 240))
    assert get_recipe("torchvision_v2", size=112).scale == (0.08, 1.0)
    assert get_recipe("he2015_imagenet", size=112, train_size=80).train_size == 80
    with pytest.raises(ValueError, match="`size` should be an integer from 1 to 8,192"):
        get_recipe("quickstart", size=0)


def test_a_step_is_described_before_the_first_one(capsys):
    """Its multiply-adds are those that are counted in the layers of the built model."""
    run = train(SMALL, files(), "quickstart", size=24, **STEPS)
    text, cost = capsys.readouterr().err, 8 * total_cost(layer_costs(run.model)).multiply_adds
    assert text.partition("\n")[0] == (
        "resnet: 16 training and 16 test images, 24x24 pixels; 8 images a step, "
        f"{cost / 1e9:,.4g} G multiply-adds forward"
    )
    recipe = get_recipe("torchvision_v2", batch_size=8, train_size=40, test_size=64)
    assert "40x40 pixels in training, 64x64 in testing; 8 images" in describe_run(
        *build_for_images("resnet18", files(), recipe), recipe
    )


def test_a_study_and_the_commands_train_small_networks_on_small_images(tmp_path):
    for name, split in (("train", 16), ("val", 8)):
        for index, image in enumerate(pixels(split, 32)):
            path = tmp_path / "images" / name / NAMES[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    started = []

    def stop_at_the_second(text):
        if started:
            raise KeyboardInterrupt
        started.append(text)

    study = {"depths": (20, 32), "recipe": Recipe(**STEPS), "progress": stop_at_the_second}
    with pytest.raises(KeyboardInterrupt):
        degradation(tmp_path / "study", dataset=lambda: load_dataset(tmp_path / "images"), **study)
    model = tmp_path / "study" / "plain20" / "model.keras"
    assert load_model(model).input_shape == (None, 32, 32, 3)
    words = ("--set", "iterations=1", "--set", "batch_size=8", "--dataset", tmp_path / "images")
    done = run_command("train", "--model", model, "--size", 40, *words, "--workdir", tmp_path / "run")
    assert done.exit_code == 0, done.output
    trained = load_model(tmp_path / "run" / "model.keras")
    assert trained.input_shape == (None, 40, 40, 3) and preprocessing(trained).resize == 40


@pytest.fixture
def pretrained(tmp_path):
    """Weights of a network for ten classes, and its ResNetSpec's changes."""
    network = cifar_network()
    network.info["preprocessing"] = replace(CIFAR_PREPROCESSING, mode="tf", resize=40).to_config()
    save_weights(network, tmp_path / "weights.safetensors")
    network.save(tmp_path / "network.keras")
    return network


FROZEN = {"learning_rate": 1e-12, "weight_decay": 0.0, **STEPS}
"""A recipe that leaves all weights as they are, except statistics."""


@pytest.mark.parametrize("size, shape, resize", [(None, 32, 40), (48, 48, 60)])
def test_train_from_a_keras_file_keeps_weights_and_preprocessing(size, shape, resize, pretrained, tmp_path):
    """For other classes it has a new classifier; it is trained at the size of its weights, or the given one."""
    with pytest.warns(UserWarning, match="classifier of resnet20 for 2 classes is new"):
        run = train(tmp_path / "network.keras", files(), "quickstart", size=size, **FROZEN)
    assert preprocessing(run.model) == Preprocessing("tf", size=shape, resize=resize)
    assert run.model.output_shape == (None, 2) and run.model.input_shape == (None, shape, shape, 3)
    for layer in run.model.layers[:-1]:
        if isinstance(layer, keras.layers.Conv2D):
            np.testing.assert_allclose(layer.kernel, pretrained.get_layer(layer.name).kernel, atol=1e-6)


def test_a_classifier_of_the_same_classes_stays(pretrained, tmp_path):
    names = [f"c{i}" for i in range(10)]
    part = pixels(20, 32), np.arange(20) % 10
    dataset = from_arrays(part, part, names)
    pretrained.info["class_names"] = names
    pretrained.save(tmp_path / "named.keras")
    run = train(tmp_path / "named.keras", dataset, "quickstart", **FROZEN)
    np.testing.assert_allclose(run.model.layers[-1].kernel, pretrained.layers[-1].kernel, atol=1e-6)
    with pytest.warns(UserWarning, match="classifier"):
        run = train(tmp_path / "named.keras", replace(dataset, class_names=tuple(names[::-1])), "quickstart", **FROZEN)
    assert not np.allclose(run.model.layers[-1].kernel, pretrained.layers[-1].kernel, atol=1e-3)


@pytest.mark.filterwarnings("ignore:The classifier")
def test_a_run_resumes_only_with_the_same_weights(tmp_path):
    dataset, weights = files(), "cifar10"
    options = {"workdir": tmp_path / "run", "batch_size": 8, "checkpoint_every": 1}
    run = train("resnet20", dataset, "quickstart", weights=weights, iterations=1, **options)
    again = train("resnet20", dataset, "quickstart", weights=weights, iterations=1, resume=True, **options)
    for ours, theirs in zip(again.model.get_weights(), run.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    other = create("resnet20", weights="cifar10")
    other.layers[1].set_weights([2 * array for array in other.layers[1].get_weights()])
    save_weights(other, tmp_path / "other.safetensors")
    for changed in (tmp_path / "other.safetensors", None):
        with pytest.raises(ValueError, match="same settings; (preprocessing|weights_sha256)"):
            train("resnet20", dataset, "quickstart", weights=changed, iterations=1, resume=True, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": SMALL, "weights": "cifar10"}, "`weights` should be left out, unless the model is the name"),
        ({"model": "network.keras", "weights": "cifar10"}, "`weights` should be left out"),
        ({"model": "missing.keras"}, "existing .keras file"),
        ({"model": "resnet20", "weights": "cifar11"}, "`weights` should be"),
        ({"model": "resnet20", "weights": "cifar10", "size": 7}, "at least 8 for resnet20"),
        ({"model": "network.keras", "train_size": 7}, "at least 8 for resnet20"),
        ({"model": SMALL, "size": 7}, "at least 8x8"),
        ({"model": "network.keras", "precision": "bfloat16"}, "`precision` should be left out"),
    ],
)
@pytest.mark.filterwarnings("ignore:The classifier")
def test_starts_that_are_refused(arguments, message, pretrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exception = FileNotFoundError if "missing" in str(arguments["model"]) else ValueError
    with pytest.raises(exception, match=message):
        train(**arguments, dataset=files(), workdir="run", **STEPS)
    assert not (tmp_path / "run").exists()


def test_fine_tuning_at_another_size(pretrained, tmp_path):
    """By `size`, or by fields of the recipe; the crop share is that of the weights."""
    options = {"stages": 0, "epochs": 1, "batch_size": 8}
    for changes in ({"size": 48}, {"train_size": 48, "test_size": 48}):
        result = finetune(tmp_path / "network.keras", files(), **options, **changes)
        assert preprocessing(result.model) == Preprocessing("tf", size=48, resize=60)
        assert result.model.input_shape == (None, 48, 48, 3)
    image = tmp_path / "image.png"
    image.write_bytes(png_bytes(pixels(1, 50)[0]))
    assert predict(result.model, image)[0].classes[0][1] in NAMES
    result = finetune("resnet20", files(), weights=None, **options)
    assert result.model.input_shape == (None, 32, 32, 3), "a new network has the size for which it was designed"


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnet152"])
@pytest.mark.parametrize("recipe", [name for name, row in RECIPES.items() if row.task == "classification"])
def test_recipes_of_torchvision_and_timm_build_v1_5(recipe, name):
    expected = f"{name}_v1_5" if recipe.startswith(("torchvision", "rsb")) else name
    assert network_name_and_spec(name, get_recipe(recipe)) == (expected, get_spec(expected))
    assert network_name_and_spec("resnet18", get_recipe(recipe)) == ("resnet18", get_spec("resnet18"))


def test_a_torch_file_holds_what_recipes_of_torch_train(tmp_path):
    """For others, the refusal names the network that it could hold."""
    data, changes = arrays(32), {"train_size": 32, "test_size": 32, "test_resize": 36, "drop_path": 0.0}
    recipe = get_recipe("rsb_a2", **changes)
    network, dataset = model_for_images(Start("resnet50"), data, recipe)
    save_weights(network, tmp_path / "resnet50.pth", layout="torchvision")
    assert "resnet50_v1_5 (stride on the 3x3, without biases): 16" in describe_run(network, dataset, recipe)
    recipe = get_recipe("quickstart")
    network, dataset = model_for_images(Start("resnet50"), data, recipe)
    assert "resnet50 (stride on the 1x1, with biases): 16" in describe_run(network, dataset, recipe)
    with pytest.raises(ValueError, match=r"conv_bias=False.*`create\('resnet50_v1_5'\)` builds such a model"):
        save_weights(network, tmp_path / "other.pth", layout="torchvision")
    assert not (tmp_path / "other.pth").exists()
