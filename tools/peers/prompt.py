"""What all sides of `tools/bench.py step` do: the prompt, 122 tokens by SmolLM2's chat template, the reward, and the report."""

from __future__ import annotations

import json
import resource

QUESTION = (
    "Using the numbers 19, 36, 55 and 7, create an equation that equals 65. You can use basic arithmetic operations "
    "(+, -, *, /) and each number can only be used once. Show your work in <think> </think> tags. And return the final "
    "answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>."
)
STEPS = 4  # the first compiles or warms up and is left out


def reward(text: str) -> float:
    """Some number, so that advantages are not all zero."""
    return float(len(text) % 7)


def report(**seconds: list[float]) -> None:
    """Prints the seconds of each step by phase, and the peak of resident memory in GB (1e9 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({"peak_gb": round(peak, 2), **{name: [round(s, 6) for s in found] for name, found in seconds.items()}}))
