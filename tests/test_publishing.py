"""Folders in timm's format: written, read back, and uploaded to a server on 127.0.0.1."""

import base64
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from huggingface_hub import ModelCard
from support import REFERENCES, cifar_network, random_images, randomize_weights, read_arrays, run_command

from keras_resnet import (
    Preprocessing,
    ResNetSpec,
    create,
    get_spec,
    load_weights,
    preprocessing,
    push_to_hub,
    save_pretrained,
)
from keras_resnet.normalization import Normalization
from keras_resnet.weights.file_formats import write_arrays
from keras_resnet.weights.repositories import is_repository
from keras_resnet.weights.timm_config import timm_network
from keras_resnet.weights.weights_file import METADATA_KEY

SMALL = {"classes": 3, "input_shape": (64, 64, 3)}


def known(name, mode="torch", **changes):
    """A network with random weights, a preprocessing and class names."""
    model = randomize_weights(create(name, **(SMALL | changes)))
    channels = model.input_shape[-1]
    model.info = {"preprocessing": Preprocessing(mode, 64, 73, channels=channels).to_config()}
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A ResNet-18 for three classes, and its folder."""
    model = known("resnet18")
    model.info |= {"class_names": ["ant", "bee", "cat"], "weights": "trained on insects"}
    results = {"dataset": "insects", "top1_error": 0.25, "top5_accuracy": 1.0, "loss": 3}
    return model, save_pretrained(model, tmp_path_factory.mktemp("hub") / "ants", results, license="mit")


def predict(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False))


def test_a_saved_folder_is_read_back_with_classes_and_preprocessing(saved):
    model, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = create(folder)
    x = random_images(2, 64, 64, 3)
    np.testing.assert_array_equal(predict(loaded, x), predict(model, x))
    assert preprocessing(loaded) == preprocessing(model) and loaded.info["class_names"] == ["ant", "bee", "cat"]
    assert loaded.spec == model.spec and loaded.info["weights"] == "trained on insects"
    with pytest.warns(UserWarning, match="3 classes"):
        assert create(folder, classes=5).output_shape == (None, 5)
    assert create(folder, include_top=False).output_shape == (None, None, None, 512)


def test_the_config_alone_determines_network_preprocessing_and_classes(saved, tmp_path):
    """As in repositories that timm wrote."""
    model, folder = saved
    write_arrays(read_arrays(folder / "model.safetensors"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    loaded = create(tmp_path)
    x = random_images(2, 64, 64, 3)
    np.testing.assert_array_equal(predict(loaded, x), predict(model, x))
    assert preprocessing(loaded) == preprocessing(model) and loaded.info["class_names"] == ["ant", "bee", "cat"]


def test_a_multi_label_network_keeps_its_sigmoid_and_thresholds(tmp_path):
    model = known("resnet18", classifier_activation="sigmoid")
    facts = {"multi_label": True, "thresholds": [0.2, 0.5, 0.7], "class_names": ["ant", "bee", "cat"]}
    model.info |= facts
    folder = save_pretrained(model, tmp_path / "insects", {"mean_average_precision": 0.5})
    loaded, x = create(folder), random_images(2, 64, 64, 3)
    np.testing.assert_array_equal(predict(loaded, x), predict(model, x))
    assert loaded.info.items() >= facts.items()
    copy = create("resnet18", **SMALL)
    load_weights(copy, folder / "model.safetensors")
    np.testing.assert_array_equal(predict(copy, x), predict(model, x))
    with pytest.warns(UserWarning, match="3 classes"):
        new_head = create(folder, classes=5)
    np.testing.assert_allclose(predict(new_head, x).sum(axis=1), 1, rtol=1e-5)
    assert not facts.keys() & new_head.info.keys()
    (result,) = ModelCard.load(folder / "README.md").data.eval_results
    assert (result.metric_type, result.metric_value) == ("mean_average_precision", 0.5)


def test_the_card_has_the_measured_numbers(saved):
    card = ModelCard.load(saved[1] / "README.md")
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values == {"Top 1 Accuracy": 0.75, "Top 5 Accuracy": 1.0}
    assert {result.dataset_name for result in card.data.eval_results} == {"insects"}
    assert card.data.library_name == "timm" and card.data.license == "mit" and "timm" in card.data.tags
    assert "75.00%" in card.text and "11.18 M" in card.text and "timm.create_model" in card.text


def test_a_network_that_timm_lacks_is_saved_in_the_layout_of_keras(tmp_path):
    model = cifar_network(shortcut=None)
    folder = save_pretrained(model, tmp_path / "plain")
    card, config = ModelCard.load(folder / "README.md"), json.loads((folder / "config.json").read_text())
    assert card.data.library_name == "keras" and "timm cannot load" in card.text
    assert config["architecture"] == "keras_resnet/resnet20" and card.data.eval_results is None
    x = random_images(2, 32, 32, 3)
    loaded = create(folder)
    np.testing.assert_array_equal(predict(loaded, x), predict(model, x))
    assert loaded.spec == model.spec


INDEX = json.loads((REFERENCES / "networks" / "index.json").read_text())["timm"]


@pytest.mark.parametrize(
    ("spec", "network"),
    [
        (get_spec("resnet50_v1_5"), "resnet50"),
        (get_spec("resnet50"), None),
        (get_spec("resnet34_a"), None),
        (get_spec("resnet20"), None),
        (ResNetSpec(output_stride=8, drop_path=0.1, kernel_initializer="zeros"), "resnet50"),
        (ResNetSpec(output_stride=4), None),
        (ResNetSpec(depths=(3, 4, 7, 3)), None),
    ],
)
def test_the_network_of_timm_is_found_by_the_spec(spec, network):
    assert timm_network(spec) == network and network in {None, *INDEX}


@pytest.mark.parametrize("size", range(20, 300, 7))
def test_preprocessing_survives_the_format_of_timm(size):
    """timm resizes to floor(size / crop_pct)."""
    for resize in (None, size, size + 1, size * 8 // 7, 2 * size - 1):
        for mode in ("torch", Normalization(divisor=127.5, mean=(1.0,))):
            found = Preprocessing.from_timm(Preprocessing(mode, size, resize, "bicubic").to_timm())
            assert (found.size, found.resize, found.interpolation) == (size, resize, "bicubic")
    np.testing.assert_allclose(found.mode.mean + found.mode.std, [0.5] * 6)
    with pytest.raises(ValueError, match="red, green, blue"):
        Preprocessing("caffe", size).to_timm()
    assert Preprocessing.from_timm(Preprocessing("torch").to_timm()).mode == "torch"


def test_an_existing_folder_is_kept(saved, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="folder"):
            save_pretrained(saved[0], tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match="from 0 to 1"):
        save_pretrained(saved[0], tmp_path / "new", {"top1_accuracy": 75.0})
    with pytest.raises(ValueError, match="mode"):
        save_pretrained(create("resnet20"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_failed_write_leaves_the_folder_as_it_was(saved, tmp_path, monkeypatch):
    folder = save_pretrained(saved[0], tmp_path / "net")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_):
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr("keras_resnet.models.publishing.write_json", fail)
        with pytest.raises(OSError, match="no space"):
            save_pretrained(saved[0], folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    save_pretrained(saved[0], folder, {"top1_accuracy": 0.5}, overwrite=True)
    assert "50.00%" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSON"),
        ("[]", "an object"),
        ('{"architecture": "resnet99", "pretrained_cfg": {}}', "architecture"),
        ('{"architecture": 3}', "architecture"),
        ('{"architecture": "resnet18"}', "preprocessing"),
        ('{"architecture": "resnet18", "model_args": {"layers": [9]}}', "model_args"),
        ('{"architecture": "resnet18", "model_args": {"output_stride": 7}}', "output_stride"),
        ('{"architecture": "resnet18", "label_names": {"0": 1}}', "label_names"),
        (
            '{"architecture": "resnet18", "pretrained_cfg": {"input_size": [3, 9e9, 9e9], "mean": [0], "std": [1]}}',
            "an integer",
        ),
    ],
)
def test_damaged_configs_are_one_clear_error(text, message, saved, tmp_path):
    write_arrays(read_arrays(saved[1] / "model.safetensors"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        create(tmp_path)
    assert "Received" in str(error.value)


@pytest.mark.parametrize("changes", [{"depths": [10**9] * 4}, {"widths": [10**7] * 4}, {"depths": 3}, {"block": 0}])
def test_specs_larger_than_their_file_are_refused_before_anything_is_built(changes, saved, tmp_path):
    spec = saved[0].spec.to_config() | changes
    write_arrays({"a": np.zeros(5)}, tmp_path / "model.safetensors", {METADATA_KEY: json.dumps({"spec": spec})})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="spec"):
        create(tmp_path)


def test_folders_without_the_files_and_weights_beside_a_folder_are_refused(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        create(tmp_path)
    with pytest.raises(ValueError, match="weights"):
        create(saved[1], weights="imagenet")
    with pytest.raises(ValueError, match="user/name"):
        create("hf://resnet18")


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet20", "FasterRCNN_ResNet50_FPN", "localizer_resnet18", "FCN_ResNet18"]
)
def test_a_name_of_a_network_is_not_that_of_a_folder(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert not is_repository(name) and is_repository(f"./{name}")


class Hub(http.server.BaseHTTPRequestHandler):
    """The requests of a commit as huggingface_hub sends them; files arrive in the commit or, large ones, by LFS."""

    files: dict = {}

    def do_GET(self):
        self.answer({})

    def do_PUT(self):
        Hub.files[self.path.rpartition("/")[2]] = self.body()
        self.answer({})

    def do_POST(self):
        body, url = self.body(), f"http://{self.headers['Host']}"
        if self.path.endswith("/repos/create"):
            return self.answer({"url": f"{url}/me/net", "name": "me/net"})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = {"model.safetensors": "lfs"}
            found = [
                {"path": file["path"], "uploadMode": modes.get(file["path"], "regular"), "shouldIgnore": False}
                for file in files
            ]
            return self.answer({"files": found})
        if self.path.endswith("/objects/batch"):
            upload = [
                {**each, "authenticated": True, "actions": {"upload": {"href": f"{url}/lfs/model.safetensors"}}}
                for each in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": upload})
        if "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    Hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer({"commitUrl": f"{url}/me/net/commit/1", "commitOid": "1" * 40, "success": True})
        return self.answer({})

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, values):
        content = json.dumps(values).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def test_push_to_hub_uploads_the_files_that_save_pretrained_writes(saved, tmp_path):
    """In another process, since huggingface_hub reads HF_ENDPOINT when it is imported."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        script = "import sys, keras_resnet as k; print(k.push_to_hub(k.create(sys.argv[1]), 'me/net', token='hf_x'))"
        environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", script, saved[1]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        server.shutdown()
    assert done.returncode == 0 and done.stdout.strip() == f"{url}/me/net/commit/1", done.stderr
    assert Hub.files["config.json"] == (saved[1] / "config.json").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(Hub.files["model.safetensors"])
    (tmp_path / "config.json").write_bytes(Hub.files["config.json"])
    x = random_images(1, 64, 64, 3)
    np.testing.assert_array_equal(predict(create(tmp_path), x), predict(saved[0], x))


def test_the_command_publishes_a_trained_network(saved, tmp_path):
    saved[0].save(tmp_path / "model.keras")
    (tmp_path / "report.json").write_text(json.dumps({"dataset": "insects", "top1_accuracy": 0.5}))
    command = ("publish", tmp_path / "model.keras", tmp_path / "ants", "--report", tmp_path / "report.json")
    done = run_command(*command)
    assert done.exit_code == 0 and "README.md, config.json, model.safetensors" in " ".join(done.output.split())
    assert "Accuracy on insects | 50.00%" in (tmp_path / "ants" / "README.md").read_text()
    assert "overwrite" in run_command(*command).output


def test_an_upload_that_fails_is_a_connection_error(saved, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.HfApi.create_repo", lambda *_, **__: (_ for _ in ()).throw(OSError("no route"))
    )
    with pytest.raises(ConnectionError, match=r"me/net.*no route"):
        push_to_hub(saved[0], "me/net")
    assert Path(saved[1]).exists()
