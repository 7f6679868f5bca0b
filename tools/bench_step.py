"""`python tools/bench.py step --model HF_DIR --peer trl --peer tunix`: whole GRPO steps, ours against the peers'.

Every side runs in a process of its own, one after the other, so that none profits from another's caches; rounds are
interleaved, and ratios are taken within a round. Each process makes `peers.prompt.STEPS` steps of the same work on the same
weights; the first is left out, the median of the others is its time. A peer's environment is made once, under runs/peers/.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench_timing import Row, ratios

TOOLS = Path(__file__).resolve().parent
PEERS = {
    "trl": (["torch==2.13.0"], ["trl", "transformers", "accelerate", "datasets"]),
    "tunix": ([], ["google-tunix==0.1.7"]),
}  # what pip installs, for it can take torch's CPU wheel from a folder of wheels; then what uv does
WORK = {"a": (2, 4, 32), "b": (4, 8, 64)}  # prompts, samples, new tokens
TARGETS = {"a": "≥ 2.2, and 4 GB", "b": "≥ 2.2"}


def step(model: str, peers: Sequence[str], work: str, rounds: int) -> list[Row]:
    """Seconds of a step, of its sampling and of its update, peak memory, and the peers' ratios to ours."""
    prompts, group, new_tokens = WORK[work]
    name = f"({work}) GRPO step, {prompts} × {group} samples, 122-token prompts, {new_tokens} new tokens"
    print(f"{name}, {rounds} rounds")
    found = compare("step", peers, [prompts, group, new_tokens, model], rounds)
    ours = found.pop("jaxrl_ml")
    rows = []
    for peer, told in found.items() or {"": []}.items():
        ratio = ratios([t["step"] for t in told], [t["step"] for t in ours]) if told else []
        peaks = " / ".join(f"{statistics.median(t['peak_gb'] for t in side):.2f}" for side in (ours, told) if side)
        rows.append(Row(name, _phases(ours), f"{peer} {_phases(told)}" if told else "", ratio, TARGETS[work], peaks))
    return rows


def _phases(told: Sequence[Mapping[str, float]]) -> str:
    seconds = {key: statistics.median(t[key] for t in told) for key in ("step", "generate", "update")}
    return "{step:.2f} s (sampling {generate:.2f}, update {update:.2f})".format(**seconds)


def compare(work: str, peers: Sequence[str], arguments: Sequence[object], rounds: int) -> dict[str, list[dict[str, float]]]:
    """What each side tells of the work, `rounds` times in turn; a peer that cannot be made or run is left out with a line."""
    sides = {"jaxrl_ml": sys.executable}
    for peer in peers:
        try:
            sides[peer] = str(environment(peer))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{peer}: skipped, its environment could not be made: {error}")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, python in list(sides.items()):
            told = measure(name, python, work, arguments)
            if told is None and name == "jaxrl_ml":
                raise SystemExit(1)  # there is nothing to compare
            if told is None:
                del sides[name], found[name]
            else:
                found[name].append(told)
                print(f"  {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in told.items()), flush=True)
    return found


def measure(name: str, python: str, work: str, arguments: Sequence[object]) -> dict[str, float] | None:
    """One process of one side: medians over its repeats, without the first; None where it failed."""
    script = TOOLS / "peers" / f"{name.removesuffix('_ml')}_{work}.py"
    own = {"PYTHONPATH": os.pathsep.join(map(str, (TOOLS.parent, TOOLS)))} if name == "jaxrl_ml" else {}
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", **own}
    done = subprocess.run([python, str(script), *map(str, arguments)], capture_output=True, text=True, env=env)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        print(f"{name}: skipped, it failed: {last}")
        return None
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return {key: statistics.median(value[1:]) if isinstance(value, list) else value for key, value in told.items()}


def environment(peer: str) -> Path:
    """The Python of a peer's own environment, made where it is not there."""
    folder = TOOLS.parent / "runs" / "peers" / peer
    python, done = folder / "bin" / "python", folder / "complete"
    if not done.exists():
        uv = shutil.which("uv") or str(TOOLS.parent / ".uv" / "bin" / "uv")
        subprocess.run([uv, "venv", "--quiet", "--clear", "--seed", "--python", "3.11", str(folder)], check=True)
        pip, rest = PEERS[peer]
        if pip:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *pip], check=True)
        subprocess.run(
            [uv, "pip", "install", "--quiet", "--no-config", "--python", str(python), *rest],  # not with our own constraints
            check=True,
            env={**os.environ, "UV_PYTHON_DOWNLOADS": "never"},
        )
        done.touch()
    return python
