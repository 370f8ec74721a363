"""RECIPES: name -> Recipe, one row per published way to train, with its source."""

from dataclasses import fields, replace
from typing import Any

from keras_resnet.data.augmentation import TRAIN_CROPS
from keras_resnet.data.preprocessing import MAX_SIDE
from keras_resnet.equivalents import RECIPE_FIELDS
from keras_resnet.errors import check_integers, check_known, value_error
from keras_resnet.training.recipe import Recipe, fields_unused_by
from keras_resnet.variants import network_name, network_task

_HE2015_CIFAR = Recipe(iterations=64_000, schedule="step", milestones=(32 / 64, 48 / 64), crop="pad", flip=True)
_FINETUNE = Recipe(
    epochs=10,
    batch_size=32,
    learning_rate=0.01,
    warmup=0.1,
    nesterov=True,
    decay_all=False,
    layer_decay=0.5,
    clip_norm=1.0,  # a new classifier may start with large gradients
    label_smoothing=0.1,
    crop="random_resized",
    scale=(0.35, 1.0),
    flip=True,
)
_RSB = Recipe(
    epochs=300,
    batch_size=2048,
    optimizer="lamb",
    learning_rate=5e-3,
    warmup=5 / 300,
    weight_decay=0.02,
    decay_all=False,
    clip_norm=1.0,  # a default of timm's LAMB
    v1_5=True,
    loss="binary_cross_entropy",
    target_threshold=0.2,
    drop_path=0.05,
    train_size=224,
    test_size=224,
    test_resize=235,
    test_interpolation="bicubic",
    crop="random_resized",
    flip=True,
    policy="rand_augment",
    mixup=0.1,
    cutmix=1.0,
    repeats=3,
)
_TORCHVISION_DETECTION = Recipe(
    epochs=26,
    batch_size=16,
    learning_rate=0.02,
    schedule="step",
    milestones=(16 / 26, 22 / 26),
    warmup=1000 / 190_554,  # 1,000 of 26 epochs of 117,266 images
    warmup_rate=0.02 / 1000,
    trainable_stages=3,
    loss="detection",
    flip=True,
)
_TORCHVISION_SEGMENTATION = Recipe(
    epochs=30,
    batch_size=32,
    learning_rate=0.02,
    schedule="polynomial",
    auxiliary_rate=10.0,
    loss="segmentation",
    train_size=480,
    test_size=520,
    crop="random_scaled",
    scale=(0.5, 2.0),
    flip=True,
)

