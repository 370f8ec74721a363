"""An HTTP server: POST an image file to /predict, and get its five most probable classes as JSON.

    pip install fastapi hypercorn
    python examples/http_server.py resnet20.onnx [--port 8000]
    curl --data-binary @cat.jpg http://127.0.0.1:8000/predict

The model is a file that `keras-resnet export` wrote, or a .keras file. If it is a detector, the answer lists the
objects in the image; masks are COCO's compressed RLE. GET / describes the model.
The status is 400 if the content is not an image, 408 if it arrives too slowly, 413 if it is too large, 503 if too many
images are waiting.
Connections without a whole request are closed after `--timeout` seconds, silent ones of HTTP/2 after six times as many;
until then they cost nothing but a socket.
Only this machine can connect, unless `--host 0.0.0.0` opens the server to the network: put an HTTPS proxy before it.
"""

import argparse
import asyncio
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fastapi
from hypercorn.asyncio import serve
from hypercorn.config import Config
from starlette.requests import ClientDisconnect

import keras_resnet
from keras_resnet.data.image_files import load_image
from keras_resnet.data.labels import class_ids_and_names
from keras_resnet.detection import KerasDetector, is_detector
from keras_resnet.prediction import Classifier, classify

MAX_BYTES = 20_000_000
"""Largest size of an image file."""
MAX_WAITING_BYTES = 200_000_000
"""Largest size of all images that are being received or wait for the network."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an exported network, or a .keras file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default=8000, type=int)
    parser.add_argument(
        "--timeout", default=10, type=int, help="seconds until headers, and then an image, have arrived"
    )
    args = parser.parse_args()
    if args.model.suffix == ".keras":
        model = keras_resnet.load_model(args.model)
        network = KerasDetector(model) if is_detector(model) else Classifier(model)
    else:
        network = keras_resnet.load_exported(args.model)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # idle connections: as many as the system allows
    timeouts = {"keep_alive_timeout": args.timeout, "read_timeout": 6 * args.timeout}  # the second for idle HTTP/2
    config = Config.from_mapping(bind=f"{args.host}:{args.port}", backlog=1024, **timeouts)
    asyncio.run(serve(application(network, args.model.stem, args.timeout), config))


def application(network, name, timeout):
    """The FastAPI application with GET / and POST /predict."""
    class_names = [class_name for _, class_name in class_ids_and_names(network.class_names)]
    description = {"network": name, "classes": class_names, "preprocessing": network.preprocessing.to_config()}
    answer = objects_json if is_detector(network) else classes_json
    service = fastapi.FastAPI(openapi_url=None)
    worker = ThreadPoolExecutor(1)  # a prediction uses all cores: two at once would not be faster
    images: dict[fastapi.Request, bytearray] = {}

    @service.get("/")
    async def describe():
        return description

    @service.post("/predict")
    async def predict(request: fastapi.Request):
        images[request] = bytearray()
        try:
            content = await receive(request, images, timeout)
            return await asyncio.get_running_loop().run_in_executor(worker, answer, network, content)
        except ValueError as error:
            raise fastapi.HTTPException(400, str(error)) from error
        finally:
            del images[request]

    return service


async def receive(request, images, timeout):
    """The content of a request, one of `images`, if it arrives in time and there is room for it."""
    try:
        async with asyncio.timeout(timeout):
            async for part in request.stream():
                images[request] += part
                if len(images[request]) > MAX_BYTES:
                    raise fastapi.HTTPException(413, f"Expected an image of at most {MAX_BYTES:,} bytes")
                if sum(map(len, images.values())) > MAX_WAITING_BYTES:
                    raise fastapi.HTTPException(503, "Too many images are waiting")
        return bytes(images[request])
    except (TimeoutError, ClientDisconnect) as error:
        raise fastapi.HTTPException(408, f"Expected a whole image within {timeout} seconds") from error


def classes_json(classifier, content):
    """The five most probable classes of an image file as JSON values."""
    (classes,) = classify(classifier, [load_image(content, classifier.preprocessing.channels)], top=5)
    return {"classes": [{"id": i, "name": name, "probability": share} for i, name, share in classes]}


def objects_json(detector, content):
    """The objects in an image file as JSON values: rows of COCO's results format with names."""
    (found,) = keras_resnet.detect(load_image(content), detector)
    objects = zip(found.names, found.to_coco(image_id=0), strict=True)
    return {"objects": [{"name": name} | {key: row[key] for key in row if key != "image_id"} for name, row in objects]}


if __name__ == "__main__":
    main()
