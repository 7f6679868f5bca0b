"""Scale on paper: step time, memory and cost of a GRPO step from 1 to 4,096 chips, and the collectives that limit it.

In: a chip. Out: `Point`s for models of 1.5B, 7B and 32B, worked out (`roofline.py`), each on the fastest mesh that fits, with
the best number of microbatches (`search.choices`).

- weak: `PROMPTS_PER_CHIP` prompts a chip, so the step's work grows with the chips;
- strong: `STRONG_PROMPTS` prompts whatever the chips; it ends where they are fewer than the shards that rows are split over.

The stage is that of `STAGE`: a group of 8, 1,024 + 1,024 tokens, KL, everything rematerialised, log-probs of 2,048 tokens of a
row shard at a time, splash attention on TPU. A collective that spans more than a slice or node goes at the network's rate as a
whole: hierarchical ones send less there. Latency (`topology.Chip.latency`) is in the links' seconds, and its share is told.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from rich import box
from rich.table import Table

from jaxrl_ml.config import ComputeConfig, GRPOStage, LossConfig, SamplingConfig
from jaxrl_ml.planning.models import SHAPES
from jaxrl_ml.planning.search import Choice, choices
from jaxrl_ml.planning.tables import short
from jaxrl_ml.planning.topology import GIB, Chip, Topology, attention_on
from jaxrl_ml.planning.work import latency_seconds, seconds

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

    def bound(self, chip: Chip) -> str:
        """What the step spends most of its time on: compute, memory or links."""
        took = Counter()
        for e in self.choice.estimates:
            found = seconds(e.work, chip)
            took[found.bound] += e.runs * found.total
        return took.most_common(1)[0][0]

    def sent(self, chip: Chip) -> tuple[float, float, float, str]:
        """Bytes that a chip sends a step, seconds that its links take, how many of them latency, and what sends most bytes."""
        found = Counter()
        for e in self.choice.estimates:
            for (kind, devices, _), value in e.work.sent.items():
                found[f"{kind} {devices}"] += e.runs * value
        took = sum(e.runs * seconds(e.work, chip).links for e in self.choice.estimates)
        waits = sum(e.runs * latency_seconds(e.work, chip) for e in self.choice.estimates)
        return sum(found.values()), took, waits, found.most_common(1)[0][0] if found else ""


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
    title = f"{first.model}, {first.scaling} scaling: {kind} × {STAGE.group_size}; {chip.name}, worked out"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("chips", "d×f×t", "GiB", "step\ns", "dol-\nlars", "bound\nby", "links\ns", "wait\ns", "sent\nGB", "most by"):
        table.add_column(column, no_wrap=True)
    for point in points:
        if not point.fits:
            what = ("no rows",) if point.choice is None else ("too big", short(point.choice.memory / GIB))
            table.add_row(str(point.chips), *what)
            continue
        m, c, (sent, took, waits, most) = point.choice.mesh, point.choice, point.sent(chip)
        figures = map(short, (c.memory / GIB, c.step_s, round(point.dollars(chip), 2)))
        mesh = f"{m.data}×{m.fsdp}×{m.tensor}" + (f"×{m.context}" if m.context > 1 else "")
        links = (short(took), short(round(waits, 2)), short(sent / 1e9), most)
        table.add_row(str(point.chips), mesh, *figures, point.bound(chip), *links)
    return table
