"""TensorFlow Serving: exports a network for it, and sends an image to its REST API.

    python examples/tensorflow_serving.py [--model resnet20] [--weights cifar10] [--folder served]
    python examples/tensorflow_serving.py --ask http://127.0.0.1:8501 IMAGE

The first command writes version 1 of the network and prints the command that serves it; the second sends an image file
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

TIMEOUT = 60
"""Seconds to wait for the response."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20", help="name of a network, or a .keras file")
    parser.add_argument("--weights", default="cifar10", help="a tag or a weights file; not used for a .keras file")
    parser.add_argument("--folder", default="served", type=Path, help="folder to write to")
    parser.add_argument("--ask", nargs=2, metavar=("URL", "IMAGE"), help="URL of a server, and an image file")
    args = parser.parse_args()
    if args.model.endswith(".keras"):
        model = keras_resnet.load_model(args.model)
    else:
        model = keras_resnet.create(args.model, weights=args.weights)
    if args.ask:
        classify(model, *args.ask)
    else:
        write(model, args.folder)


def write(model, folder):
    """Exports the model to FOLDER/NAME/1: TensorFlow Serving uses the highest version number that it finds."""
    versions = folder.resolve() / model.name
    versions.mkdir(parents=True, exist_ok=True)
    keras_resnet.export(model, versions / "1", "saved_model")
    print(f"docker run -p 8501:8501 -v {versions}:/models/{model.name} -e MODEL_NAME={model.name} tensorflow/serving")


def classify(model, url, image):
    """Prints the classes that a server with the model predicts for an image file."""
    instance = {"b64": base64.b64encode(Path(image).read_bytes()).decode()}
    request = {"signature_name": "serve_bytes", "instances": [instance]}
    try:
        response = post(f"{url}/v1/models/{model.name}:predict", request)
    except urllib.error.HTTPError as error:  # its body is the server's message
        sys.exit(error.read().decode())
    probabilities = np.asarray(response["predictions"])
    (classes,) = keras_resnet.decode_predictions(probabilities, top=5, classes=class_names(model))
    for _, name, probability in classes:
        print(f"{name:20} {probability:6.1%}")


def post(url, value):
    """Sends a value as JSON and returns the JSON response."""
    request = urllib.request.Request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        return json.load(response)


if __name__ == "__main__":
    main()
