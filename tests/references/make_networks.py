"""Write networks of torchvision and timm with random weights, and their outputs, as references for the tests.

Run in an environment with torch, torchvision, timm and safetensors (torchvision may be built for another torch):

    python make_networks.py                                 # narrow ones into networks/, with an index.json
    python make_networks.py --full DIR resnet50 resnet50d   # full-size ones into DIR, 20 to 140 MB each

`<name>.safetensors` holds the state dict in float16, exactly: the weights were rounded before anything was computed.
`<name>.npz` holds images `x64` (2, 64, 64, C) and `x97` (1, 97, 65, C), exactly again in float16, and what the
network in eval mode makes of them, computed in float64, stored in float32: `logits64` and `logits97` (B, classes); for
dilated networks also `features64`, the last feature maps (2, h, w, channels).
"""

import argparse
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file


def declare_operators():
    """Let torchvision be imported where its compiled part does not fit this torch; the networks do not use it.

    Returns the declarations, which last as long as this object, or None where the compiled part loads.
    """
    package = Path(importlib.util.find_spec("torchvision").origin).parent
    try:
        torch.ops.load_library(next(package.glob("_C*.so")))
    except (OSError, StopIteration):
        library = torch.library.Library("torchvision", "DEF")
        pools = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
        for name in ("nms", "qnms", *pools, *(f"_{pool}_backward" for pool in pools)):
            library.define(f"{name}(Tensor x) -> Tensor")
        return library


DECLARED = declare_operators()

import timm  # noqa: E402
import torchvision  # noqa: E402
from timm.models import adapt_input_conv  # noqa: E402
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet  # noqa: E402


class NarrowResNet(ResNet):
    """torchvision's ResNet with `channels` where its constructor has 64, 128, 256, 512."""

    def __init__(self, *, channels, num_classes, **kwargs):
        self.channels = dict(zip((64, 128, 256, 512), channels, strict=True))
        super().__init__(**kwargs)
        self.fc = torch.nn.Linear(self.inplanes, num_classes)

    def _make_layer(self, block, planes, *args, **kwargs):
        if planes == 64:
            self.inplanes = self.channels[planes]
            self.conv1 = torch.nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(self.inplanes)
        return super()._make_layer(block, self.channels[planes], *args, **kwargs)


@dataclass(frozen=True)
class Row:
    """One narrow network: ours in words, theirs as a call."""

    variant: str
    """Our name of its full-size relative."""
    spec: dict
    """The fields of ResNetSpec in which it differs from that relative."""
    factory: Callable
    arguments: dict
    weights: str | None = None
    """The row whose weights it shares, if it has none of its own."""
    input_channels: int = 3
    """Other than 3, the first kernel is adapted as timm adapts it."""
    features: bool = False
    """Whether the last feature maps are written too."""

    def build(self):
        """Their network, with its constructor's weights."""
        return self.factory(**self.arguments)

    @property
    def call(self):
        """The call that builds it, as a string."""
        values = {name: getattr(value, "__name__", repr(value)) for name, value in self.arguments.items()}
        return f"{self.factory.__name__}({', '.join(f'{name}={value}' for name, value in values.items())})"


CLASSES = 10


def _torchvision(variant, block, layers, spec=(), **kwargs):
    """A row of torchvision's ResNet; the stem is as wide as the first stage, as at full size."""
    widths = (8, 16, 24, 32) if block is BasicBlock else (4, 8, 12, 16)
    arguments = dict(block=block, layers=layers, channels=widths, num_classes=CLASSES, **kwargs)
    return Row(variant, dict(spec, widths=widths, stem_width=widths[0]), NarrowResNet, arguments)


def _timm(variant, spec, **kwargs):
    """A row of timm's; its `channels` are the widths of `spec` unless given."""
    arguments = {"model_name": variant, "channels": spec["widths"], "num_classes": CLASSES, **kwargs}
    return Row(variant, spec, timm.create_model, arguments)


def _strided(name, output_stride):
    """The row `name` with its weights, dilated."""
    row, change = ROWS[name], {"output_stride": output_stride}
    return replace(row, spec=row.spec | change, arguments=row.arguments | change, weights=name, features=True)


