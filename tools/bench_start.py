"""`python tools/bench.py start`: from the start of the process to the first step of the default run, and what compiles later.

The run is `configs/countdown_cpu.py` as a user starts it, ended as soon as the first training step's metrics are written: once
with an empty compilation cache, once with what the first start left. Another run, of the whole first stage and the first steps
of the second, counts what is compiled in each step.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench_timing import ROOT, Row, ratios

CONFIG = "configs/countdown_cpu.py"
STEPS = 40  # of the second stage, for the count


def start(repeats: int) -> list[Row]:
    """Seconds to the first step, cold and again, and the programs compiled after the second step of a stage."""
    cold, again, peaks = [], [], []
    with tempfile.TemporaryDirectory(prefix="jaxrl_ml_start_") as folder:
        for repeat in range(repeats):
            cache = Path(folder) / f"compiled_{repeat}"
            for times in (cold, again):
                seconds, peak = to_first_step(Path(folder) / f"run_{repeat}_{len(times)}_{times is cold}", cache)
                times.append(seconds)
                peaks.append(peak)
                print(f"  first step after {seconds:.1f} s", flush=True)
        compiled = compiled_by_step(Path(folder) / "counted", cache)
    late = {stage: sum(counts[2:]) for stage, counts in compiled.items()}
    for stage, counts in compiled.items():
        print(f"  {stage}: {sum(counts)} programs compiled, in steps {[i + 1 for i, count in enumerate(counts) if count]}")
    ours, other = (f"{statistics.median(times):.1f} s" for times in (again, cold))
    told = ", ".join(f"{stage} {count}" for stage, count in late.items())
    return [
        Row(
            "(g) start to first step, with the cache of the first start",
            ours,
            f"cold {other}",
            ratios(again, cold),
            "< 15 s",
            f"{statistics.median(peaks):.2f}",
        ),
        Row(
            f"(g) programs compiled after the second step of a stage, in all of the first and {STEPS} steps of the second",
            told,
            "",
            [],
            "0",
        ),
    ]


def to_first_step(run_dir: Path, cache: Path) -> tuple[float, float]:
    """Seconds until the first training step's metrics are there, and the peak of resident memory in GB until then."""
    command = [sys.executable, "-m", "jaxrl_ml.train", CONFIG, "--run-dir", str(run_dir)]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=_environment(cache), stdout=subprocess.DEVNULL)
    try:
        while not first_step_written(run_dir / "metrics.jsonl"):
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with exit status {process.returncode} before its first step")
            time.sleep(0.02)
        seconds = time.perf_counter() - started
    finally:
        process.kill()
        if process.returncode is None:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    return seconds, usage.ru_maxrss * 1024 / 1e9


def first_step_written(path: Path) -> bool:
    """Whether metrics.jsonl has a whole line of a training step; evaluations have no step time."""
    if not path.exists():
        return False
    return any(line.endswith("\n") and "time/step_s" in json.loads(line) for line in path.read_text().splitlines(keepends=True))


def compiled_by_step(run_dir: Path, cache: Path) -> dict[str, Sequence[int]]:
    """How many programs each step of each stage compiled, or took from the cache."""
    command = [sys.executable, str(ROOT / "tools" / "count_compiled.py"), CONFIG, "--run-dir", str(run_dir)]
    command += ["--stages.1.num-steps", str(STEPS)]
    done = subprocess.run(command, cwd=ROOT, env=_environment(cache), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _environment(cache: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",  # as the trainer sets it for its own folder
    }
