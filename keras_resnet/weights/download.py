"""From a tag to a file: fetch and verify."""

import hashlib
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

import keras

from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.files import atomic_write
from keras_resnet.weights.catalog import WEIGHTS, timm_name, unknown_weights

ASSETS = Path(__file__).parent / "assets"


def resolve_weights(weights, name, include_top=True):
    """The file that `weights` means for the network `name`, fetched if need be.

    Args:
        weights: a tag of `list_weights(name)`, another "hf://timm/<network>.<tag>", or a path.
        name: name of the network.
        include_top: whether the classifier is wanted (some sources have a smaller file without).

    Returns:
        (path, Preprocessing or None where only the file itself may know).

    Raises:
        ValueError: for anything else, a file whose hash is not the published one, or a tag of another network.
        ConnectionError: if a file cannot be fetched; the message says what to do instead.
    """
    if (name, weights) in WEIGHTS:
        source = WEIGHTS[name, weights]
        headless = include_top is False and source.headless
        url, digest = headless or (source.url, source.digest)
        path = fetch(url, digest) if "://" in url else ASSETS / url
        return path, source.preprocessing
    if str(weights).startswith("hf://"):
        return _locate_on_hub(weights, name)
    if not os.path.exists(weights):
        raise unknown_weights(name, weights)
    return Path(weights), None


def fetch(url, digest):
    """Downloads a file into Keras's cache (`~/.keras/models`) unless it is there, and checks its hash.

    Args:
        url: where it is.
        digest: "md5:..." or "sha256:...", or only the beginning of it.

    Returns:
        Its path. It appears under its name once it is whole; a download with another hash is removed.
    """
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    path = home / "models" / url.rsplit("/", 1)[1]
    if path.exists() and _matches(path, digest):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        try:
            with redirect_stdout(sys.stderr):  # the progress bar: standard output is for answers
                keras.utils.get_file(partial.name, url, cache_dir=home, cache_subdir="models")
        except Exception as error:  # what Keras raises, whatever the cause
            raise _unreachable(url, error) from error
        if not _matches(partial, digest):
            raise ValueError(
                f"The file at {url} should have the hash {digest}; the download was removed, as it has not."
            )
    return path


def _matches(path, digest):
    algorithm, expected = digest.split(":")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest().startswith(expected)


def _unreachable(what, error):
    return ConnectionError(
        f"{what} could not be downloaded ({error}). Without a network, fetch the file on another machine and pass its "
        "path as `weights`, or weights=None for random ones."
    )


def _locate_on_hub(weights, name):
    """`hf://timm/<network>.<tag>`: model.safetensors, and config.json for the preprocessing."""
    from huggingface_hub import hf_hub_download

    repository = weights.removeprefix("hf://")
    network = repository.split("/")[-1].split(".")[0]
    if repository.count("/") != 1 or network != timm_name(name):
        raise unknown_weights(name, weights)
    try:
        config = hf_hub_download(repository, "config.json")
        path = Path(hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # the hub's errors share no base class with those of its HTTP client
        raise _unreachable(weights, error) from error
    return path, timm_preprocessing(config)


def timm_preprocessing(path):
    """The Preprocessing in timm's config.json."""
    try:
        config = json.loads(Path(path).read_text("utf-8"))
        return Preprocessing.from_timm(config.get("pretrained_cfg", config))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"`{path}` should be timm's config.json, with a `pretrained_cfg`. Received: {error}"
        ) from error
