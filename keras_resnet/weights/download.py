"""Find, download and verify the file of a `weights` argument."""

import hashlib
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

import keras

from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.files import atomic_write, read_json
from keras_resnet.weights.catalog import WEIGHTS, timm_name, unknown_weights_error

ASSETS = Path(__file__).parent / "assets"
"""Folder of the weights files that are part of the package."""


def resolve_weights(
    weights: str | os.PathLike, name: str, include_top: bool | None = True
) -> tuple[Path, Preprocessing | None]:
    """Path of the file that `weights` names, downloaded if necessary, and its published preprocessing or None.

    Args:
        weights: a tag of `list_weights(name)`, another "hf://timm/<network>.<tag>", or a path.
        name: name of the network.
        include_top: False for the smaller file without the classifier, if there is one.

    Raises:
        ValueError: for an unknown tag, a tag of another network, a missing file, or a download with a wrong hash.
        ConnectionError: if a file cannot be downloaded; the message names alternatives.
    """
    if (name, weights) in WEIGHTS:
        row = WEIGHTS[name, weights]
        url, digest = (include_top is False and row.no_top) or (row.url, row.digest)
        path = fetch(url, digest) if "://" in url else ASSETS / url
        return path, row.preprocessing
    if str(weights).startswith("hf://"):
        return _download_from_hub(weights, name)
    if not os.path.exists(weights):
        raise unknown_weights_error(name, weights)
    return Path(weights), None


def fetch(url: str, digest: str) -> Path:
    """Path of a file in Keras's cache (`~/.keras/models`), downloaded atomically unless it is there.

    `digest`: "md5:..." or "sha256:...", which may be abbreviated; a file with another hash is removed.
    """
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    path = home / "models" / url.rsplit("/", 1)[1]
    if path.exists() and _matches(path, digest):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        try:
            with redirect_stdout(sys.stderr):  # the progress bar; standard output is for results
                keras.utils.get_file(temporary.name, url, cache_dir=home, cache_subdir="models")
        except Exception as error:  # Keras raises a bare Exception
            raise _download_error(url, error) from error
        if not _matches(temporary, digest):
            raise ValueError(f"The file at {url} should have the hash {digest}; a file with another one was removed.")
    return path


def _matches(path, digest):
    algorithm, expected = digest.split(":")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest().startswith(expected)


def _download_error(source, error):
    return ConnectionError(
        f"{source} could not be downloaded ({error}). Without an internet connection, download the file on another "
        "machine and pass its path as `weights`, or pass weights=None for random weights."
    )


def _download_from_hub(weights, name):
    """Path of model.safetensors in `hf://timm/<network>.<tag>`, and the Preprocessing in its config.json."""
    from huggingface_hub import hf_hub_download

    repository = weights.removeprefix("hf://")
    network = repository.split("/")[-1].split(".")[0]
    if repository.count("/") != 1 or network != timm_name(name):
        raise unknown_weights_error(name, weights)
    try:
        config = hf_hub_download(repository, "config.json")
        path = Path(hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # the errors of huggingface_hub and of its HTTP client have no common base class
        raise _download_error(weights, error) from error
    return path, timm_preprocessing(config)


def timm_preprocessing(path: str | os.PathLike) -> Preprocessing:
    """Preprocessing in timm's config.json; raises ValueError for a file without one."""
    try:
        config = read_json(path)
        return Preprocessing.from_timm(config.get("pretrained_cfg", config))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"`{path}` should be timm's config.json with a preprocessing. Received: {error}") from error
