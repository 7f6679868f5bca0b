"""Trains as `python -m jaxrl_ml.train CONFIG [overrides]` does, and prints as JSON how many programs each step compiled.

A program that is taken from the compilation cache counts: it was traced and loaded anew.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax

from jaxrl_ml import train
from jaxrl_ml.grpo import GRPO
from jaxrl_ml.sft import SFT

EVENT = "/jax/core/compile/backend_compile_duration"


def main() -> None:
    compiled: list[str] = []
    steps: dict[str, list[int]] = {}
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: event == EVENT and compiled.append(event))

    def counted(owner: type) -> None:
        inner = owner.step

        def step(self: Any, state: Any, number: int) -> Any:
            before = len(compiled)
            found = inner(self, state, number)
            steps.setdefault(owner.__name__, []).append(len(compiled) - before)
            return found

        owner.step = step

    counted(SFT)
    counted(GRPO)
    train.main(sys.argv[1:])
    print(json.dumps(steps))


if __name__ == "__main__":
    main()