def _adapted(name, channels):
    """The row `name` with its weights, for images of `channels` channels."""
    row = ROWS[name]
    return replace(row, arguments=row.arguments | {"in_chans": channels}, weights=name, input_channels=channels)


# timm's 7x7 stem is always 64 wide, its deep stems twice `stem_width`. Its squeezed widths are multiples of 8
# (here of 192 channels 12 -> 16), and so are the middle ones of its ResNetV2, whose `channels` leave the bottlenecks.
# Our resnet50 is keras.applications'; theirs is v1.5.
_26 = {"widths": (4, 8, 12, 16), "stem_width": 64}
_50 = dict(_26, stride_on="3x3", conv_bias=False, bn_epsilon=1e-5)
_50D = {"widths": (4, 8, 12, 16), "stem_width": 8}
_18D = {"widths": (8, 16, 24, 32), "stem_width": 8}
_SE18 = {"widths": (8, 16, 24, 32), "stem_width": 64}
_SE50 = {"widths": (4, 8, 16, 48), "stem_width": 64, "depths": (2, 2, 2, 1)}
_T26 = dict(_50D, stem_width=64)
_SEX = {"widths": (8, 16, 24, 32), "stem_width": 64, "groups": 4, "group_width": 16}
_V2 = {"widths": (8, 16, 24, 32), "stem_width": 8, "depths": (2, 2, 2, 2)}

ROWS = {
    "resnet18": _torchvision("resnet18", BasicBlock, (2, 2, 2, 2)),
    "resnet34": _torchvision("resnet34", BasicBlock, (3, 4, 6, 3)),
    "resnext50_32x4d": _torchvision(
        "resnext50_32x4d", Bottleneck, (3, 4, 6, 3), {"groups": 4, "group_width": 32}, groups=4, width_per_group=32
    ),
    "wide_resnet50_2": _torchvision("wide_resnet50_2", Bottleneck, (3, 4, 6, 3), width_per_group=128),
    "resnet26": _timm("resnet26", _26),
    "resnet50": _timm("resnet50", _50),
    "resnet18d": _timm("resnet18d", _18D, stem_width=4),
    "resnet50d": _timm("resnet50d", _50D, stem_width=4),
    "seresnet18": _timm("seresnet18", _SE18),
    "seresnet50": _timm("seresnet50", _SE50, layers=(2, 2, 2, 1)),
    "resnetrs50": _timm("resnetrs50", _50D, stem_width=4),
    "resnet50c": _timm("resnet50c", _50D, stem_width=4),
    "resnet50s": _timm("resnet50s", dict(_50D, stem_width=16), stem_width=8),
    "resnet26t": _timm("resnet26t", _T26),
    "seresnext26d_32x4d": _timm("seresnext26d_32x4d", _SEX, cardinality=4, base_width=16),
    "ecaresnet26t": _timm("ecaresnet26t", _T26),
    "ecaresnetlight": _timm("ecaresnetlight", dict(_26, depths=(1, 1, 2, 1)), layers=(1, 1, 2, 1)),
    "resnetv2_50": _timm("resnetv2_50", _V2, channels=(32, 64, 96, 128), stem_chs=8, layers=(2, 2, 2, 2)),
}
ROWS |= {
    "resnet50_stride16": _strided("resnet50", 16),
    "resnet50_stride8": _strided("resnet50", 8),
    "resnet50d_stride8": _strided("resnet50d", 8),
    "resnetv2_50_stride16": _strided("resnetv2_50", 16),
    "resnetv2_50_stride8": _strided("resnetv2_50", 8),
    "resnet50_1channel": _adapted("resnet50", 1),
    "resnet50_4channels": _adapted("resnet50", 4),
}

FULL = {
    **dict.fromkeys(
        ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2"),
        torchvision.models.get_model,
    ),
    **dict.fromkeys(("resnet26", "resnet50d", "seresnet50", "resnetv2_50"), timm.create_model),
}


def randomise(model, seed=0):
    """The same model in eval mode, every weight random: kernels He-normal, batch norms far from the identity.

    All is rounded to float16. A block's last scale is halved, for fifty blocks in a row would overflow it otherwise.
    """
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    last = ".bn3.weight" if any(name.endswith(".bn3.weight") for name in state) else ".bn2.weight"
    for name, tensor in state.items():
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            value = (torch.rand(tensor.shape, generator=generator) + 0.5) * (0.5 if name.endswith(last) else 1)
        elif tensor.ndim == 1:
            value = torch.randn(tensor.shape, generator=generator) * 0.1
        elif tensor.ndim > 1:
            value = torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5
        else:
            continue  # num_batches_tracked, a count
        tensor.copy_(value.half())
    return model.eval()


