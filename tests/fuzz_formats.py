"""`FORMATS`: the file formats that the package reads; how a small valid file is made, and how it is read."""

import io
import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from fuzz_mutations import Mutator
from PIL import Image
from support import REFERENCES, cifar_network, export_tiny_classifier, png_bytes, random_pixels, read_arrays

import keras_resnet
from keras_resnet.architecture.spec import read_spec, write_spec
from keras_resnet.data.image_files import FORMATS as IMAGE_FORMATS
from keras_resnet.data.image_files import load_image
from keras_resnet.data.semantic_masks import describe_mask
from keras_resnet.deployment.formats.table import FORMATS as EXPORT_FORMATS
from keras_resnet.deployment.serving import Metadata
from keras_resnet.files import read_json, write_json
from keras_resnet.search.results import Candidate, SearchResult
from keras_resnet.training.checkpoints import TrainingState, check_settings, load_checkpoint, save_checkpoint
from keras_resnet.training.workdir import read_history, write_history
from keras_resnet.transfer import read_features


@dataclass(frozen=True)
class Format:
    """A file format."""

    make: Callable[[Path], Path]
    """Writes a valid file into an empty folder, with what belongs beside it; returns the file that is to be mutated."""
    read: Callable[[Path], object]
    """Reads such a file, as the package's users do."""
    container: str | None = None
    """A name in `fuzz_mutations.CONTAINERS`."""
    fast: int = 200
    """Number of mutated files in the fast tests; fewer where a model is built, or a process started, for each."""


PIXELS = random_pixels(10)


@cache
def _network():
    model = cifar_network()
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.train_on_batch(PIXELS[:2].astype("float32"), np.array([0, 1]))  # builds the optimizer and the metrics
    return model


def _make_weights(name, folder):
    keras_resnet.save_weights(_network(), folder / name)
    return folder / name


def _make_keras_weights(folder):
    _network().save_weights(folder / "net.weights.h5")
    return folder / "net.weights.h5"


def _make_keras(folder):
    _network().save(folder / "net.keras")
    return folder / "net.keras"


def _copy(source, folder):
    return Path(shutil.copy(source, folder))


def _load_weights(path):
    _change_model(keras_resnet.load_weights, path)


def _load_checkpoint(path):
    _change_model(lambda model, path: load_checkpoint(path, model, RUN_SETTINGS, restore=lambda state: None), path)


def _change_model(function, path):
    """Calls a function of the network and a path; a call that fails leaves the network as it was."""
    model = _network()
    variables, info = [*model.variables, *model.optimizer.variables], dict(model.info)
    before = [np.array(variable) for variable in variables]
    try:
        function(model, path)
    except Exception:
        assert all(map(np.array_equal, before, map(np.array, variables))) and model.info == info, (
            "the model has changed"
        )
        raise
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    model.info = info


def _load_model(path):
    model = keras_resnet.load_model(path)
    model(keras_resnet.preprocessing(model)(PIXELS[0]))


RUN_SETTINGS = {"recipe": {"epochs": 2, "mixup": 0.1}, "seed": 0}


def _make_checkpoint(folder):
    epoch = {"epoch": 1, "step": 2, "learning_rate": 0.1, "images_per_s": 9.0, "seconds": 1.5}
    path, state = folder / "checkpoint.safetensors", TrainingState(2, 1.5, (epoch,), {"Plateau": {"wait": 1}})
    save_checkpoint(path, _network(), state, RUN_SETTINGS)
    return path


def _make_timm(folder):
    model = keras_resnet.create("resnet18", classes=2, input_shape=(32, 32, 3), depths=(1, 1), widths=(8, 16))
    model.info = {"preprocessing": keras_resnet.Preprocessing("torch", size=32).to_config(), "class_names": ["a", "b"]}
    keras_resnet.save_pretrained(model, folder, overwrite=True)
    return folder / "config.json"


def _make_preset(name, folder):
    shutil.copytree(REFERENCES / "keras_hub" / "preset", folder, dirs_exist_ok=True)
    return folder / name


def _create(path):
    keras_resnet.create(path.parent)


def _make_spec(folder):
    write_spec(_network().spec, folder / "spec.json")
    return folder / "spec.json"


def _read_spec(path):
    keras_resnet.complexity(read_spec(path), input_shape=(32, 32, 3))


def _make_features(folder):
    arrays = {"features": np.eye(3, dtype="float32"), "names": ["a", "b", "c"], "labels": [0, 0, -1]}
    np.savez(folder / "a.npz", **arrays, class_names=["ant"], settings=json.dumps({"shape": [3, 3], "skipped": ["d"]}))
    return folder / "a.npz"


def _make_image(format, folder):
    path = folder / f"a{IMAGE_FORMATS[format][0]}"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS[0]).save(path, format, **({"exif": exif} if format in ("JPEG", "PNG", "WEBP") else {}))
    return path


def _make_mask(folder):
    path = folder / "a.png"
    mask = Image.fromarray(PIXELS[0, :, :, 0] % 3).convert("P")
    mask.save(path)
    return path


def _make_labels(folder):
    (folder / "images").mkdir()
    for index, image in enumerate(PIXELS):
        (folder / "images" / f"{index}.png").write_bytes(png_bytes(image))
    lines = [f"{index}.png,{('ant', 'bee')[index % 2]}" for index in range(len(PIXELS))]
    (folder / "labels.csv").write_text("\n".join(["file,label", *lines]))
    return folder / "labels.csv"


