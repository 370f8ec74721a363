"""Writes docs/models.md from VARIANTS and WEIGHTS: python docs/generate_models.py"""

from pathlib import Path

import keras_resnet
from keras_resnet.variants import VARIANTS
from keras_resnet.weights.catalog import TIMM, WEIGHTS

PAGE = Path(__file__).parent / "models.md"
INTRODUCTION = """# Model table

This page is generated from `keras_resnet.variants.VARIANTS` and `keras_resnet.weights.catalog.WEIGHTS` by
`python docs/generate_models.py`; a test fails when it is out of date. `keras-resnet models` prints the same facts.
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
        "\n## Weights\n\nAccuracies are those that the publisher of the weights states, for one centre crop: on "
        "ImageNet's validation set, for the tag `cifar10` on CIFAR-10's test set.\n",
        weights_table(),
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
    return f"`{name}`", spec.depth, f"{cost.parameters / 1e6:.2f} M", giga, ", ".join(listed) or "-"


def weights_table():
    columns = ("network", "tag", "top-1 (%)", "top-5 (%)", "preprocessing", "license")
    keys = sorted(WEIGHTS, key=lambda key: list(VARIANTS).index(key[0]))
    return table(columns, map(weights_row, keys), right=(2, 3))


def weights_row(key):
    name, tag = key
    row = WEIGHTS[key]
    preprocessing = row.preprocessing
    size = f"{preprocessing.resize} -> {preprocessing.size}" if preprocessing.resize else preprocessing.size
    accuracies = percent(row.top1_accuracy), percent(row.top5_accuracy)
    return f"`{name}`", f"`{tag}`", *accuracies, f"`{preprocessing.mode}`, {size} px", row.license


def percent(accuracy):
    return "-" if accuracy is None else f"{100 * accuracy:.2f}"


def timm_table():
    return table(("network", "tags"), ((f"`{name}`", f"`{tags}`") for name, tags in TIMM.items()))


def table(columns, rows, right=()):
    """A Markdown table; the columns with the indices `right` are aligned to the right."""
    rules = ["---:" if i in right else "---" for i in range(len(columns))]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (columns, rules, *rows)) + "\n"


if __name__ == "__main__":
    main()
