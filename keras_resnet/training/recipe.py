"""Recipe: how a model is trained, as plain values that are checked on construction."""

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import keras

from keras_resnet.data.augmentation import TRAIN_CROPS
from keras_resnet.data.auto_augment import POLICIES
from keras_resnet.data.class_balance import BALANCED
from keras_resnet.data.preprocessing import INTERPOLATIONS, MAX_SIDE
from keras_resnet.errors import MAX_COUNT, bounded_repr, check_known, is_integer, is_number
from keras_resnet.training.detection_losses import DETECTION_LOSSES
from keras_resnet.training.localizer_training import localizer_training_model
from keras_resnet.training.optimizers import OPTIMIZERS
from keras_resnet.training.schedules import SHAPES
from keras_resnet.training.segmenter_training import segmenter_training_model


@dataclass(frozen=True)
class Loss:
    """A row of LOSSES."""

    task: str
    """Name in TASKS of what networks are trained for with it."""
    function: Any
    """Classification: a class of Keras's losses. Detection: DetectionLosses. Localization and segmentation: a function
    that makes the model that is trained."""
    activation: str | None = None
    """Classification: activation of the last layer in training; trained models end in that of their Objective."""
    crops: str = "for_classifiers"
    """Attribute of a TrainCrop: whether such networks can be trained with it."""
    unused: str = ""
    """Names of the fields of a recipe that have no effect on such networks."""


_OF_DETECTORS = {
    "task": "detection",
    "crops": "for_detectors",
    "unused": (
        "layer_decay v1_5 label_smoothing target_threshold class_weight oversample drop_path test_resize "
        "test_interpolation padding policy policy_layers policy_magnitude policy_std erasing mixup cutmix repeats "
        "auxiliary_rate color_jitter"
    ),
}
_OF_CLASSIFIERS = {"task": "classification", "unused": "auxiliary_rate color_jitter"}

LOSSES = {
    "cross_entropy": Loss(function=keras.losses.CategoricalCrossentropy, activation="softmax", **_OF_CLASSIFIERS),
    "binary_cross_entropy": Loss(function=keras.losses.BinaryCrossentropy, activation="sigmoid", **_OF_CLASSIFIERS),
    **{name: Loss(function=row, **_OF_DETECTORS) for name, row in DETECTION_LOSSES.items()},
    "localization": Loss(
        "localization",
        localizer_training_model,
        unused=(
            "layer_decay v1_5 label_smoothing target_threshold class_weight oversample drop_path policy policy_layers "
            "policy_magnitude policy_std erasing mixup cutmix repeats auxiliary_rate color_jitter"
        ),
    ),
    "segmentation": Loss(
        "segmentation",
        segmenter_training_model,
        crops="for_segmenters",
        unused=(
            "v1_5 label_smoothing target_threshold oversample drop_path test_resize test_interpolation padding policy "
            "policy_layers policy_magnitude policy_std erasing mixup cutmix repeats"
        ),
    ),
}


