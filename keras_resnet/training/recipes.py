"""RECIPES: name -> Recipe. One row a way to train, with its source."""

import math
from dataclasses import asdict, dataclass, fields, replace

import keras

from keras_resnet.data.preprocessing import INTERPOLATIONS
from keras_resnet.errors import is_integer, is_number, unknown_name_error
from keras_resnet.training.optimizers import OPTIMIZERS
from keras_resnet.training.schedules import SHAPES

CROPS = ("none", "pad", "scale_jitter", "random_resized")
POLICIES = ("none", "rand_augment", "trivial_augment")
LOSSES = {
    # name -> (loss, what the last layer does in training); in the end, all have a softmax
    "cross_entropy": (keras.losses.CategoricalCrossentropy, None),
    "binary_cross_entropy": (keras.losses.BinaryCrossentropy, "sigmoid"),
}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: every field a value, no code.

    Raises:
        ValueError: on construction, if a value makes no sense.
    """

    # How long
    epochs: int | None = None
    iterations: int | None = None
    """Steps, where a recipe counts these: exactly one of the two is given."""
    batch_size: int = 128
    """Images a step, all devices together."""

    # The optimiser
    optimizer: str = "sgd"
    """A name in OPTIMIZERS."""
    learning_rate: float = 0.1
    """The highest."""
    schedule: str = "cosine"
    """A name in SHAPES."""
    milestones: tuple[float, ...] = ()
    """Schedule "step": when the learning rate becomes a tenth, in shares of the run: a shorter one keeps its shape."""
    patience: int = 5
    """Schedule "plateau": epochs without a lower test error after which the learning rate becomes a tenth."""
    warmup: float = 0.0
    """Share of the run in which the learning rate rises linearly from `warmup_rate`."""
    warmup_rate: float = 0.0
    warmup_constant: bool = False
    """Whether the learning rate stays at `warmup_rate` during the warm-up."""
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    """SGD: an L2 penalty, carried by the momentum. LAMB: inside the trust ratio."""
    decay_all: bool = True
    """Whether biases and batch norm decay too."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each stage to the one below it: the classifier learns with all of it, the last
    stage with `layer_decay`, the one before with its square (Howard and Ruder 2018, arXiv:1801.06146, sec. 3.2)."""
    clip_norm: float = 0.0
    """The gradients' largest norm, all weights together; 0 does not clip."""
    ema_decay: float = 0.0
    """Each step, the averaged weights become decay * average + (1 - decay) * weights, and the run is judged by them,
    with batch-norm statistics recomputed for them; 0 does not average."""

    # The loss
    loss: str = "cross_entropy"
    """A name in LOSSES."""
    label_smoothing: float = 0.0
    """Szegedy et al. 2016, arXiv:1512.00567, sec. 7."""
    target_threshold: float | None = None
    """Binary cross-entropy: a class counts as present where its mixed and smoothed target is above this."""
    drop_path: float = 0.0
    """Stochastic depth: share of images for which the last block is left out, fewer the earlier the block."""

    # The images
    train_size: int | None = None
    """Side of the training images in pixels; None: as when testing."""
    test_size: int | None = None
    """Side of the test images in pixels; None: as the data set says."""
    test_resize: int | None = None
    """What their shorter side is resized to before the middle is cropped, with `test_size`."""
    test_interpolation: str = "bilinear"
    """How, with `test_size`."""
    crop: str = "none"
    """A name in CROPS."""
    padding: int = 4
    """Crop "pad": pixels of black on each side."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Crop "random_resized": share of the area. Crop "scale_jitter": shorter side in pixels."""
    flip: bool = False
    """Whether every second image is mirrored."""
    lighting: float = 0.0
    """Deviation of AlexNet's colour noise; 0 leaves the colours."""
    policy: str = "none"
    """A name in POLICIES."""
    policy_layers: int = 2
    policy_magnitude: float = 7.0
    policy_std: float = 0.5
    """RandAugment: operations an image, their strength from 0 to 10, and its deviation."""
    erasing: float = 0.0
    """Probability that a rectangle of an image is erased."""
    mixup: float = 0.0
    cutmix: float = 0.0
    """Alpha of the beta distribution that mixes pairs of images; 0 does not. With both, each has half the batches."""
    repeats: int = 1
    """How often an image comes in a batch, each time augmented anew (Hoffer et al. 2019, arXiv:1901.09335)."""

    def __post_init__(self):
        for name in ("milestones", "scale"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for (names, holds), expected in _CHECKS.items():
            for name in names:
                if not holds(getattr(self, name)):
                    self._refuse(name, expected)
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown_name_error(name, getattr(self, name), known)
        self._check_together()

    def _check_together(self):
        if (self.epochs is None) == (self.iterations is None):
            self._refuse("epochs", "given, or `iterations`, and not both")
        if self.milestones and self.schedule != "step":
            self._refuse("milestones", 'empty unless the schedule is "step"')
        if self.warmup and self.schedule == "plateau":
            self._refuse("warmup", '0 with the schedule "plateau"')
        if list(self.milestones) != sorted(set(self.milestones)) or not all(0 < share < 1 for share in self.milestones):
            self._refuse("milestones", "shares of the run between 0 and 1, each later than the one before")
        if self.crop == "random_resized" and not 0 < self.scale[0] <= self.scale[1] <= 1:
            self._refuse("scale", "two shares of the area, the smaller first")
        if self.crop == "scale_jitter" and not 1 <= self.scale[0] <= self.scale[1]:
            self._refuse("scale", "two sides in pixels, the smaller first")
        if self.target_threshold is not None and self.loss != "binary_cross_entropy":
            self._refuse("target_threshold", 'None unless the loss is "binary_cross_entropy"')
        if self.test_resize and not self.test_size:
            self._refuse("test_resize", "given together with `test_size`")

    def steps(self, images):
        """(steps an epoch, steps of the run) for so many training images.

        Raises:
            ValueError: if they do not fill a batch.
        """
        if images < self.batch_size:
            self._refuse("batch_size", f"at most the number of training images ({images})")
        an_epoch = images // self.batch_size
        return an_epoch, self.iterations or self.epochs * an_epoch

    def begun_epochs(self, images):
        """Epochs of the run for so many training images; one that `iterations` cuts short counts.

        Raises:
            ValueError: as `steps`.
        """
        an_epoch, steps = self.steps(images)
        return -(-steps // an_epoch)

    def to_config(self):
        """The values as JSON can hold them; `Recipe(**config)` is the way back."""
        return asdict(self) | {"milestones": list(self.milestones), "scale": list(self.scale)}

    def _refuse(self, name, expected):
        raise ValueError(f"`{name}` of a recipe should be {expected}. Received: {name}={getattr(self, name)!r}")


def _is_integer(least):
    return lambda value: is_integer(value, least)


def _is_within(least, limit):
    return lambda value: is_number(value) and least <= value < limit


def _are_numbers(value):
    return isinstance(value, tuple) and all(map(is_number, value))


def _or_none(holds):
    return lambda value: value is None or holds(value)


_CHOICES = {
    "optimizer": OPTIMIZERS,
    "schedule": SHAPES,
    "loss": LOSSES,
    "crop": CROPS,
    "policy": POLICIES,
    "test_interpolation": INTERPOLATIONS,
}
_CHECKS = {
    (("epochs", "iterations"), _or_none(_is_integer(1))): "an integer, 1 or more",
    (("batch_size", "repeats", "policy_layers", "patience"), _is_integer(1)): "an integer, 1 or more",
    (("train_size", "test_size", "test_resize"), _or_none(_is_integer(1))): "a number of pixels, 1 or more",
    (("padding",), _is_integer(0)): "an integer, 0 or more",
    (
        ("learning_rate", "warmup_rate", "weight_decay", "clip_norm", "lighting", "policy_std", "mixup", "cutmix"),
        _is_within(0, math.inf),
    ): "a number, 0 or more",
    (("policy_magnitude",), _is_within(0, 10.001)): "a number from 0 to 10",
    (("momentum", "ema_decay", "label_smoothing", "drop_path", "warmup"), _is_within(0, 1)): "a number in [0, 1)",
    (("erasing", "layer_decay"), _is_within(0, 1.001)): "a number from 0 to 1",
    (("target_threshold",), _or_none(_is_within(0, 1))): "a number in [0, 1)",
    (("warmup_constant", "nesterov", "decay_all", "flip"), lambda value: isinstance(value, bool)): "True or False",
    (("milestones",), _are_numbers): "a tuple of shares of the run",
    (("scale",), lambda value: _are_numbers(value) and len(value) == 2): "two numbers",
}

_HE2015_CIFAR = Recipe(iterations=64_000, schedule="step", milestones=(32 / 64, 48 / 64), crop="pad", flip=True)
_RSB = Recipe(
    epochs=300,
    batch_size=2048,
    optimizer="lamb",
    learning_rate=5e-3,
    warmup=5 / 300,
    weight_decay=0.02,
    decay_all=False,
    clip_norm=1.0,  # a default of timm's LAMB
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

RECIPES = {
    # Minutes on a laptop for the digits of scikit-learn: `keras-resnet train --recipe quickstart`
    "quickstart": Recipe(
        epochs=40, batch_size=64, warmup=0.05, nesterov=True, weight_decay=5e-4, crop="pad", padding=1
    ),
    # He et al. 2015, sec. 4.2: CIFAR-10; the second is theirs for ResNet-110. Where the paper subtracts a mean for each
    # pixel, the data set's preprocessing has one for each channel, and divides by the deviation, as in later code.
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
    # A few hundred images and a network that has learnt from others, each phase of `finetune`: small steps, smaller
    # the deeper, in images of which most is seen
    "finetune": Recipe(
        epochs=10,
        batch_size=32,
        learning_rate=0.01,
        warmup=0.1,
        nesterov=True,
        decay_all=False,
        layer_decay=0.5,
        clip_norm=1.0,  # a new classifier may begin far off
        label_smoothing=0.1,
        crop="random_resized",
        scale=(0.35, 1.0),
        flip=True,
    ),
    # https://pytorch.org/blog/how-to-train-state-of-the-art-models-using-torchvision-latest-primitives (IMAGENET1K_V2)
    "torchvision_v2": Recipe(
        epochs=600,
        batch_size=1024,
        learning_rate=0.5,
        warmup=5 / 600,
        warmup_rate=0.005,
        weight_decay=2e-5,
        decay_all=False,
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
}


def get_recipe(name, /, **changes):
    """A Recipe of RECIPES, some of its fields changed; `epochs` takes the place of `iterations`, and the reverse.

    Raises:
        ValueError: for an unknown recipe or field, with the nearest known ones.
    """
    if name not in RECIPES:
        raise unknown_name_error("recipe", name, RECIPES)
    return changed(RECIPES[name], **changes)


def changed(recipe, **changes):
    """The recipe with some fields changed, as in `get_recipe`."""
    known = [field.name for field in fields(Recipe)]
    for change in changes:
        if change not in known:
            raise unknown_name_error("changes", change, known, f"fields of a recipe: {known}")
    for given, other in (("epochs", "iterations"), ("iterations", "epochs")):
        if changes.get(given) is not None:
            changes.setdefault(other, None)
    return replace(recipe, **changes)
