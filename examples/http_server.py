"""An HTTP server: POST an image file to /predict, and get its five most probable classes as JSON.

    pip install fastapi uvicorn
    python examples/http_server.py resnet20.onnx [--port 8000]
    curl --data-binary @cat.jpg http://127.0.0.1:8000/predict

The model is a file that `keras-resnet export` wrote, or a .keras file. GET / describes it. The status is 400 if the
content is not an image, 408 if it arrives too slowly, 413 if it is too large, 503 if there are too many connections.
Only this machine can connect, unless `--host 0.0.0.0` opens the server to the network: put an HTTPS proxy before it.
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

MAX_BYTES = 20_000_000
"""Largest size of an image file."""
MAX_CONNECTIONS = 32


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an exported network, or a .keras file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default=8000, type=int)
    parser.add_argument("--timeout", default=10, type=int, help="seconds until a request must have arrived")
    args = parser.parse_args()
    if args.model.suffix == ".keras":
        classifier = Classifier(keras_resnet.load_model(args.model))
    else:
        classifier = keras_resnet.load_exported(args.model)
    limits = {"limit_concurrency": MAX_CONNECTIONS, "timeout_keep_alive": args.timeout}
    uvicorn.run(application(classifier, args.model.stem, args.timeout), host=args.host, port=args.port, **limits)


def application(classifier, name, timeout):
    """The FastAPI application with GET / and POST /predict."""
    class_names = [class_name for _, class_name in class_ids_and_names(classifier.class_names)]
    description = {"network": name, "classes": class_names, "preprocessing": classifier.preprocessing.to_config()}
    service = fastapi.FastAPI(openapi_url=None)
    worker = ThreadPoolExecutor(1)  # a prediction uses all cores: two at once would not be faster

    @service.get("/")
    async def describe():
        return description

    @service.post("/predict")
    async def predict(request: fastapi.Request):
        content = await read_body(request, timeout)
        try:
            return await asyncio.get_running_loop().run_in_executor(worker, classes_json, classifier, content)
        except ValueError as error:
            raise fastapi.HTTPException(400, str(error)) from error

    return service


async def read_body(request, timeout):
    """The content of a request, if it is not too large and arrives in time."""
    content = bytearray()
    try:
        async with asyncio.timeout(timeout):
            async for part in request.stream():
                content += part
                if len(content) > MAX_BYTES:
                    raise fastapi.HTTPException(413, f"Expected an image of at most {MAX_BYTES:,} bytes")
    except (TimeoutError, ClientDisconnect) as error:
        raise fastapi.HTTPException(408, f"Expected a whole image within {timeout} seconds") from error
    return bytes(content)


def classes_json(classifier, content):
    """The five most probable classes of an image file as JSON values."""
    (classes,) = classify(classifier, [load_image(content, classifier.preprocessing.channels)], top=5)
    return {"classes": [{"id": i, "name": name, "probability": share} for i, name, share in classes]}


if __name__ == "__main__":
    main()