def fields_unused_by(loss: str) -> list[str]:
    """Names of the fields of a recipe that have no effect with a loss of LOSSES."""
    return LOSSES[loss].unused.split()


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: length, optimizer, loss and augmentation, as plain values.

    Example:

    >>> import keras_resnet
    >>> recipe = keras_resnet.Recipe(epochs=30, batch_size=64, schedule="cosine", crop="pad", flip=True)
    >>> recipe.steps(num_images=1000)  # steps per epoch, steps of the run
    (15, 450)

    Raises:
        ValueError: on construction, for an invalid value, or values that exclude each other.
    """

    # Length
    epochs: int | None = None
    iterations: int | None = None
    """Length of the run in steps; exactly one of `epochs` and `iterations` is given."""
    patience: int | None = None
    """Early stopping: the run ends after this many epochs without a lower test error; None: no early stopping."""
    batch_size: int = 128
    """Images per step on all devices together."""

    # Optimizer
    optimizer: str = "sgd"
    """A name in OPTIMIZERS: "sgd", "adamw", "lamb", "rmsprop", or any optimizer of Keras, in upper or lower case."""
    learning_rate: float = 0.1
    """The highest rate of the schedule."""
    schedule: str = "cosine"
    """A name in SHAPES."""
    milestones: tuple[float, ...] = ()
    """Schedule "step": when the learning rate becomes a tenth, as fractions of the run."""
    plateau_patience: int = 5
    """Schedule "plateau": epochs without a lower test error before the learning rate becomes a tenth."""
    warmup: float = 0.0
    """Fraction of the run in which the learning rate rises linearly from `warmup_rate`."""
    warmup_rate: float = 0.0
    """Learning rate at the start of the warm-up."""
    warmup_constant: bool = False
    """Whether the learning rate stays at `warmup_rate` during the warm-up."""
    momentum: float = 0.9
    """Momentum of SGD and RMSprop."""
    nesterov: bool = False
    """Whether SGD uses Nesterov momentum."""
    weight_decay: float = 1e-4
    """SGD, Adam, RMSprop: an L2 penalty, decay * w, added to the gradient, as in torch. LAMB: inside the trust ratio.
    The others, AdamW among them: decoupled, w -= rate * decay * w."""
    decay_all: bool = True
    """Whether biases, gammas and betas decay too."""
    layer_decay: float = 1.0
    """Factor between the learning rates of neighbouring stages: 1 for the classifier, `layer_decay` for the last stage,
    its square for the stage before (Howard and Ruder 2018, arXiv:1801.06146, sec. 3.2)."""
    auxiliary_rate: float = 1.0
    """Factor of the learning rate of a segmenter's auxiliary head, in torchvision 10."""
    clip_norm: float = 0.0
    """Maximum norm of all gradients together; 0 does not clip."""
    ema_decay: float = 0.0
    """In each step the averaged weights become decay * average + (1 - decay) * weights; they are tested and saved, with
    batch-norm statistics recomputed for them. 0 does not average."""

    # Network
    v1_5: bool = False
    """Whether "resnet50", "resnet101" and "resnet152" without weights are built as in torchvision and timm, v1.5: with
    the stride on the 3x3, without biases. Otherwise they are built as in keras.applications."""
    trainable_stages: int | None = None
    """Number of the last stages of the network that are trained, with what follows them, from 0 to 5: all, with the
    stem. Those before them stay as they are, with their batch norm; None: all are trained. A detector's last stage is
    that of its last level, or the one in its box head "stage4"."""

    # Loss
    loss: str = "cross_entropy"
    """A name in LOSSES. "detection" and "detection_giou" train detectors, with torchvision's losses of version 1 and of
    RetinaNet's version 2; "localization" trains localizers, "segmentation" segmenters. Classifiers of multi-label
    images always have "binary_cross_entropy"."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over all classes (Szegedy et al. 2016, arXiv:1512.00567, sec. 7)."""
    target_threshold: float | None = None
    """Binary cross-entropy: targets after mixing and smoothing become 1 above this, else 0; None keeps them."""
    class_weight: str | dict[str, float] | None = None
    """Factors of the loss of each class's images, of segmenters of its pixels: "balanced", inversely proportional to
    their numbers, or {name or index of a class: factor}, 1 for the others; None: 1 for all."""
    oversample: bool = False
    """Whether to repeat images of smaller classes, so that an epoch has as many images of each as of the largest."""
    drop_path: float = 0.0
    """Stochastic depth: rate at which the last block is skipped, falling linearly towards the first block."""

    # Images
    train_size: int | None = None
    """Side of the training images in pixels, of segmenters of the square that is cut out of each; None: as in
    testing."""
    test_size: int | None = None
    """Side of the test images in pixels; None: that of pretrained weights, else that of the data set's images, if all
    have one, else the size the network was designed for. Detectors: the shorter side; None: that of a .keras file,
    else 800. Segmenters: the shorter side; None: that of a .keras file, else images keep their sizes."""
    test_resize: int | None = None
    """With `test_size`: the shorter side is resized to this before the center crop; None: the crop share stays."""
    test_interpolation: str = "bilinear"
    """With `test_resize`: interpolation of the resizing."""
    crop: str = "none"
    """A name in TRAIN_CROPS."""
    padding: int = 4
    """Crop "pad": black pixels on each side before the random crop."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Range; crop "random_resized": fraction of the area. "scale_jitter": shorter side in pixels. Of detectors,
    "shorter_side_jitter" and "large_scale_jitter": factor of the size; "overlap": fraction of the sides. Of
    segmenters, "random_scaled": factor of the shorter side."""
    flip: bool = False
    """Whether images are mirrored at random, one in two."""
    lighting: float = 0.0
    """Standard deviation of AlexNet's colour noise; 0 leaves the colours."""
    color_jitter: float = 0.0
    """Segmenters: strength of random brightness, contrast and saturation, in random order, each by a factor from
    1 - strength to 1 + strength, as in torchvision's ColorJitter; 0 leaves the colours."""
    policy: str = "none"
    """A name in POLICIES."""
    policy_layers: int = 2
    """RandAugment: operations per image."""
    policy_magnitude: float = 7.0
    """RandAugment: strength of the operations, 0 to 10."""
    policy_std: float = 0.5
    """RandAugment: standard deviation of the strength."""
    erasing: float = 0.0
    """Probability that a random rectangle of an image is erased."""
    mixup: float = 0.0
    """Alpha of the beta distribution for mixup; 0 does not mix. With `cutmix` too, each has half of the batches."""
    cutmix: float = 0.0
    """Alpha of the beta distribution for CutMix; 0 does not mix."""
    repeats: int = 1
    """Copies of each image in a batch, each augmented differently (Hoffer et al. 2019, arXiv:1901.09335)."""

    def __post_init__(self):
        for name in ("milestones", "scale"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "optimizer", str(self.optimizer).lower())
        if isinstance(self.class_weight, dict):  # JSON has no other keys than strings
            object.__setattr__(self, "class_weight", {str(key): it for key, it in self.class_weight.items()})
        for names, expected, is_valid in _CHECKS:
            for name in names.split():
                value = getattr(self, name)
                if not (is_valid(value) or (value is None and getattr(Recipe, name) is None)):
                    self._raise(name, expected)
        for name, known in _CHOICES.items():
            check_known(name, getattr(self, name), known)
        crop, points, binary = TRAIN_CROPS[self.crop], (0, *self.milestones, 1), self.loss == "binary_cross_entropy"
        crops = [name for name, row in TRAIN_CROPS.items() if getattr(row, LOSSES[self.loss].crops)]
        unused = [name for name in fields_unused_by(self.loss) if getattr(self, name) != getattr(Recipe, name)]
        for name, expected, is_met in (
            ("epochs", "given or `iterations`, not both", (self.epochs is None) != (self.iterations is None)),
            ("milestones", 'empty unless the schedule is "step"', not self.milestones or self.schedule == "step"),
            ("warmup", '0 with the schedule "plateau"', not self.warmup or self.schedule != "plateau"),
            ("milestones", "increasing fractions of the run between 0 and 1", all(a < b for a, b in pairwise(points))),
            ("crop", f"one of {crops} with the loss {self.loss!r}", self.crop in crops),
            ("scale", crop.expected_scale, crop.accepts_scale(*self.scale)),
            (
                "target_threshold",
                'None unless `loss` is "binary_cross_entropy"',
                self.target_threshold is None or binary,
            ),
            ("test_resize", "given together with `test_size`", not self.test_resize or self.test_size),
            *((name, f"{getattr(Recipe, name)!r} with the loss {self.loss!r}", False) for name in unused),
        ):
            if not is_met:
                self._raise(name, expected)

    def steps(self, num_images: int) -> tuple[int, int]:
        """(steps per epoch, steps of the run) for a number of training images.

        Raises:
            ValueError: if the images do not fill a batch, or if the run has too many epochs or steps.
        """
        if num_images < self.batch_size:
            self._raise("batch_size", f"at most the number of training images ({num_images})")
        steps_per_epoch = num_images // self.batch_size
        steps = self.iterations or (self.epochs or 0) * steps_per_epoch
        if steps > min(MAX_COUNT, MAX_EPOCHS * steps_per_epoch):
            length = f"short enough for {MAX_COUNT:,} steps and {MAX_EPOCHS:,} epochs of {steps_per_epoch} steps"
            self._raise("iterations" if self.iterations else "epochs", length)
        return steps_per_epoch, steps

    @property
    def task(self) -> str:
        """Name in TASKS of what the networks are trained for."""
        return LOSSES[self.loss].task

    @property
    def needs_every_test(self) -> bool:
        """Whether the schedule or early stopping needs the test error after every epoch."""
        return self.schedule == "plateau" or self.patience is not None

    def num_epochs(self, num_images: int) -> int:
        """Epochs of the run, the last of which may be incomplete, for a number of training images."""
        steps_per_epoch, steps = self.steps(num_images)
        return -(-steps // steps_per_epoch)

    def to_config(self) -> dict:
        """The fields as JSON values; the inverse is `Recipe(**config)`."""
        return asdict(self) | {"milestones": list(self.milestones), "scale": list(self.scale)}

    def _raise(self, name, expected):
        raise ValueError(
            f"`{name}` of a recipe should be {expected}. Received: {name}={bounded_repr(getattr(self, name))}"
        )


def _is_amount(value):
    return is_number(value) and 0 <= value <= 1e38  # a finite float32


def _are_numbers(value):
    return isinstance(value, tuple) and all(map(is_number, value))


_CHOICES = {
    "optimizer": OPTIMIZERS,
    "schedule": SHAPES,
    "loss": LOSSES,
    "crop": TRAIN_CROPS,
    "policy": POLICIES,
    "test_interpolation": INTERPOLATIONS,
}
MAX_EPOCHS = 50_000
"""Longest run: each epoch is a row of the history, which every checkpoint holds."""
MAX_BATCH_SIZE = 2**20


def _integers(names, minimum, maximum, expected="an integer"):
    """A row of _CHECKS."""
    return names, f"{expected} from {minimum} to {maximum:,}", lambda value: is_integer(value, minimum, maximum)


_CHECKS = [
    # fields, what their values should be, the check; None is valid too for fields whose default it is
    _integers("epochs patience plateau_patience", 1, MAX_EPOCHS),
    _integers("iterations", 1, MAX_COUNT),
    _integers("batch_size repeats", 1, MAX_BATCH_SIZE),
    _integers("trainable_stages", 0, 5),
    _integers("policy_layers", 1, 100),
    _integers("train_size test_size test_resize", 1, MAX_SIDE, "a number of pixels"),
    _integers("padding", 0, MAX_SIDE),
    (
        "learning_rate warmup_rate weight_decay auxiliary_rate clip_norm lighting policy_std mixup cutmix",
        "a number from 0 to 1e38",
        _is_amount,
    ),
    ("policy_magnitude", "a number from 0 to 10", lambda v: is_number(v) and 0 <= v <= 10),
    (
        "momentum ema_decay label_smoothing drop_path warmup target_threshold",
        "a number in [0, 1)",
        lambda v: is_number(v) and 0 <= v < 1,
    ),
    ("erasing layer_decay color_jitter", "a number from 0 to 1", lambda v: is_number(v) and 0 <= v <= 1),
    (
        "class_weight",
        '"balanced", or a dict {name or index of a class: a number from 0 to 1e38}',
        lambda v: v == BALANCED or (isinstance(v, dict) and all(map(_is_amount, v.values()))),
    ),
    ("warmup_constant nesterov decay_all flip oversample v1_5", "True or False", lambda v: isinstance(v, bool)),
    ("milestones", "a tuple of fractions of the run", _are_numbers),
    ("scale", "two numbers", lambda v: _are_numbers(v) and len(v) == 2),
]
