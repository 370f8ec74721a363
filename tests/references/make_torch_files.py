"""Makes the torch_*.pth files of this folder, and torch_files.npz with what torch says is in them.

Run with torch (2.13) and NumPy installed: python tests/references/make_torch_files.py
"""

import os
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent


class Malicious:
    """A pickle whose reading makes the file `code-was-run` in the working directory."""

    def __reduce__(self):
        return os.system, ("touch code-was-run",)


def state_dict():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    net[1].running_mean.normal_()
    return net.state_dict()


def checkpoint(state):
    """What a training script leaves behind: DataParallel's prefix, a NumPy scalar, an optimizer."""
    parameters = [torch.nn.Parameter(value) for value in state.values() if value.is_floating_point()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    sum(parameter.sum() for parameter in parameters).backward()
    optimizer.step()
    return {
        "epoch": 7,
        "arch": "resnet18",
        "best_prec1": np.float64(69.75),
        "state_dict": {f"module.{name}": value for name, value in state.items()},
        "optimizer": optimizer.state_dict(),
    }


def views():
    """Tensors that are not their storage: transposed, shared, sliced, scalar, empty, a parameter."""
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "transposed": base.t(),
        "rows": base[1:3],
        "columns": base[:, 1::2],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.arange(3.0)),
    }


def main():
    state, kinds = state_dict(), (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)
    dtypes = {str(kind).partition(".")[2]: torch.tensor([0, 1.5, 300, 7]).to(kind) for kind in kinds}
    files = {
        "zip": state,
        "checkpoint": checkpoint(state),
        "dtypes": dtypes,
        "views": views(),
        "malicious": {**state, "x": Malicious()},
    }
    for name, content in files.items():
        torch.save(content, FOLDER / f"torch_{name}.pth")
        torch.save(content, FOLDER / f"torch_{name}_legacy.pth", _use_new_zipfile_serialization=False)
    expected = {"state": state, "dtypes": dtypes, "views": views()}
    arrays = {
        f"{group}:{name}": (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
        for group, tensors in expected.items()
        for name, tensor in tensors.items()
        if not name.endswith("num_batches_tracked")
    }
    np.savez_compressed(FOLDER / "torch_files.npz", **arrays)


if __name__ == "__main__":
    main()
