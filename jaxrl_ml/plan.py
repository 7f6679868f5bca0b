"""`python -m jaxrl_ml.plan CONFIG --topology v5e:8x8`: what a run takes on accelerators that are not there.

In: a config, with overrides as for `train`, and a topology: `v5e:8x8`, `v5p:2x2x2`, `v6e:4x4`, `h100:8`, or `cpu:8`. Out: for
each program of its stages, compiled ahead of time for that topology: memory by kind against the chip's, FLOPs, bytes,
collectives, compile time, and the step time that a roofline predicts. What does not fit is told with its largest arrays and
what to change; the exit status is then 1.

    --analytic       work it out without compiling; also what is done where the packages of `jaxrl_ml[plan]` are missing
    --sweep          rank meshes, each with its best number of microbatches, by what is worked out, and compile the best two
    --curve v5p      instead of a config: step time, memory and cost of 1.5B, 7B and 32B models from 1 to 4,096 chips

Nothing was measured on an accelerator: figures are the compiler's or worked out, and times are predictions under the
assumptions that are printed. Attention of whole sequences is a run's own on TPU, which is splash unless the config says else,
and the plain path for h100: cuDNN's kernel, which a run takes there, cannot be compiled without a GPU. Completions that are
sampled by pieces are planned as if no row had stopped: all of them decoded on the first grid of rows, the cache at its widest.
A sweep splits sequences (mesh.context) over up to 8 devices where whole ones are slower or do not fit.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby

import tyro
from rich.console import Console

from jaxrl_ml.cli import load, run_command
from jaxrl_ml.config import Config, MeshConfig, ModelConfig, Stage
from jaxrl_ml.planning.curve import curve, curve_table
from jaxrl_ml.planning.models import shape_of
from jaxrl_ml.planning.options import Options
from jaxrl_ml.planning.roofline import estimates
from jaxrl_ml.planning.search import choices, flags, microbatch_counts, remedies, row_length, splits
from jaxrl_ml.planning.tables import account, gib, heading, plan_table, rates_assumed, short, sweep_table
from jaxrl_ml.planning.topology import CHIPS, Chip, Topology, attention_on, missing, parse, prepare_environment
from jaxrl_ml.planning.work import Estimate, step_seconds
from jaxrl_ml.types import UserError, require

_SHOWN = 10  # choices of a sweep


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    source = argv.pop(0) if argv and not argv[0].startswith("-") else None
    if source is None and not any(arg.startswith(("-h", "--help", "--curve")) for arg in argv):
        raise UserError("usage: python -m jaxrl_ml.plan CONFIG --topology v5e:8x8 [--field value …]; --help tells more")
    prog = "python -m jaxrl_ml.plan" + (f" {source}" if source else " CONFIG")
    options, overrides = tyro.cli(Options, args=argv, prog=prog, description=__doc__, return_unknown_args=True)
    console = Console(highlight=False, markup=False, record=options.html is not None)
    if options.curve is not None:
        require(source is None and not overrides, "--curve is about no config: give it --price and --html and nothing else")
        status = _curve(_priced(CHIPS[options.curve], options), console)
    else:
        topology = parse(options.topology)
        topology = dataclasses.replace(topology, chip=_priced(topology.chip, options))
        config = load(source, overrides, prog=prog)
        plans = planners(config, topology, options, console)
        status = int(any([p.sweep() if options.sweep else p.unfit(p.show(config.mesh, p.stage)) for p in plans]))
    if options.html is not None:
        console.save_html(str(options.html))
    return status


def _priced(chip: Chip, options: Options) -> Chip:
    return chip if options.price is None else dataclasses.replace(chip, price=options.price)


def _curve(chip: Chip, console: Console) -> int:
    for _, points in groupby(curve(chip), key=lambda point: (point.model, point.scaling)):
        console.print(curve_table(list(points), chip))
    console.print(f"{chip.price:g} dollars a chip-hour. {rates_assumed(chip)}; nothing of the host's.")
    return 0


def planners(config: Config, topology: Topology, options: Options, console: Console) -> Iterator[Planner]:
    """A planner for each of the stages that are asked for."""
    model = model_of(config, options.model)
    lacking = missing(topology)
    if lacking and not options.analytic:
        console.print(f"{lacking}; what follows is worked out.")
    compiles = not (lacking or options.analytic)
    stages = [(number, stage) for number, stage in enumerate(config.stages) if stage.num_steps]
    names = [stage.name for _, stage in stages]
    require(set(options.stage) <= set(names), f"--stage {' '.join(options.stage)}: the config has {', '.join(names)}")
    for number, stage in stages:
        if not options.stage or stage.name in options.stage:
            yield Planner(config, model, topology, options, compiles, console, number, stage)


def model_of(config: Config, folder: str | None = None) -> ModelConfig:
    """The shape of the config's model: that of `folder`, its own, or that of init_from, a folder or a published name.

    A vocabulary that is left to the tokenizer is that of a small tokenizer's token texts. Tokens that the config adds are taken
    to have room among the rows that published models keep in reserve.
    """
    if folder is not None or config.model is None:
        require(bool(folder or config.init_from), "the config names no model: give --model FOLDER, with its config.json")
        return shape_of(folder or config.init_from)
    if config.model.vocab_size:
        return config.model
    require(
        isinstance(config.tokenizer, tuple), "model.vocab_size=0 is the tokenizer's; give --model.vocab-size to plan without it"
    )
    from jaxrl_ml.tokenizer import Tokenizer

    return dataclasses.replace(config.model, vocab_size=Tokenizer.from_vocabulary(config.tokenizer).vocab_size)


@dataclasses.dataclass
class Planner:
    """Plans one stage and prints it."""

    config: Config
    model: ModelConfig
    topology: Topology
    options: Options
    compiles: bool
    console: Console
    number: int
    stage: Stage

    def __post_init__(self) -> None:
        dtype = self.config.compute.dtype
        if dtype == "auto":
            dtype = "float32" if self.topology.chip.name == "cpu" else "bfloat16"
        attention = attention_on(self.topology.chip, self.config.compute.attention)
        self.compute = dataclasses.replace(self.config.compute, dtype=dtype, attention=attention)

    def show(self, mesh: MeshConfig, stage: Stage) -> list[Estimate]:
        """Prints the plan on a mesh, and returns it."""
        mesh = filled(mesh, self.topology)
        self._check(mesh, stage)
        found = self.estimates(mesh, stage)
        self.console.print(heading(found, stage, mesh, self.topology), style="bold")
        self.console.print(plan_table(found, self.topology))
        for e in self.unfit(found):
            self._explain(e, mesh, stage)
        self.console.print(account(found, self.topology, self.compute.attention))
        if self.compiles:
            from jaxrl_ml.planning.compiled import versions

            step = short(step_seconds(self.worked_out(mesh, stage), self.topology.chip))
            self.console.print(f"compiled with {versions(self.topology)}; from sizes alone {step} s are worked out")
        return found

    def unfit(self, found: Sequence[Estimate]) -> list[Estimate]:
        """The programs that do not fit."""
        return [e for e in found if e.refused or e.memory.total > self.topology.chip.memory]

    def sweep(self) -> bool:
        """Ranks the choices, and plans the best two; returns whether one of these does not fit."""
        ranked = choices(self.model, self.compute, self.stage, self.topology)
        require(bool(ranked), f"{self.stage.name}: no mesh of {self.topology.name} divides its prompts and the model's sizes")
        self.console.print(sweep_table(ranked[:_SHOWN], self.stage))
        plans = []
        for choice in ranked[:2]:
            self.console.print(flags(choice, self.number), soft_wrap=True)
            plans.append(self.show(choice.mesh, dataclasses.replace(self.stage, num_microbatches=choice.microbatches)))
        return any(map(self.unfit, plans))

    def _check(self, mesh: MeshConfig, stage: Stage) -> None:
        """Raises UserError where the stage or the model cannot be split over the mesh."""
        c, shards, weights = self.model, mesh.data * mesh.fsdp, self.compute.sampling_weights
        allowed = microbatch_counts(stage, shards)
        require(
            stage.num_microbatches in allowed,
            f"{stage.name}: its prompts cannot be split over {shards} row shards (mesh data·fsdp) with num_microbatches="
            f"{stage.num_microbatches}; "
            + (f"use {', '.join(map(str, allowed))}" if allowed else "use another mesh, or --sweep"),
        )
        length = row_length(stage)
        require(length % mesh.context == 0, f"{stage.name}: {length} tokens cannot be split over mesh.context={mesh.context}")
        require(
            splits(c, mesh, weights),
            f"mesh fsdp={mesh.fsdp} context={mesh.context} tensor={mesh.tensor}, with sampling weights {weights}, does not "
            f"divide {c.num_heads} heads, {c.num_kv_heads} kv_heads, mlp_dim={c.mlp_dim}, vocab_size={c.vocab_size} and "
            f"embed_dim={c.embed_dim}: use another mesh, or --sweep",
        )

    def worked_out(self, mesh: MeshConfig, stage: Stage) -> list[Estimate]:
        """The programs of a step that are asked for, on a mesh with `data` given, from sizes alone."""
        found, wanted = estimates(self.model, self.compute, mesh, stage), self.options.program
        found = [e for e in found if not wanted or e.name.split("/")[-1] in wanted]
        require(bool(found), f"--program {' '.join(wanted)}: {stage.name} has no such program")
        return found

    def estimates(self, mesh: MeshConfig, stage: Stage) -> list[Estimate]:
        """As `worked_out`, but compiled where that is possible."""
        worked_out = self.worked_out(mesh, stage)
        if not self.compiles:
            return worked_out
        prepare_environment()
        from jaxrl_ml.planning.compiled import compile_program
        from jaxrl_ml.planning.stages import planned
        from jaxrl_ml.planning.topology import devices
        from jaxrl_ml.programs import Programs
        from jaxrl_ml.sharding import make_mesh

        programs = Programs(self.model, self.compute, make_mesh(mesh, devices(self.topology)))
        by_name = {p.name: p for p in planned(programs, self.config, stage)}
        found = []
        for e in worked_out:
            self.console.print(f"planning {e.name} …", style="dim")
            found.append(compile_program(by_name[e.name], e, self.topology, self.options.cache))
        return found

    def _explain(self, e: Estimate, mesh: MeshConfig, stage: Stage) -> None:
        chip = self.topology.chip
        said = "refused by the compiler" if e.refused else "too much"
        self.console.print(
            f"{e.name} does not fit: {gib(e.memory.peak)} GiB, {gib(e.memory.beside)} beside it, of {gib(chip.memory)}: {said}",
            style="bold red",
        )
        for size, shape, operation in e.largest:
            self.console.print(f"    {gib(size)} GiB  {shape}  {operation[-80:]}")
        if e.refused and not e.largest:
            self.console.print("    the compiler lists no arrays")
        for text in remedies(self.model, self.compute, stage, self.number, mesh, self.topology, e):
            self.console.print(f"  change: {text}", soft_wrap=True)


def filled(mesh: MeshConfig, topology: Topology) -> MeshConfig:
    """The mesh with `data` given. Raises UserError where it does not fit the topology."""
    rest = mesh.fsdp * mesh.context * mesh.tensor
    data = mesh.data if mesh.data > 0 else max(1, topology.num_devices // rest)
    require(
        data * rest == topology.num_devices,
        f"mesh data={mesh.data} fsdp={mesh.fsdp} context={mesh.context} tensor={mesh.tensor} does not fit the "
        f"{topology.num_devices} devices of {topology.name}: give --mesh.fsdp, --mesh.tensor and --mesh.data of that product, "
        "or --sweep",
    )
    return dataclasses.replace(mesh, data=data)


if __name__ == "__main__":
    run_command(main)