def _load_labels(path):
    keras_resnet.load_dataset(path.parent / "images", labels=path)


def _make_tar(folder):
    with tarfile.open(folder / "train.tar", "w") as tar:
        for index, image in enumerate(PIXELS):
            for suffix, contents in (("png", png_bytes(image)), ("json", b'{"label": %d}' % (index % 2))):
                info = tarfile.TarInfo(f"{index}.{suffix}")
                info.size = len(contents)
                tar.addfile(info, io.BytesIO(contents))
    return folder / "train.tar"


def _make_parquet(folder):
    import pyarrow as pa
    from pyarrow import parquet

    images = [{"bytes": png_bytes(image), "path": None} for image in PIXELS]
    parquet.write_table(pa.table({"image": images, "label": [0, 1] * 5}), folder / "train.parquet")
    return folder / "train.parquet"


def _load_folder(path):
    """Reads every image as well; what `datasets` converts is written elsewhere."""
    with TemporaryDirectory() as cache:
        data = keras_resnet.load_dataset(path.parent, data_dir=cache)
        for image in (*data.train.images, *data.test.images):
            load_image(image)


def _make_settings(folder):
    write_json(RUN_SETTINGS | {"versions": {"keras": "3"}}, folder / "settings.json")
    return folder / "settings.json"


def _check_settings(path):
    check_settings(read_json(path, dict[str, Any]), RUN_SETTINGS, path)


def _make_search(folder):
    candidate = Candidate("0", "COMPLETED", _network().spec, {"mixup": 0.1}, 9, 9, 0.5, 1.0)
    settings = {"tuner": "random", "dataset": "digits", "training_images": 9, "validation_images": 9}
    final = {"training_images": 9, "test_images": 9, "top1_accuracy": 0.5}
    write_json(SearchResult(settings, (candidate,), final).to_config(), folder / "results.json")
    return folder / "results.json"


def _read_search(path):
    SearchResult.from_config(read_json(path, dict[str, Any])).to_config()


def _make_history(folder):
    write_history([{"step": 9, "accuracy": 0.5}, {"step": 18, "accuracy": 0.75}], folder / "history.csv")
    return folder / "history.csv"


def _make_export(format, folder):
    source, _ = export_tiny_classifier(format)
    shutil.copytree(source.parent, folder, dirs_exist_ok=True)
    return folder / source.name / "saved_model.pb" if source.is_dir() else folder / source.name


def _run_export(path):
    exported = keras_resnet.load_exported(path.parent if path.name == "saved_model.pb" else path)
    exported.probabilities(exported.prepare(PIXELS[0]))


def _make_export_metadata(folder):
    metadata = Metadata("net", "onnx", "float32", keras_resnet.Preprocessing("torch"), class_names=("ant", "bee"))
    (folder / "metadata.json").write_text(metadata.to_json())
    return folder / "metadata.json"


def _read_export_metadata(path):
    Metadata.from_json(path.read_text("utf-8", "replace"))


FORMATS = {
    "weights in .h5": Format(partial(_make_weights, "net.h5"), _load_weights, "hdf5"),
    "weights in .weights.h5": Format(_make_keras_weights, _load_weights, "hdf5"),
    "weights in .keras": Format(_make_keras, _load_weights, "zip"),
    "weights in .safetensors": Format(partial(_make_weights, "net.safetensors"), _load_weights, "safetensors"),
    "weights in .pth": Format(partial(_make_weights, "net.pth"), _load_weights, "zip"),
    "torch zip file": Format(partial(_copy, REFERENCES / "torch_checkpoint.pth"), read_arrays, "zip"),
    "torch legacy file": Format(partial(_copy, REFERENCES / "torch_checkpoint_legacy.pth"), read_arrays),
    "model in .keras": Format(_make_keras, _load_model, "zip", fast=50),
    "checkpoint": Format(_make_checkpoint, _load_checkpoint, "safetensors"),
    "timm's config.json": Format(_make_timm, _create, "json", fast=50),
    **{
        f"KerasHub's {name}": Format(partial(_make_preset, name), _create, "json", fast=50)
        for name in ("config.json", "task.json", "image_converter.json")
    },
    "spec": Format(_make_spec, _read_spec, "json"),
    "features": Format(_make_features, read_features, "zip"),
    "tar shard": Format(_make_tar, _load_folder, "tar"),
    "Parquet file": Format(_make_parquet, _load_folder, fast=100),
    "history": Format(_make_history, read_history),
    "search results": Format(_make_search, _read_search, "json"),
    "settings": Format(_make_settings, _check_settings, "json"),
    "metadata of an export": Format(_make_export_metadata, _read_export_metadata, "json"),
    **{
        f"{row.title} file": Format(partial(_make_export, name), _run_export, fast=50)
        for name, row in EXPORT_FORMATS.items()
    },
    "label file": Format(_make_labels, _load_labels),
    **{f"{name} image": Format(partial(_make_image, name), load_image) for name in IMAGE_FORMATS},
    "mask": Format(_make_mask, describe_mask),
}


if __name__ == "__main__":  # python tests/fuzz_formats.py FORMAT SEED FOLDER
    name, seed, folder = sys.argv[1:]
    Path(folder).mkdir()
    mutated = FORMATS[name].make(Path(folder))
    mutated.write_bytes(Mutator(mutated.read_bytes(), FORMATS[name].container)(int(seed)))
    print(mutated)
    FORMATS[name].read(mutated)
