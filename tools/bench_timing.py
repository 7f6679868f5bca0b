"""What the rows of `tools/bench.py` share: measuring in turn, processes of their own, and the table.

A row compares two sides by a ratio that is taken within each repeat, since the speed of a shared machine drifts; the median and
the range over the repeats are shown.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
HEADER = "| work | jaxrl_ml | against | ratio, median (range) | target | peak, GB |\n|---|---|---|---|---|---|"


class Row(NamedTuple):
    """One line of the table."""

    work: str
    ours: str
    other: str
    ratios: Sequence[float]  # one a repeat; what each is a ratio of, `work` and `target` tell
    target: str = ""
    peak: str = ""  # of resident memory; both sides where both are processes of their own

    def markdown(self) -> str:
        return f"| {self.work} | {self.ours} | {self.other} | {spread(self.ratios)} | {self.target} | {self.peak} |"


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else ""


def in_turn(measures: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """What each measure tells, all of them taken in turn `repeats` times."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, measure in measures.items():
            found[name].append(measure())
    return found


def interleaved(
    sides: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of each side, in turn, `repeats` times after one warm-up; by default those of CPU time."""
    for run in sides.values():
        run()
    return in_turn({name: lambda run=run: seconds_of(run, clock) for name, run in sides.items()}, repeats)


def seconds_of(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """How long one call takes, on the wall unless the clock says otherwise."""
    started = clock()
    run()
    return clock() - started


def shortest(run: Callable[[], Any], tries: int = 5) -> float:
    """The shortest of some calls, each until its arrays are there, after one that compiles."""
    import jax

    jax.block_until_ready(run())
    return min(seconds_of(lambda: jax.block_until_ready(run())) for _ in range(tries))


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """The ratio of each repeat."""
    return [a / b for a, b in zip(over, under, strict=True)]


def own_peak() -> str:
    """The peak of this process's resident memory so far, in GB (1e9 bytes)."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.2f}"


class Busy(NamedTuple):
    """Seconds of CPU time so far."""

    everybody: float
    own: float  # of this process and of those that it started and that have ended

    @classmethod
    def now(cls) -> Busy:
        """Both are zero where the system does not tell."""
        if not Path("/proc/stat").exists():
            return cls(0.0, 0.0)
        fields = [int(ticks) for ticks in Path("/proc/stat").read_text().split(None, 9)[1:9]]
        idle = sum(fields[3:5])  # and waiting for a disk
        return cls((sum(fields) - idle) / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4]))

    def others(self, before: Busy) -> float:
        """The share of the busy time since `before` that was not our own; times measured beside it are too long."""
        everybody, own = self.everybody - before.everybody, self.own - before.own
        return max(0.0, 1 - own / everybody) if everybody else 0.0


def machine(before: Busy) -> str:
    """Where, when and how undisturbed since `before`, as the line over the table has it."""
    from jaxrl_ml import doctor

    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(": ")[2] for line in told.splitlines() if line.startswith("model name")]
    vectors = "AVX-512" if " avx512f " in told else "AVX2" if " avx2 " in told else "no AVX2"
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=7"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"
    cores = f"{os.cpu_count()} cores of {names[0] if names else 'a CPU'} ({vectors})"
    shared = f"others took {Busy.now().others(before):.0%} of the CPU time"
    return f"{time.strftime('%d %B %Y')}, commit {commit}, {cores}, {shared}; {doctor.versions()}"


def collect(commands: Sequence[Sequence[str]]) -> None:
    """Runs `tools/bench.py` once a command, each in a process of its own, and prints one table of all their rows."""
    lines, before = [], Busy.now()
    for command in commands:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "tools" / "bench.py"), *command], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith("| ") and not HEADER.startswith(line.rstrip("\n")):
                lines.append(line.rstrip("\n"))
        if process.wait():
            print(f"{' '.join(command)}: failed with exit status {process.returncode}", flush=True)
    print(f"\n{machine(before)}\n\n{HEADER}")
    print("\n".join(lines))
