#!/usr/bin/env python3
"""Runs all arms of a study over seeds, and tells what came out: `tools/study.py configs/explang_cpu.py`.

A run that is finished is left alone and one that was stopped goes on, so that the same command carries a study through any
number of interruptions. A config may bind what else there is to do:

    first      an arm that is run before all others, with seed 0 only: a model that they start from
    seeds      arms that have fewer seeds than the others
    evaluate   arguments of `python -m jaxrl_ml.evaluate RUN …`, by which every finished run is evaluated once
    analyze    arguments of `python -m jaxrl_ml.analyze …`, which is run at the end

Prints, and writes to OUT/results.json, each arm's evaluation metrics at its last step (mean and standard deviation over seeds)
and its budget: steps, generated tokens, trained tokens, and FLOPs by 6·parameters a trained and 2·parameters a generated token.
`--jobs 2` has two runs going at once, each on one core: small models keep one core busier than two.
"""

from __future__ import annotations

import argparse
import json
import runpy
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import jax
import jax.numpy as jnp

from jaxrl_ml.metrics import read_metrics
from jaxrl_ml.models.transformer import Transformer
from jaxrl_ml.pretrained import read_model_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="config file with `arms`")
    parser.add_argument("--arms", nargs="+", help="some of them; by default all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each pinned to a core of its own")
    parser.add_argument("--out", type=Path, help="by default runs/NAME-OF-THE-CONFIG")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    out = arguments.out or Path("runs") / arguments.config.stem
    bound = runpy.run_path(str(arguments.config))
    known, evaluate = list(bound.get("arms", {})), bound.get("evaluate", ())
    arms = sorted(arguments.arms or known, key=lambda arm: arm != bound.get("first"))
    if not known or not set(arms) <= set(known):
        raise SystemExit(f"error: {arguments.config} has {'no arms' if not known else 'only the arms ' + ', '.join(known)}")
    # Seed by seed: after the first there is something to see of every arm.
    first, seeds = bound.get("first"), bound.get("seeds", {})
    number = {arm: 1 if arm == first else min(arguments.seeds, seeds.get(arm, arguments.seeds)) for arm in arms}
    runs = [(arm, seed) for seed in range(arguments.seeds) for arm in arms if seed < number[arm]]
    prefixes: SimpleQueue[list[str]] = SimpleQueue()
    for core in range(arguments.jobs):
        prefixes.put(["taskset", "-c", str(core)] if arguments.jobs > 1 else [])
    started = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for arm, seed in [] if arguments.report_only else runs:
            train = [str(arguments.config), "--arm", arm, "--seed", str(seed)]
            started.append(pool.submit(carry, train, evaluate, out / f"{arm}-{seed}", prefixes))
            if arm == first:
                started[-1].result()
    for run in started:
        run.result()
    if started and "analyze" in bound and not arguments.arms:
        subprocess.run([sys.executable, "-m", "jaxrl_ml.analyze", *bound["analyze"]], check=True)
    found = {arm: [out / f"{arm}-{seed}" for seed in range(number[arm])] for arm in arms}
    results = {arm: summarise([run for run in runs if (run / "metrics.jsonl").is_file()]) for arm, runs in found.items()}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    names = sorted({name for result in results.values() for name in result})
    print("| | " + " | ".join(results) + " |\n|---|" + "---|" * len(results))
    for name in names:
        print(f"| {name} | " + " | ".join(shown(result.get(name)) for result in results.values()) + " |")
    print(f"wrote {out / 'results.json'}")


def carry(train: Sequence[str], evaluate: Sequence[str], run: Path, prefixes: SimpleQueue[list[str]]) -> None:
    """Trains one run to its end and evaluates it, under one of the prefixes, which nothing else uses meanwhile."""
    prefix = prefixes.get()
    python = [*prefix, sys.executable, "-m"]
    try:
        subprocess.run([*python, "jaxrl_ml.train", *train, "--run-dir", str(run)], check=True)
        if evaluate and not (run / "evaluated").exists():
            subprocess.run([*python, "jaxrl_ml.evaluate", str(run), *evaluate], check=True)
            (run / "evaluated").touch()
    finally:
        prefixes.put(prefix)


def settings_of(run: Path) -> dict[str, float]:
    """What `evaluate RUN --languages …` found of each setting."""
    results = [json.loads(path.read_text()) for path in sorted((run / "evaluations").glob("*.json"))]
    return {f"{one['setting']}/{name}": value for one in results if "setting" in one for name, value in one["metrics"].items()}


def summarise(runs: list[Path]) -> dict[str, dict[str, float | list[float]]]:
    """Of each metric the values of all runs at the last step that has it, their mean and standard deviation; and the budget."""
    values: dict[str, list[float]] = {}
    for run in runs:
        records = read_metrics(run)
        last = {name: value for record in records for name, value in record.items() if name.startswith(("eval/", "language/"))}
        shapes = jax.eval_shape(Transformer(read_model_config(run), jnp.float32).init, jax.random.key(0))
        parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        generated = sum(record.get("rollout/sampled_tokens", 0.0) for record in records)
        trained = generated + sum(record.get("sft/tokens", 0.0) for record in records)
        last |= settings_of(run)
        last |= {
            "budget/steps": max(record["step"] for record in records),
            "budget/generated_tokens": generated,
            "budget/trained_tokens": trained,
            "budget/flops": parameters * (6 * trained + 2 * generated),
            "budget/wall_s": max(record.get("time/elapsed_s", 0.0) for record in records),
        }
        for name, value in last.items():
            if isinstance(value, (int, float)) and not name.endswith(("_low", "_high")):
                values.setdefault(name, []).append(float(value))
    return {
        name: {"mean": statistics.mean(found), "sd": statistics.stdev(found) if len(found) > 1 else 0.0, "values": found}
        for name, found in values.items()
    }


def shown(result: dict | None) -> str:
    return "" if result is None else f"{result['mean']:.4g} ± {result['sd']:.2g} ({len(result['values'])})"


if __name__ == "__main__":
    main()
