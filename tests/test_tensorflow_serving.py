"""The example for TensorFlow Serving, with a stand-in server that has its REST format and runs the real SavedModel."""

import base64
import json
import re
import runpy
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tensorflow as tf

import keras_resnet

EXAMPLE = Path(__file__).parents[1] / "examples" / "tensorflow_serving.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture
def example(monkeypatch, capsys):
    """A function that runs the example with arguments and returns its output."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", [EXAMPLE.name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def exported(folder, example):
    """(FOLDER/resnet20/1, the command that serves it), written once."""
    target, command = folder / "resnet20" / "1", folder / "command.txt"
    if not target.exists():
        command.write_text(example("--folder", folder))
    return target, command.read_text()


@pytest.fixture
def server(exported):
    """URL of a server with the REST format of https://www.tensorflow.org/tfx/serving/api_rest, by rows."""
    target, _ = exported
    signatures = tf.saved_model.load(str(target)).signatures

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            try:
                assert self.path == "/v1/models/resnet20:predict", f"Servable not found: {self.path}"
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                files = [base64.b64decode(row["b64"]) for row in request["instances"]]
                (outputs,) = signatures[request["signature_name"]](image_bytes=tf.constant(files)).values()
                status, answer = 200, {"predictions": outputs.numpy().tolist()}
            except (AssertionError, tf.errors.InvalidArgumentError) as error:
                status, answer = 400, {"error": str(error)}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_a_server_finds_the_network_and_its_signature(exported):
    target, command = exported
    assert f"-v {target.parent}:/models/resnet20 " in command and "MODEL_NAME=resnet20 " in command
    outputs = tf.saved_model.load(str(target)).signatures["serve_bytes"].structured_outputs
    assert outputs["probabilities"].shape.as_list() == [None, 10]


@pytest.mark.slow
def test_tensorflows_tool_shows_the_signature(exported):
    target, _ = exported
    tool = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "show", "--dir", target]
    options = ["--tag_set", "serve", "--signature_def", "serve_bytes"]
    shown = subprocess.run([*tool, *options], capture_output=True, text=True).stdout
    assert re.search(r"inputs\['image_bytes'\] tensor_info:\s+dtype: DT_STRING\s+shape: \(-1\)", shown), shown
    assert re.search(r"outputs\['probabilities'\] tensor_info:\s+dtype: DT_FLOAT\s+shape: \(-1, 10\)", shown), shown


def test_the_server_predicts_the_same_for_an_image_file(server, example, test_data):
    photo = min((test_data / "hymenoptera" / "val" / "bees").glob("*.jpg"))
    rows = re.findall(r"^(\w+) +([\d.]+)%$", example("--ask", server, photo), re.MULTILINE)
    (expected,) = keras_resnet.predict(keras_resnet.create("resnet20", weights="cifar10"), photo, top=10)
    percentages = {name: 100 * probability for _, name, probability in expected.classes}
    assert len(rows) == 5 and rows[0][0] == next(iter(percentages))
    for name, percentage in rows:  # TensorFlow's resizing rounds differently from Pillow's
        assert float(percentage) == pytest.approx(percentages[name], abs=2)


def test_the_error_of_a_server_is_shown(server, example, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="error"):
        example("--ask", server, tmp_path / "broken.jpg")
