"""Scale on paper: step time, memory and cost of a GRPO step from 1 to 4,096 chips, and the collectives that limit it.

In: a chip. Out: `Point`s for models of 1.5B, 7B and 32B, worked out (`roofline.py`), each on the fastest mesh that fits.

- weak: `PROMPTS_PER_CHIP` prompts a chip, so the step's work grows with the chips;
- strong: `STRONG_PROMPTS` prompts whatever the chips; it ends where they are fewer than the shards that rows are split over.

The stage is that of `STAGE`: a group of 8, 1,024 + 1,024 tokens, KL, everything rematerialised, log-probs of 2,048 tokens of a
row shard at a time, splash attention on TPU. A collective that spans more than a slice or node goes at the network's rate as a
whole: hierarchical ones send less there. Latency is left out, which grows with the chips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from rich import box
from rich.table import Table

from jaxrl_ml.config import ComputeConfig, GRPOStage, LossConfig, SamplingConfig
from jaxrl_ml.planning.models import SHAPES
from jaxrl_ml.planning.search import Choice, choices
from jaxrl_ml.planning.tables import gib, short
from jaxrl_ml.planning.topology import Chip, Topology, attention_on
from jaxrl_ml.planning.work import seconds

SIZES = ("Qwen2.5-1.5B", "Qwen2.5-7B", "Qwen2.5-32B")
CHIPS = tuple(2**n for n in range(13))
PROMPTS_PER_CHIP, STRONG_PROMPTS = 4, 512
STAGE = GRPOStage(
    None,
    None,
    group_size=8,
    sampling=SamplingConfig(max_prompt_tokens=1024, max_completion_tokens=1024),
    loss=LossConfig(kl="k3"),
)
COMPUTE = ComputeConfig(dtype="bfloat16", remat="full", logits_mib=512)


class Point(NamedTuple):
    """One model on so many chips."""

    model: str
    scaling: Literal["weak", "strong"]
    chips: int
    prompts: int
    choice: Choice | None  # None: rows cannot be split so far
    fits: bool

    def dollars(self, chip: Chip) -> float:
        """The cost of a step."""
        return self.choice.step_s * self.chips * chip.price / 3600

    def limit(self, chip: Chip) -> tuple[str, str]:
        """What takes most of the step's time (program, bound), and the collective that sends most (kind, chips, bytes)."""
        slowest = max(self.choice.estimates, key=lambda e: e.runs * seconds(e.work, chip).total)
        sent = max(
            ((e.runs * value, e.name.split("/")[-1], key) for e in self.choice.estimates for key, value in e.work.sent.items()),
            default=None,
        )
        bound = f"{slowest.name.split('/')[-1]}: {seconds(slowest.work, chip).bound}"
        return bound, "none" if sent is None else f"{sent[2][0]} of {sent[2][1]} in {sent[1]}, {short(sent[0] / 1e9)} GB"


def curve(chip: Chip, sizes: Sequence[str] = SIZES, counts: Sequence[int] = CHIPS) -> Iterator[Point]:
    """The points of every model, weak and strong."""
    compute = dataclasses.replace(COMPUTE, attention=attention_on(chip, COMPUTE.attention))
    for name in sizes:
        for scaling in ("weak", "strong"):
            for count in counts:
                prompts = PROMPTS_PER_CHIP * count if scaling == "weak" else STRONG_PROMPTS
                stage = dataclasses.replace(STAGE, prompts_per_step=prompts)
                topology = Topology(chip, (count,))
                best = next(iter(choices(SHAPES[name], compute, stage, topology)), None)
                yield Point(name, scaling, count, prompts, best, best is not None and best.memory <= chip.memory)


def curve_table(points: Sequence[Point], chip: Chip) -> Table:
    """The points of one model and scaling."""
    first = points[0]
    kind = f"{PROMPTS_PER_CHIP} prompts a chip" if first.scaling == "weak" else f"{STRONG_PROMPTS} prompts"
    table = Table(
        title=f"{first.model}, {first.scaling} scaling: {kind} × {STAGE.group_size}; {chip.name}, worked out", box=box.SIMPLE
    )
    for column in ("chips", "d × f × t", "micro", "GiB", "step, s", "dollars", "most time", "sends most, a chip"):
        table.add_column(column, no_wrap=True)
    for point in points:
        if not point.fits:
            what = ("too few rows",) if point.choice is None else ("does not fit", "", gib(point.choice.memory))
            table.add_row(str(point.chips), *what)
            continue
        m, c = point.choice.mesh, point.choice
        cells = (
            f"{m.data}×{m.fsdp}×{m.tensor}",
            str(c.microbatches),
            gib(c.memory),
            short(c.step_s),
            short(point.dollars(chip)),
        )
        table.add_row(str(point.chips), *cells, *point.limit(chip))
    return table
