"""`python -m jaxrl_ml.train CONFIG [overrides]`: runs the stages of a config, or goes on with a run that was stopped.

In: a config. Out: a run folder (checkpoints, metrics.jsonl, samples.jsonl, tensorboard/, report.html, and records/ where an
evaluation asks for it). A run that is stopped by SIGTERM or SIGINT saves at the next step boundary; after a SIGKILL it goes on
from its last checkpoint. Either way the same command resumes it, and its metrics (times aside) are those of a run that was
never stopped.

Exit status: 0 finished, 75 stopped by SIGTERM and saved (EX_TEMPFAIL: a launcher should start it again), 130 stopped by SIGINT
and saved, 2 an error of one line. One run may be spread over several processes (`processes.py`): a signal to any of them stops
all at the same step.
"""

from __future__ import annotations

import dataclasses
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxrl_ml import storage
from jaxrl_ml.analysis import learning
from jaxrl_ml.cli import check_folder, load, resolved, run_command, write_folder
from jaxrl_ml.config import Config, GRPOStage, Stage
from jaxrl_ml.records import cut_back, write_records
from jaxrl_ml.types import Params, StepReport, TrainState, UserError, require

if TYPE_CHECKING:
    from jaxrl_ml.checkpoint import Checkpoints
    from jaxrl_ml.evaluate import Evaluator
    from jaxrl_ml.grpo import GRPO
    from jaxrl_ml.metrics import MetricsLog
    from jaxrl_ml.processes import StopSignal
    from jaxrl_ml.programs import Programs
    from jaxrl_ml.sft import SFT
    from jaxrl_ml.tokenizer import Tokenizer

_EXIT_STATUS = {signal.SIGTERM: 75, signal.SIGINT: 130}  # of a run that was stopped


class Reporter:
    """Writes a step's metrics once the next step is dispatched, so that the device never waits for the host to read them.

    `time/step_s` is the time from the end of the previous step to the end of this one, not between their dispatches. After an
    evaluation or a save it counts from there. So the times of a stage add up to its wall time without evaluations and saves;
    the first step's includes compilation.
    """

    def __init__(self, log: MetricsLog, max_nonfinite_steps: int, nonfinite_steps: int, watch: learning.LearningWatch) -> None:
        self.log, self.max_nonfinite_steps, self.nonfinite_steps = log, max_nonfinite_steps, nonfinite_steps
        self.watch = watch
        self._pending: tuple[int, str, StepReport, float] | None = None
        self._since = time.perf_counter()

    def push(self, step: int, stage: str, report: StepReport) -> None:
        """Takes the report of `step` and writes the one before it."""
        before, self._pending = self._pending, (step, stage, report, time.perf_counter())
        if before:
            self._write(*before)

    def flush(self) -> None:
        """Writes what is still pending."""
        before, self._pending = self._pending, None
        if before:
            self._write(*before)

    def skip_time(self) -> None:
        """Leaves the time since the last step (an evaluation, a save) out of the next step's; nothing may be pending."""
        self._since = time.perf_counter()

    def _write(self, step: int, stage: str, report: StepReport, pushed: float) -> None:
        import jax

        earliest, arrived = max(self._since, pushed), time.perf_counter()
        was_ready = all(leaf.is_ready() for leaf in jax.tree.leaves(list(report.device)))
        updates = jax.device_get(list(report.device))
        if report.finished_s is not None:
            finished = report.finished_s()
        else:  # a step that was ready ended some time between its dispatch and now
            finished = (earliest + arrived) / 2 if was_ready else time.perf_counter()
        seconds, self._since = finished - self._since, finished
        metrics = {name: float(sum(u[name] for u in updates) / len(updates)) for name in (updates[0] if updates else ())}
        metrics |= report.host
        tokens = metrics.get("rollout/sampled_tokens", metrics.get("sft/tokens", 0.0))
        metrics |= {"time/step_s": seconds, "rate/tokens_per_s": tokens / max(seconds, 1e-9)}
        nonfinite = report.skipped or any(metrics.get(f"{kind}/nonfinite", 0) > 0 for kind in ("policy", "sft"))
        self.nonfinite_steps = self.nonfinite_steps + 1 if nonfinite else 0
        warnings = [] if nonfinite else self.watch.update(stage, metrics)
        metrics |= {"train/nonfinite_steps": self.nonfinite_steps, learning.METRIC: self.watch.steps_without_learning}
        self.log.write(step, stage, metrics)
        self.log.log_samples(step, stage, report.samples)
        for text in warnings:
            self.log.say(text)
        if self.nonfinite_steps >= self.max_nonfinite_steps:
            raise UserError(
                f"step {step} of {stage}: the loss, a gradient or a reward was not finite "
                f"{self.nonfinite_steps} steps in a row (max_nonfinite_steps={self.max_nonfinite_steps}); "
                "lower optimizer.learning_rate, or check the reward"
            )


