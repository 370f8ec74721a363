"""Weights into a network: read, map, assign strictly."""

import json
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from keras_resnet.architecture.network import build
from keras_resnet.data.labels import CIFAR10_CLASSES
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.weights.fetching import timm_preprocessing
from keras_resnet.weights.mappings import HEAD, LAYOUTS, arrange, recognise, translate, variables
from keras_resnet.weights.readers import open_weights


def load_weights(model, path, layout="auto"):
    """Loads all weights of a file into a network, strictly: every array finds its place and every place its array.

    Args:
        model: a network of this package.
        path: a weights file; see `readers.open_weights` for the formats.
        layout: "auto" (from the names of the arrays), "keras", "torchvision", "timm" or "cifar".

    Raises:
        ValueError: if anything does not fit; the message lists it, and the model is as it was.
    """
    check_ours(model)
    with open_weights(path) as file:
        layout, about = _layout(layout, file, path), _about(file)
        check_arrangement(model.spec, arrange(model.spec, layout, file.entries, about.get("spec")), path)
        pairs = _pair(model, translate(file.entries, layout, model), path)
        arrays = [(variable, entry.read()) for variable, entry in pairs]  # all of them, before the first is overwritten
    for variable, array in arrays:
        variable.assign(array)
    model.info = _info(path, layout, about, model, preprocessing=None)


def build_from_file(spec, path, include_top=True, classes=None, preprocessing=None, **arguments):
    """The network of `spec`, arranged as a file wants it (stride placement, biases, epsilon), with its weights.

    Args:
        spec: ResNetSpec.
        path: the weights file.
        include_top: whether to have the classifier; without it, the file's is left out.
        classes: number of classes; None for the file's. Another number than the file's starts a fresh classifier.
        preprocessing: Preprocessing of the weights' source, or None to ask the file.
        **arguments: of `architecture.network.build`.

    Returns:
        A ResNet. Another number of input channels than the file's adapts the first convolution: its kernels are summed
        over colour for grey pictures, else repeated over the channels and scaled.

    Raises:
        ValueError: if the file is not of this network; the message lists what does not fit.
    """
    with open_weights(path) as file:
        layout, about = _layout("auto", file, path), _about(file)
        spec = arrange(spec, layout, file.entries, about.get("spec"))
        held = _classes(file.entries, layout, spec)
        classes = classes or held or spec.default_classes
        model = build(spec, include_top=include_top, classes=classes, initialize=False, **arguments)
        entries = translate(file.entries, layout, model)
        fresh = include_top and held is not None and held != classes
        if fresh or not include_top:
            entries = {name: entry for name, entry in entries.items() if name not in HEAD}
        _adapt_channels(entries, model, path)
        for variable, entry in _pair(model, entries, path, fresh=HEAD if fresh else ()):
            variable.assign(entry.read())
    if fresh:
        _start_afresh(model.get_layer("predictions"), held, path)
    model.info = _info(path, layout, about, model, preprocessing, same_classes=not fresh)
    return model


def check_ours(model):
    if getattr(model, "spec", None) is None:
        raise ValueError(f"`model` should be a network of keras_resnet, with its `spec`. Received: model={model!r}")


def _layout(name, file, path):
    if name != "auto":
        return layout_named(name)
    try:
        return recognise(file.entries)
    except ValueError as error:
        raise ValueError(f"`{path}` holds no weights of a residual network. {error}") from None


def layout_named(name):
    """The Layout of this name."""
    if name not in LAYOUTS:
        raise ValueError(f"`layout` should be 'auto' or one of {list(LAYOUTS)}. Received: layout={name!r}")
    return LAYOUTS[name]


def _about(file):
    """What a file of ours says about its network: {"spec": values, "info": ...}; {} for anybody else's."""
    try:
        ours = file.config.get("keras_resnet")
        about = json.loads(ours) if ours else file.config["config"]["resnet"]
        return about if isinstance(about.get("spec") or {}, dict) and isinstance(about.get("info") or {}, dict) else {}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def check_arrangement(spec, wanted, path):
    differences = [
        f"{name}={getattr(wanted, name)!r} (not {getattr(spec, name)!r})"
        for name in spec.to_config()
        if getattr(spec, name) != getattr(wanted, name)
    ]
    if differences:
        raise ValueError(
            f"`model` should be arranged as the weights expect: {', '.join(differences)}. `create(..., weights=path)` "
            f"builds it so. Received: path={str(path)!r}"
        )


