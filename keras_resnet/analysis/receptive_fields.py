"""How much of the image one number of a feature map can see (Araujo, Norris and Sim, distill.pub 2019)."""

from dataclasses import dataclass

from keras_resnet.architecture.blocks import TRANSFORMS
from keras_resnet.architecture.layers import Convolution
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.architecture.stems import MAX_POOLS, STEMS
from keras_resnet.files import save_figure


@dataclass(frozen=True)
class ReceptiveField:
    """What one pixel of a feature map depends on."""

    size: int = 1
    """Side of the square of input pixels, away from the border."""
    stride: int = 1
    """Input pixels from one pixel of the map to the next."""

    def through(self, rows):
        """The field behind convolutions, or pools, that follow each other: a ReceptiveField."""
        field = self
        for row in rows:
            reach = row.dilation * (row.kernel_size - 1) * field.stride
            field = ReceptiveField(field.size + reach, field.stride * row.stride)
        return field


_MAX_POOL = Convolution(1, 3, 2)  # to a receptive field, a pool is a convolution


def receptive_fields(spec):
    """The receptive field of every endpoint of the network that `spec` describes, in closed form.

    Args:
        spec: ResNetSpec.

    Returns:
        {"stem": ReceptiveField, "stage1": ReceptiveField, ...}, as `keras_resnet.endpoints` names the maps. Where
        blocks have squeeze-excite gates, which see the whole image, it is the field of what the gates scale.

    Raises:
        ValueError: if `spec` is no ResNetSpec.
    """
    if not isinstance(spec, ResNetSpec):
        raise ValueError(f"`spec` should be a ResNetSpec, such as `get_spec('resnet50')`. Received: spec={spec!r}")
    stem = STEMS[spec.stem]
    field = ReceptiveField().through(row for _, row in stem.rows(spec))
    field = field.through([_MAX_POOL] if stem.pool in MAX_POOLS else [])
    fields = {"stem": field}
    for number, blocks in enumerate(spec.stages, 1):
        for block in blocks:
            # the longest path is F: what a shortcut sees, even one that pools 2x2, the 3x3 of F sees too
            field = field.through(TRANSFORMS[spec.block].convolutions(block, spec))
        fields[f"stage{number}"] = field
    return fields


def draw_receptive_fields(fields, path, side=224, title=""):
    """Draws the fields as squares around the middle of an image.

    Args:
        fields: {endpoint: ReceptiveField}.
        path: the PNG to write.
        side: of the image, in pixels; drawn as a grey square.
        title: above the image.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    if not fields:
        raise ValueError("`fields` should be {endpoint: ReceptiveField}, not empty. Received: {}")
    largest = max(side, *(field.size for field in fields.values()))
    figure = Figure(figsize=(6, 6))
    axes = figure.add_subplot(title=title, aspect="equal", xlabel="pixels")
    axes.add_patch(Rectangle((-side / 2, -side / 2), side, side, color="0.85", label=f"image: {side}"))
    for i, (name, field) in enumerate(fields.items()):
        corner, label = (-field.size / 2,) * 2, f"{name}: {field.size} (stride {field.stride})"
        axes.add_patch(Rectangle(corner, field.size, field.size, fill=False, linewidth=2, color=f"C{i}", label=label))
    axes.set(xlim=(-0.55 * largest, 0.55 * largest), ylim=(-0.55 * largest, 0.55 * largest))
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    save_figure(figure, path)
