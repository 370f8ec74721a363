"""Write the steps of torch's optimizers as references for the tests, into torch_optimizers.npz.

Run in an environment with torch: `python make_torch_optimizers.py`

`start/kernel`, `start/bias` and `start/upper` are the values of three parameters, `gradients/...` their gradients in 6
steps. `NAME/...` are the parameters after each step. Kernel and bias have half the learning rate of the upper kernel
(layer decay), the bias has no weight decay, and the gradients are clipped to a global norm of 2.
"""

from pathlib import Path

import numpy as np
import torch

LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 0.1, 0.05, 2.0
RATES = {"kernel": LEARNING_RATE / 2, "bias": LEARNING_RATE / 2, "upper": LEARNING_RATE}
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    # as in https://github.com/pytorch/vision/blob/main/references/classification/train.py
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.9, "eps": 0.0316, "alpha": 0.9}),
}


def steps(optimizer, arguments, start, gradients):
    """{parameter: values after each step}."""
    parameters = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    groups = [
        {"params": [parameter], "lr": RATES[name], "weight_decay": 0.0 if name == "bias" else WEIGHT_DECAY}
        for name, parameter in parameters.items()
    ]
    optimizer, values = optimizer(groups, **arguments), {name: [] for name in parameters}
    for index in range(len(gradients["bias"])):
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(gradients[name][index])
        torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP_NORM)
        optimizer.step()
        for name, parameter in parameters.items():
            values[name].append(parameter.detach().numpy().copy())
    return values


generator = np.random.default_rng(0)
shapes = {"kernel": (2, 3), "bias": (3,), "upper": (3, 2)}
start = {name: generator.normal(size=shape).astype("float32") for name, shape in shapes.items()}
gradients = {name: generator.normal(size=(6, *shape)).astype("float32") for name, shape in shapes.items()}
arrays = {f"start/{name}": value for name, value in start.items()}
arrays |= {f"gradients/{name}": value for name, value in gradients.items()}
for optimizer, row in OPTIMIZERS.items():
    arrays |= {f"{optimizer}/{name}": np.stack(values) for name, values in steps(*row, start, gradients).items()}
np.savez_compressed(Path(__file__).parent / "torch_optimizers.npz", **arrays)
