"""Weights into a network: read, map, assign strictly."""

import json
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from keras_resnet.architecture.metadata import model_spec
from keras_resnet.architecture.network import build
from keras_resnet.data.labels import CIFAR10_CLASSES, imagenet_classes
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.weights.catalog import WEIGHTS
from keras_resnet.weights.download import timm_preprocessing
from keras_resnet.weights.layouts import (
    HEAD,
    check_arrangement,
    layout_named,
    match_spec_to_weights,
    recognise,
    translate,
    variables,
)
from keras_resnet.weights.readers import open_weights
from keras_resnet.weights.weights_file import OURS


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
        check_arrangement(model.spec, match_spec_to_weights(model.spec, layout, file.entries, about.get("spec")), path)
        pairs = _pair(model, translate(file.entries, layout, model), path)
        arrays = [(variable, entry.read()) for variable, entry in pairs]  # all of them, before the first is overwritten
    for variable, array in arrays:
        variable.assign(array)
    held = _classes(file.entries, layout, model.spec)
    model.info = _info(path, layout, about, model, held, _preprocessing(path, layout, about, model.spec, held))


def build_from_file(
    spec, path, include_top=True, classes=None, input_shape=None, input_tensor=None, preprocessing=None, **arguments
):
    """The network of `spec`, arranged as a file wants it (stride placement, biases, epsilon), with its weights.

    Args:
        spec: ResNetSpec.
        path: the weights file.
        include_top: whether to have the classifier; without it, the file's is left out. None: if the file has one.
        classes: number of classes; None for the file's. Another number than the file's starts a fresh classifier.
        input_shape: as for `build`; None for the file's channels and, with the classifier, its preprocessing's size.
        input_tensor: as for `build`.
        preprocessing: Preprocessing of the weights' source, or None to ask the file.
        **arguments: of `architecture.network.build`.

    Returns:
        A ResNet. Another number of input channels than the file's adapts the first convolution: its kernels are summed
        over colour for grey images, else repeated over the channels and scaled.

    Raises:
        ValueError: if the file is not of this network; the message lists what does not fit.
    """
    with open_weights(path) as file:
        layout, about = _layout("auto", file, path), _about(file)
        spec = match_spec_to_weights(spec, layout, file.entries, about.get("spec"))
        held = _classes(file.entries, layout, spec)
        include_top = held is not None if include_top is None else include_top
        classes = held if classes is None else classes
        preprocessing = preprocessing or _preprocessing(path, layout, about, spec, held)
        if input_shape is None:
            size = (preprocessing.size if preprocessing else spec.default_size) if include_top else None
            channels = _channels(file.entries, layout, spec)
            input_shape = (channels, size, size) if spec.channel_axis == 1 else (size, size, channels)
        model = build(spec, include_top, classes, input_shape, input_tensor, initialize=False, **arguments)
        entries = translate(file.entries, layout, model)
        fresh = include_top and held is not None and held != classes
        if fresh or not include_top:
            entries = {name: entry for name, entry in entries.items() if name not in HEAD}
        _adapt_channels(entries, model, path)
        for variable, entry in _pair(model, entries, path, fresh=HEAD if fresh else ()):
            variable.assign(entry.read())
    if fresh:
        _start_afresh(model.get_layer("predictions"), held, path)
    model.info = _info(path, layout, about, model, held, preprocessing, fresh)
    return model


def check_ours(model):
    """Raises a ValueError for a model that does not know its ResNetSpec."""
    if model_spec(model) is None:
        raise ValueError(
            "`model` should be a network of keras_resnet, with its `spec` (clones lose it: clone.spec = model.spec). "
            f"Received: model={model!r}"
        )


def _layout(name, file, path):
    if name != "auto":
        return layout_named(name)
    try:
        return recognise(file.entries)
    except ValueError as error:
        raise ValueError(f"`{path}` holds no weights of a residual network. {error}") from None


def _about(file):
    """What a file of ours says about its network: {"spec": values, "info": ...}; {} for anybody else's."""
    try:
        ours = file.config.get(OURS)
        about = json.loads(ours) if ours else file.config["config"]["resnet"]
        return about if isinstance(about.get("spec") or {}, dict) and isinstance(about.get("info") or {}, dict) else {}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


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


def _channels(entries, layout, spec):
    """Number of input channels of the file's first convolution; 3 if it cannot be told."""
    for name in (*(layout.rename(f"{stem}_conv/kernel", spec) for stem in ("conv1", "conv1_1")), "conv2d/kernel"):
        if name in entries and len(entries[name].shape) == 4:
            return entries[name].shape[1 if layout.kinds else 2]
    return 3


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
    """(our name, variable) of the kernel that sees the images."""
    return next(item for item in variables(model).items() if item[0].endswith("/kernel"))


def _over_channels(kernel, channels):
    """(h, w, C, filters) -> (h, w, channels, filters) with the same response to a grey image."""
    have = kernel.shape[2]
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    return np.take(kernel, np.arange(channels) % have, axis=2) * (have / channels)


def _info(path, layout, about, model, held, preprocessing, fresh=False):
    """What belongs to the weights: where they came from, their Preprocessing, names of the `held` classes."""
    info = {"weights": Path(path).name, **(about.get("info") or {})}
    if layout.name == "cifar" and held == len(CIFAR10_CLASSES):
        info.setdefault("class_names", list(CIFAR10_CLASSES))
    if fresh:
        info.pop("class_names", None)
    info.pop("preprocessing", None)
    preprocessing = preprocessing and preprocessing.for_channels(_first_kernel(model)[1].shape[2])
    return {**info, "preprocessing": preprocessing.to_config()} if preprocessing else info


def _preprocessing(path, layout, about, spec, held):
    """The Preprocessing that a file carries, or that of published files like it; None if unknown."""
    config = (about.get("info") or {}).get("preprocessing")
    if config is None:
        return _published(path, layout, spec, held)
    try:
        return Preprocessing.from_config(config)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"`{path}` should carry a Preprocessing. Received: {config!r} ({error})") from error


def _published(path, layout, spec, held):
    """The Preprocessing of a published file, by its name, by timm's config.json beside it, or by its kind.

    None if unsure: names of arrays say little of images, unless the classes are ImageNet's or the layout CIFAR's.
    """
    names = {Path(source.url).name: source.preprocessing for source in WEIGHTS.values()}
    if Path(path).name in names:
        return names[Path(path).name]
    beside = Path(path).with_name("config.json")
    if layout.kinds and beside.exists():
        with suppress(ValueError):  # another library's
            return timm_preprocessing(beside)
    if layout.name == "cifar":
        return Preprocessing("torch", size=32, resize=None)
    if layout.name == "timm" or held not in (None, len(imagenet_classes())):  # timm's networks differ in it
        return None
    if layout.kinds:
        return Preprocessing("torch")
    return Preprocessing("tf" if spec.preactivation else "caffe") if spec.conv_bias else None
