"""Find, download and verify the file of a `weights` argument."""

import hashlib
import os
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

import keras

from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.errors import value_error
from keras_resnet.files import atomic_write
from keras_resnet.weights.catalog import WEIGHTS, timm_name, unknown_weights_error
from keras_resnet.weights.timm_config import CONFIG_NAME, WEIGHTS_NAME, timm_preprocessing

ASSETS = Path(__file__).parent / "assets"
"""Folder of the weights files that are part of the package."""
HUB = "hf://"
"""Beginning of the name of a repository on the Hugging Face Hub."""


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
    if str(weights).startswith(HUB):
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
    """Path of model.safetensors in `hf://user/name`, and the Preprocessing in its config.json.

    A repository of timm must be of the network, which its name begins with.
    """
    owner, _, repository = weights.removeprefix(HUB).partition("/")
    if owner == "timm" and repository.split(".")[0] != timm_name(name):
        raise unknown_weights_error(name, weights)
    folder = download_repository(weights)
    return folder / WEIGHTS_NAME, timm_preprocessing(folder / CONFIG_NAME)


def download_repository(source: str) -> Path:
    """Folder with config.json and model.safetensors of "hf://user/name", downloaded into the hub's cache.

    Raises:
        ValueError: for a name of another form.
        ConnectionError: if a file cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    repository = source.removeprefix(HUB)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise value_error("weights", source, f"{HUB}user/name")
    try:
        paths = [Path(hf_hub_download(repository, name)) for name in (CONFIG_NAME, WEIGHTS_NAME)]
    except Exception as error:  # the errors of huggingface_hub and of its HTTP client have no common base class
        raise _download_error(source, error) from error
    return paths[0].parent
