"""Parameters and multiply-adds of a segmenter, computed from its SegmenterSpec without building it."""

from keras_resnet.architecture.complexity import Complexity, check_image_shape, complexity
from keras_resnet.architecture.detector_complexity import HeadTotal
from keras_resnet.architecture.segmentation_heads import (
    auxiliary_rows,
    decoder_rows,
    deeplab_rows,
    fcn_rows,
    pyramid_rows,
)
from keras_resnet.architecture.segmenter import segmenter_backbone
from keras_resnet.architecture.segmenter_spec import SegmenterSpec


@complexity.register
def _(spec: SegmenterSpec, input_shape: tuple[int, int, int] = (520, 520, 3)) -> Complexity:
    """Counts a segmenter at a size of images: all parameters, and the multiply-adds of inference.

    >>> from keras_resnet import complexity, get_spec
    >>> complexity(get_spec("deeplabv3_resnet50")).parameters  # torchvision's, from its documentation
    42004074
    """
    backbone = segmenter_backbone(spec)
    total = HeadTotal(backbone)
    maps = total.feature_maps(backbone.levels, check_image_shape(tuple(input_shape)))
    if spec.head == "fcn":
        total.head(fcn_rows(spec), maps[-1])
    else:
        head = _decoder if spec.head == "deeplabv3plus" else _deeplab
        head(total, spec, _pyramid(total, spec, maps[-1]), maps[0])
    multiply_adds = total.multiply_adds
    if spec.auxiliary:
        total.head(auxiliary_rows(spec), maps[-2])
    return Complexity(total.parameters, total.statistics, multiply_adds)


def _pyramid(total, spec, maps):
    rows, (channels, size) = pyramid_rows(spec), maps
    for row in rows.branches:
        total.head([row], maps)
    width, _ = total.head([rows.pool], (channels, (1, 1)))
    return total.head([rows.project], (width * (len(rows.branches) + 1), size))


def _deeplab(total, spec, pyramid, _):
    total.head(deeplab_rows(spec), pyramid)


def _decoder(total, spec, pyramid, maps):
    skip, others = decoder_rows(spec)
    fine, size = total.head([skip], maps)
    total.head(others, (fine + pyramid[0], size))
