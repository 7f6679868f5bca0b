"""`python -m jaxrl_ml.evaluate RUN|HF_DIR`: how many held-out problems a model solves, with confidence intervals.

In: an evaluation (problems, reward, sampling settings) and weights. Out: unbiased avg@1 and pass@k, and a record of every
sample. The same `Evaluator` runs in the training loop. Its results do not depend on prompts_per_batch or the mesh.

With `--languages` an evaluation is run in several settings of the thinking language (`languages/settings.py`), which are told
side by side (`analysis/languages.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jaxrl_ml import storage
from jaxrl_ml.analysis import passk
from jaxrl_ml.analysis.language_tables import languages_table, settings_table
from jaxrl_ml.analysis.languages import by_language, language_metrics, win_tie_lose
from jaxrl_ml.analysis.learning import plain_reward_warning
from jaxrl_ml.cli import load, load_run, resolved, run_command
from jaxrl_ml.config import Config, Evaluation
from jaxrl_ml.languages.settings import ENGLISH, Setting, language_settings, tell, thinking_ends
from jaxrl_ml.languages.thinking import with_openings
from jaxrl_ml.metrics import plain, visible
from jaxrl_ml.rewards.combined import reward_of
from jaxrl_ml.types import Example, Params, Prompts, Rollout, UserError

if TYPE_CHECKING:
    from jaxrl_ml.data import PromptRenderer
    from jaxrl_ml.programs import Programs
    from jaxrl_ml.tokenizer import Tokenizer


EVALUATION_PURPOSE = 2  # the second word of the sampling seed; training has its own


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found.

    metrics: accuracy and pass@2, pass@4, … up to samples_per_prompt, each also with _low and _high (95 % interval over
    problems), accuracy/TASK where the set mixes tasks, and the means reward, length_tokens, truncated, timeout and those of
    the reward's details.
    records: one JSON-able object a sample, those of a problem adjacent.
    """

    metrics: Mapping[str, float]
    records: Sequence[Mapping[str, Any]]
    warning: str | None = None  # for the user, where `correct` is probably not what was meant


class _Batch(NamedTuple):
    examples: list[Example]  # without the repeats that fill the last batch
    own: list[Example]  # those of them that this process scores
    prompt_texts: list[str]  # of its own
    prompts: Prompts  # on the device


