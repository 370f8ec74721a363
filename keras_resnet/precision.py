"""PRECISIONS: the number formats that networks train, predict and are exported in, one row each."""

from dataclasses import dataclass

from keras_resnet.errors import unknown_name_error


@dataclass(frozen=True)
class Precision:
    """A number format."""

    policy: str | None
    """Keras's dtype policy for training in it; None where there is no training."""
    tolerance: float
    """How far an exported network's outputs may be from Keras's, as `Agreement.relative` measures it: several times
    what was measured of networks of VARIANTS, and less than what a wrong order of channels or a missing mean makes."""


PRECISIONS = {
    "float32": Precision("float32", tolerance=1e-3),
    "bfloat16": Precision("mixed_bfloat16", tolerance=0.1),
    "float16": Precision("mixed_float16", tolerance=0.03),
    "int8": Precision(None, tolerance=0.3),
}
COMPUTED = tuple(name for name, row in PRECISIONS.items() if row.policy)
"""Precisions that Keras itself computes in."""


def check_precision(precision, known=COMPUTED):
    """Raises ValueError for a precision that is none of `known`, with the nearest of them."""
    if precision not in known:
        raise unknown_name_error("precision", precision, known)
