"""PRECISIONS: the number formats in which models train, predict and are exported, one row each."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import keras

from keras_resnet.errors import check_known


@dataclass(frozen=True)
class Precision:
    """A number format."""

    policy: str | None
    """Keras's dtype policy for training; None if models cannot be trained in it."""
    tolerance: float
    """Largest accepted difference (`nrmse` of `ComparisonResult`) between an exported model's outputs and Keras's:
    several times what was measured for VARIANTS, and less than a wrong channel order or a missing mean causes."""


PRECISIONS = {
    "float32": Precision("float32", tolerance=1e-3),
    "bfloat16": Precision("mixed_bfloat16", tolerance=0.1),
    "float16": Precision("mixed_float16", tolerance=0.03),
    "int8": Precision(None, tolerance=0.3),
}
COMPUTED = tuple(name for name, row in PRECISIONS.items() if row.policy)
"""Precisions in which Keras itself computes."""


def check_precision(precision: str, known: Collection[str] = COMPUTED) -> None:
    """Raises ValueError for a precision that is not in `known`, with the nearest ones."""
    check_known("precision", precision, known)


@contextmanager
def precision_scope(precision: str | None) -> Iterator[None]:
    """Within the block, new Keras models compute in `precision`: a name in COMPUTED, or None for no change."""
    if precision is not None:
        check_precision(precision)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(PRECISIONS[precision].policy if precision else before)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def precision_of(policy: keras.DTypePolicy) -> str:
    """The precision of a Keras dtype policy, "bfloat16" for mixed_bfloat16; the name of any other policy."""
    return next((name for name, row in PRECISIONS.items() if row.policy == policy.name), policy.name)