def _pair(model, entries, path, fresh=()):
    """[(variable, Entry)] of a model, without those in `fresh`: none is missing, left over or of another shape."""
    ours = {name: variable for name, variable in variables(model).items() if name not in fresh}
    wanted = {name: tuple(variable.shape) for name, variable in ours.items()}
    problems = {
        "missing": [name for name in wanted if name not in entries],
        "left over": [name for name in entries if name not in wanted],
        "of another shape": [
            f"{name} {tuple(entries[name].shape)}, not {shape}"
            for name, shape in wanted.items()
            if name in entries and tuple(entries[name].shape) != shape
        ],
    }
    if any(problems.values()):
        raise ValueError(_misfit(model, path, problems))
    return [(variable, entries[name]) for name, variable in ours.items()]


def _misfit(model, path, problems):
    lists = (
        f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for kind, names in problems.items()
        if names
    )
    hint = " (the file has no classifier: include_top=False)" if set(problems["missing"]) == set(HEAD) else ""
    return f"`{path}` should hold the weights of {model.name}, no more and no less. Received: {'; '.join(lists)}{hint}"


def _classes(entries, layout, spec):
    """Number of classes of the file's classifier, or None."""
    for name in (layout.rename(HEAD[1], spec), "dense/bias"):
        if name in entries and len(entries[name].shape) == 1:
            return entries[name].shape[0]
    return None


def _start_afresh(layer, held, path):
    """Draws the kernel of a classifier whose number of classes is not the file's; its bias is zero."""
    layer.kernel.assign(layer.kernel_initializer(layer.kernel.shape, dtype=layer.kernel.dtype))
    classes = layer.kernel.shape[-1]
    warnings.warn(f"`{path}` has {held} classes: the classifier for {classes} starts afresh, untrained.", stacklevel=4)


def _adapt_channels(entries, model, path):
    """Replaces the entry of the first kernel by one for the model's number of input channels."""
    name, kernel = _first_kernel(model)
    entry, (*window, want, filters) = entries.get(name), kernel.shape
    if entry is None or len(entry.shape) != 4:
        return
    have = entry.shape[2]
    if have == want or tuple(entry.shape) != (*window, have, filters):
        return
    entries[name] = replace(entry, shape=tuple(kernel.shape), read=lambda: _over_channels(entry.read(), want))
    how = "summed over colour" if want == 1 else "repeated over the channels and scaled"
    warnings.warn(f"`{path}` expects {have} input channels: for {want}, its first kernels are {how}.", stacklevel=4)


def _first_kernel(model):
    """(our name, variable) of the kernel that sees the pictures."""
    return next(item for item in variables(model).items() if item[0].endswith("/kernel"))


def _over_channels(kernel, channels):
    """(h, w, C, filters) -> (h, w, channels, filters) with the same response to a grey picture."""
    have = kernel.shape[2]
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    return np.take(kernel, np.arange(channels) % have, axis=2) * (have / channels)


def _info(path, layout, about, model, preprocessing, same_classes=True):
    """What belongs to the weights: where they came from, their Preprocessing, names of the classes."""
    info = {name: value for name, value in (about.get("info") or {}).items() if same_classes or name != "class_names"}
    info.setdefault("weights", Path(path).name)
    if layout.name == "cifar" and model.output_shape[-1] == len(CIFAR10_CLASSES) and same_classes:
        info.setdefault("class_names", list(CIFAR10_CLASSES))
    stored = info.pop("preprocessing", None)
    preprocessing = preprocessing or (stored and _stored(stored, path)) or _published(path, layout, model.spec)
    preprocessing = preprocessing and preprocessing.for_channels(_first_kernel(model)[1].shape[2])
    return {**info, "preprocessing": preprocessing.to_config()} if preprocessing else info


def _stored(config, path):
    """The Preprocessing that a file of ours carries."""
    try:
        return Preprocessing.from_config(config)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"`{path}` should carry a Preprocessing. Received: {config!r} ({error})") from error


def _published(path, layout, spec):
    """The Preprocessing of published files, by timm's config.json beside them or by their layout; None if unsure."""
    beside = Path(path).with_name("config.json")
    if layout.kinds and beside.exists():
        with suppress(ValueError):  # another library's
            return timm_preprocessing(beside)
    if layout.kinds:
        small = {"size": 32, "resize": None} if spec.default_size == 32 else {}
        return Preprocessing("torch", **small)
    if spec.default_size == 32 or not spec.conv_bias:
        return None
    return Preprocessing("tf" if spec.preactivation else "caffe")