RECIPES = {
    # Minutes on a laptop for the digits of scikit-learn: `keras-resnet train --recipe quickstart`
    "quickstart": Recipe(
        epochs=40, batch_size=64, warmup=0.05, nesterov=True, weight_decay=5e-4, crop="pad", padding=1
    ),
    # He et al. 2015, sec. 4.2: CIFAR-10; the second for ResNet-110. The paper subtracts a mean image; the data set's
    # preprocessing subtracts a mean color and divides by the standard deviation, as in later code.
    "he2015_cifar": _HE2015_CIFAR,
    "he2015_cifar_110": replace(_HE2015_CIFAR, warmup=400 / 64_000, warmup_rate=0.01, warmup_constant=True),
    # He et al. 2015, sec. 3.4
    "he2015_imagenet": Recipe(
        iterations=600_000,
        batch_size=256,
        schedule="plateau",
        train_size=224,
        test_size=224,
        test_resize=256,
        crop="scale_jitter",
        scale=(256, 480),
        flip=True,
        lighting=0.1,
    ),
    # The paper's accuracy on CIFAR-10 in about a third of its iterations
    "cifar_fast": Recipe(
        epochs=60,
        warmup=0.05,
        nesterov=True,
        weight_decay=5e-4,
        decay_all=False,
        crop="pad",
        flip=True,
    ),
    # Each phase of `finetune`, for a few hundred images: small learning rates, smaller for lower stages; large crops
    "finetune": _FINETUNE,
    # The same with AdamW: timm's betas, epsilon and warm-up rate, and no decay of biases and batch norm, as in timm
    "finetune_adamw": replace(_FINETUNE, optimizer="adamw", learning_rate=2e-4, warmup_rate=1e-5, weight_decay=0.05),
    # https://pytorch.org/blog/how-to-train-state-of-the-art-models-using-torchvision-latest-primitives (IMAGENET1K_V2)
    "torchvision_v2": Recipe(
        epochs=600,
        batch_size=1024,
        learning_rate=0.5,
        warmup=5 / 600,
        warmup_rate=0.005,
        weight_decay=2e-5,
        decay_all=False,
        v1_5=True,
        ema_decay=0.999966,  # references/classification/train.py: 1 - 2e-5 * 1024 * 32 / 600 epochs, every 32 steps
        label_smoothing=0.1,
        train_size=176,
        test_size=224,
        test_resize=232,
        crop="random_resized",
        flip=True,
        policy="trivial_augment",
        erasing=0.1,
        mixup=0.2,
        cutmix=1.0,
        repeats=4,
    ),
    # Wightman et al. 2021 (ResNet strikes back), arXiv:2110.00476, table 2
    "rsb_a1": replace(_RSB, epochs=600, warmup=5 / 600, weight_decay=0.01, label_smoothing=0.1, mixup=0.2),
    "rsb_a2": _RSB,
    "rsb_a3": replace(
        _RSB,
        epochs=100,
        warmup=5 / 100,
        learning_rate=8e-3,
        drop_path=0.0,
        train_size=160,
        policy_magnitude=6.0,
        repeats=1,
    ),
    # torchvision/references/detection/README.md and train.py: Faster and Mask R-CNN; RetinaNet with learning_rate=0.01
    "torchvision_detection": _TORCHVISION_DETECTION,
    # https://github.com/pytorch/vision/pull/5773: from random weights, batch norm across devices (sync_batch_norm);
    # biases decay there. RetinaNet's version 2 has loss="detection_giou".
    "torchvision_detection_v2": replace(
        _TORCHVISION_DETECTION,
        epochs=400,
        batch_size=64,
        learning_rate=0.1,
        milestones=(352 / 400, 384 / 400),
        warmup=1000 / (400 * 117_266 // 64),
        warmup_rate=0.1 / 1000,
        weight_decay=4e-5,
        decay_all=False,
        trainable_stages=None,
        train_size=1024,
        test_size=800,
        crop="large_scale_jitter",
        scale=(0.1, 2.0),
    ),
    # He et al. 2015, appendix A, in one stage instead of four; sizes and weight decay of Ren et al. 2015,
    # arXiv:1506.01497, sec. 3.3; frozen layers of py-faster-rcnn's ResNets: conv1 and the first stage
    "faster_rcnn_2015": Recipe(
        iterations=320_000,
        batch_size=8,
        learning_rate=1e-3,
        schedule="step",
        milestones=(240 / 320,),
        weight_decay=5e-4,
        trainable_stages=3,
        loss="detection",
        test_size=600,
        flip=True,
    ),
    # Own images, from the weights of a backbone or a detector: torchvision's learning rate, for batches of four;
    # shorter sides in training 0.8 to 1 of those in testing, as in Detectron2, whose are 640 to 800 pixels. For
    # RetinaNet torchvision's rate is half of this one: clipped gradients keep it from diverging.
    "detection_finetune": Recipe(
        epochs=20,
        batch_size=4,
        learning_rate=0.005,
        warmup=0.05,
        warmup_rate=0.005 / 1000,
        trainable_stages=3,
        clip_norm=10.0,
        loss="detection",
        crop="shorter_side_jitter",
        scale=(0.8, 1.0),
        flip=True,
    ),
    # torchvision/references/segmentation/README.md and train.py: FCN and DeepLabV3 on the images of COCO with VOC's
    # classes, from ImageNet's weights, batch norm across devices (sync_batch_norm). Padding there is black.
    "torchvision_segmentation": _TORCHVISION_SEGMENTATION,
    # Own images, from the weights of a backbone or a segmenter: the same for batches of eight, of images that keep
    # their sizes. A smaller rate for a quarter of the batch; colours, because own images are few.
    "segmentation_finetune": replace(
        _TORCHVISION_SEGMENTATION,
        epochs=50,
        batch_size=8,
        learning_rate=0.01,
        warmup=0.02,
        clip_norm=10.0,
        train_size=None,
        test_size=None,
        color_jitter=0.3,
    ),
    # Own images with one class and boxes, from a trained classifier; smaller crops often lose the object
    "localization_finetune": Recipe(
        epochs=10,
        batch_size=32,
        learning_rate=0.01,
        warmup=0.1,
        nesterov=True,
        decay_all=False,
        clip_norm=1.0,
        loss="localization",
        crop="random_resized",
        scale=(0.5, 1.0),
        flip=True,
    ),
}

FOR_TASKS = {
    "classification": "finetune",
    "detection": "detection_finetune",
    "localization": "localization_finetune",
    "segmentation": "segmentation_finetune",
}
"""Task -> a recipe that trains its networks, for messages."""


def get_recipe(recipe: str | Recipe, /, size: int | None = None, **changes: Any) -> Recipe:
    """A recipe by its name in RECIPES, or a Recipe, with some fields changed.

    Example:

    >>> import keras_resnet
    >>> keras_resnet.get_recipe("he2015_cifar", epochs=20).iterations is None  # `epochs` replaces `iterations`
    True

    Args:
        recipe: name of a recipe, or a Recipe.
        size: side of the training and test images in pixels, cropped by the recipe's shares, of detectors the shorter
            side, of segmenters the shorter side in testing and the side of crops in training; None: the recipe's sizes.
        **changes: fields to change; `epochs` takes the place of `iterations`, and the reverse.

    Returns:
        A Recipe.

    Raises:
        ValueError: for an unknown recipe or field, with the nearest known ones, or an invalid value.
    """
    if not isinstance(recipe, Recipe):
        check_known("recipe", recipe, RECIPES)
        recipe = RECIPES[recipe]
    if size is not None:
        check_integers(maximum=MAX_SIDE, size=size)
    known = [field.name for field in fields(Recipe)]
    for name in changes:
        check_known("changes", name, known, "fields of a recipe", RECIPE_FIELDS)
    for given, other in (("epochs", "iterations"), ("iterations", "epochs")):
        if changes.get(given) is not None:
            changes.setdefault(other, None)
    return replace(_for_size(recipe, size) if size is not None else recipe, **changes)


def check_recipe(recipe: Recipe, network: Any) -> None:
    """Raises ValueError for a recipe that trains networks of another task.

    Args:
        recipe: Recipe.
        network: as the argument `model` of `train`. Files and functions pass: their task is not known yet.
    """
    if task := network_task(network):
        check_recipe_task(recipe, task, f"to train {network_name(network)}")


def check_recipe_task(recipe: Recipe, task: str, purpose: str) -> None:
    """Raises ValueError for a recipe of another task; the message names one of this task, and the purpose."""
    if recipe.task != task:
        example = f", such as {FOR_TASKS[task]!r}," if task in FOR_TASKS else ""
        expected = f"one for {task}{example} {purpose}"
        raise value_error("recipe", f"a recipe for {recipe.task}", expected)


def _for_size(recipe, size):
    """The recipe for training and test images of another size."""
    scale, of_scale, resize = recipe.scale, recipe.train_size or recipe.test_size, recipe.test_resize
    if of_scale and TRAIN_CROPS[recipe.crop].scale_in_pixels:
        scale = tuple(length * size // of_scale for length in scale)
    sizes = {"train_size": size, "test_size": size, "test_resize": resize and resize * size // recipe.test_size}
    unused = fields_unused_by(recipe.loss)
    return replace(recipe, scale=scale, **{name: value for name, value in sizes.items() if name not in unused})
