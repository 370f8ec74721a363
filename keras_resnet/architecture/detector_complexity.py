"""Parameters and multiply-adds of a detector, computed from its DetectorSpec without building it."""

from dataclasses import replace

from keras_resnet.architecture.complexity import Complexity, Total, check_image_shape, complexity
from keras_resnet.architecture.detector import BOX_SIZE, MASK_SIZE, backbone_spec, default_settings
from keras_resnet.architecture.detector_spec import DetectorSpec
from keras_resnet.architecture.heads import (
    box_head_rows,
    box_predictor_rows,
    dense_rows,
    extra_rows,
    fpn_rows,
    mask_rows,
    rpn_rows,
)


@complexity.register
def _(spec: DetectorSpec, input_shape: tuple[int, int, int] = (800, 800, 3)) -> Complexity:
    """Counts a detector at a size of images, with all proposals and, if it has a mask head, all detections."""
    return _count(spec, input_shape).result()


def multiply_adds_of_parts(spec: DetectorSpec, input_shape: tuple[int, int, int]) -> dict[str, int]:
    """{"body", "neck", "rpn", "heads" and, with a mask head, "masks": multiply-adds for one image}.

    >>> from keras_resnet import get_spec
    >>> parts = multiply_adds_of_parts(get_spec("fasterrcnn_resnet50_fpn"), (800, 1344, 3))
    >>> {part: round(count / 1e9, 1) for part, count in parts.items()}
    {'body': 87.6, 'neck': 60.9, 'rpn': 53.1, 'heads': 14.4}
    """
    return _count(spec, input_shape).parts


def _count(spec, input_shape):
    backbone = backbone_spec(spec)
    total = HeadTotal(backbone)
    maps = total.feature_maps(backbone.levels[: spec.levels[-1] - 1], check_image_shape(tuple(input_shape)))
    if spec.frozen_batch_norm:
        total.freeze()
    total.end("body")
    maps = total.neck(spec, [maps[level - 2] for level in spec.levels])
    total.end("neck")
    if spec.box_head == "dense":
        for rows in dense_rows(spec).values():
            total.shared(rows, maps)
        total.end("heads")
    else:
        total.regions(spec, maps)
    return total


class HeadTotal(Total):
    """Sums over the layers of a network with heads of HeadLayer rows; a map is (channels, (height, width))."""

    def __init__(self, spec):
        super().__init__(spec)
        self.parts = {}

    def end(self, part):
        """Ends a part of the detector: `parts` gets the multiply-adds since the end of the part before."""
        self.parts[part] = self.multiply_adds - sum(self.parts.values())

    def freeze(self):
        """Counts scales and offsets of batch norm as constants, as torchvision's FrozenBatchNorm2d."""
        self.parameters, self.statistics = self.parameters - self.statistics, 2 * self.statistics

    def head(self, rows, maps, repeats=1):
        """Consecutive layers, applied `repeats` times with the same weights; the map after them."""
        channels, size = maps
        before = self.multiply_adds
        for row in rows:
            size = (1, 1) if row.kernel_size == 0 else size
            new_size = self.convolution(row.convolution, channels, size, row.use_bias)
            self.parameters += 2 * row.filters if row.norm else 0
            self.statistics += 2 * row.filters if row.norm == "batch" else 0
            channels, size = row.filters, new_size
        self.multiply_adds += (repeats - 1) * (self.multiply_adds - before)
        return channels, size

    def shared(self, rows, maps):
        """Layers that are applied to each of several maps with the same weights; the maps after them."""
        parameters, statistics = self.parameters, self.statistics
        outputs = []
        for level in maps:
            self.parameters, self.statistics = parameters, statistics
            outputs.append(self.head(rows, level))
        return outputs

    def neck(self, spec, maps):
        """The maps for the heads."""
        if spec.neck != "fpn":
            return maps
        outputs = []
        for rows, level in zip(fpn_rows(spec), maps, strict=True):
            outputs.append(self.head(rows, level))
        width, size = outputs[-1]
        if spec.extra_levels == "pool":
            outputs.append((width, tuple(-(-side // 2) for side in size)))
        level = maps[-1] if spec.extra_levels == "c5" else outputs[-1]
        for row in extra_rows(spec):
            level = self.head([row], level)
            outputs.append(level)
        return outputs

    def regions(self, spec, maps):
        """The region proposal network, then the heads for each proposal and detection."""
        settings, width = default_settings(spec), maps[0][0]
        convolutions, objectness, deltas = rpn_rows(spec)
        hidden = self.shared(convolutions, maps)
        for row in (objectness, deltas):
            self.shared([row], hidden)
        self.end("rpn")
        rows, regions = box_head_rows(spec), settings.proposals + spec.global_context
        if spec.box_head == "stage4":
            channels, size = self.last_stage(spec, regions)
        else:
            dense = [row for row in rows if row.kernel_size == 0]
            channels, _ = self.head([row for row in rows if row.kernel_size], (width, (BOX_SIZE,) * 2), regions)
            channels, size = self.head(dense, (channels * BOX_SIZE**2, (1, 1)), regions)
        for row in box_predictor_rows(spec):
            self.head([row], (channels * (1 + spec.global_context), size), settings.proposals)
        self.end("heads")
        if spec.mask_head:
            self.masks(spec, width, settings.detections)
            self.end("masks")

    def last_stage(self, spec, proposals):
        """The backbone's last stage for each region: its channels."""
        total = HeadTotal(spec.backbone)
        size = (2 * BOX_SIZE,) * 2
        for block in spec.backbone.stages[3]:
            size = total.block(block, size)
        if spec.frozen_batch_norm:
            total.freeze()
        self.parameters += total.parameters
        self.statistics += total.statistics
        self.multiply_adds += proposals * total.multiply_adds
        return spec.backbone.stages[3][-1].out_channels, (1, 1)

    def masks(self, spec, width, detections):
        """The mask head; a transposed convolution has each weight once for every pixel of its input."""
        *convolutions, deconvolution, logits = mask_rows(spec)
        maps = self.head(convolutions, (width, (MASK_SIZE,) * 2), detections)
        enlarged = replace(deconvolution, stride=1)
        channels, size = self.head([enlarged], maps, detections)
        self.head([logits], (channels, tuple(2 * side for side in size)), detections)
