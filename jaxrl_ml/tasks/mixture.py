"""Tasks made of tasks: parts and weights in, one task out that costs no memory beyond its parts."""

from __future__ import annotations

import heapq
import math
import operator
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from jaxrl_ml.types import Example, Task, UserError

_MAX_PERIOD = 100_000
"""Weights whose pattern repeats later than this are rounded to shares of 1 / _MAX_PERIOD."""


class Mixture(Sequence[Example]):
    """A task that draws from `tasks` in proportion to `weights`, each part in order and from its start again after its end.

    Of any first n examples a part with share p has between np − 1 and np + 1, and which part and example stands at an index
    depends on neither `size` nor the parts' sizes. `size` is how many examples there are, as many as the parts have together
    where it is None. Examples are those of the parts, ids included, so an id comes again when its part does. Raises UserError
    for a part or weight that cannot be used, and IndexError outside 0 ≤ index < size.
    """

    def __init__(self, tasks: Sequence[Task], weights: Sequence[float], size: int | None = None) -> None:
        if not tasks or len(tasks) != len(weights):
            raise UserError(
                f"Mixture: {len(tasks)} tasks and {len(weights)} weights; give at least one task, a weight for each"
            )
        for part, (task, weight) in enumerate(zip(tasks, weights, strict=True)):
            if not len(task):
                raise UserError(f"Mixture: task {part} is empty; leave it out")
            if not (math.isfinite(weight) and weight > 0):
                raise UserError(f"Mixture: weight {weight} of task {part} must be finite and above 0; leave out what gets none")
        if size is not None and size < 1:
            raise UserError(f"Mixture: size={size} must be at least 1")
        self.tasks = tuple(tasks)
        self._size = sum(map(len, tasks)) if size is None else size
        self._shares = _whole(weights)
        self._parts, self._turns = _schedule(self._shares)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        index = operator.index(index)
        if not 0 <= index < self._size:
            raise IndexError(f"index {index} is outside 0..{self._size - 1}")
        period, slot = divmod(index, len(self._parts))
        part = int(self._parts[slot])
        turn = period * self._shares[part] + int(self._turns[slot])
        return self.tasks[part][turn % len(self.tasks[part])]


class Subset(Sequence[Example]):
    """The examples of a task at `indices` (integers [N]), in that order. Raises IndexError outside 0 ≤ index < N."""

    def __init__(self, task: Task, indices: Sequence[int] | np.ndarray) -> None:
        self.task, self.indices = task, np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        index = operator.index(index)
        if not 0 <= index < len(self.indices):
            raise IndexError(f"index {index} is outside 0..{len(self.indices) - 1}")
        return self.task[int(self.indices[index])]


def _whole(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the proportion of the weights; their sum is the length of the pattern."""
    exact = [
        Fraction(float(weight)).limit_denominator(10**6) for weight in weights
    ]  # 0.7 means 7/10, not the nearest binary number
    unit = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * unit) for weight in exact]
    divisor = math.gcd(*whole)
    if min(whole) > 0 and sum(whole) // divisor <= _MAX_PERIOD:
        return [share // divisor for share in whole]
    total = math.fsum(weights)
    rounded = [round(weight / total * _MAX_PERIOD) for weight in weights]
    if not all(rounded):
        part = rounded.index(0)
        raise UserError(
            f"Mixture: weight {weights[part]} of task {part} is below 1/{2 * _MAX_PERIOD} of the total {total:g}; raise it"
        )
    return rounded


def _schedule(shares: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Which part each slot of a period belongs to, and how often that part came before in it: [W] each, W the sum of shares.

    Occurrence c of part k belongs in the window of slots from ⌊cW/share⌋ to before ⌈(c+1)W/share⌉. Serving the occurrence
    whose window ends first among those whose window has begun meets every window, which is what keeps each prefix within one
    of its due (Baruah et al., "Proportionate progress", 1996).
    """
    period = sum(shares)
    parts, turns = np.empty(period, np.int32), np.empty(period, np.int32)
    waiting = [(0, part, 0) for part in range(len(shares))]  # (slot from which, part, occurrence)
    ready: list[tuple[int, int, int]] = []  # (slot before which, part, occurrence)
    for slot in range(period):
        while waiting and waiting[0][0] <= slot:
            _, part, turn = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(turn + 1) * period // shares[part]), part, turn))
        _, part, turn = heapq.heappop(ready)
        parts[slot], turns[slot] = part, turn
        heapq.heappush(waiting, ((turn + 1) * period // shares[part], part, turn + 1))
    return parts, turns
