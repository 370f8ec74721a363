"""The example for TensorFlow Serving, against a stand-in that speaks its REST format and runs the real SavedModel."""

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
    """Runs it with arguments; returns what it prints."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", [EXAMPLE.name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def written(folder, example):
    """FOLDER/resnet20/1, and the line that serves it; written once."""
    target, line = folder / "resnet20" / "1", folder / "line.txt"
    if not target.exists():
        line.write_text(example("--folder", folder))
    return target, line.read_text()


@pytest.fixture
def server(written):
    """Answers as https://www.tensorflow.org/tfx/serving/api_rest has it, row format; yields its URL."""
    target, _ = written
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


def test_a_server_finds_the_network_where_the_line_says(written):
    target, line = written
    assert f"-v {target.parent}:/models/resnet20 " in line and "MODEL_NAME=resnet20 " in line
    tool = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "show", "--dir", target]
    options = ["--tag_set", "serve", "--signature_def", "serve_bytes"]
    shown = subprocess.run([*tool, *options], capture_output=True, text=True).stdout
    assert re.search(r"inputs\['image_bytes'\] tensor_info:\s+dtype: DT_STRING\s+shape: \(-1\)", shown), shown
    assert re.search(r"outputs\['probabilities'\] tensor_info:\s+dtype: DT_FLOAT\s+shape: \(-1, 10\)", shown), shown


def test_a_server_says_of_a_image_file_what_predict_says(server, example, test_data):
    photo = min((test_data / "hymenoptera" / "val" / "bees").glob("*.jpg"))
    said = re.findall(r"^(\w+) +([\d.]+)%$", example("--ask", server, photo), re.MULTILINE)
    (expected,) = keras_resnet.predict(keras_resnet.create("resnet20", weights="cifar10"), photo, top=10)
    shares = {name: 100 * share for _, name, share in expected.classes}
    assert len(said) == 5 and said[0][0] == next(iter(shares))
    for name, share in said:  # TensorFlow's resizing rounds in other places than Pillow's
        assert float(share) == pytest.approx(shares[name], abs=2)


def test_a_server_that_refuses_is_quoted(server, example, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="error"):
        example("--ask", server, tmp_path / "broken.jpg")
