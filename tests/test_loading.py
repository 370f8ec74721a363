"""Loading weights: downloads from a local server, new heads, adapted channels, and errors that change nothing."""

import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import warnings
from dataclasses import replace

import h5py
import keras
import numpy as np
import pytest
from support import REFERENCES, random_images, randomize_weights, read_arrays

from keras_resnet import ResNet20, build, create, get_spec, load_weights, preprocessing, save_weights
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.weights.catalog import WEIGHTS, PretrainedWeights
from keras_resnet.weights.file_formats import write_arrays
from keras_resnet.weights.weights_file import METADATA_KEY

KEY = ("resnet20_cifar", "imagenet")


def predict(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False))


def logits(model):
    return predict(model, random_images(2, 32, 32, 3))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A ResNet-20 with random weights, and a folder with its files in the layout of torchvision."""
    folder = tmp_path_factory.mktemp("served")
    model = randomize_weights(create("resnet20"))
    save_weights(model, folder / "model.safetensors", layout="torchvision")
    save_weights(model, folder / "weights.pth", layout="torchvision")
    config = {"architecture": "resnet20_cifar", "num_classes": 10}
    config["pretrained_cfg"] = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 1.0}
    (folder / "config.json").write_text(json.dumps(config))
    return model, folder


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the files of a folder at any URL that ends in their name, with the headers that the hub's client needs."""

    def translate_path(self, path):
        return super().translate_path("/" + path.rsplit("/", 1)[-1])

    def end_headers(self):
        self.send_header("ETag", f'"{hashlib.md5(self.path.encode()).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(trained, tmp_path, monkeypatch):
    """URL of a server on 127.0.0.1; Keras's cache is empty."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=trained[1])) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def digest(path):
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def publish(monkeypatch, url, digest):
    monkeypatch.setitem(WEIGHTS, KEY, PretrainedWeights(url, digest, Preprocessing("cifar", 32, None), "MIT", 0.0))


def test_tags_are_downloaded_verified_and_cached(trained, server, monkeypatch, tmp_path, capsys):
    model, folder = trained
    publish(monkeypatch, f"{server}/weights.pth", digest(folder / "weights.pth")[:15])
    loaded = create("resnet20", weights="imagenet", classes=None)
    np.testing.assert_array_equal(logits(loaded), logits(model))
    assert capsys.readouterr().out == ""  # the progress bar is on standard error
    assert preprocessing(loaded) == Preprocessing("cifar", 32, None)
    assert loaded.info["weights"] == "imagenet"
    assert [path.name for path in (tmp_path / "keras" / "models").iterdir()] == ["weights.pth"]
    publish(monkeypatch, "http://127.0.0.1:9/weights.pth", digest(folder / "weights.pth"))  # no server
    np.testing.assert_array_equal(logits(create("resnet20", weights="imagenet")), logits(model))


def test_downloads_with_another_hash_are_removed(server, monkeypatch, tmp_path):
    publish(monkeypatch, f"{server}/weights.pth", "md5:" + "0" * 32)
    with pytest.raises(ValueError, match="hash"):
        create("resnet20", weights="imagenet")
    assert not any((tmp_path / "keras" / "models").iterdir())


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/weights.pth", "/missing.pth"])
def test_failed_downloads_name_alternatives(url, server, monkeypatch, tmp_path):
    publish(monkeypatch, url if url.startswith("http") else server + url, "md5:" + "0" * 32)
    with pytest.raises(ConnectionError, match="pass its path as `weights`"):
        create("resnet20", weights="imagenet")
    assert not any((tmp_path / "keras" / "models").iterdir())


def test_weights_from_the_hub_have_their_preprocessing(trained, server, tmp_path):
    """In another process, since huggingface_hub reads HF_ENDPOINT when it is imported."""
    script = (
        "import sys, keras, numpy, keras_resnet as k; m = k.create('resnet20', weights='hf://timm/resnet20_cifar.test');"
        "print(k.preprocessing(m)); y = m(numpy.load(sys.argv[2]), training=False);"
        "numpy.save(sys.argv[1], keras.ops.convert_to_numpy(y))"
    )
    np.save(tmp_path / "x.npy", random_images(2, 32, 32, 3))
    environment = {**os.environ, "HF_ENDPOINT": server, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "y.npy", tmp_path / "x.npy"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "mean=(0.5, 0.5, 0.5)" in done.stdout and "size=32" in done.stdout
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), logits(trained[0]), rtol=1e-5, atol=1e-6)


def test_hub_repositories_of_other_networks_are_refused():
    with pytest.raises(ValueError, match="hf://timm/resnet50"):
        create("resnet50", weights="hf://timm/resnet101.a1_in1k")


@pytest.mark.portable
def test_another_number_of_classes_keeps_the_body_and_initializes_the_head(trained):
    model, folder = trained
    with pytest.warns(UserWarning, match="10 classes") as caught:
        adapted = create("resnet20", weights=folder / "weights.pth", classes=3)
    assert len(caught) == 1
    features = [keras.Model(m.input, m.get_layer("avg_pool").output) for m in (model, adapted)]
    np.testing.assert_array_equal(*map(logits, features))
    kernel = np.asarray(adapted.get_layer("predictions").kernel)
    assert kernel.shape == (64, 3) and kernel.std() == pytest.approx((2 / 64) ** 0.5, rel=0.2)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_other_input_channels_adapt_the_first_kernel(channels, trained):
    model, folder = trained
    with pytest.warns(UserWarning, match=f"for {channels}") as caught:
        adapted = create("resnet20", weights=folder / "weights.pth", input_shape=(32, 32, channels))
    assert len(caught) == 1
    grey = random_images(2, 32, 32, 1)
    expected = predict(model, np.repeat(grey, 3, axis=-1))
    answer = predict(adapted, np.repeat(grey, channels, axis=-1))
    if channels in (1, 6):  # 2 and 4 do not weigh the colours evenly, as in timm (test_parity.py)
        np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)
    if channels == 1:
        assert preprocessing(adapted).channels == 1
    else:
        with pytest.raises(ValueError, match="mode"):
            preprocessing(adapted)


def test_matching_weights_load_without_warnings(trained):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create("resnet20", weights=trained[1] / "weights.pth")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet32", {}, r"60 missing: conv2_block4_1_conv/kernel"),
        ("resnet20", {"depths": (2, 2, 2)}, r"30 left over: layer1\.2\.conv1\.weight"),
        ("resnet20", {"widths": (16, 32, 48)}, r"of another shape: conv4_block1_1_conv/kernel \(3, 3, 32, 64\), not"),
        ("resnetv2_50", {}, "post-activation"),
    ],
)
def test_weights_of_another_network_are_refused_with_a_list(name, arguments, message, trained):
    with pytest.raises(ValueError, match=message):
        create(name, weights=trained[1] / "weights.pth", **arguments)


@pytest.mark.portable
def test_a_damaged_file_leaves_the_model_unchanged(trained, tmp_path):
    model = randomize_weights(create("resnet20"), seed=3)
    before = logits(model)
    whole = (trained[1] / "weights.pth").read_bytes()
    for name, content in (("half.pth", whole[: len(whole) // 2]), ("empty.pth", b""), ("text.pth", b"<html>")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            load_weights(model, tmp_path / name)
    np.testing.assert_array_equal(logits(model), before)
    load_weights(model, trained[1] / "weights.pth")
    np.testing.assert_array_equal(logits(model), logits(trained[0]))


@pytest.mark.parametrize("preprocessing", [{"mode": "bgr"}, {"mode": 10**5 * "x"}, {"mode": "torch", "size": 0}, {}, 3])
def test_an_invalid_stored_preprocessing_leaves_the_model_unchanged(preprocessing, trained, tmp_path):
    saved = clone_with_info(trained[0], {"preprocessing": preprocessing})
    save_weights(saved, tmp_path / "invalid.safetensors")
    model = randomize_weights(create("resnet20"), seed=3)
    before, info = logits(model), model.info
    with pytest.raises(
        ValueError, match=r"invalid.safetensors` should contain .*(Preprocessing|preprocessing)"
    ) as error:
        load_weights(model, tmp_path / "invalid.safetensors")
    assert len(str(error.value)) < 2000
    np.testing.assert_array_equal(logits(model), before)
    assert model.info == info


def clone_with_info(model, info):
    """A network of the same spec and weights with other `info`."""
    clone = create("resnet20")
    clone.set_weights(model.get_weights())
    clone.info = info
    return clone


def test_a_torch_file_in_the_layout_of_keras_is_refused_with_a_list(trained):
    with pytest.raises(ValueError, match="59 missing|missing.*left over"):
        load_weights(create("resnet20"), trained[1] / "weights.pth", layout="keras")


def test_code_in_a_checkpoint_is_reported_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("torch_malicious.pth", "torch_malicious_legacy.pth"):
        with pytest.raises(ValueError, match="system"):
            create("resnet20", weights=REFERENCES / name)
    assert not any(tmp_path.iterdir())


def test_weights_for_another_stride_placement_are_refused(tmp_path):
    spec = replace(get_spec("resnet50_v1_5"), depths=(1, 1, 1, 1), widths=(4, 8, 8, 8), stem_width=4)
    save_weights(randomize_weights(build(spec, classes=4)), tmp_path / "v1_5.safetensors", layout="torchvision")
    model = build(replace(spec, stride_on="1x1"), classes=4)
    with pytest.raises(ValueError, match="stride_on='3x3'"):
        load_weights(model, tmp_path / "v1_5.safetensors")
    with pytest.raises(ValueError, match="stride_on='3x3'"):
        save_weights(model, tmp_path / "wrong.safetensors", layout="torchvision")
    assert not (tmp_path / "wrong.safetensors").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".h5", ".weights.h5", ".keras"])
@pytest.mark.parametrize("name", ["resnet50", "resnet50_v1_5", "resnet50v2", "resnetv2_50", "resnet50d", "seresnet18"])
def test_saved_files_determine_the_stride_placement(name, suffix, tmp_path):
    """`create` builds the ResNet-50 of the file, whichever of the two is requested."""
    small = {"depths": (1, 1, 1, 1), "widths": (8, 8, 16, 16), "stem_width": 8}
    model = randomize_weights(create(name, classes=4, input_shape=(64, 64, 3), **small))
    save_weights(model, tmp_path / f"out{suffix}")
    requested = {"resnet50": "resnet50_v1_5", "resnet50_v1_5": "resnet50", "resnetv2_50": "resnet50v2"}.get(name, name)
    loaded = create(requested, weights=tmp_path / f"out{suffix}", input_shape=(64, 64, 3), **small)
    x = random_images(2, 64, 64, 3)
    np.testing.assert_allclose(predict(loaded, x), predict(model, x), rtol=1e-5, atol=1e-6)


def test_files_of_older_keras_versions_have_numbered_layers(tmp_path):
    """The first versions of Keras 3 did not store layer names; the names are removed here."""
    model = randomize_weights(create("resnet20", depths=(1, 1, 1)))
    model.save_weights(tmp_path / "old.weights.h5")
    with h5py.File(tmp_path / "old.weights.h5", "r+") as file:
        for group in file["layers"].values():
            del group["vars"].attrs["name"]
    loaded = create("resnet20", weights=tmp_path / "old.weights.h5", depths=(1, 1, 1))
    np.testing.assert_array_equal(logits(loaded), logits(model))


@pytest.mark.parametrize("layout", ["kreas", None])
def test_unknown_and_unsuitable_layouts_are_refused(layout, trained, tmp_path):
    with pytest.raises(ValueError, match="layout"):
        save_weights(trained[0], tmp_path / "out.safetensors", layout=layout)
    assert not any(tmp_path.iterdir())


def test_torch_reads_saved_weights(trained, tmp_path):
    torch = pytest.importorskip("torch")
    state = torch.load(trained[1] / "weights.pth", weights_only=True)
    kernel = np.asarray(trained[0].get_layer("conv3_block2_1_conv").kernel)
    np.testing.assert_array_equal(state["layer2.1.conv1.weight"].numpy(), kernel.transpose(3, 2, 0, 1))


def test_layers_before_an_input_tensor_keep_their_weights(trained):
    inputs = keras.Input((32, 32, 5))
    adapter = keras.layers.Conv2D(3, 1, name="adapter")
    model = create("resnet20", weights=trained[1] / "weights.pth", input_tensor=adapter(inputs))
    x = random_images(2, 32, 32, 5)
    expected = predict(trained[0], keras.ops.convert_to_numpy(adapter(x)))
    np.testing.assert_allclose(predict(model, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("content", ["{}", "[1]", "no JSON", '{"pretrained_cfg": {"mean": 3}}'])
def test_an_unrelated_config_json_is_ignored(content, trained, tmp_path):
    (tmp_path / "weights.pth").write_bytes((trained[1] / "weights.pth").read_bytes())
    (tmp_path / "config.json").write_text(content)
    assert "preprocessing" not in create("resnet20", weights=tmp_path / "weights.pth").info


def test_the_catalog_has_the_hashes_of_keras_applications():
    from keras.src.applications.resnet import WEIGHTS_HASHES

    for name in ("resnet50", "resnet101", "resnet152", "resnet50v2", "resnet101v2", "resnet152v2"):
        row = WEIGHTS[name, "imagenet"]
        assert (row.digest, row.no_top[1]) == tuple(f"md5:{digest}" for digest in WEIGHTS_HASHES[name])


def test_preprocessing_is_known_for_imagenet_classes_and_published_files_only(tmp_path):
    """A file in the layout of torchvision with ten classes may be for any images."""
    small = {"depths": (1, 1, 1, 1), "widths": (4, 8, 8, 8), "stem_width": 4}
    for classes, name, resize in (
        (10, "mine.pth", None),
        (1000, "mine.pth", 256),
        (1000, "resnet50-11ad3fa6.pth", 232),
    ):
        save_weights(create("resnet50_v1_5", classes=classes, **small), tmp_path / name, layout="torchvision")
        model = create("resnet50", weights=tmp_path / name, **small)
        if resize:
            assert preprocessing(model) == Preprocessing("torch", resize=resize)
        else:
            with pytest.raises(ValueError, match="mode"):
                preprocessing(model)


def test_the_config_json_of_timm_determines_the_preprocessing(trained):
    assert preprocessing(create("resnet20", weights=trained[1] / "model.safetensors")).mode.mean == (0.5, 0.5, 0.5)


def test_saved_files_determine_size_and_channels(tmp_path):
    model = randomize_weights(create("resnet20", input_shape=(8, 8, 1)))
    model.info["preprocessing"] = Preprocessing("tf", 8, None, channels=1).to_config()
    for suffix in (".safetensors", ".keras", ".h5", ".weights.h5"):
        save_weights(model, tmp_path / f"grey{suffix}")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = create("resnet20", weights=tmp_path / f"grey{suffix}")
        assert loaded.input_shape == (None, 8, 8, 1)
        assert preprocessing(loaded) == preprocessing(model)
        x = random_images(2, 8, 8, 1)
        np.testing.assert_array_equal(predict(loaded, x), predict(model, x))


def test_saved_files_of_another_network_are_refused(trained, tmp_path):
    """The weights of a plain and of a residual network with shortcut A have the same names and shapes."""
    for suffix in (".safetensors", ".keras"):
        save_weights(trained[0], tmp_path / f"residual{suffix}")
        with pytest.raises(ValueError, match=r"shortcut='A' \(not None\)"):
            create("plain20", weights=tmp_path / f"residual{suffix}")


def test_stored_specs_without_a_field_are_refused(trained, tmp_path):
    spec = trained[0].spec.to_config()
    del spec["merge"]
    write_arrays(
        read_arrays(trained[1] / "model.safetensors"),
        tmp_path / "a.safetensors",
        {METADATA_KEY: json.dumps({"spec": spec})},
    )
    with pytest.raises(ValueError, match=r"not without \['merge'\]"):
        create("resnet20", weights=tmp_path / "a.safetensors")


def test_include_top_none_builds_the_classifier_of_the_file(trained, tmp_path):
    body = create("resnet20", include_top=False, weights=trained[1] / "weights.pth", input_shape=(32, 32, 3))
    save_weights(body, tmp_path / "body.pth", layout="torchvision")
    assert create("resnet20", include_top=None, weights=tmp_path / "body.pth").output_shape == (None, None, None, 64)
    assert create("resnet20", include_top=None, weights=trained[1] / "weights.pth").output_shape == (None, 10)
    with pytest.raises(ValueError, match="include_top=False"):
        create("resnet20", weights=tmp_path / "body.pth")


def test_changes_that_contradict_the_weights_are_refused(trained):
    with pytest.raises(ValueError, match="bn_epsilon"):
        create("resnet20", weights=trained[1] / "weights.pth", bn_epsilon=1e-3)
    assert create("resnet20", weights=trained[1] / "weights.pth", drop_path=0.1).spec.drop_path == 0.1


def test_constructors_take_the_number_of_classes_from_the_weights(trained):
    path = trained[1] / "seven.pth"
    save_weights(randomize_weights(create("resnet20", classes=7)), path, layout="torchvision")
    assert ResNet20(weights=path).output_shape == (None, 7)
    with pytest.warns(UserWarning, match="7 classes"):
        assert ResNet20(weights=path, classes=10).output_shape == (None, 10)
