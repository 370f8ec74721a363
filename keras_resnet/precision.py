"""PRECISIONS: the number formats that networks train, predict and are exported in, one row each."""

from contextlib import contextmanager
from dataclasses import dataclass

import keras

from keras_resnet.errors import unknown_name_error


@dataclass(frozen=True)
class Precision:
    """A number format."""

    policy: str | None
    """Keras's dtype policy for training in it; None where there is no training."""
    tolerance: float
    """How far an exported network's outputs may be from Keras's, as `nrmse` of `ComparisonResult`: several times what
    was measured of networks of VARIANTS, and less than the effect of a wrong channel order or a missing mean."""


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


@contextmanager
def precision_scope(precision):
    """Within the block, new Keras models compute in `precision`: a name in COMPUTED, or None for no change."""
    if precision is not None:
        check_precision(precision)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(PRECISIONS[precision].policy if precision else before)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def precision_of(policy):
    """The precision of a Keras dtype policy, "bfloat16" for mixed_bfloat16; the name of any other policy."""
    return next((name for name, row in PRECISIONS.items() if row.policy == policy.name), policy.name)
