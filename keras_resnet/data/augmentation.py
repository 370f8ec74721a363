"""What training does to whole batches at random. Works on every Keras backend.

Nothing here draws: random numbers are arguments, `u` uniform in [0, 1), so that a run can be resumed exactly.
"""

import math

from keras import ops

# Principal components of the colours of ImageNet's pixels in 0..1, one a column, and how far they reach:
# fb.resnet.torch, datasets/imagenet.lua
COLOUR_COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
COLOUR_REACHES = (0.2175, 0.0188, 0.0045)

ERASED_AREA = (0.02, 0.33)
ERASED_ASPECT = (0.3, 3.3)


def pad_and_crop(images, padding, u):
    """Pads images with black and cuts their size out of the result at random places (He et al. 2015, sec. 4.2).

    Args:
        images: (B, H, W, C), integers or floats.
        padding: pixels on each of the four sides.
        u: (B, 2), where to cut: 0 is the top, and the left.

    Returns:
        (B, H, W, C) of the same dtype.
    """
    batch, height, width, channels = ops.shape(images)
    sides = (padding, padding)
    padded = ops.pad(images, ((0, 0), sides, sides, (0, 0)))
    corners = _places(u, 2 * padding + 1)
    rows = corners[:, 0, None] + ops.arange(height)
    columns = corners[:, 1, None] + ops.arange(width)
    # One gather of pixels from the batch as a whole is faster than one along each axis
    rows = ops.arange(batch)[:, None] * (height + 2 * padding) + rows
    pixels = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    return ops.take(ops.reshape(padded, (-1, channels)), pixels, axis=0)


def flip(images, u):
    """Mirrors images, left to right.

    Args:
        images: (B, H, W, C), integers or floats.
        u: (B,); those below 0.5 are mirrored.

    Returns:
        (B, H, W, C) of the same dtype.
    """
    # On CPUs, picking whole images takes a fifth of the time of `where`, and mirroring rows half of that of images
    batch, height, width, channels = shape = ops.shape(images)
    rows = ops.reshape(images, (-1, width, channels))
    both = ops.reshape(ops.concatenate([rows, ops.flip(rows, axis=1)]), (-1, height * width * channels))
    chosen = ops.arange(batch) + batch * ops.cast(u < 0.5, "int32")
    return ops.reshape(ops.take(both, chosen, axis=0), shape)


def lighting(images, normals, std=0.1):
    """Adds to each image a colour, along the principal components of ImageNet's (Krizhevsky et al. 2012, sec. 4.1).

    Args:
        images: (B, H, W, 3) in 0..255, RGB.
        normals: (B, 3), normally distributed with deviation 1.
        std: of the share in which a component is added.

    Returns:
        (B, H, W, 3) float32; it may leave 0..255 a little, as in fb.resnet.torch.
    """
    reaches = ops.multiply(COLOUR_COMPONENTS, COLOUR_REACHES)
    colours = ops.matmul(ops.cast(normals, "float32"), ops.transpose(ops.cast(reaches, "float32")))
    return ops.cast(images, "float32") + (255 * std) * colours[:, None, None, :]


def mixup(images, labels, share):
    """Blends each image, and its label, with the one at the mirrored place of the batch (arXiv:1710.09412).

    Args:
        images: (B, H, W, C) floats.
        labels: (B, K) floats, a share for each class.
        share: scalar in 0..1, the image's own; the paper draws it from the beta distribution.

    Returns:
        Images (B, H, W, C) and labels (B, K).
    """
    return _blend(images, labels, _everywhere(images, share))


def cutmix(images, labels, share, u):
    """Replaces a box of each image by what is there in the one at the mirrored place (arXiv:1905.04899).

    All images of a batch have the same box, as in timm. It may reach over the edge, and is cut off there; labels are
    mixed by the area that is left of it.

    Args:
        images: (B, H, W, C) floats.
        labels: (B, K) floats, a share for each class.
        share: scalar in 0..1 of the area that stays.
        u: (2,), where the middle of the box is.

    Returns:
        Images (B, H, W, C) and labels (B, K).
    """
    return _blend(images, labels, _outside_box(images, share, u))


