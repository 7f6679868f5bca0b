"""`python tools/bench.py decode` and `tail`, with --model HF_DIR: sampling alone.

decode: (c) 256 tokens without an early stop, against transformers.generate (torch, in the environment of the peer trl), and
what a late token costs against an early one. tail: (d) lengths of a long tail, against an ideal that computes only the rows
that are still live. Lengths are set through the stop table, which is data.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import numpy as np
from bench_limit import LONG, token_seconds
from bench_policy import UNIFORM, Policy
from bench_step import compare
from bench_timing import Row, in_turn, own_peak, ratios, seconds_of

GRIDS = ((1, 1), (2, 4), (4, 8))  # prompts, samples
NEW_TOKENS = 256
TAIL = (8, 8, 384)  # prompts, samples, most tokens; the mean is a sixth of that


def decode(model: str, peers: Sequence[str], rounds: int) -> list[Row]:
    """Tokens per second after the first one, which waits for the prompt, at 1, 8 and 32 rows."""
    rows = []
    for prompts, group in GRIDS:
        B = prompts * group
        print(f"(c) decode, {prompts} × {group} rows, {NEW_TOKENS} new tokens, {rounds} rounds")
        told = compare("decode", [p for p in peers if p == "trl"], [prompts, group, NEW_TOKENS, model], rounds)
        seconds = {name: [t["all"] - t["first"] for t in side] for name, side in told.items()}
        rates = {
            name: f"{statistics.median(B * (NEW_TOKENS - 1) / s for s in side):.0f} tokens/s" for name, side in seconds.items()
        }
        ratio = ratios(seconds["trl"], seconds["jaxrl_ml"]) if "trl" in seconds else []
        other = f"transformers.generate {rates['trl']}" if ratio else ""
        peaks = " / ".join(f"{statistics.median(t['peak_gb'] for t in side):.2f}" for side in told.values())
        target = "" if B == 1 else "≥ 2"
        rows.append(Row(f"(c) decode, {B} × {NEW_TOKENS} tokens", rates["jaxrl_ml"], other, ratio, target, peaks))
        ours = told["jaxrl_ml"]
        early, late = ([t[name] * 1e3 for t in ours] for name in ("early", "late"))
        rows.append(
            Row(
                f"(c) decode, {B} rows: a token at 192 to 256, over one at 1 to 64",
                f"{statistics.median(late):.2f} ms",
                f"{statistics.median(early):.2f} ms",
                ratios(late, early),
            )
        )
    return rows


def ideal_seconds(lengths: Sequence[int], token_seconds: Mapping[int, float], first: float) -> float:
    """What rows of these lengths take where each token is computed for the rows that are still live, and for no other.

    token_seconds: what a token of so many rows takes, at some numbers of rows, straight lines in between; first: the seconds
    until the first token of all rows.
    """
    lengths = np.asarray(lengths)
    live = (lengths[None] > np.arange(1, lengths.max())[:, None]).sum(1)
    known = sorted(token_seconds)
    return first + float(np.interp(live, known, [token_seconds[rows] for rows in known]).sum())


def tail(model: str, repeats: int) -> list[Row]:
    """Lengths of a geometric distribution: any of a sixth of 6 / max of all tokens ends a row, and all are equally likely."""
    prompts, group, width = TAIL
    policy = Policy(model)
    sample = policy.sampler(prompts, group, width, UNIFORM)
    table, once = policy.stop_on(6 / width, LONG), policy.stop_after(1, LONG)
    lengths = jax.device_get(sample(table).lengths)
    sample(once)
    grids = {q * g: (q, g) for q, g in [(1, 1), (2, 1), (4, 1), *((prompts, g) for g in (1, 2, 4, 8))]}
    measures = {f"{rows}": token_seconds(policy, *grid, 128) for rows, grid in grids.items()}
    measures |= {"first": lambda: seconds_of(partial(sample, once)), "tail": lambda: seconds_of(partial(sample, table))}
    found = in_turn(measures, repeats)
    for rows in grids:
        print(f"  a token of {rows} rows: {statistics.median(found[f'{rows}']) * 1e3:.2f} ms")
    ideal = [ideal_seconds(lengths, {rows: found[f"{rows}"][i] for rows in grids}, found["first"][i]) for i in range(repeats)]
    work = f"(d) long tail, {prompts} × {group} rows, {lengths.mean():.0f} tokens on average, {lengths.max()} at most"
    ours, best = (f"{statistics.median(times):.2f} s" for times in (found["tail"], ideal))
    return [Row(work, ours, f"only live rows: {best}", ratios(found["tail"], ideal), "≤ 1.4", own_peak())]
