"""{their name, their axes} <-> {our name, our axes}, both directions, and what each layout says of the network.

Our name of an array is "<layer>/<kind>", such as "conv3_block1_2_conv/kernel"; a Layout is a row that renames it.
"""

import re
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from keras_resnet.errors import unknown_name_error

_TORCH_KINDS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_TORCH = {"conv_bias": False, "bn_epsilon": 1e-5}


@dataclass(frozen=True)
class Layout:
    """How one family of files names its arrays."""

    name: str
    marks: tuple[str, ...]
    """Regular expressions; a file is in this layout if each matches one of its names."""
    stem: dict[str, str] = field(default_factory=dict)
    """Our layers outside the blocks -> their modules."""
    block: str = ""
    """Prefix of a block's modules, of `stage` and `block`, both from 0."""
    parts: dict[str, str] = field(default_factory=dict)
    """Our layers in a block -> their modules behind the prefix."""
    kinds: dict[str, str] = field(default_factory=dict)
    """Our kinds of array -> theirs; empty for files that have our names and axes."""
    postactivation: dict | None = None
    """What the spec of a post-activation network must say for these weights to be right in it; None: there is none."""
    preactivation: dict | None = None
    """The same for a pre-activation network."""
    dense_as_conv: bool = False
    """Whether the classifier is stored as a 1x1 convolution."""

    def rename(self, name, spec):
        """Our name of an array -> theirs, or None if this layout has no such array."""
        if not self.kinds:
            return name
        layer, kind = name.rsplit("/", 1)
        module = self.stem.get(layer)
        match = re.fullmatch(r"conv(\d+)_block(\d+)_(.+)", layer)
        if match and match[3] in self.parts:
            part = self.parts[match[3]]
            if spec.shortcut == "pooled":  # the pool is the first of the shortcut's three modules
                part = _POOLED.get(part, part)
            module = self.block.format(stage=int(match[1]) - 2, layer=int(match[1]) - 1, block=int(match[2]) - 1) + part
        return module and f"{module}.{self.kinds[kind]}"


_POOLED = {"downsample.0": "downsample.1", "downsample.1": "downsample.2"}
_TORCHVISION = Layout(
    "torchvision",
    marks=(r"layer1\.0\.conv1\.weight",),
    stem={
        "conv1_conv": "conv1",
        "conv1_bn": "bn1",
        "conv1_1_conv": "conv1.0",
        "conv1_1_bn": "conv1.1",
        "conv1_2_conv": "conv1.3",
        "conv1_2_bn": "conv1.4",
        "conv1_3_conv": "conv1.6",
        "conv1_3_bn": "bn1",
        "pool1_conv": "maxpool.0",
        "pool1_bn": "maxpool.1",
        "predictions": "fc",
    },
    block="layer{layer}.{block}.",
    parts={
        "0_conv": "downsample.0",
        "0_bn": "downsample.1",
        **{f"{i}_conv": f"conv{i}" for i in (1, 2, 3)},
        **{f"{i}_bn": f"bn{i}" for i in (1, 2, 3)},
        "se_reduce": "se.fc1",
        "se_expand": "se.fc2",
    },
    kinds=_TORCH_KINDS,
    postactivation={"stride_on": "3x3", **_TORCH},
)
_CIFAR = replace(  # github.com/akamaster/pytorch_resnet_cifar10
    _TORCHVISION,
    name="cifar",
    marks=(*_TORCHVISION.marks, r"linear\.weight"),
    stem={**_TORCHVISION.stem, "predictions": "linear"},
)
_TIMM = Layout(
    "timm",
    marks=(r"stages\.0\.blocks\.0\.conv1\.weight",),
    stem={"conv1_conv": "stem.conv", "post_bn": "norm", "predictions": "head.fc"},
    block="stages.{stage}.blocks.{block}.",
    parts={
        "0_conv": "downsample.conv",
        "preact_bn": "norm1",
        "1_conv": "conv1",
        "1_bn": "norm2",
        "2_conv": "conv2",
        "2_bn": "norm3",
        "3_conv": "conv3",
    },
    kinds=_TORCH_KINDS,
    preactivation={"downsample_at": "first", "stem": "imagenet_torch", "stride_on": "3x3", **_TORCH},
    dense_as_conv=True,
)
_KERAS_BIASED = {"conv_bias": True, "bn_epsilon": 1.001e-5}
_KERAS = Layout(
    "keras",
    marks=(r"conv\d+_block\d+_\w+/\w+|conv2d(_\d+)?/kernel",),
    postactivation={"stride_on": "1x1", **_KERAS_BIASED},
    preactivation={"downsample_at": "last", "stem": "imagenet", "stride_on": "3x3", **_KERAS_BIASED},
)
LAYOUTS = {layout.name: layout for layout in (_CIFAR, _TORCHVISION, _TIMM, _KERAS)}


def recognise(names):
    """The Layout of a file, from the names of its arrays.

    Raises:
        ValueError: if they are of no known layout.
    """
    for layout in LAYOUTS.values():
        if all(any(re.fullmatch(mark, name) for name in names) for mark in layout.marks):
            return layout
    raise ValueError(
        f"The names of the arrays should be those of one of the layouts {list(LAYOUTS)}. "
        f"Received: {sorted(names)[:4]} and {max(0, len(names) - 4)} more"
    )


def layout_named(name):
    """The Layout of this name."""
    if name not in LAYOUTS:
        raise unknown_name_error("layout", name, LAYOUTS)
    return LAYOUTS[name]


