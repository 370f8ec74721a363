"""`save_pretrained`: a folder that timm and the Hugging Face Hub know, with weights, config.json and a model card."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from keras_resnet.architecture.complexity import Complexity, complexity
from keras_resnet.architecture.metadata import image_shape, model_info
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.errors import error_summary, is_number, value_error
from keras_resnet.files import local_path, staging_folder, write_json
from keras_resnet.models.preprocessing import class_names, classifier_preprocessing
from keras_resnet.normalization import get_normalization
from keras_resnet.variants import check_classifier
from keras_resnet.weights.loading import require_spec
from keras_resnet.weights.saving import save_weights
from keras_resnet.weights.timm_config import CONFIG_NAME, WEIGHTS_NAME, timm_network, to_timm_config

CARD_NAME = "README.md"
_METRICS = {
    "top1_accuracy": ("accuracy", "Top 1 Accuracy"),
    "top5_accuracy": ("accuracy", "Top 5 Accuracy"),
    "mean_average_precision": ("mean_average_precision", "Mean Average Precision"),
}
"""Key of a report -> type and name of the metric in a model card."""
_CARD = """# {name}

A residual network for images (He et al. 2015, arXiv:1512.03385).

| | |
|---|---|
{table}

```python
import keras_resnet

model = keras_resnet.create("FOLDER")  # or "hf://USER/NAME"
```

{timm}
"""
_WITH_TIMM = """```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or "hf-hub:USER/NAME"
```"""
_WITHOUT_TIMM = """timm cannot load these weights: it has no such network, or the channels are blue, green, red.
The arrays have the names of keras_resnet."""
_FILES = "Detectors, localizers and segmenters are written by `model.save(path)`, or by `save_weights(model, path)`."


@dataclass(frozen=True)
class Publication:
    """What is known about a network that is published."""

    name: str
    spec: ResNetSpec
    cost: Complexity
    num_classes: int
    """0 without a classifier."""
    class_names: list[str] | None
    preprocessing: Preprocessing
    timm_network: str | None
    """timm's name of the network, if timm can load the folder."""
    results: Mapping[str, Any]
    """{"dataset", "top1_accuracy", ...}; empty without measurements."""
    weights: str
    """Where the weights come from."""
    license: str | None

    @classmethod
    def of(cls, model: keras.Model, results: Mapping[str, Any] | None, license: str | None) -> "Publication":
        """That of a model; raises ValueError for one that is not a whole network, or of unknown preprocessing."""
        check_classifier("model", model, _FILES)
        spec, info, has_top = require_spec(model), model_info(model), model.layers[-1].name == "predictions"
        num_classes = model.output_shape[-1] if has_top else 0
        shape = tuple(side or spec.default_size for side in image_shape(model))
        cost = complexity(spec, has_top, num_classes or None, shape)
        if cost.parameters + cost.statistics != model.count_params():
            raise value_error("model", model.name, "a whole network, as `create` and `train` return it")
        found = classifier_preprocessing(model)
        network = None if get_normalization(found.mode).bgr else timm_network(spec)
        names = class_names(model) if has_top else None
        measured = _with_accuracies(info.get("results", {}) if results is None else results)
        weights = str(info.get("weights", "not known"))
        return cls(model.name, spec, cost, num_classes, names, found, network, measured, weights, license)

    def config(self) -> dict[str, Any]:
        """The values of config.json."""
        network = self.timm_network or f"keras_resnet/{self.name}"
        return to_timm_config(network, self.spec, self.num_classes, self.preprocessing, self.class_names)

    def card(self):
        """The model card, a huggingface_hub.ModelCard."""
        from huggingface_hub import EvalResult, ModelCard, ModelCardData

        dataset = str(self.results.get("dataset", "unknown"))
        metrics = [(*row, self.results[key]) for key, row in _METRICS.items() if key in self.results]
        data = ModelCardData(
            model_name=self.name,
            library_name="timm" if self.timm_network else "keras",
            license=self.license,
            pipeline_tag="image-classification" if self.num_classes else "image-feature-extraction",
            tags=["keras", "keras-resnet", *(["timm"] if self.timm_network else [])],
            eval_results=[
                EvalResult("image-classification", dataset, dataset, kind, value, metric_name=name)
                for kind, name, value in metrics
            ]
            or None,
        )
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{self._text(dataset, metrics)}")

    def _text(self, dataset, metrics):
        cost, prepared = self.cost, self.preprocessing
        size = f"{prepared.size}x{prepared.size}"
        crop = (
            f"shorter side to {prepared.resize}, centre crop of {size}" if prepared.resize else f"whole image to {size}"
        )
        rows = [
            ("architecture", self.timm_network or self.name),
            ("parameters", f"{cost.parameters / 1e6:.2f} M"),
            ("multiply-adds of one image", f"{cost.multiply_adds / 1e9:.2f} G"),
            ("images", f"{crop}, {prepared.interpolation}"),
            ("classes", self.num_classes or "none: features"),
            ("weights", self.weights),
            *((f"{name} on {dataset}", f"{100 * value:.2f}%") for _, name, value in metrics),
        ]
        table = "\n".join(f"| {name} | {value} |" for name, value in rows)
        timm = _WITH_TIMM if self.timm_network else _WITHOUT_TIMM
        return _CARD.format(name=self.name, table=table, timm=timm)