def mix(images, labels, mixup_alpha, cutmix_alpha, draws):
    """Mixup or CutMix; if both are wanted, one or the other by the toss of a coin for the batch, as in timm.

    Args:
        images: (B, H, W, C) floats.
        labels: (B, K) floats, a share for each class.
        mixup_alpha: the beta distribution's for mixup; 0: no mixup.
        cutmix_alpha: the same for CutMix. One of the two is not 0.
        draws: what has `beta(alpha)`, a scalar, and `uniforms(count)`, (count,) in [0, 1).

    Returns:
        Images (B, H, W, C) and labels (B, K).
    """
    u = draws.uniforms(3)
    own = []
    if mixup_alpha:
        own.append(_everywhere(images, draws.beta(mixup_alpha)))
    if cutmix_alpha:
        own.append(_outside_box(images, draws.beta(cutmix_alpha), u[1:]))
    return _blend(images, labels, ops.where(u[0] < 0.5, own[0], own[-1]))


def _blend(images, labels, own):
    """Mixes a batch with itself reversed; `own` (H, W, 1) is each pixel's share of the image in its place."""
    images, labels = ops.convert_to_tensor(images), ops.convert_to_tensor(labels)
    share = ops.mean(own)
    mixed = own * images + (1 - own) * ops.flip(images, axis=0)
    return mixed, share * labels + (1 - share) * ops.flip(labels, axis=0)


def _everywhere(images, share):
    return ops.broadcast_to(ops.cast(share, "float32"), (*ops.shape(images)[1:3], 1))


def _outside_box(images, share, u):
    """1 outside of a box and 0 inside: rand_bbox of timm/data/mixup.py."""
    side = ops.sqrt(1 - ops.cast(share, "float32"))
    rows, columns = (
        _inside(length, _places(u[axis], length) - half, _places(u[axis], length) + half)
        for axis, length in enumerate(ops.shape(images)[1:3])
        for half in [ops.cast(length * side, "int32") // 2]
    )
    return 1 - ops.cast(ops.logical_and(rows[:, None], columns), "float32")[..., None]


def erase(images, u, probability):
    """Sets a rectangle of some images to 0, which for normalised ones is the mean colour (arXiv:1708.04896).

    Areas are 2 to 33 % of the image and aspects 0.3 to 3.3, on a logarithmic scale, as torchvision's RandomErasing
    draws them, except that a side that is too long is made to fit instead of drawn again.

    Args:
        images: (B, H, W, C).
        u: (B, 5): whether to erase, then area, aspect, top and left.
        probability: share of images with a rectangle.

    Returns:
        (B, H, W, C) of the same dtype.
    """
    height, width = ops.shape(images)[1:3]
    area = _between(*ERASED_AREA, u[:, 1])
    root = ops.exp(_between(*map(math.log, ERASED_ASPECT), u[:, 2]) / 2)
    size = ops.sqrt(area * ops.cast(height * width, "float32"))
    rows = _random_interval(height, size * root, u[:, 3])
    columns = _random_interval(width, size / root, u[:, 4])
    erased = ops.logical_and(rows[:, :, None], columns[:, None, :])
    erased = ops.logical_and(erased, (u[:, 0] < probability)[:, None, None])
    return ops.where(erased[..., None], ops.zeros_like(images), images)


def soft_labels(labels, classes, smoothing=0.0):
    """Classes -> a share for each (Szegedy et al. 2016, arXiv:1512.00567, sec. 7).

    Args:
        labels: (B,) integers.
        classes: their number K.
        smoothing: what is spread evenly over all classes.

    Returns:
        (B, K) float32: 1 - smoothing + smoothing / K for the class, smoothing / K for the others.
    """
    return (1 - smoothing) * ops.one_hot(labels, classes, dtype="float32") + smoothing / classes


def threshold(labels, least):
    """Targets of binary cross-entropy: a class is there, or not (ResNet strikes back, arXiv:2110.00476, sec. 2.1).

    Args:
        labels: (B, K) floats, a share for each class.
        least: share above which a class counts as there.

    Returns:
        (B, K) of the same dtype, zeros and ones.
    """
    return ops.cast(labels > least, labels.dtype)


def _places(u, count):
    """u in [0, 1) -> int32 in 0..count - 1, which float32 could round up to `count`."""
    return ops.minimum(ops.cast(ops.cast(u, "float32") * ops.cast(count, "float32"), "int32"), count - 1)


def _between(low, high, u):
    return low + (high - low) * ops.cast(u, "float32")


def _inside(length, start, stop):
    """Which of 0..length - 1 are from `start` to before `stop`."""
    places = ops.arange(length)
    return ops.logical_and(places >= start, places < stop)


def _random_interval(length, sides, u):
    """(B, length) booleans: an interval of the rounded length `sides` (B,) for each image, somewhere within."""
    sides = ops.minimum(ops.cast(ops.round(sides), "int32"), length)
    starts = _places(u, length - sides + 1)
    return _inside(length, starts[:, None], (starts + sides)[:, None])