_ARRANGEMENT = ("stride_on", "downsample_at", "stem", "conv_bias", "bn_epsilon")
"""Fields of ResNetSpec that a file decides; those of _NETWORK are for the caller to know."""
_NETWORK = (
    "block",
    "depths",
    "widths",
    "stem_width",
    "shortcut",
    "preactivation",
    "groups",
    "group_width",
    "se_ratio",
    "merge",
)


def match_spec_to_weights(spec, layout, names, saved=None):
    """The neighbour of `spec` in which weights of a file are right: stride placement, biases, epsilon.

    Args:
        spec: ResNetSpec that was asked for.
        layout: Layout of the file.
        names: names of the file's arrays.
        saved: the values of the ResNetSpec that the file itself carries, if it does.

    Returns:
        A ResNetSpec; `spec` itself if it fits. A file with our own names fits unless it has biases and `spec` has
        none, or the other way round: then it is of keras.applications, or of torchvision.

    Raises:
        ValueError: if the layout has no such networks, or the file says that it is of another one.
    """
    if saved:
        _check_same_network(spec, saved)
        return replace(spec, **{name: saved[name] for name in _ARRANGEMENT if name in saved})
    if layout is _KERAS:
        biased = any(re.fullmatch(r"(conv1_conv|conv1_1_conv|conv2d)/bias", name) for name in names)
        if biased == spec.conv_bias:
            return spec
        layout = _KERAS if biased else _TIMM if spec.preactivation else _TORCHVISION
    changes = layout.preactivation if spec.preactivation else layout.postactivation
    if changes is None:
        kind = "post-activation" if spec.preactivation else "pre-activation"
        raise ValueError(
            f"The network should be a {kind} one: there are no others in the layout {layout.name!r}. "
            f"Received: preactivation={spec.preactivation}"
        )
    return replace(spec, **changes)


def _check_same_network(spec, saved):
    """Raises a ValueError if the values that a file carries are of another network, whose arrays might fit this one."""
    asked = spec.to_config()
    different = [f"{name}={saved[name]!r} (not {asked[name]!r})" for name in _NETWORK if saved.get(name) != asked[name]]
    if different:
        raise ValueError(f"The weights should be of this network. Received: those of one with {', '.join(different)}")


def check_arrangement(spec, wanted, path):
    """Raises a ValueError that lists how the ResNetSpec of a model differs from the one its weights are right in."""
    differences = [
        f"{name}={getattr(wanted, name)!r} (not {getattr(spec, name)!r})"
        for name in _ARRANGEMENT
        if getattr(spec, name) != getattr(wanted, name)
    ]
    if differences:
        raise ValueError(
            f"`model` should be arranged as the weights expect: {', '.join(differences)}. `create(..., weights=path)` "
            f"builds it so. Received: path={str(path)!r}"
        )


_NUMBERED = {"Conv2D": "conv2d", "BatchNormalization": "batch_normalization", "Dense": "dense"}
HEAD = ("predictions/kernel", "predictions/bias")


def named(entries, layers):
    """Entries under the names of a model's layers; older versions of Keras numbered the layers of each class instead.

    Args:
        entries: {"conv2d_3/kernel": ..., ...}, or entries with our names, which stay as they are.
        layers: layers of the model, in order.
    """
    names, seen = {}, Counter()
    for layer in layers:
        kind = _NUMBERED.get(type(layer).__name__, "")
        names[f"{kind}_{seen[kind]}" if seen[kind] else kind] = layer.name
        seen[kind] += 1
    split = ((*name.rsplit("/", 1), entry) for name, entry in entries.items())
    return {f"{names.get(layer, layer)}/{kind}": entry for layer, kind, entry in split}


def variables(model):
    """{our name: variable} of a network, in the order of its layers; what comes before an `input_tensor` is not its."""
    ours = (layer for layer in model.layers if re.match(r"conv\d+_|pool1_|post_|predictions$", layer.name))
    return {f"{layer.name}/{weight.name}": weight for layer in ours for weight in layer.weights}


def translate(entries, layout, model):
    """A file's entries under our names and with our axes; what has no place in the network keeps its name.

    Args:
        entries: {their name: Entry}.
        layout: the file's Layout.
        model: the network.

    Returns:
        {our name: Entry}; nothing is read yet.
    """
    if not layout.kinds:
        return named(entries, model.layers)
    ours = {layout.rename(name, model.spec): name for name in (*variables(model), *HEAD)}
    return {ours.get(name, name): _with_our_axes(entry, ours.get(name)) for name, entry in entries.items()}


_AXES = {4: (2, 3, 1, 0), 2: (1, 0)}  # torch's (out, in, height, width) -> Keras's; the same for (out, in)


def _with_our_axes(entry, name):
    axes = _AXES.get(len(entry.shape))
    if name is None or axes is None:
        return entry
    shape = tuple(entry.shape[axis] for axis in axes)
    if name == HEAD[0]:  # a 1x1 convolution, in some
        shape = shape[-2:] if shape[:-2] in ((), (1, 1)) else shape
    return replace(entry, shape=shape, read=lambda: entry.read().transpose(axes).reshape(shape))


def their_array(array, layout, name):
    """An array of ours with their axes, contiguous; `name` is our name of it."""
    if not layout.kinds or array.ndim not in _AXES:
        return array
    if layout.dense_as_conv and name == HEAD[0]:
        array = array[None, None]
    return np.ascontiguousarray(array.transpose(np.argsort(_AXES[array.ndim])))
