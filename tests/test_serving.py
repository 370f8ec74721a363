"""The examples that serve a network, in processes of their own: a web page in a real browser, and an HTTP server."""

import base64
import io
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import keras_resnet
from keras_resnet import analysis
from keras_resnet.cli import app
from keras_resnet.data.image_files import load_image
from keras_resnet.detection import KerasDetector
from keras_resnet.drawing import draw_detections

EXAMPLES = Path(__file__).parents[1] / "examples"
needs_gradio = pytest.mark.skipif(not find_spec("gradio"), reason="gradio is not installed")
needs_fastapi = pytest.mark.skipif(
    not (find_spec("fastapi") and find_spec("hypercorn")), reason="fastapi and hypercorn are not installed"
)


@pytest.fixture(scope="module")
def network():
    return keras_resnet.create("resnet20", weights="cifar10")


@pytest.fixture(scope="module")
def photos(test_data):
    """Eight photographs of ants."""
    return sorted((test_data / "hymenoptera" / "val" / "ants").glob("*.jpg"))[:8]


@pytest.fixture(scope="module")
def detector():
    """A small detector with random weights, which finds objects in any image."""
    changes = {"neck_width": 8, "min_size": 64, "max_size": 96, "detections": 3}
    model = keras_resnet.create("fasterrcnn_resnet18_fpn", classes=3, **changes)
    bias = np.array([0, 0, 9], "float32")
    model.get_layer("box_scores").bias.assign(bias)  # all scores are above 0.5
    model.info["class_names"] = ["__background__", "cell", "<b>nucleus</b>"]
    return model


@contextmanager
def running_example(folder, name, *arguments):
    """An example in a process of its own -> (URL, file with its output), as soon as it responds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}/", folder / "log.txt"
    command = [sys.executable, EXAMPLES / name, *arguments, "--port", str(port)]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(folder / "gradio")}
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    try:
        while not responds(url):
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        yield url, log
    finally:
        process.terminate()
        process.wait()


def responds(url):
    try:
        return urllib.request.urlopen(url, timeout=30).status == 200
    except OSError:
        return False


def predicted_rows(path):
    """[(class, percentage)] as `keras-resnet predict` prints them."""
    result = CliRunner().invoke(app, ["predict", str(path), "--model", "resnet20", "--weights", "cifar10"])
    return re.findall(r"(\w+) +([\d.]+%) *$", result.output, re.MULTILINE)


@pytest.fixture
def browser():
    """Debian's Chromium, headless."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not (chromium := shutil.which("chromium")):
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


def drop_file(page, path):
    """Drops a file on the page, as a mouse would, and waits for the answer."""
    script = """([name, data]) => {
        const content = Uint8Array.from(atob(data), letter => letter.charCodeAt(0)), transfer = new DataTransfer()
        transfer.items.add(new File([content], name, {type: "image/jpeg"}))
        return transfer
    }"""
    transfer = page.evaluate_handle(script, [path.name, base64.b64encode(path.read_bytes()).decode()])
    page.get_by_text("Drop File Here").dispatch_event("drop", {"dataTransfer": transfer})
    page.locator("#answer").get_by_role("paragraph").or_(page.locator("#answer tr").first).wait_for()


@needs_gradio
@pytest.mark.slow
def test_the_page_shows_the_results_of_predict_and_grad_cam(browser, network, photos, tmp_path):
    (photo, *_), requests = photos, []
    with running_example(tmp_path, "browser_page.py") as (url, log):
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.on("request", lambda request: requests.append(request.url))
        page.goto(url)
        drop_file(page, photo)
        rows = [tuple(row.split("\t")[::2]) for row in page.locator("#answer tr").all_inner_texts()]
        assert len(rows) == 5 and [(name.strip(), percentage.strip()) for name, percentage in rows] == predicted_rows(
            photo
        )

        source = page.get_by_alt_text(f"Grad-CAM of {rows[0][0].strip()}").get_attribute("src")
        heat = analysis.grad_cam(network, keras_resnet.preprocessing(network)(photo))
        analysis.plot_grad_cam([np.asarray(load_image(photo))], heat, tmp_path / "ours.png")
        shown = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        ours = Image.open(tmp_path / "ours.png")
        assert shown.size == ours.size and np.abs(np.subtract(shown, ours, dtype="int16")).max() <= 1

        (tmp_path / "broken.jpg").write_bytes(photo.read_bytes()[:300])
        page.get_by_role("button", name="Clear").click()
        page.locator("#answer tr").first.wait_for(state="detached")
        drop_file(page, tmp_path / "broken.jpg")
        assert "Expected an image" in page.locator("#answer").inner_text()
    assert all(address.startswith((url, "data:", "blob:")) for address in requests), requests
    assert "Traceback" not in log.read_text()


