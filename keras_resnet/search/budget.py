"""What a network may cost, and which candidates of a space do not cost more: known before one is built."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from keras_resnet.architecture.complexity import complexity
from keras_resnet.architecture.network import build
from keras_resnet.errors import is_number
from keras_resnet.search.space import between, changes_of, declare, extremes, spec_of

WORDS = {"max_params": "parameters", "max_multiply_adds": "multiply-adds", "max_latency": "ms an image"}
MEASURED = 8
"""Networks that are built for their latency, seconds each, to find one that fits."""


@dataclass(frozen=True)
class Budget:
    """The most that a network may cost; None is no limit.

    Raises:
        ValueError: on construction, for a limit that is no positive number.
    """

    max_params: int | None = None
    """Trainable parameters."""
    max_multiply_adds: int | None = None
    """For one image."""
    max_latency: float | None = None
    """Milliseconds for one image on this machine, measured: the only limit for which a candidate must be built."""

    def __post_init__(self):
        for name in WORDS:
            limit = getattr(self, name)
            if limit is not None and not (is_number(limit) and limit > 0):
                raise ValueError(f"`{name}` should be a positive number, or None. Received: {name}={limit!r}")

    def excess(self, spec, input_shape, classes, measured=True):
        """The first limit that a network is above, as (limit, its cost); None if it fits.

        Nothing is built for a network that has too many parameters or multiply-adds, nor if latency is not `measured`.
        """
        cost = complexity(spec, classes=classes, input_shape=input_shape)
        costs = {"max_params": lambda: cost.parameters, "max_multiply_adds": lambda: cost.multiply_adds}
        if measured:
            costs["max_latency"] = lambda: latency(spec, input_shape, classes)
        for name, measure in costs.items():
            limit = getattr(self, name)
            if limit is not None and (found := measure()) > limit:
                return name, found
        return None


@lru_cache(maxsize=1024)
def latency(spec, input_shape, classes, repeats=20):
    """Milliseconds that a network needs for one image here: the median of some, after a first one that compiles."""
    model = build(spec, input_shape=input_shape, classes=classes)
    image, times = np.zeros((1, *input_shape), "float32"), []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        model.predict_on_batch(image)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[1:])


@dataclass(frozen=True)
class Candidates:
    """The networks of a space that fit a budget.

    Raises:
        ValueError: on construction, if there is none.
    """

    rows: Mapping
    """As `rows_for` gives them."""
    budget: Budget
    input_shape: tuple[int, int, int]
    """(H, W, C) of one image."""
    classes: int
    smallest: Mapping = field(init=False)
    """Values of the one with the fewest parameters, of those at the lower end of the space."""

    def __post_init__(self):
        values = [values for values in extremes(self.rows) if self.is_network(values)]
        if not values:
            raise ValueError("`space` should have values that go together: no network is as the ends of its rows say")
        values.sort(key=lambda values: self.cost(values).parameters)
        counted = [candidate for candidate in values if self.fits(candidate, measured=False)]
        fitting = next(filter(self.fits, counted[:MEASURED]), None)
        if fitting is None:
            limit, found = self.excess((counted or values)[0])
            raise ValueError(
                f"`{limit}` should be met by a candidate of the space; the smallest has {found:,.6g} {WORDS[limit]}. "
                f"Received: {limit}={getattr(self.budget, limit)}"
            )
        object.__setattr__(self, "smallest", fitting)

    def cost(self, values):
        """The Complexity of {name: value}.

        Raises:
            ValueError: if they do not go together.
        """
        return complexity(spec_of(values), classes=self.classes, input_shape=self.input_shape)

    def excess(self, values, measured=True):
        """As `Budget.excess`, for {name: value}."""
        return self.budget.excess(spec_of(values), self.input_shape, self.classes, measured)

    def is_network(self, values):
        """Whether {name: value} go together."""
        try:
            return spec_of(values) is not None
        except ValueError:
            return False

    def fits(self, values, measured=True):
        """Whether {name: value} is a network, and within the budget."""
        return self.is_network(values) and self.excess(values, measured) is None

    def first(self, proposals):
        """The first of some {name: value} that fits. If none does, or MEASURED were too slow, the smallest with what
        the last one changes in the recipe."""
        values, left = self.smallest, MEASURED
        for values in proposals:
            if self.fits(values, measured=False):
                if self.fits(values):
                    return values
                left -= 1
            if not left:
                break
        return {**self.smallest, **changes_of(values)}

    def within(self, values):
        """{name: value} if it fits; else the first that does while its rows go to the smallest's, one after another."""
        return self.first(self._towards_the_smallest(values))

    def _towards_the_smallest(self, values):
        yield values
        for name, row in self.rows.items():
            steps = () if name in changes_of(values) else between(row, values[name], self.smallest[name])
            for value in steps:
                values = {**values, name: value}
                yield values

    def declare(self, hp):
        """Values of a keras_tuner.HyperParameters, to which the space is made known with the smallest as default."""
        return declare(self.rows, hp, self.smallest)