def adapt(state, channels):
    """The state dict for images of `channels` channels, as timm makes it of one for 3."""
    return {**state, "conv1.weight": adapt_input_conv(channels, state["conv1.weight"])}


def images(*shape):
    """Normal noise in steps of 1/2, which float16 holds exactly and zip packs well: (B, H, W, C) float16."""
    return (np.random.default_rng(sum(shape)).standard_normal(shape) * 2).round().astype("float16") / np.float16(2)


def outputs(model, channels, *, features=False):
    """The images and what the model makes of them: {name: array}, the .npz file."""
    model = model.double()
    arrays = {"x64": images(2, 64, 64, channels), "x97": images(1, 97, 65, channels)}
    x64, x97 = (torch.from_numpy(x).double().permute(0, 3, 1, 2) for x in arrays.values())
    with torch.inference_mode():
        results = {"logits64": model(x64), "logits97": model(x97)}
        if features:
            results["features64"] = model.forward_features(x64).permute(0, 2, 3, 1)
    for name, result in results.items():
        if not 1e-2 < result.abs().max() < 1e6:
            raise ValueError(f"`{name}` should be of sane size. Received: {result}")
        arrays[name] = result.float().numpy()
    return arrays


def save_weights(state, path):
    """Write a state dict in float16; counts stay integers."""
    save_file({name: value.half() if value.is_floating_point() else value for name, value in state.items()}, path)


def cost(name):
    """[parameters, multiply-adds of its convolutions and linear layers] of timm's network at 224 x 224."""
    model = timm.create_model(name, device="meta").eval()
    counts = []
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Linear)):
            count = lambda m, _, y: counts.append(m.weight.numel() * (y[0].numel() // y.shape[1]))  # noqa: E731
            module.register_forward_hook(count)
    model(torch.zeros(1, 3, 224, 224, device="meta"))
    return [sum(parameter.numel() for parameter in model.parameters()), sum(counts)]


def write_narrow(folder):
    """Write every network of ROWS, and index.json, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    states, index = {}, {}
    for name, row in ROWS.items():
        model = row.build()
        if row.weights is None:
            states[name] = randomise(model).state_dict()
            save_weights(states[name], folder / f"{name}.safetensors")
        state = states[row.weights or name]
        model.load_state_dict(state if row.input_channels == 3 else adapt(state, row.input_channels))
        model.eval()
        arrays = outputs(model, row.input_channels, features=row.features)
        np.savez_compressed(folder / f"{name}.npz", **arrays)
        index[name] = {
            "variant": row.variant,
            "spec": row.spec,
            "layout": "timm" if hasattr(model, "stages") else "torchvision",  # timm's ResNet has torchvision's names
            "classes": CLASSES,
            "input_channels": row.input_channels,
            "weights": row.weights or name,
            "call": row.call,
        }
    costs = {name: cost(name) for module in ("resnet", "resnetv2") for name in timm.list_models(module=module)}
    versions = {package: importlib.metadata.version(package) for package in ("torch", "torchvision", "timm")}
    (folder / "index.json").write_text(
        json.dumps({"versions": versions, "networks": index, "timm": costs}, indent=1) + "\n"
    )


def write_full(folder, names):
    """Write the full-size networks `names` of FULL, 1000 classes each, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        model = randomise(FULL[name](name, num_classes=1000))
        save_weights(model.state_dict(), folder / f"{name}.safetensors")
        np.savez_compressed(folder / f"{name}.npz", **outputs(model, 3))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", nargs="+", metavar=("DIR", "NAME"), help=f"full-size ones of {', '.join(FULL)}")
    full = parser.parse_args().full
    if not full:
        write_narrow(Path(__file__).parent / "networks")
    elif len(full) > 1 and FULL.keys() >= set(full[1:]):
        write_full(Path(full[0]), full[1:])
    else:
        parser.error(f"--full should be given a folder and names of {', '.join(FULL)}. Received: {' '.join(full)}")
