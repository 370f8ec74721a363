"""CONTENDERS and TASKS: what a benchmark compares, and what it measures, one row each."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from keras_resnet.benchmark.keras_networks import FoldedNetwork, KerasNetwork, Network, OptimizedNetwork, StockNetwork
from keras_resnet.benchmark.other_networks import (
    ExportedNetwork,
    OpenVinoTorchNetwork,
    TorchNetwork,
    torchvision_name,
)
from keras_resnet.deployment.formats.table import FORMATS
from keras_resnet.precision import PRECISIONS


@dataclass(frozen=True)
class Task:
    """What is measured."""

    unit: str
    is_rate: bool = False
    """Whether it is a rate, of the images in the batches of a round; otherwise the seconds of doing it once."""
    reports_memory: bool = False
    """Whether the peak memory is reported: only of the first two tasks, since a process's peak never falls."""


TASKS = {
    "inference": Task("images/s", is_rate=True, reports_memory=True),
    "train": Task("images/s", is_rate=True, reports_memory=True),
    "build": Task("s"),
    "load": Task("s"),
    "pipeline": Task("images/s", is_rate=True),
    "whole_run": Task("images/s", is_rate=True),
    "evaluation": Task("images/s", is_rate=True),
    "extraction": Task("images/s", is_rate=True),
}


@dataclass(frozen=True)
class Contender:
    """A library, or a form of this package's networks, that is compared with others."""

    network: Callable[..., Network]
    """Called with a Job and a folder."""
    tasks: tuple[str, ...] = ("inference", "train", "build", "load")
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    needs: tuple[str, ...] = ()
    """Modules that must be installed."""
    backend: str | None = None
    """The Keras backend in its process; None: the configured one."""
    has_network: Callable[[str], object] = bool
    """Function of a network's name: whether it has that network."""


BASELINE = "keras"
"""The contender that the others are compared with."""

_TORCH = {"backend": "torch", "has_network": torchvision_name}


def _exported(format, precisions):
    """The contender of an exported format, in the runtime that reads it."""
    tasks, needs = ("inference", "load"), (*FORMATS[format].writes, "tensorflow")
    return Contender(partial(ExportedNetwork, format=format), tasks, precisions, needs, backend="tensorflow")


CONTENDERS = {
    "keras_resnet": Contender(KerasNetwork, tasks=tuple(TASKS)),
    "keras": Contender(StockNetwork),
    "folded": Contender(FoldedNetwork, tasks=("inference",)),
    "optimized": Contender(OptimizedNetwork, tasks=("inference",)),
    "torch": Contender(TorchNetwork, needs=("torch", "torchvision"), **_TORCH),
    "torch_compiled": Contender(partial(TorchNetwork, compiled=True), needs=("torch", "torchvision"), **_TORCH),
    "onnxruntime": _exported("onnx", ("float32", "int8")),
    "openvino": _exported("openvino", ("float32", "bfloat16", "int8")),
    "openvino_torch": Contender(
        OpenVinoTorchNetwork, ("inference",), needs=("torch", "torchvision", "onnxscript", "openvino"), **_TORCH
    ),
    "litert": _exported("litert", ("float32", "int8")),
}


MEASURED_PRECISIONS = tuple(name for name in PRECISIONS if any(name in row.precisions for row in CONTENDERS.values()))
"""The names in PRECISIONS that some contender supports."""


def reason_to_skip(job) -> str | None:
    """Why a contender cannot measure a job; None if it can."""
    contender = CONTENDERS[job.contender]
    missing = [module for module in contender.needs if importlib.util.find_spec(module) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if not contender.has_network(job.model):
        return f"has no {job.model}"
    if job.precision not in contender.precisions:
        return f"runs in {', '.join(contender.precisions)} only"
    return None
