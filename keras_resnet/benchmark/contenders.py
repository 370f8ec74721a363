"""CONTENDERS: name -> who takes part, one row each; TASKS: what is measured; PRECISIONS: in which numbers."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from keras_resnet.benchmark.networks import FoldedNetwork, KerasNetwork, Network, OptimizedNetwork, StockNetwork
from keras_resnet.benchmark.others import (
    CompiledTorchNetwork,
    LiteRtNetwork,
    OnnxNetwork,
    OpenVinoNetwork,
    OpenVinoTorchNetwork,
    TorchNetwork,
    torchvision_name,
)
from keras_resnet.deployment.formats.table import FORMATS

COMPUTED = ("float32", "mixed_bfloat16")
PRECISIONS = (*COMPUTED, "int8")


@dataclass(frozen=True)
class Task:
    """One thing that is measured."""

    unit: str
    in_batches: bool = False
    """Whether it is a rate, of the images in the batches of a round; else it is done once a round, and its time is
    what counts."""
    peaks: bool = False
    """Whether the peak memory after it says something: the first two alone, since a process never forgets its peak."""


TASKS = {
    "inference": Task("images/s", in_batches=True, peaks=True),
    "train": Task("images/s", in_batches=True, peaks=True),
    "build": Task("s"),
    "load": Task("s"),
    "pipeline": Task("images/s", in_batches=True),
    "whole_run": Task("images/s", in_batches=True),
    "evaluation": Task("images/s", in_batches=True),
    "extraction": Task("images/s", in_batches=True),
}


@dataclass(frozen=True)
class Contender:
    """Who takes part."""

    network: type[Network]
    tasks: tuple[str, ...] = ("inference", "train", "build", "load")
    precisions: tuple[str, ...] = COMPUTED
    needs: tuple[str, ...] = ()
    """Modules beyond those of this package."""
    backend: str | None = None
    """The Keras backend in its process; None: the configured one."""
    has: Callable[[str], object] = bool
    """Name of a network -> whether it has that."""


BASELINE = "keras"
"""Whom the others are compared with."""

_TORCH = {"backend": "torch", "has": torchvision_name}
_EXPORTED = {"tasks": ("inference", "load"), "backend": "tensorflow"}


def _needs(form):
    return (*FORMATS[form].writes, "tensorflow")


CONTENDERS = {
    "keras_resnet": Contender(KerasNetwork, tasks=tuple(TASKS)),
    "keras": Contender(StockNetwork),
    "folded": Contender(FoldedNetwork, tasks=("inference",)),
    "optimized": Contender(OptimizedNetwork, tasks=("inference",)),
    "torch": Contender(TorchNetwork, needs=("torch", "torchvision"), **_TORCH),
    "torch_compiled": Contender(CompiledTorchNetwork, needs=("torch", "torchvision"), **_TORCH),
    "onnxruntime": Contender(OnnxNetwork, precisions=("float32", "int8"), needs=_needs("onnx"), **_EXPORTED),
    "openvino": Contender(OpenVinoNetwork, precisions=PRECISIONS, needs=_needs("openvino"), **_EXPORTED),
    "openvino_torch": Contender(
        OpenVinoTorchNetwork, ("inference",), needs=("torch", "torchvision", "onnxscript", "openvino"), **_TORCH
    ),
    "litert": Contender(LiteRtNetwork, precisions=("float32", "int8"), needs=_needs("litert"), **_EXPORTED),
}


def obstacle(job):
    """Why a contender cannot take part in a job, in words; None if it can."""
    contender = CONTENDERS[job.contender]
    missing = [module for module in contender.needs if importlib.util.find_spec(module) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if not contender.has(job.model):
        return f"has no {job.model}"
    if job.precision not in contender.precisions:
        return f"runs in {', '.join(contender.precisions)} only"
    return None
