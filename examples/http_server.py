"""A network behind HTTP: POST the bytes of an image file to /predict, get the five most probable classes as JSON.

    pip install fastapi uvicorn
    python examples/http_server.py resnet20.onnx [--port 8000]
    curl --data-binary @cat.jpg http://127.0.0.1:8000/predict

The file is what `keras-resnet export` wrote, or a .keras file. GET / says what it is. The status is 400 for what is no
image, and 408, 413 or 503 for what is too slow, too much, or too many at once. The server is for this machine alone;
`--host 0.0.0.0` opens it to the network, where something that speaks HTTPS belongs in front of it.
"""

import argparse
import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fastapi
import uvicorn
from starlette.requests import ClientDisconnect

import keras_resnet
from keras_resnet.data.image_files import load_image
from keras_resnet.data.labels import class_ids_and_names
from keras_resnet.prediction import Classifier, classify

LARGEST = 20_000_000
"""Bytes of an image file."""
PATIENCE = 10
"""Seconds for which a request may take to arrive, and a connection may be silent between two."""
AT_ONCE = 32
"""Connections; who comes later is sent away."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an exported network, or a .keras file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default=8000, type=int)
    given = parser.parse_args()
    if given.model.suffix == ".keras":
        network = Classifier(keras_resnet.load_model(given.model))
    else:
        network = keras_resnet.load_exported(given.model)
    service = application(network, given.model.stem)
    uvicorn.run(service, host=given.host, port=given.port, limit_concurrency=AT_ONCE, timeout_keep_alive=PATIENCE)


def application(network, name):
    """What is served: GET / and POST /predict."""
    names = [words for _, words in class_ids_and_names(network.class_names)]
    facts = {"network": name, "classes": names, "preprocessing": network.preprocessing.to_config()}
    service = fastapi.FastAPI(openapi_url=None)
    worker = ThreadPoolExecutor(1)  # one image after another: two would only share the processor

    @service.get("/")
    async def about():
        return facts

    @service.post("/predict")
    async def predict(request: fastapi.Request):
        file = await body(request)
        try:
            return await asyncio.get_running_loop().run_in_executor(worker, look, network, file)
        except ValueError as error:
            raise fastapi.HTTPException(400, str(error)) from error

    return service


async def body(request):
    """The bytes of a request, if they are not too many and come soon enough."""
    file = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for part in request.stream():
                file += part
                if len(file) > LARGEST:
                    raise fastapi.HTTPException(413, f"Expected an image of at most {LARGEST:,} bytes")
    except (TimeoutError, ClientDisconnect) as error:
        raise fastapi.HTTPException(408, f"Expected a whole image within {PATIENCE} seconds") from error
    return bytes(file)


def look(network, file):
    """The classes of an image file, as JSON can hold them."""
    (classes,) = classify(network, [load_image(file, network.preprocessing.channels)], top=5)
    return {"classes": [{"id": id, "name": name, "probability": float(share)} for id, name, share in classes]}


if __name__ == "__main__":
    main()
