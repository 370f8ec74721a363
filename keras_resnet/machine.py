"""What the numbers were measured on."""

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path

_LIBRARIES = (
    "keras-residual",
    "keras",
    "tensorflow",
    "jax",
    "torch",
    "torchvision",
    "onnx",
    "tf2onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "ai-edge-litert",
    "numpy",
)


def machine():
    """Name of the processor, how many of its cores this process may use, and the system."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": _processor(), "cores": usable, "system": platform.platform()}


def versions():
    """{library: version} of those that are installed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def peak_memory():
    """Bytes of memory this process has held at most; None where the system does not say.

    Linux's own record comes first: the one of `getrusage` begins with that of the process which started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text("utf-8"))[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def accelerator(framework):
    """(name, bytes held at most) of the GPU that "tensorflow", "jax" or "torch" uses; (None, None) on the CPU."""
    return {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}.get(framework, lambda: (None, None))()


def _tensorflow():
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return None, None
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name)
    return name, tf.config.experimental.get_memory_info("GPU:0")["peak"]


def _jax():
    import jax

    device = jax.devices()[0]
    if device.platform == "cpu":
        return None, None
    return device.device_kind, (device.memory_stats() or {}).get("peak_bytes_in_use")


def _torch():
    import torch

    if not torch.cuda.is_available():
        return None, None
    return torch.cuda.get_device_name(), torch.cuda.max_memory_allocated()


def _processor():
    """Linux keeps the full name in a file; elsewhere Python knows as much as there is."""
    info = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.+)", info.read_text("utf-8")) if info.exists() else None
    return name[1] if name else platform.processor() or platform.machine()
