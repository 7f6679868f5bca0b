"""A task that is made when it is first looked at: a function and its arguments in, a task out.

A config file is read for every command, `--help` included: what downloads a data set or reads large files belongs in here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jaxrl_ml.types import Example, Task


@dataclass(frozen=True)
class Deferred(Sequence[Example]):
    """The task `make(*arguments, **options)`, made once, when an example or the length is first asked for.

    Example: `Deferred(openr1_math, ("open-r1/OpenR1-Math-220k",), {"demonstrations": True})`.
    """

    make: Callable[..., Task]
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def _task(self) -> Task:
        return self.make(*self.arguments, **self.options)

    def __len__(self) -> int:
        return len(self._task)

    def __getitem__(self, index: int) -> Example:
        return self._task[index]
