"""CONTENDERS and TASKS: what a benchmark compares, and what it measures; the networks of other libraries."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import keras
import numpy as np

from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.benchmark.keras_networks import (
    FoldedNetwork,
    KerasNetwork,
    Network,
    OptimizedNetwork,
    StockNetwork,
    create_network,
)
from keras_resnet.deployment.exported import load_exported
from keras_resnet.deployment.formats.openvino_format import compile_model
from keras_resnet.deployment.formats.table import FORMATS
from keras_resnet.deployment.segmenter_serving import (
    predictor_layers,
    prepared_segmenter,
    segmenter_metadata,
    segmenter_serving_model,
)
from keras_resnet.deployment.serving import ExportSpec, export_metadata
from keras_resnet.models.transforms import fold_batch_norm
from keras_resnet.precision import PRECISIONS
from keras_resnet.variants import canonical_name, get_spec

TORCHVISION = {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d"}
TORCHVISION |= {"resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"}
"""torchvision's names of its networks."""
TORCHVISION_DETECTORS = {
    f"{kind}_resnet50_fpn{version}" for kind in ("fasterrcnn", "maskrcnn", "retinanet") for version in ("", "_v2")
}
TORCHVISION_SEGMENTERS = {f"{head}_{name}" for head in ("fcn", "deeplabv3") for name in ("resnet50", "resnet101")}


def torchvision_name(model):
    """torchvision's name of a network, or None if it has none; its ResNet-50, v1.5, also stands for the paper's v1."""
    name = canonical_name(model).removesuffix("_v1_5")
    return name if name in TORCHVISION else None