class Run:
    """One run: its programs, its folder, and the loop over its stages."""

    def __init__(self, config: Config, programs: Programs, tokenizer: Tokenizer, checkpoints: Checkpoints, log: MetricsLog):
        from jaxrl_ml.data import PromptRenderer
        from jaxrl_ml.evaluate import Evaluator

        self.config, self.programs, self.tokenizer, self.checkpoints, self.log = config, programs, tokenizer, checkpoints, log
        self.run_dir = storage.at(config.run_dir)
        self._warned: set[str] = set()  # evaluations
        render = PromptRenderer(tokenizer, config.prompt_format, config.system_prompt)
        self.evaluators: dict[str, Evaluator] = {
            e.name: Evaluator(e, programs, tokenizer, render, config.seed) for e in config.evaluations
        }
        done = max(checkpoints.steps(), default=0)
        for stage, end in zip(config.stages, accumulate(s.num_steps for s in config.stages), strict=True):
            if end > done and stage.num_steps:
                self._try_out(stage)

    def _try_out(self, stage: Stage) -> None:
        """Makes a stage and its first prompts, as `_enter` will: what is wrong with them is told before anything is trained."""
        runner = self._runner(stage)
        try:
            next(runner.batches)
        finally:
            runner.close()

    def _runner(self, stage: Stage, reference: Params | None = None) -> GRPO | SFT:
        from jaxrl_ml.grpo import GRPO
        from jaxrl_ml.sft import SFT

        if isinstance(stage, GRPOStage):
            return GRPO(self.config, stage, self.programs, self.tokenizer, reference)
        return SFT(self.config, stage, self.programs, self.tokenizer)

    def loop(self, stop: StopSignal) -> tuple[int, int]:
        """Runs what is left of the stages; returns the step reached and the signal that stopped it there, 0 for none."""
        import jax

        state, progress = self._start()
        step, results, stopped = progress["step"], {}, 0
        stage_before = self.config.stage_of(step).name if step else ""
        watch = learning.LearningWatch(stage_before, progress.get("steps_without_learning", 0))
        reporter = Reporter(self.log, self.config.max_nonfinite_steps, progress["nonfinite_steps"], watch)
        if step == 0:
            results = self._evaluate(state, 0, self.config.stages[0].name)
        for number, stage in enumerate(self.config.stages):
            end = sum(s.num_steps for s in self.config.stages[: number + 1])
            if step >= end:
                continue
            runner, state = self._enter(stage, state, progress, fresh=step == end - stage.num_steps)
            reporter.skip_time()
            while step < end:
                with jax.transfer_guard("disallow"):
                    state, report = runner.step(state, step)
                step, stopped = step + 1, stop.agreed()
                reporter.push(step, stage.name, report)
                if step == end or step % self.config.eval_every_steps == 0:
                    reporter.flush()
                    results = self._evaluate(state, step, stage.name)
                    reporter.skip_time()
                if stopped or step == end or step % self.config.checkpoint.every_steps == 0:
                    reporter.flush()
                    progress = {
                        "step": step,
                        "seed": self.config.seed,
                        "nonfinite_steps": reporter.nonfinite_steps,
                        "steps_without_learning": watch.steps_without_learning,
                        "data": runner.batches.get_state(),
                        "adapter": self._adapter(stage),
                    }
                    if self.log.enabled:
                        storage.push(self.run_dir)  # first: a checkpoint has the metrics up to it
                    self.checkpoints.save(step, state, progress, results)
                    reporter.skip_time()
                results = {}
                if stopped:
                    break
            runner.close()
            if stopped:
                break
        return step, stopped

    def _start(self) -> tuple[TrainState, dict[str, Any]]:
        """The state to go on from: the last checkpoint's, or new or imported weights."""
        import jax
        import numpy as np

        from jaxrl_ml.optimizer import make_optimizer

        config, programs = self.config, self.programs
        steps = self.checkpoints.steps()
        if steps:
            optimizer = make_optimizer(config.optimizer, 1)
            adapter = config.stage_of(steps[-1]).lora
            return self.checkpoints.restore(steps[-1], programs.state_shapes(optimizer, adapter))
        if config.init_from is None:
            params = programs.init(programs.layout.put(jax.random.key(config.seed)))
        else:
            params = self._imported(config.init_from)
        state = TrainState(programs.layout.put(np.int32(0)), params, opt_state=None)  # moments come with the stage
        return state, {"step": 0, "nonfinite_steps": 0, "data": None}

    def _imported(self, source: str) -> Params:
        """The weights of a folder, with rows for the tokens that the config adds."""
        import jax

        from jaxrl_ml import pretrained
        from jaxrl_ml.models.transformer import Transformer

        programs, count = self.programs, len(self.config.add_tokens)
        model = Transformer(pretrained.read_model_config(source))
        shardings = programs.layout.tree(model.axes(), jax.eval_shape(model.init, jax.random.key(0)))
        params = pretrained.load_params(source, model, shardings)
        return programs.extend(params, self.tokenizer.vocab_size - count, count) if count else params

    def _enter(self, stage: Stage, state: TrainState, progress: dict[str, Any], fresh: bool) -> tuple[GRPO | SFT, TrainState]:
        """The stage's runner; on entering it afresh, also its optimiser state and KL reference."""
        import numpy as np

        from jaxrl_ml.checkpoint import load_reference, save_reference, shapes_of
        from jaxrl_ml.grpo import reference_folder
        from jaxrl_ml.models import lora
        from jaxrl_ml.optimizer import carry_moments

        kept = {s.name: self.config.reference_stage(s) for s in self.config.stages if self._keeps_reference(s)}
        if fresh and any(stage is start for start in kept.values()):
            save_reference(reference_folder(self.run_dir, stage), self.programs.merge(state.params))
        reference = None
        if stage.name in kept:
            folder = reference_folder(self.run_dir, kept[stage.name])
            reference = load_reference(folder, shapes_of(lora.frozen(state.params)))
        runner = self._runner(stage, reference)
        if not fresh:
            runner.batches.set_state(progress["data"])
            return runner, state
        params = self._adapt(stage, state.params)
        moments = self.programs.moments(runner.optimizer, params)
        if stage.keep_optimizer and state.opt_state is not None:
            moments = carry_moments(moments, state.opt_state)
        return runner, TrainState(self.programs.layout.put(np.int32(0)), params, moments)

    def _keeps_reference(self, stage: Stage) -> bool:
        """Whether the stage has a KL reference that is not simply the frozen base of its adapter."""
        if not isinstance(stage, GRPOStage) or stage.loss.kl == "none" or not stage.num_steps:
            return False
        return stage.lora is None or self.config.adapter_start(stage) is not self.config.reference_stage(stage)

    def _adapt(self, stage: Stage, params: Params) -> Params:
        """The parameters that a fresh stage trains: merged and under a new adapter, unless it goes on with the one there is."""
        import jax

        from jaxrl_ml.checkpoint import save_reference

        if self.config.adapter_start(stage) is not stage:
            return params
        programs, adapter = self.programs, self._adapter(stage)
        params = programs.merge(params)
        if adapter is None:
            return params
        save_reference(self.run_dir / adapter["base"], params)
        key = jax.random.fold_in(jax.random.key(self.config.seed), 1 + self.config.place_of(stage))
        return programs.adapt(params, stage.lora, programs.layout.put(key))

    def _adapter(self, stage: Stage) -> dict[str, Any] | None:
        """What a checkpoint is told of the stage's adapter."""
        if stage.lora is None:
            return None
        return {**dataclasses.asdict(stage.lora), "base": f"base/{self.config.adapter_start(stage).name}"}

    def _evaluate(self, state: TrainState, step: int, stage: str) -> dict[str, float]:
        """Runs every evaluation, writes its metrics, and its records where asked to, and returns the metrics."""
        if not self.evaluators:
            return {}
        weights = self.programs.gather(state.params)
        metrics = {}
        for name, evaluator in self.evaluators.items():
            result = evaluator.run(weights, step)
            metrics |= {f"eval/{name}/{key}": value for key, value in result.metrics.items()}
            if result.warning is not None and name not in self._warned:
                self._warned.add(name)
                self.log.say(result.warning)
            if evaluator.evaluation.records and self.log.enabled:
                write_records(self.run_dir, name, step, result.records, evaluator.examples)
        self.log.write(step, stage, metrics)
        shown = ", ".join(f"{n} {metrics[f'eval/{n}/accuracy']:.1%}" for n in self.evaluators)
        self.log.say(f"step {step} ({stage}): accuracy {shown}")
        return metrics