def save_pretrained(
    model: keras.Model,
    folder: str | os.PathLike,
    results: Mapping[str, Any] | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Saves a network as a folder with model.safetensors, timm's config.json and a model card, README.md.

    >>> import keras_resnet
    >>> model = keras_resnet.create("resnet20", weights="cifar10")
    >>> folder = keras_resnet.save_pretrained(model, "resnet20_cifar10", {"dataset": "CIFAR-10", "top1_error": 0.0865})
    >>> keras_resnet.create(folder).info["class_names"][:2]
    ['airplane', 'automobile']

    Where timm has the network, `timm.create_model("local-dir:FOLDER", pretrained=True)` loads the folder and computes
    the same logits. Other networks (plain ones, those for CIFAR, v1 with biases) have the layout "keras", and the card
    says so. `create(folder)` reads both.

    Args:
        model: a network of this package whose preprocessing is known.
        folder: the folder to write, whole or not at all.
        results: measured numbers for the card: a run's report or `Evaluation.to_json()`, with "dataset" for the name of
            the images. None: those of the training run, if the model comes from one.
        license: license of the weights, such as "apache-2.0", for the card.
        overwrite: whether to replace an existing folder that this function wrote.

    Returns:
        The folder.

    Raises:
        ValueError: for a part of a network, a model without preprocessing, or accuracies that are not from 0 to 1.
        FileExistsError: if the folder exists, unless `overwrite` and it has a config.json.
        OSError: if it cannot be written.
    """
    target = local_path(folder, "folder").resolve()
    replaces = target.is_dir() and (not any(target.iterdir()) or (overwrite and (target / CONFIG_NAME).exists()))
    if target.exists() and not replaces:
        raise FileExistsError(
            "`folder` should not exist, or be a folder with a config.json and overwrite=True. "
            f"Received: folder={str(folder)!r}"
        )
    publication = Publication.of(model, results, license)
    with staging_folder(target) as staging:
        written = staging / "written"
        written.mkdir()
        save_weights(model, written / WEIGHTS_NAME, layout="timm" if publication.timm_network else "keras")
        write_json(publication.config(), written / CONFIG_NAME)
        publication.card().save(written / CARD_NAME)
        if target.exists():
            os.replace(target, staging / "replaced")
        os.replace(written, target)
    return Path(folder)


def push_to_hub(
    model: keras.Model,
    repository: str,
    results: Mapping[str, Any] | None = None,
    license: str | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Uploads what `save_pretrained` writes to the Hugging Face Hub, in one commit.

    >>> import keras_resnet
    >>> try:  # random weights have no known preprocessing: nothing is sent
    ...     keras_resnet.push_to_hub(keras_resnet.create("resnet20"), "user/name")
    ... except ValueError as error:
    ...     print("preprocessing" in str(error))
    True

    Args:
        model, results, license: as for `save_pretrained`.
        repository: "user/name", created if necessary.
        private: whether a new repository is private.
        token: token of the hub; None for the one that `hf auth login` stored, or of HF_TOKEN.

    Returns:
        URL of the commit.

    Raises:
        ValueError: as `save_pretrained`, before anything is sent.
        ConnectionError: if the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as temporary:
        folder = save_pretrained(model, Path(temporary) / "model", results, license)
        api = HfApi(token=token)
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            return api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"{model.name}").commit_url
        except Exception as error:  # the errors of huggingface_hub and of its HTTP client have no common base class
            raise ConnectionError(f"{repository} could not be uploaded ({error_summary(error)})") from error


def _with_accuracies(results):
    """Results with top1_accuracy and top5_accuracy, also from top1_error and top5_error; each from 0 to 1."""
    found = {key: results[key] for key in ("dataset", *_METRICS) if key in results}
    for key in _METRICS:
        error = key.replace("accuracy", "error")
        if key not in found and error in results:
            found[key] = 1 - results[error]
        if key in found and not (is_number(found[key]) and 0 <= found[key] <= 1):
            raise value_error("results", results, f"numbers from 0 to 1 for {key}")
    return found
