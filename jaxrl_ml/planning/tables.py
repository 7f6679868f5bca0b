"""How a plan is shown: tables that 80 columns hold, and the lines below them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table

from jaxrl_ml.config import GRPOStage, MeshConfig, Stage
from jaxrl_ml.planning import work as rates
from jaxrl_ml.planning.search import Choice
from jaxrl_ml.planning.topology import GIB, Chip, Topology
from jaxrl_ml.planning.work import Estimate, latency_seconds, seconds, step_seconds


def gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def short(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def heading(found: Sequence[Estimate], stage: Stage, mesh: MeshConfig, topology: Topology) -> str:
    """What a plan is of, in one line."""
    kind = (
        f"{stage.prompts_per_step} prompts × {stage.group_size}" if isinstance(stage, GRPOStage) else f"{stage.batch_size} rows"
    )
    how = "; worked out, not compiled" if is_worked_out(found) else ""
    axes = f"data {mesh.data} × fsdp {mesh.fsdp} × tensor {mesh.tensor}"
    axes += f" × context {mesh.context}" if mesh.context > 1 else ""
    return f"{stage.name} on {topology.name}, {axes}: {kind}, {stage.num_microbatches} microbatches{how}"


def is_worked_out(found: Sequence[Estimate]) -> bool:
    return all(e.compile_s is None for e in found)


def plan_table(found: Sequence[Estimate], topology: Topology) -> Table:
    """The programs side by side; all figures are of one device."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("of one device", no_wrap=True)
    for e in found:
        table.add_column(e.name.split("/")[-1], no_wrap=True, justify="right")
    chip = topology.chip

    def how(e: Estimate) -> str:
        return "refused" if e.refused else "not" if e.compile_s is None else f"{e.compile_s:.0f} s"

    rows: dict[str, Callable[[Estimate], str]] = {
        "runs a step": lambda e: str(e.runs),
        "arguments, GiB": lambda e: gib(e.memory.arguments),
        "outputs, GiB": lambda e: gib(e.memory.outputs),
        "temporaries, GiB": lambda e: gib(e.memory.temporaries),
        "peak, GiB": lambda e: gib(e.memory.peak),
        "beside it, GiB": lambda e: gib(e.memory.beside),
        f"of {gib(chip.memory)} GiB": lambda e: f"{e.memory.total / chip.memory:.0%}",
        "TFLOP a run": lambda e: short(e.work.flops / 1e12),
        "memory, GB a run": lambda e: short(e.work.bytes / 1e9),
        "sent, GB a run": lambda e: short(e.work.sent_bytes / 1e9),
        "in collectives": lambda e: short(e.work.calls.total()),
        "their latency, s": lambda e: short(round(latency_seconds(e.work, chip), 3)),
        "a run, s": lambda e: short(seconds(e.work, chip).total),
        "bound by": lambda e: seconds(e.work, chip).bound,
        "compiled in": how,
    }
    for name, cell in rows.items():
        table.add_row(name, *map(cell, found))
    return table


def account(found: Sequence[Estimate], topology: Topology, attention: str) -> str:
    """The lines below a plan's table: collectives, the step, the assumptions."""
    chip, lines = topology.chip, []
    for e in found:
        if e.work.sent:
            sent, calls = e.work.sent.most_common(), e.work.calls
            parts = (f"{key[0]} of {key[1]} {short(value / 1e9)} GB in {short(calls[key])}" for key, value in sent)
            lines.append(f"{e.name} sends by {', '.join(parts)}")
    lines += [f"{e.name}: {e.note}" for e in found if e.note]
    how = f"{attention} attention" + (", since cuDNN's cannot be compiled without a GPU" if chip.name == "h100" else "")
    step = step_seconds(list(found), chip)
    dollars = step * topology.num_devices * chip.price / 3600
    lines += [
        f"predicted: {short(step)} s a step, {short(dollars)} dollars at {chip.price:g} a chip-hour",
        f"beside it: what lives on the device meanwhile and is no argument. {rates_assumed(chip)}; every row sampled to the "
        f"limit, the cache at its widest; {how}; nothing of the host's.",
    ]
    if is_worked_out(found):
        lines.append(
            "Compiled, plans had up to 1.4 times the memory, 4.5 times the bytes and 12 times the collectives worked out."
        )
    return "\n".join(lines)


def rates_assumed(chip: Chip) -> str:
    """What times are worked out by."""
    return (
        f"Times: the slowest of products at {rates.FLOPS_SHARE:.0%} of {chip.flops / 1e12:.0f} TFLOP/s, memory at "
        f"{rates.BANDWIDTH_SHARE:.0%} of {chip.bandwidth / 1e9:.0f} GB/s, links at {rates.LINK_SHARE:.0%} of "
        f"{chip.link / 1e9:.0f} GB/s (beyond {chip.largest} chips {chip.network / 1e9:g}), a collective "
        f"{chip.wait.start * 1e6:g} µs and {chip.wait.hop * 1e6:g} a hop"
    )


def sweep_table(ranked: Sequence[Choice], stage: Stage) -> Table:
    """Meshes and numbers of microbatches as they were ranked."""
    table = Table(
        "data × fsdp × tensor × context",
        "microbatches",
        "most memory, GiB",
        "a step, s",
        title=f"{stage.name}, worked out",
        box=box.SIMPLE,
    )
    for choice in ranked:
        m = choice.mesh
        axes = f"{m.data} × {m.fsdp} × {m.tensor} × {m.context}"
        table.add_row(axes, str(choice.microbatches), gib(choice.memory), short(choice.step_s))
    return table