def build(config: Config) -> tuple[Programs, Tokenizer]:
    """The programs and the tokenizer of a config; sizes that do not fit together are refused."""
    from jaxrl_ml.pretrained import read_model_config, read_tokenizer
    from jaxrl_ml.programs import Programs
    from jaxrl_ml.sharding import make_mesh
    from jaxrl_ml.tokenizer import Tokenizer

    if config.tokenizer is None:
        tokenizer = read_tokenizer(config.init_from)
    elif isinstance(config.tokenizer, str):
        tokenizer = Tokenizer.from_folder(storage.local(config.tokenizer))
    else:
        tokenizer = Tokenizer.from_vocabulary(config.tokenizer)
    model = config.model or read_model_config(config.init_from)
    if model.vocab_size == 0:
        model = dataclasses.replace(model, vocab_size=tokenizer.vocab_size)
    if model.vocab_size < tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size={model.vocab_size} is smaller than the tokenizer's {tokenizer.vocab_size}; use 0 to take it over"
        )
    if config.add_tokens:
        tokenizer = tokenizer.with_tokens(config.add_tokens)
        rows = -(-tokenizer.vocab_size // 8) * 8  # to be split over devices
        model = dataclasses.replace(model, vocab_size=max(model.vocab_size, rows))
    tokenizer = tokenizer.on_day(config.chat_date)
    samplings = {s.name: s.sampling for s in config.stages if isinstance(s, GRPOStage)}
    samplings |= {f"evaluation {e.name}": e.sampling for e in config.evaluations}
    for name, sampling in samplings.items():
        length = sampling.max_prompt_tokens + sampling.max_completion_tokens
        if length > model.max_positions:
            raise UserError(
                f"{name}: max_prompt_tokens + max_completion_tokens = {length} exceeds the model's "
                f"max_positions={model.max_positions}; lower one of them"
            )
    return Programs(model, config.compute, make_mesh(config.mesh)), tokenizer


def train(config: Config, source: Path, overrides: Sequence[str] = ()) -> int:
    """Runs or resumes a config; returns the exit status."""
    require(
        bool(config.stages), f"{source} has no stages to train; it is for python -m jaxrl_ml.evaluate SOURCE --config {source}"
    )
    check_folder(config)
    from jaxrl_ml import processes

    with processes.together(config.distributed) as main_process:
        from jaxrl_ml.programs import compilation_cache

        with compilation_cache(storage.for_orbax(config.run_dir).parent / ".compilation_cache"):
            return _train(config, source, overrides, main_process)


def _train(config: Config, source: Path, overrides: Sequence[str], main_process: bool) -> int:
    from jaxrl_ml.checkpoint import Checkpoints
    from jaxrl_ml.metrics import MetricsLog, read_metrics
    from jaxrl_ml.pretrained import chat_date, write_model_config
    from jaxrl_ml.processes import StopSignal
    from jaxrl_ml.report import write_report

    run_dir = storage.local(config.run_dir)
    config = dataclasses.replace(config, chat_date=chat_date(config.run_dir, config.chat_date))
    if main_process:
        note = write_folder(config, source, overrides)
        if note is not None:
            print(note)
    programs, tokenizer = build(config)
    if main_process:
        write_model_config(run_dir, programs.model.config)
        tokenizer.save(run_dir / "tokenizer")
        storage.push(config.run_dir)
    with Checkpoints(config.run_dir, config.checkpoint) as checkpoints, StopSignal() as stop:
        start = max(checkpoints.steps(), default=-1)
        if start >= config.num_steps:
            if main_process:
                place = config.run_dir
                print(f"{place} is finished at step {start}; start another run with --run-dir, or see {place}/report.html")
            return 0
        if main_process:
            cut_back(run_dir, start)
        log = MetricsLog(
            run_dir, config.logging, config.num_steps, start, resolved_config=resolved(config), enabled=main_process
        )
        try:
            with log:
                step, stopped = Run(config, programs, tokenizer, checkpoints, log).loop(stop)
        finally:
            if main_process:
                storage.push(config.run_dir)  # what a run that fails has to tell, too
    if main_process:
        for text in learning.learning_summary(read_metrics(run_dir)):
            print(text)
        print(f"report: {write_report(config.run_dir)}")
    if not stopped or step == config.num_steps:
        return 0
    if main_process:
        command = shlex.join(["python", "-m", "jaxrl_ml.train", str(source), *overrides])
        print(f"stopped at step {step} of {config.num_steps}, saved; resume with: {command}")
    return _EXIT_STATUS[stopped]


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        raise UserError("usage: python -m jaxrl_ml.train CONFIG [--field value …]; CONFIG --help lists the fields")
    if argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    config = load(argv[0], argv[1:], prog=f"python -m jaxrl_ml.train {argv[0]}")
    return train(config, Path(argv[0]), argv[1:])


if __name__ == "__main__":
    run_command(main)