def rotated(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: lying on its side
    chequered(40, 60).save(folder / "rotated.jpg", exif=exif)


def chequered(height, width):
    """Squares, darker to the right, on a blue that grows downwards, so that all sides differ."""
    row, column = np.indices((height, width))
    squares = (row + column) // 8 % 2 * (200 - 150 * column // width)
    return Image.fromarray(np.stack([squares, squares, 255 * row // height], -1).astype("uint8"))


KINDS = {
    "one pixel": lambda folder: Image.new("RGB", (1, 1), "red").save(folder / "one.png"),
    "grey": lambda folder: chequered(30, 50).convert("L").save(folder / "grey.tif"),
    "CMYK": lambda folder: chequered(30, 50).convert("CMYK").save(folder / "cmyk.jpg"),
    "rotated": rotated,
    "transparent": lambda folder: Image.new("RGBA", (9, 9), (0, 99, 0, 30)).save(folder / "clear.png"),
    "a strip": lambda folder: chequered(2, 3000).save(folder / "strip.webp"),
}


@needs_gradio
@pytest.mark.parametrize("kind", KINDS)
def test_the_page_predicts_the_same_for_all_kinds_of_images(kind, network, tmp_path):
    KINDS[kind](tmp_path)
    (path,) = tmp_path.iterdir()
    answer_html = runpy.run_path(str(EXAMPLES / "browser_page.py"))["answer_html"]
    found = re.findall(r"<tr><td>(\w+)</td>.*?<td>([\d.]+%)</td></tr>", answer_html(network, path.read_bytes()))
    assert len(found) == 5 and found == predicted_rows(path)


@needs_gradio
def test_class_names_are_escaped(network, monkeypatch):
    monkeypatch.setitem(network.info, "class_names", [f"<script>{number}</script>" for number in range(10)])
    example = runpy.run_path(str(EXAMPLES / "browser_page.py"))
    shown = example["answer_html"](network, example["png"](chequered(8, 8)))
    assert "&lt;script&gt;" in shown and "<script>" not in shown


def shown_image(html, alt):
    """The image with a text in a page."""
    source = re.search(rf'<img alt="{re.escape(alt)}" src="data:image/png;base64,([^"]+)">', html)[1]
    return Image.open(io.BytesIO(base64.b64decode(source)))


@needs_gradio
def test_the_page_draws_the_objects_that_a_detector_finds(detector, tmp_path):
    rotated(tmp_path)
    content = (tmp_path / "rotated.jpg").read_bytes()
    answer_html = runpy.run_path(str(EXAMPLES / "browser_page.py"))["answer_html"]
    shown, (found,) = answer_html(detector, content), keras_resnet.detect(tmp_path / "rotated.jpg", detector)
    np.testing.assert_array_equal(
        shown_image(shown, f"Objects found: {len(found)}"), draw_detections(load_image(content), found)
    )
    rows = re.findall(r"<tr><td>(.*?)</td>.*?<td>([\d.]+%)</td></tr>", shown)
    assert rows == [("&lt;b&gt;nucleus&lt;/b&gt;", f"{score:.1%}") for score in found.scores] and rows
    assert "Expected an image" in answer_html(detector, b"no image")


@needs_gradio
@pytest.mark.slow
def test_the_page_of_a_detector_in_a_browser(browser, detector, photos, tmp_path):
    detector.save(tmp_path / "mine.keras")
    with running_example(tmp_path, "browser_page.py", "--model", str(tmp_path / "mine.keras")) as (url, log):
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(url)
        page.get_by_text(f"Object detection with {detector.name}").wait_for()
        drop_file(page, photos[0])
        (found,) = keras_resnet.detect(photos[0], detector)
        assert page.locator("#answer tr").count() == len(found) > 0
        assert page.get_by_alt_text(f"Objects found: {len(found)}").is_visible()
    assert "Traceback" not in log.read_text()


@needs_gradio
@pytest.mark.parametrize("resize", [None, 32, 40, 20])
@pytest.mark.parametrize("size", [(50, 90), (90, 50), (33, 33)])
def test_the_page_shows_the_part_that_the_network_receives(resize, size):
    """Reduced to the network's size it equals the network's input, except for the rounding of the crop."""
    input_crop = runpy.run_path(str(EXAMPLES / "browser_page.py"))["input_crop"]
    prepare = keras_resnet.Preprocessing("cifar", size=20, resize=resize)
    ramp = np.broadcast_to(np.arange(size[0]) * 2, size[::-1]).astype("uint8")  # the value gives the column
    image = Image.merge("RGB", [Image.fromarray(ramp)] * 3)
    ours = input_crop(prepare, image).resize((20, 20), Image.Resampling.BILINEAR)
    assert np.abs(np.subtract(ours, prepare.resize_and_crop(image), dtype="int16")).max() <= 6


@pytest.fixture(scope="module", params=[".keras", ".onnx"])
def server(request, network, tmp_path_factory):
    """URL and log of the HTTP example with a network in a file."""
    for needed in ("tf2onnx", "onnxruntime") if request.param == ".onnx" else ():
        pytest.importorskip(needed)
    path = tmp_path_factory.mktemp("served") / f"mine{request.param}"
    network.save(path) if request.param == ".keras" else keras_resnet.export(network, path, "onnx", measure_speed=False)
    with running_example(path.parent, "http_server.py", str(path), "--timeout", "3") as found:
        yield found


def post(url, content):
    """(status, JSON)."""
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}predict", content), timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@needs_fastapi
def test_the_server_predicts_the_same_for_many_clients_at_once(server, network, photos):
    url, _ = server
    assert json.load(urllib.request.urlopen(url)) == {
        "network": "mine",
        "classes": network.info["class_names"],
        "preprocessing": keras_resnet.preprocessing(network).to_config(),
    }
    with ThreadPoolExecutor(8) as clients:
        responses = list(clients.map(lambda photo: post(url, photo.read_bytes()), photos * 3))
    for (status, answer), expected in zip(responses, keras_resnet.predict(network, photos) * 3, strict=True):
        names, probabilities = zip(*((row["name"], row["probability"]) for row in answer["classes"]), strict=True)
        assert status == 200 and names == tuple(name for _, name, _ in expected.classes)
        np.testing.assert_allclose(probabilities, [probability for *_, probability in expected.classes], atol=1e-4)


@needs_fastapi
@pytest.mark.slow
def test_the_server_finds_the_same_objects(detector, photos, tmp_path):
    detector.save(tmp_path / "mine.keras")
    with running_example(tmp_path, "http_server.py", str(tmp_path / "mine.keras")) as (url, log):
        described = json.load(urllib.request.urlopen(url))
        assert described["classes"] == detector.info["class_names"]
        assert described["preprocessing"] == keras_resnet.preprocessing(detector).to_config()
        status, answer = post(url, photos[0].read_bytes())
        assert post(url, b"no image")[0] == 400
    (found,) = keras_resnet.detect(photos[0], KerasDetector(detector))
    rows = found.to_coco(0)
    assert status == 200 and len(rows) == len(answer["objects"]) > 0
    for row, expected, name in zip(answer["objects"], rows, found.names, strict=True):
        assert (row["name"], row["category_id"]) == (name, expected["category_id"])
        np.testing.assert_allclose(row["bbox"], expected["bbox"], atol=0.01)
    assert "Traceback" not in log.read_text()


@needs_fastapi
@pytest.mark.parametrize("server", [".keras"], indirect=True)
def test_the_server_survives_bad_requests(server, photos):
    url, log = server
    address = ("127.0.0.1", int(url.rstrip("/").rpartition(":")[2]))
    head = b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Length: 1000\r\n\r\nhalf"
    with socket.create_connection(address) as slow:
        slow.sendall(head)
        with socket.create_connection(address) as gone:
            gone.sendall(head)
        whole = photos[0].read_bytes()
        for content in (b"", b"no image", whole[:300]):
            status, answer = post(url, content)
            assert status == 400 and "Expected an image" in answer["detail"]
        assert post(url, bytes(20_000_001)) == (413, {"detail": "Expected an image of at most 20,000,000 bytes"})
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
    assert post(url, whole)[0] == 200
    assert "Traceback" not in log.read_text()


HALF_REQUESTS = {
    "silence": b"",
    "half a line": b"POST /pre",
    "half the headers": b"POST /predict HTTP/1.1\r\nHost: here\r\n",
    "half the content": b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Length: 1000\r\n\r\nhalf",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "content that nobody reads": b"GET / HTTP/1.1\r\nHost: here\r\nContent-Length: 1000\r\n\r\nhalf",
}
SILENT = ("silence", "HTTP/2")
"""Kinds of requests that no byte a second follows."""


@needs_fastapi
@pytest.mark.parametrize("server", [".keras"], indirect=True)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind == "HTTP/2")) for kind in HALF_REQUESTS]
)
def test_a_hundred_half_requests_shut_nobody_out(kind, server, photos):
    """A byte a second keeps no connection alive either: all are closed, while another client is answered."""
    url, log = server
    address = ("127.0.0.1", int(url.rstrip("/").rpartition(":")[2]))
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(address)) for _ in range(100)]
        for client in clients:
            client.sendall(HALF_REQUESTS[kind])
        assert post(url, photos[0].read_bytes())[0] == 200
        open_clients = set(clients)
        while open_clients:
            open_clients -= {client for client in open_clients if not still_open(client, kind not in SILENT)}
            time.sleep(1)
            assert post(url, photos[0].read_bytes())[0] == 200
    assert "Traceback" not in log.read_text()


def still_open(client, sends):
    """Whether the server has not closed a connection; sends another byte."""
    client.settimeout(0.001)
    try:
        while client.recv(1000):
            pass
        return False
    except TimeoutError:
        pass
    except OSError:
        return False
    try:
        client.sendall(b"x" if sends else b"")
    except OSError:
        return False
    return True
