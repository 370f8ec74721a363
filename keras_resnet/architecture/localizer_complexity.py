"""Parameters and multiply-adds of a localizer, computed from its LocalizerSpec without building it."""

from keras_resnet.architecture.complexity import Complexity, check_image_shape, complexity
from keras_resnet.architecture.detector_complexity import HeadTotal
from keras_resnet.architecture.layers import Convolution
from keras_resnet.architecture.localizer import box_rows, localizer_backbone
from keras_resnet.architecture.localizer_spec import LocalizerSpec


@complexity.register
def _(spec: LocalizerSpec, input_shape: tuple[int, int, int] | None = None) -> Complexity:
    """Counts a localizer at a size of images; None: the one for which its network was designed."""
    shape = (spec.default_size, spec.default_size, 3) if input_shape is None else tuple(input_shape)
    backbone = localizer_backbone(spec)
    total = HeadTotal(backbone)
    *_, (channels, size) = total.feature_maps(backbone.stages, check_image_shape(shape))
    total.convolution(Convolution(spec.classes, 1), channels, (1, 1), bias=True)
    convolution, *others = box_rows(spec)
    hidden, size = total.head([convolution], (channels, size))
    if spec.boxes == "dense":
        for row in others:
            total.head([row], (hidden, size))
    else:
        total.head(others, (hidden * size[0] * size[1], (1, 1)))
    return total.result()
