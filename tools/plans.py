"""Prints the two tables of README's section Plans, as they stand there: six plans compiled, and the curve of v5p.

    python tools/plans.py            # half an hour of one core where nothing is kept in runs/.plans, else minutes
    python tools/plans.py v5e        # only the plans whose topology starts so, and no curve

Needs the extra `plan`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich.console import Console

from jaxrl_ml.cli import load
from jaxrl_ml.plan import filled, planners
from jaxrl_ml.planning.curve import Point, curve
from jaxrl_ml.planning.options import Options
from jaxrl_ml.planning.tables import short
from jaxrl_ml.planning.topology import CHIPS, GIB, Chip, parse
from jaxrl_ml.planning.work import Estimate, latency_seconds, seconds, step_seconds
from jaxrl_ml.types import require

SKILLS = ("Qwen2.5-7B (skills)", "configs/skills_qwen2p5.py", "--arm 7b", "grpo")
EXPLANG = ("Qwen3-4B (explang)", "configs/explang_qwen3_4b.py", "--arm explang", "exploitation")
PLANS = (  # model, config, arm and stage; what is said of the topology, its name, and the mesh
    (*SKILLS, "64 v5e, fsdp 16 × tensor 4", "v5e:8x8", "--mesh.fsdp 16 --mesh.tensor 4"),
    (*SKILLS, "8 v5p, fsdp 8", "v5p:2x2x2", ""),
    (*SKILLS, "8 H100, fsdp 8", "h100:8", ""),
    (*EXPLANG, "64 v5e, fsdp 8 × tensor 8", "v5e:8x8", "--mesh.tensor 8"),
    (*EXPLANG, "8 v5p, fsdp 8", "v5p:2x2x2", ""),
    (*EXPLANG, "8 H100, fsdp 8", "h100:8", ""),
)
PLANS_HEAD = (
    "program | arguments + temporaries, beside, GiB | of a chip | TFLOP | sent, GB; latency, s | compiled in, s | a run, s"
)
CURVE_CHIP, CURVE_COUNTS, LINKS_AT = "v5p", (8, 64, 512, 4096), 512
CURVE_MODELS = {"Qwen2.5-1.5B": "1.5B", "Qwen2.5-7B": "7B", "Qwen2.5-32B": "32B"}
SCALINGS = {"weak": "4 prompts a chip", "strong": "512 prompts"}


def plan_rows(model: str, config: str, arm: str, stage: str, where: str, topology: str, mesh: str) -> Iterator[str]:
    """The rows of one plan: of its decoding and of its update. Raises UserError where it cannot be compiled here."""
    found, loaded = parse(topology), load(config, [*arm.split(), *mesh.split()])
    (planner,) = planners(loaded, found, Options(topology=topology, stage=(stage,)), Console(stderr=True))
    require(planner.compiles, f"{topology} cannot be compiled for: install the extra `plan`")
    programs = planner.estimates(filled(loaded.mesh, found), planner.stage)
    step = short(step_seconds(programs, found.chip))
    for e in programs:
        kind = e.name.split("/")[-1]
        if kind in ("decode", "update"):
            yield f"| {model}, {where}; step {step} s | {e.runs} × {kind} | {' | '.join(cells(e, found.chip))} |"


def cells(e: Estimate, chip: Chip) -> list[str]:
    """What a row tells of a program."""
    memory, took = e.memory, seconds(e.work, chip)
    sent, waits = e.work.sent_bytes / 1e9, latency_seconds(e.work, chip)
    return [
        f"{memory.arguments / GIB:.1f} + {memory.temporaries / GIB:.1f}, {memory.beside / GIB:.1f}",
        f"{memory.total / chip.memory:.0%}",
        short(e.work.flops / 1e12),
        f"{short(sent) if sent >= 0.01 else '0'}; {short(round(waits, 2))}",
        f"{e.compile_s:.0f}",
        f"{short(took.total)}, {took.bound}" + (" (refused)" if e.refused else ""),
    ]


def curve_rows() -> Iterator[str]:
    """The rows of the curve."""
    chip = CHIPS[CURVE_CHIP]
    points = {(p.model, p.scaling, p.chips): p for p in curve(chip, tuple(CURVE_MODELS), CURVE_COUNTS)}
    yield f"| {CURVE_CHIP} chips | {' | '.join(f'{n:,}' for n in CURVE_COUNTS)} | a chip sends at {LINKS_AT} |"
    yield "|" + "---|" * (len(CURVE_COUNTS) + 2)
    for scaling, prompts in SCALINGS.items():
        for model, name in CURVE_MODELS.items():
            row = [told(points[model, scaling, n]) for n in CURVE_COUNTS]
            sent, took, waits, most = points[model, scaling, LINKS_AT].sent(chip)
            links = f"{short(sent / 1e9)} GB in {short(took)} s, {short(waits)} of it latency, most by {most}"
            yield f"| {name}, {prompts} | {' | '.join(row)} | {links} |"


def told(point: Point) -> str:
    """A point of the curve in one cell."""
    if not point.fits:
        return "too few rows" if point.choice is None else "does not fit"
    dollars = point.dollars(CHIPS[CURVE_CHIP])
    return f"{short(point.choice.step_s)} s, {point.choice.memory / GIB:.0f} GiB, ${dollars:.2f}"


def main() -> None:
    wanted = [plan for plan in PLANS if plan[5].startswith(tuple(sys.argv[1:]) or "")]
    print(f"| | {PLANS_HEAD} |\n|{'---|' * 8}")
    for plan in wanted:
        print(*plan_rows(*plan), sep="\n", flush=True)
    if len(sys.argv) == 1:
        print("", *curve_rows(), sep="\n")


if __name__ == "__main__":
    main()
