"""Sampling of this library on CPU: `python jaxrl_decode.py PROMPTS GROUP NEW_TOKENS MODEL_DIR`, T = 1, no early stop."""

from __future__ import annotations

import sys
from functools import partial

from bench_policy import Policy
from bench_timing import seconds_of
from prompt import report

MARKS = {"first": 1, "64": 64, "192": 192}  # tokens, at which the time is taken


def main() -> None:
    prompts, group, new_tokens, folder = *map(int, sys.argv[1:4]), sys.argv[4]
    policy = Policy(folder)
    sample = policy.sampler(prompts, group, new_tokens)
    tables = {name: policy.stop_after(tokens, new_tokens) for name, tokens in ({"all": new_tokens} | MARKS).items()}
    runs = [
        {name: seconds_of(partial(sample, table)) for name, table in tables.items()} for _ in range(2)
    ]  # the first compiles
    report(
        all=[run["all"] for run in runs],
        first=[run["first"] for run in runs],
        early=[(run["64"] - run["first"]) / (64 - 1) for run in runs],
        late=[(run["all"] - run["192"]) / (new_tokens - 192) for run in runs],
    )


if __name__ == "__main__":
    main()
