"""The machine and library versions on which results were measured."""

import importlib.metadata
import os
import platform
import re
import sys
from contextlib import suppress
from pathlib import Path

_LIBRARIES = [
    "keras-residual",
    "keras",
    "tensorflow",
    "jax",
    "torch",
    "torchvision",
    "numpy",
    "onnx",
    "tf2onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "ai-edge-litert",
]


def machine() -> dict:
    """{"cpu": processor name, "cores": number this process may use, "system": operating system}."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")  # Linux; elsewhere Python has a shorter name
    name = re.search(r"model name\s*: (.+)", info.read_text("utf-8")) if info.exists() else None
    processor = name[1] if name else platform.processor() or platform.machine()
    return {"cpu": processor, "cores": usable, "system": platform.platform()}


def versions() -> dict[str, str]:
    """{library: version} of Python and the installed libraries."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def peak_memory() -> int | None:
    """Largest memory use of this process so far, in bytes; None if the system does not record it.

    On Linux, `getrusage` includes the memory of the parent process at the fork; /proc does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text("utf-8").partition("VmHWM:")[2].split()[0]) * 1024  # in kB
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def accelerator(framework: str | None) -> tuple[str | None, int | None]:
    """(name, peak memory in bytes) of the GPU that "tensorflow", "jax" or "torch" uses; (None, None) on the CPU."""
    if framework == "tensorflow":
        import tensorflow as tf

        if gpus := tf.config.list_physical_devices("GPU"):
            details = tf.config.experimental.get_device_details(gpus[0])
            memory = tf.config.experimental.get_memory_info("GPU:0")
            return details.get("device_name", gpus[0].name), memory["peak"]
    elif framework == "jax":
        import jax

        device = jax.devices()[0]
        if device.platform != "cpu":
            return device.device_kind, (device.memory_stats() or {}).get("peak_bytes_in_use")
    elif framework == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name(), torch.cuda.max_memory_allocated()
    return None, None
