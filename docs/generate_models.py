"""Writes docs/models.md from TASKS and WEIGHTS: python docs/generate_models.py"""

from pathlib import Path

import keras_resnet
from keras_resnet.architecture.detector_spec import backbone_of
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.variants import DETECTORS, LOCALIZERS, SEGMENTERS, VARIANTS
from keras_resnet.weights.catalog import TIMM, WEIGHTS

PAGE = Path(__file__).parent / "models.md"
INTRODUCTION = """# Model table

This page is generated from VARIANTS, DETECTORS, LOCALIZERS and SEGMENTERS of `keras_resnet.variants` and
`keras_resnet.weights.catalog.WEIGHTS` by `python docs/generate_models.py`; a test fails when it is out of date.
`keras-resnet models` prints the same facts, with `--task detection`, `--task localization` or `--task segmentation`
those of detectors, localizers and segmenters.
[Models and weights](weights.md) explains names, tags and files.
"""


def main():
    PAGE.write_text(page(), "utf-8")


def page():
    """The text of docs/models.md."""
    imagenet = [name for name in VARIANTS if not name.endswith("_cifar")]
    cifar = [name for name in VARIANTS if name.endswith("_cifar")]
    parts = [
        INTRODUCTION,
        "## ImageNet networks\n\nMultiply-adds of one 224x224 image, 1,000 classes.\n",
        networks_table(imagenet),
        "\n## CIFAR networks\n\nMultiply-adds of one 32x32 image, 10 classes.\n",
        networks_table(cifar),
        "\n## Detectors\n\nMultiply-adds of one 800x800 image, 91 classes with the background; all proposals and, of "
        "Mask R-CNN, 100 masks are counted. [Object detection](detection.md) explains them.\n",
        networks_table(DETECTORS),
        "\n## Localizers\n\nMultiply-adds of one 224x224 image, 1,000 classes. [Localization](localization.md) "
        "explains them.\n",
        networks_table(LOCALIZERS),
        "\n## Segmenters\n\nMultiply-adds of one 520x520 image without the auxiliary head, whose parameters are "
        "counted, 21 classes with the background.\n",
        networks_table(SEGMENTERS),
        "\n## Weights\n\nAccuracies are those that the publisher of the weights states, for one centre crop: on "
        "ImageNet's validation set, for the tag `cifar10` on CIFAR-10's test set.\n",
        weights_table(VARIANTS, {"top-1 (%)": "top1_accuracy", "top-5 (%)": "top5_accuracy"}),
        "\n## Weights of detectors\n\nAverage precision of boxes and masks (IoU 0.5 to 0.95) on COCO's validation set "
        "of 2017, as torchvision states it. Images are resized to a shorter side of 800 pixels, but a longer one of at "
        "most 1,333.\n",
        weights_table(DETECTORS, {"box AP (%)": "box_ap", "mask AP (%)": "mask_ap"}, digits=1),
        "\n## Weights of segmenters\n\nMean IoU and pixel accuracy on the images of COCO's validation set of 2017 with "
        "objects of PASCAL VOC's 20 classes, as torchvision states them. Images are resized to a shorter side of 520 "
        "pixels.\n",
        weights_table(SEGMENTERS, {"mean IoU (%)": "mean_iou", "pixel accuracy (%)": "pixel_accuracy"}, digits=1),
        "\n## Weights on the Hugging Face Hub\n\nTags of timm; any other `hf://timm/<network>.<tag>` works as well.\n",
        timm_table(),
    ]
    return "\n".join(parts)


def networks_table(names):
    return table(
        ("network", "depth", "parameters", "multiply-adds", "weights"), map(network_row, names), right=(1, 2, 3)
    )


def network_row(name):
    spec = keras_resnet.get_spec(name)
    cost = keras_resnet.complexity(spec)
    tags = keras_resnet.list_weights(name)
    listed = [f"`{tag}`" for tag in tags if not tag.startswith("hf://")]
    on_hub = len(tags) - len(listed)
    listed += [f"{on_hub} of timm"] if on_hub else []
    multiply_adds = cost.multiply_adds / 1e9
    giga = f"{multiply_adds:.2f} G" if multiply_adds >= 1 else f"{1e3 * multiply_adds:.0f} M"
    return f"`{name}`", backbone_of(spec).depth, f"{cost.parameters / 1e6:.2f} M", giga, ", ".join(listed) or "-"


def weights_table(networks, figures, digits=2):
    """The rows of WEIGHTS of these networks, in their order; `figures` is {column: field}, shares from 0 to 1."""
    names = list(networks)
    keys = sorted((key for key in WEIGHTS if key[0] in networks), key=lambda key: names.index(key[0]))
    columns = ("network", "tag", *figures, "preprocessing", "license")
    return table(columns, (weights_row(*key, figures.values(), digits) for key in keys), right=(2, 3))


def weights_row(name, tag, fields, digits):
    row = WEIGHTS[name, tag]
    shares = (percent(getattr(row, field), digits) for field in fields)
    preprocessing = f"`{row.preprocessing.mode}`, {image_size(row.preprocessing)} px"
    return f"`{name}`", f"`{tag}`", *shares, preprocessing, row.license


def image_size(preprocessing):
    """Sides to which images are resized and cropped; of detectors the shorter and the longest one."""
    if isinstance(preprocessing, SegmentationPreprocessing):
        return preprocessing.shorter_side
    if isinstance(preprocessing, DetectionPreprocessing):
        return f"{preprocessing.min_size} to {preprocessing.max_size}"
    return f"{preprocessing.resize} -> {preprocessing.size}" if preprocessing.resize else preprocessing.size


def percent(share, digits):
    return "-" if share is None else f"{100 * share:.{digits}f}"


def timm_table():
    return table(("network", "tags"), ((f"`{name}`", f"`{tags}`") for name, tags in TIMM.items()))


def table(columns, rows, right=()):
    """A Markdown table; the columns with the indices `right` are aligned to the right."""
    rules = ["---:" if i in right else "---" for i in range(len(columns))]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (columns, rules, *rows)) + "\n"


if __name__ == "__main__":
    main()
