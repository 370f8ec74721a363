"""A network for TensorFlow Serving: written where it looks for one, and asked over its REST interface.

    python examples/tensorflow_serving.py [--model resnet20] [--weights cifar10] [--folder served]
    python examples/tensorflow_serving.py --ask http://127.0.0.1:8501 IMAGE

The first writes the network as version 1 and prints the line that serves it; the second sends an image file as it is,
and prints the five most probable classes. `--model` and `--weights` are those of `keras-resnet predict`.
"""

import argparse
import base64
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

import keras_resnet
from keras_resnet.models.preprocessing import class_names

PATIENCE = 60
"""Seconds to wait for an answer."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20", help="a network's name, or a .keras file")
    parser.add_argument("--weights", default="cifar10", help="a tag or a weights file; a .keras file has its own")
    parser.add_argument("--folder", default="served", type=Path, help="where to write")
    parser.add_argument("--ask", nargs=2, metavar=("URL", "IMAGE"), help="a server, and what to ask it about")
    given = parser.parse_args()
    if given.model.endswith(".keras"):
        network = keras_resnet.load_model(given.model)
    else:
        network = keras_resnet.create(given.model, weights=given.weights)
    if given.ask:
        ask(network, *given.ask)
    else:
        write(network, given.folder)


def write(network, folder):
    """FOLDER/NAME/1: TensorFlow Serving takes the highest number that it finds."""
    place = folder.resolve() / network.name
    place.mkdir(parents=True, exist_ok=True)
    keras_resnet.export(network, place / "1", "saved_model")
    print(f"docker run -p 8501:8501 -v {place}:/models/{network.name} -e MODEL_NAME={network.name} tensorflow/serving")


def ask(network, url, image):
    """Prints what a server that runs the network says of an image file."""
    instance = {"b64": base64.b64encode(Path(image).read_bytes()).decode()}
    request = {"signature_name": "serve_bytes", "instances": [instance]}
    try:
        answer = post(f"{url}/v1/models/{network.name}:predict", request)
    except urllib.error.HTTPError as error:  # the server's words: no image, no such network
        sys.exit(error.read().decode())
    probabilities = np.asarray(answer["predictions"])
    (best,) = keras_resnet.decode_predictions(probabilities, top=5, classes=class_names(network))
    for _, name, share in best:
        print(f"{name:20} {100 * share:5.1f} %")


def post(url, value):
    """JSON there, JSON back."""
    request = urllib.request.Request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main()
