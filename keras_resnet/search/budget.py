"""Cost limits of a search, and the candidates that meet them: costs are computed before anything is built."""

import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from keras_resnet.architecture.complexity import complexity
from keras_resnet.architecture.network import build
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.errors import is_number, value_error
from keras_resnet.search.space import Space, Values, corner_values, to_recipe_changes, to_spec, values_between

UNITS = {"max_params": "parameters", "max_multiply_adds": "multiply-adds", "max_latency": "ms per image"}
MAX_BUILT = 8
"""Number of networks whose latency is measured, which takes seconds each, before the smallest one is taken."""


@dataclass(frozen=True)
class Budget:
    """Upper limits of a network's cost; None for no limit. Raises ValueError unless they are positive numbers."""

    max_params: int | None = None
    """Trainable parameters."""
    max_multiply_adds: int | None = None
    """Multiply-adds for one image."""
    max_latency: float | None = None
    """Milliseconds for one image, measured on this machine: the only limit for which a network has to be built."""

    def __post_init__(self):
        for name in UNITS:
            limit = getattr(self, name)
            if limit is not None and not (is_number(limit) and limit > 0):
                raise value_error(name, limit, "a positive number, or None")

    def first_exceeded(
        self, spec: ResNetSpec, input_shape: tuple[int, int, int], num_classes: int, measure: bool = True
    ) -> tuple[str, float] | None:
        """(name of the first limit that a network exceeds, its cost); None if it fits the budget.

        A network is built only if it fits the other limits, to measure its latency, unless `measure` is False.
        """
        cost = complexity(spec, classes=num_classes, input_shape=input_shape)
        costs = {"max_params": lambda: cost.parameters, "max_multiply_adds": lambda: cost.multiply_adds}
        if measure:
            costs["max_latency"] = lambda: latency(spec, input_shape, num_classes)
        for name, compute in costs.items():
            limit = getattr(self, name)
            if limit is not None and (found := compute()) > limit:
                return name, found
        return None


@lru_cache(maxsize=1024)
def latency(spec, input_shape, num_classes, repeats=20):
    """Milliseconds for one image on this machine: the median of several calls, after a first one that compiles."""
    model = build(spec, input_shape=input_shape, classes=num_classes)
    image, seconds = np.zeros((1, *input_shape), "float32"), []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        model.predict_on_batch(image)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[1:])


@dataclass(frozen=True)
class BudgetedSpace:
    """The candidates of a space that fit a budget. Raises ValueError on construction if there is none."""

    space: Space
    """As `space_for_images` returns it."""
    budget: Budget
    input_shape: tuple[int, int, int]
    """(H, W, C) of one image."""
    num_classes: int
    smallest: Values = field(init=False)
    """The fitting candidate with the fewest parameters among those at the ends of the space."""

    def __post_init__(self):
        corners = [values for values in corner_values(self.space) if self.is_valid(values)]
        if not corners:
            raise ValueError("`space` should have values that fit together: none at the ends of its rows is a network")
        corners.sort(key=lambda values: self.cost(values).parameters)
        unmeasured = [values for values in corners if self.fits(values, measure=False)]
        smallest = next(filter(self.fits, unmeasured[:MAX_BUILT]), None)
        if smallest is None:
            limit, found = self.first_exceeded((unmeasured or corners)[0])
            raise ValueError(
                f"`{limit}` should allow at least one candidate of the space; the smallest has {found:,.6g} "
                f"{UNITS[limit]}. Received: {limit}={getattr(self.budget, limit)}"
            )
        object.__setattr__(self, "smallest", smallest)

    def cost(self, values: Values):
        """Complexity of a candidate; raises ValueError if its values do not fit together."""
        return complexity(to_spec(values), classes=self.num_classes, input_shape=self.input_shape)

    def first_exceeded(self, values: Values, measure: bool = True):
        """As `Budget.first_exceeded`, for a candidate."""
        return self.budget.first_exceeded(to_spec(values), self.input_shape, self.num_classes, measure)

    def is_valid(self, values: Values) -> bool:
        """Whether the values of a candidate fit together."""
        try:
            return to_spec(values) is not None
        except ValueError:
            return False

    def fits(self, values: Values, measure: bool = True) -> bool:
        """Whether a candidate is valid and within the budget."""
        return self.is_valid(values) and self.first_exceeded(values, measure) is None

    def first_fitting(self, proposals: Iterable[Values]) -> Values:
        """The first proposal that fits the budget.

        If none does, or MAX_BUILT of them are too slow: the smallest network, with the last proposal's recipe.
        """
        values, builds_left = self.smallest, MAX_BUILT
        for values in proposals:
            if self.fits(values, measure=False):
                if self.fits(values):
                    return values
                builds_left -= 1
            if not builds_left:
                break
        return {**self.smallest, **to_recipe_changes(values)}

    def shrink_to_fit(self, values: Values) -> Values:
        """The candidate, with as many of its values as necessary moved towards the smallest candidate's."""
        return self.first_fitting(self._shrunk(values))

    def _shrunk(self, values) -> Iterator[Values]:
        yield values
        for name, row in self.space.items():
            steps = () if name in to_recipe_changes(values) else values_between(row, values[name], self.smallest[name])
            for value in steps:
                values = {**values, name: value}
                yield values

    def declare(self, hp) -> Values:
        """Declares the space to a keras_tuner.HyperParameters, the smallest candidate as its defaults.

        Returns:
            Its current value of each row.
        """
        values = {}
        for name, (method, arguments) in self.space.items():
            default = {} if method == "Fixed" else {"default": self.smallest[name]}
            values[name] = getattr(hp, method)(name, **default, **arguments)
        return values