class TorchNetwork(Network):
    """torchvision's network, channels last; bfloat16 by autocast."""

    framework = "torch"

    def __init__(self, job, folder, compiled=False):
        super().__init__(job, folder)
        import torch

        torch.manual_seed(0)
        self.name = f"torchvision {torchvision_name(job.model)}{', compiled' if compiled else ''}"
        self.torch, self.device = torch, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = self.create().to(self.device, memory_format=torch.channels_last)
        self.step = torch.compile(self.model) if compiled else self.model
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        images = torch.randn(job.batch_size, 3, job.image_size, job.image_size)
        self.images = images.to(self.device, memory_format=torch.channels_last)
        self.labels = torch.from_numpy(job.labels).to(self.device)

    def create(self):
        import torchvision

        return torchvision.models.get_model(torchvision_name(self.job.model), weights=None)

    def inference(self, steps):
        self.model.eval()
        with self.torch.inference_mode(), self._precision():
            for _ in range(steps):
                outputs = self.step(self.images)
        outputs[0, 0].item()  # waits for the device

    def train(self, steps):
        self.model.train()
        for _ in range(steps):
            with self._precision():
                loss = self.torch.nn.functional.cross_entropy(self.step(self.images), self.labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        loss.item()  # waits for the device

    def build(self):
        self.create()

    def load(self):
        self.create().load_state_dict(self.torch.load(self.weights_file, weights_only=True))

    @cached_property
    def weights_file(self):
        path = self.folder / "network.pth"
        self.torch.save(self.model.state_dict(), path)
        return path

    def _precision(self):
        mixed = self.job.precision == "bfloat16"
        return self.torch.autocast(self.device.type, self.torch.bfloat16, enabled=mixed)


class OpenVinoTorchNetwork(Network):
    """torchvision's network, exported to ONNX by torch, in OpenVINO."""

    reports_memory = False  # it contains that of torch

    def __init__(self, job, folder):
        super().__init__(job, folder)
        import torch
        import torchvision

        torch.manual_seed(0)
        self.name = f"OpenVINO torchvision {torchvision_name(job.model)}"
        model = torchvision.models.get_model(torchvision_name(job.model), weights=None).eval()
        self.images = np.moveaxis(job.images, -1, 1).copy()
        torch.onnx.export(model, torch.from_numpy(self.images), self.folder / "network.onnx")
        self.network = compile_model(self.folder / "network.onnx", job.precision)

    def inference(self, steps):
        for _ in range(steps):
            self.network(self.images, share_inputs=True)


class ExportedNetwork(Network):
    """This package's network as `export` writes it with `raw=True`; `load` also starts the runtime."""

    reports_memory = False  # it contains that of the exporter

    def __init__(self, job, folder, format):
        super().__init__(job, folder)
        keras.utils.set_random_seed(0)
        row = FORMATS[format]
        self.path, self.images = self.folder / f"network{row.suffix}", job.images
        row.write(self._export_spec(create_network(job), format), self.path)
        self.network = load_exported(self.path)
        self.name = f"{row.title} {job.model}"

    def _export_spec(self, model, format):
        """The ExportSpec of the network; a segmenter's is for images of the job's size."""
        if self.job.kind == "segmentation":
            model = prepared_segmenter(model, self.job.image_size)
            metadata = segmenter_metadata(model, format, self.job.precision, raw=True)
            return ExportSpec(
                fold_batch_norm(model),
                metadata,
                calibration=self.images,
                float_layers=predictor_layers(model),
                make_serving_model=segmenter_serving_model,
            )
        metadata = replace(export_metadata(model, format, self.job.precision, raw=True), preprocessing=None)
        return ExportSpec(model, metadata, calibration=self.images)

    def inference(self, steps):
        for _ in range(steps):
            self.network(self.images)

    detection = inference

    def load(self):
        load_exported(self.path)


@dataclass(frozen=True)
class Task:
    """What is measured."""

    unit: str
    is_rate: bool = False
    """Whether it is a rate, of the images in the batches of a round; otherwise the seconds of doing it once."""
    reports_memory: bool = False
    """Whether the peak memory is reported: only by the first tasks, since the peak of a process never falls."""
    networks: tuple[str, ...] = ("classification",)
    """Kinds of networks for which it is measured: "classification", "detection", "segmentation"."""


KINDS = ("classification", "detection", "segmentation")
"""Kinds of networks that are measured."""
TASKS = {
    "inference": Task("images/s", is_rate=True, reports_memory=True, networks=("classification", "segmentation")),
    "detection": Task("images/s", is_rate=True, reports_memory=True, networks=("detection",)),
    "train": Task("images/s", is_rate=True, reports_memory=True, networks=KINDS),
    "parts": Task("images/s", is_rate=True, networks=("detection",)),
    "build": Task("s", networks=KINDS),
    "load": Task("s", networks=("classification", "segmentation")),
    "pipeline": Task("images/s", is_rate=True, networks=KINDS),
    "whole_run": Task("images/s", is_rate=True),
    "evaluation": Task("images/s", is_rate=True),
    "extraction": Task("images/s", is_rate=True),
}


@dataclass(frozen=True)
class Contender:
    """A library, or a form of this package's networks, that is compared with others."""

    network: Callable[..., Network] | None
    """Called with a Job and a folder; None for a script."""
    tasks: tuple[str, ...] = ("inference", "train", "build", "load")
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    needs: tuple[str, ...] = ()
    """Modules that must be installed."""
    backend: str | None = None
    """The Keras backend in its process; None: the configured one."""
    has_network: Callable[[str], object] = bool
    """Function of a network's name: whether it has that network."""
    script: Path | None = None
    """Script that measures it in an environment that may lack this package and its requirements."""
    networks: tuple[str, ...] = KINDS
    """Kinds of networks that it measures."""


BASELINES = {"classification": "keras", "detection": "torchvision", "segmentation": "torchvision"}
"""Kind of networks -> the contender that the others are compared with."""

_TORCHVISION = Contender(
    None,
    tasks=("inference", "detection", "train"),
    needs=("torch", "torchvision"),
    has_network=(TORCHVISION_DETECTORS | TORCHVISION_SEGMENTERS).__contains__,
    script=Path(__file__).with_name("torchvision_networks.py"),
    networks=("detection", "segmentation"),
)
_TORCH = {"backend": "torch", "has_network": torchvision_name, "networks": ("classification",)}


def _exported(format, precisions):
    """The contender of an exported format, in the runtime that reads it."""
    tasks, needs = ("inference", "detection", "load"), (*FORMATS[format].libraries, "tensorflow")
    return Contender(partial(ExportedNetwork, format=format), tasks, precisions, needs, backend="tensorflow")


CONTENDERS = {
    "keras_resnet": Contender(KerasNetwork, tasks=tuple(TASKS)),
    "keras": Contender(StockNetwork, has_network=lambda name: isinstance(get_spec(name), ResNetSpec)),
    "folded": Contender(FoldedNetwork, tasks=("inference", "detection", "parts")),
    "optimized": Contender(OptimizedNetwork, tasks=("inference", "detection")),
    "torch": Contender(TorchNetwork, needs=("torch", "torchvision"), **_TORCH),
    "torch_compiled": Contender(partial(TorchNetwork, compiled=True), needs=("torch", "torchvision"), **_TORCH),
    "onnxruntime": _exported("onnx", ("float32", "int8")),
    "openvino": _exported("openvino", ("float32", "bfloat16", "int8")),
    "openvino_torch": Contender(
        OpenVinoTorchNetwork, ("inference",), needs=("torch", "torchvision", "onnxscript", "openvino"), **_TORCH
    ),
    "litert": _exported("litert", ("float32", "int8")),
    "torchvision": _TORCHVISION,
    "torchvision_channels_last": _TORCHVISION,
}


MEASURED_PRECISIONS = tuple(name for name in PRECISIONS if any(name in row.precisions for row in CONTENDERS.values()))
"""The names in PRECISIONS that some contender supports."""


def reason_to_skip(job) -> str | None:
    """Why a contender cannot measure a job; None if it can."""
    contender = CONTENDERS[job.contender]
    missing = [module for module in contender.needs if importlib.util.find_spec(module) is None]
    if missing and not (contender.script and job.torch_python):
        return f"not installed: {', '.join(missing)}"
    if not contender.has_network(job.model):
        return f"has no {job.model}"
    if job.precision not in contender.precisions:
        return f"runs in {', '.join(contender.precisions)} only"
    return None