class Evaluator:
    """One evaluation, ready to run on any weights: its prompts are tokenised and on the device.

    Raises UserError where the batches cannot be split over the mesh, the task is too short, or a prompt too long.
    """

    def __init__(
        self, evaluation: Evaluation, programs: Programs, tokenizer: Tokenizer, render: PromptRenderer, seed: int
    ) -> None:
        from jaxrl_ml import data
        from jaxrl_ml.languages.tags import check_decoding, language_action
        from jaxrl_ml.sampler import settings_of

        self._reward = reward_of(f"evaluation {evaluation.name}", evaluation)
        self.evaluation, self.seed = evaluation, seed
        self._programs, self._tokenizer = programs, tokenizer
        layout, sampling = programs.layout, evaluation.sampling
        action = language_action(evaluation.language, tokenizer.encode, sampling.max_completion_tokens)
        check_decoding(f"evaluation {evaluation.name}", evaluation.language, tokenizer)
        batches = data.evaluation_batches(
            evaluation.task,
            render,
            num_prompts=evaluation.num_prompts,
            batch_size=_batch_size(evaluation, layout.row_shards),
            width=sampling.max_prompt_tokens,
            allowed=action.allowed,
        )
        self._batches = [self._batch(examples, prompts) for examples, prompts in batches]
        self._stop_table = layout.put(tokenizer.stop_table(sampling.stop, programs.model.config.vocab_size))
        self._settings = layout.put(settings_of(sampling))
        self._trie, self._tag_width = layout.put(action.trie), action.width

    def _batch(self, examples: list[Example], prompts: Prompts) -> _Batch:
        layout = self._programs.layout
        number, _ = layout.block
        prompts = layout.own_rows(prompts)
        size = len(prompts.tokens)
        own = examples[number * size : (number + 1) * size]
        texts = self._tokenizer.decode([prompts.tokens[q][prompts.mask[q]] for q in range(len(own))])
        return _Batch(examples, own, texts, layout.put_rows(prompts))

    @property
    def examples(self) -> list[Example]:
        """The problems, in the order of the records."""
        return [example for batch in self._batches for example in batch.examples]

    def run(self, weights: Params, step: int) -> EvaluationResult:
        """Samples and scores every problem with `weights` (`Programs.gather`); `step` seeds the noise of the sampling.

        Every process scores its own, and is told of all.
        """
        from jaxrl_ml import data

        words = np.array([self.seed, EVALUATION_PURPOSE, step, 0], np.uint32)
        seed_words = self._programs.layout.put(words)

        def sample(number: int) -> tuple[_Batch, Rollout]:
            return self._batches[number], self._sample(weights, self._batches[number].prompts, seed_words)

        own = list(data.experience(sample, len(self._batches), self._judge))
        blocks = self._programs.layout.gather_blocks(own)
        records = [record for batch in zip(*blocks, strict=True) for block in batch for record in block]
        plain = [record.pop("plain_reward") for record in records if "plain_reward" in record]
        warning = plain_reward_warning(f"evaluation {self.evaluation.name}", min(plain), max(plain)) if plain else None
        return EvaluationResult(summarise(records, self.evaluation.samples_per_prompt, self.seed), records, warning)

    def _sample(self, weights: Params, prompts: Prompts, seed_words: Any) -> Rollout:
        sampling = self.evaluation.sampling
        return self._programs.sample(
            weights,
            prompts,
            seed_words,
            self._stop_table,
            self._settings,
            self._trie,
            truncates=sampling.truncates,
            group_size=self.evaluation.samples_per_prompt,
            width=sampling.max_completion_tokens,
            tag_width=self._tag_width,
        )

    def _judge(self, batch: _Batch, rollout: Rollout) -> list[dict[str, Any]]:
        """Waits for the rollout and scores it: the records of this process's samples of the batch."""
        from jaxrl_ml import data
        from jaxrl_ml.processes import local_rows

        G = self.evaluation.samples_per_prompt
        B = len(batch.own) * G
        fetched = local_rows((rollout.completions, rollout.lengths, rollout.truncated))
        if not B:
            return []
        completions, lengths, truncated = (array[:B] for array in fetched)
        texts = data.decode_rows(self._tokenizer, completions, lengths)
        rows = [row[:length] for row, length in zip(completions, lengths, strict=True)]
        ends = thinking_ends(texts, rows, self._tokenizer.decode)
        scores = data.score_rows(self._reward, with_openings(batch.prompt_texts, texts), batch.own, G)
        return [
            {
                "id": batch.own[b // G].id,
                "task": batch.own[b // G].task,
                "sample": b % G,
                "prompt": batch.prompt_texts[b // G],
                "completion": texts[b],
                "correct": bool(scores.correct[b]),
                "reward": float(scores.rewards[b]),
                "parts": {name: float(part[b]) for name, part in scores.parts.items()},
                "details": {name: float(detail[b]) for name, detail in scores.details.items()},
                "length": int(lengths[b]),
                "thinking_end": int(ends[b]),  # in tokens
                "truncated": bool(truncated[b]),
                "timeout": scores.timeout is not None and bool(scores.timeout[b]),
                **({} if scores.plain_rewards is None else {"plain_reward": float(scores.plain_rewards[b])}),  # see `run`
            }
            for b in range(B)
        ]


def _batch_size(evaluation: Evaluation, row_shards: int) -> int:
    """Prompts a batch, at most prompts_per_batch: all batches of about one size, so that the last is not mostly filling."""
    limit, name = evaluation.prompts_per_batch, f"evaluation {evaluation.name}"
    if limit % row_shards:
        raise UserError(
            f"{name}: prompts_per_batch={limit} cannot be split over {row_shards} row shards (mesh data·fsdp); "
            f"make it a multiple of {row_shards}"
        )
    num_batches = math.ceil(evaluation.num_prompts / limit)
    return math.ceil(evaluation.num_prompts / num_batches / row_shards) * row_shards


def summarise(records: Sequence[Mapping[str, Any]], samples_per_prompt: int, seed: int = 0) -> dict[str, float]:
    """The metrics of an evaluation's records; `seed` is of the bootstrap."""
    G = samples_per_prompt
    num_correct = np.array([record["correct"] for record in records]).reshape(-1, G).sum(1)
    accuracy = passk.avg_at_k(num_correct, G)
    values = {"accuracy": accuracy}
    values |= {f"pass@{2**i}": passk.pass_at_k(num_correct, G, 2**i) for i in range(1, G.bit_length())}
    tasks = np.array([record["task"] for record in records[::G]])
    names = np.unique(tasks)
    if len(names) > 1:
        values |= {f"accuracy/{name}": accuracy[tasks == name] for name in names}
    metrics = {}
    for name, of_problems in values.items():
        metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"] = passk.estimate(of_problems, seed=seed)
    with np.errstate(invalid="ignore"):  # rewards of +inf and −inf have no mean
        metrics["reward"] = float(np.mean([record["reward"] for record in records]))
    metrics["length_tokens"] = float(np.mean([record["length"] for record in records]))
    metrics |= {name: float(np.mean([record[name] for record in records])) for name in ("truncated", "timeout")}
    own = [name for name in records[0]["details"] if name not in metrics]  # a reward's may not hide those above
    return metrics | {name: float(np.mean([record["details"][name] for record in records])) for name in own}


def write_result(path: Path, result: EvaluationResult, about: Mapping[str, Any]) -> None:
    """Writes what was evaluated, the metrics and the records as strict JSON, atomically."""
    payload = plain({**about, "metrics": result.metrics, "records": result.records})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(payload, indent=1, allow_nan=False) + "\n", encoding="ascii")
    temporary.replace(path)


def result_table(title: str, metrics: Mapping[str, float]) -> Table:
    """The metrics, one a line, with their intervals."""
    table = Table("metric", "value", "95 % interval", title=visible(title), title_justify="left")
    for name, value in metrics.items():
        if name.endswith(("_low", "_high")):
            continue
        share = name.startswith(("accuracy", "pass@")) or name in ("truncated", "timeout")
        form = "{:.1%}".format if share else "{:.4g}".format
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        table.add_row(visible(name), form(value), "" if low is None or high is None else f"{form(low)} to {form(high)}")
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; raises UserError where there is no such model, checkpoint or evaluation."""
    tyro.cli(_evaluate, args=argv, prog="python -m jaxrl_ml.evaluate")


def _evaluate(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|HF_DIR")],
    config: Path | None = None,
    arm: str | None = None,
    name: tuple[str, ...] = (),
    step: int | None = None,
    samples_per_prompt: int | None = None,
    num_prompts: int | None = None,
    temperature: float | None = None,
    out: Path | None = None,
    languages: tuple[str, ...] = (),
) -> None:
    """Evaluate the model of a run folder or a Hugging Face folder.

    Args:
        source: Folder of the run, or of the model.
        config: Config file with the evaluations; by default the run's own.
        arm: Which of the config file's arms.
        name: Evaluations to run; by default all of the config's.
        step: Checkpoint of the run; by default the best, or else the latest.
        samples_per_prompt: Instead of the evaluation's.
        num_prompts: Instead of the evaluation's.
        temperature: Instead of the evaluation's.
        out: JSON file to write; by default SOURCE/evaluations/NAME-STEP.json.
        languages: Compare what the model does in these: self (it chooses), multi (each of its languages but English is
            given), unseen (each of the evaluation's unseen_languages), or codes such as en. A file for each.
    """
    source = storage.at(source)
    settings = _read_config(source, config, arm)
    changes = {"samples_per_prompt": samples_per_prompt, "num_prompts": num_prompts}
    changes = {field: value for field, value in changes.items() if value is not None}
    evaluations = []
    for evaluation in _choose(settings, name):
        sampling = evaluation.sampling if temperature is None else replace(evaluation.sampling, temperature=temperature)
        evaluations.append(replace(evaluation, sampling=sampling, **changes))
    if out is not None and (languages or len(evaluations) > 1):
        raise UserError(
            f"--out {out} is one file, and --languages writes one a setting; leave it out"
            if languages
            else f"--out {out} is one file for {len(evaluations)} evaluations; choose one of them with --name"
        )
    if out is not None:
        storage.make_room(out)
    compared = [language_settings(evaluation, languages) for evaluation in evaluations] if languages else []
    from jaxrl_ml import processes

    with processes.together(settings.distributed) as main_process:
        model, console = StoredModel(source, settings, step, main_process), Console(highlight=False, quiet=not main_process)
        if languages:
            results = model.run([setting.evaluation for of_one in compared for setting in of_one])
            for evaluation, of_one in zip(evaluations, compared, strict=True):
                for table in _compare(model, _title(evaluation, model.step), of_one, results):
                    console.print(table)
            return
        for evaluation, result in zip(evaluations, model.run(evaluations), strict=True):
            console.print(result_table(_title(evaluation, model.step), result.metrics))
            _write(model, evaluation, result, out)


def _stem(evaluation: Evaluation, step: int | None) -> str:
    return evaluation.name if step is None else f"{evaluation.name}-{step}"


def _title(evaluation: Evaluation, step: int | None) -> str:
    return f"{_stem(evaluation, step)} · {evaluation.num_prompts:,} problems × {evaluation.samples_per_prompt}"


def _write(model: StoredModel, evaluation: Evaluation, result: EvaluationResult, out: Path | None = None, **more: Any) -> None:
    if not model.writes:
        return
    name = f"evaluations/{_stem(evaluation, model.step)}.json"
    about = {"source": str(model.source), "step": model.step, "seed": model.config.seed, "evaluation": resolved(evaluation)}
    write_result(out or storage.local(model.source) / name, result, {**about, "chat_date": model.day, **more})
    storage.push(model.source)
    print(f"wrote {out or model.source / name}")


def _compare(
    model: StoredModel, title: str, settings: Sequence[Setting], results: Iterator[EvaluationResult]
) -> Iterator[Table]:
    """Takes the results of an evaluation's settings, writes each as soon as it is there, then shows them side by side."""
    metrics: dict[str, dict[str, float]] = {}
    languages: dict[str, dict[str, dict[str, float]]] = {}
    english = None
    k, seed = min(setting.samples for setting in settings), model.config.seed
    for setting, result in zip(settings, results, strict=False):  # the results of other evaluations follow
        records = tell(result.records, setting, model.tokenizer.encode)
        found = summarise(records, setting.samples, seed)
        found |= language_metrics(records, setting.num_problems, k, seed)
        if setting.name == ENGLISH:  # the first, where it is asked for
            english = records
        elif english is not None:
            found |= zip(("win", "tie", "lose"), win_tie_lose(records, english, setting.num_problems), strict=True)
        metrics[setting.name], languages[setting.name] = found, by_language(records)
        about = {"setting": setting.name, "by_language": languages[setting.name]}
        _write(model, setting.evaluation, EvaluationResult(found, records), **about)
    yield settings_table(title, metrics, k)
    yield languages_table(languages)


def _read_config(source: Path, config: Path | None, arm: str | None) -> Config:
    folder = storage.local(source)
    if not folder.is_dir():
        raise UserError(f"no folder {source}: give a Hugging Face model folder or a run folder")
    if config is not None:
        return load(config, [] if arm is None else ["--arm", arm])
    if not (folder / "config.py").is_file():
        raise UserError(f"{source} has no config of its own: name one that has evaluations, with --config configs/….py")
    return load_run(source)


def _choose(config: Config, names: Sequence[str]) -> list[Evaluation]:
    known = {evaluation.name: evaluation for evaluation in config.evaluations}
    if not known:
        raise UserError("the config has no evaluations: add one, or name another config with --config")
    for name in names:
        if name not in known:
            raise UserError(f"--name {name}: the config has no such evaluation, only {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names or known)]


class StoredModel:
    """The model of a folder on the config's mesh, to be evaluated; the weights are read when they are first asked for.

    writes: whether this process is the one that writes what is found. day: what chat templates are given as today's date, the
    config's, or else the run's.
    """

    def __init__(self, source: Path, config: Config, step: int | None = None, writes: bool = True) -> None:
        from jaxrl_ml import pretrained
        from jaxrl_ml.data import PromptRenderer
        from jaxrl_ml.programs import Programs
        from jaxrl_ml.sharding import make_mesh

        self.source, self.config, self.writes = source, config, writes
        self.programs = Programs(pretrained.read_model_config(source), config.compute, make_mesh(config.mesh))
        self.day = pretrained.chat_date(source, config.chat_date)
        self.tokenizer = pretrained.read_tokenizer(source).on_day(self.day)
        self._render = PromptRenderer(self.tokenizer, config.prompt_format, config.system_prompt)
        if step is not None and not pretrained.is_run(source):
            raise UserError(f"--step {step}: {source} is a Hugging Face folder, which has no steps; leave it out")
        self.step = pretrained.best_step(source) if step is None else step  # None where a folder has none

    def evaluator(self, evaluation: Evaluation) -> Evaluator:
        return Evaluator(evaluation, self.programs, self.tokenizer, self._render, self.config.seed)

    @cached_property
    def weights(self) -> Params:
        from jaxrl_ml import pretrained

        programs = self.programs
        return programs.gather(pretrained.load_params(self.source, programs.model, programs.param_shardings, self.step))

    def run(self, evaluations: Sequence[Evaluation]) -> Iterator[EvaluationResult]:
        """The results of evaluations, all of which are made ready before the weights are read."""
        for evaluator in [self.evaluator(evaluation) for evaluation in evaluations]:
            result = evaluator.run(self.weights, self.step or 0)
            if result.warning is not None and self.writes:
                print(result.warning)
            yield result


if __name__ == "__main__":
    run_command(main)
