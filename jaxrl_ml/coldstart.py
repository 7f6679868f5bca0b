"""`python -m jaxrl_ml.coldstart CONFIG.py OUT.jsonl`: verified thinking in many languages, to start a policy from.

In: the config's first GRPO stage with a language action, whose problems, prompt, reward, sampling and tags the traces are made
for; and a teacher, a Hugging Face folder or a run, or none: then Countdown's templates (`tasks/traces.py`). Out: JSONL, which
`tasks.traces.from_jsonl` reads as a task for SFT, and a table of what was kept. It is the stage that is read, not an
evaluation: an evaluation's problems are held out.

The teacher is made to think in a language by the words that its thinking starts with (`OPENINGS`). A sample is kept where

1. it came to its end by itself, and its thinking is closed;
2. its answer is right: the stage's reward says so of the completion as it is written, the stage's tag and all;
3. its thinking is detected to be in the language: what the teacher wrote, that is, without the opening.

Every language has the same problems in the same order, and at most one trace a problem, the first that is good, until it has
its quota: so none is filled with the easiest problems. Ctrl-C ends it early and writes what was kept by then. Source: ExpLang's
cold start (arXiv 2602.21887), verified traces of a teacher, about 500 a language; its prefixes are not published, ours are in
OPENINGS.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jaxrl_ml import storage
from jaxrl_ml.cli import load, resolved, run_command
from jaxrl_ml.config import Config, Evaluation, GRPOStage, LanguageConfig
from jaxrl_ml.languages.detect import Detector
from jaxrl_ml.languages.phrases import LANGUAGES, OPENINGS
from jaxrl_ml.languages.settings import Asked
from jaxrl_ml.languages.thinking import CLOSE
from jaxrl_ml.metrics import plain, visible
from jaxrl_ml.tasks.mixture import Subset
from jaxrl_ml.tasks.traces import UNTAGGED, Traces
from jaxrl_ml.types import Example, Task, UserError, require

if TYPE_CHECKING:
    from jaxrl_ml.evaluate import StoredModel

_TEMPLATES_AT_A_TIME = 256


class Draft(NamedTuple):
    """A completion that may become a trace."""

    problem: int  # its place in the task
    completion: str  # as the student is to write it, its tag and all
    thinking: str  # what of its thinking was not given: this is judged
    ended: bool  # it came to its end by itself, and so did its thinking
    source: Mapping[str, Any]  # where it comes from, and how


@dataclass
class Tally:
    """How far the drafts of a language came, and the rows of its traces by their ids."""

    quota: int
    sampled: int = 0
    correct: int = 0
    compliant: int = 0
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        return self.quota - len(self.rows)


def templates(task: Task, code: str, tag: str, count: int) -> Iterator[list[Draft]]:
    """Templated traces of the task's first `count` problems in one language, a batch at a time."""
    traces = Traces(task, (code,), (tag,))
    source = {"teacher": "templates", "step": None, "seed": traces.seed, "settings": {"failed": traces.failed}}
    for start in range(0, count, _TEMPLATES_AT_A_TIME):
        drafts = []
        for problem in range(start, min(start + _TEMPLATES_AT_A_TIME, count)):
            completion = traces[problem].completion
            thinking = completion.removeprefix(tag).partition(CLOSE)[0]
            drafts.append(Draft(problem, completion, thinking, True, source))
        yield drafts


@dataclass(frozen=True)
class Teacher:
    """A model that thinks for a stage, in languages that it is made to start in; all of them share one compiled program."""

    model: StoredModel
    stage: GRPOStage
    codes: tuple[str, ...]

    def drafts(self, code: str, tag: str, count: int) -> Iterator[list[Draft]]:
        """Samples of the task's first `count` problems in one language, a step's problems at a time."""
        stage, model, codes = self.stage, self.model, self.codes
        prefix, place = UNTAGGED + OPENINGS[code], codes.index(code)
        source = {
            "teacher": str(model.source),
            "step": model.step,
            "seed": model.config.seed,
            "settings": {"prefix": prefix, "group_size": stage.group_size, **resolved(stage.sampling)},
        }
        for chunk, start in enumerate(range(0, count, stage.prompts_per_step)):
            problems = range(start, min(start + stage.prompts_per_step, count))
            evaluation = Evaluation(
                task=Asked(Subset(stage.task, problems), ((code,),)),
                reward=_unscored,
                name="coldstart",
                num_prompts=len(problems),
                samples_per_prompt=stage.group_size,
                prompts_per_batch=stage.sampling.prompts_per_chunk or stage.prompts_per_step,
                sampling=stage.sampling,
                language=LanguageConfig("forced", codes, tuple(UNTAGGED + OPENINGS[code] for code in codes)),
            )
            result = model.evaluator(evaluation).run(model.weights, chunk * len(codes) + place)
            drafts = []
            for row, record in enumerate(result.records):
                written = record["completion"].removeprefix(prefix)
                thinking, closed, _ = written.partition(CLOSE)
                ended = bool(closed) and not record["truncated"]
                problem, completion = problems[row // stage.group_size], f"{tag}{OPENINGS[code]}{written}"
                drafts.append(Draft(problem, completion, thinking, ended, source | {"sample": record["sample"]}))
            yield drafts


def _unscored(texts: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
    return np.zeros(len(texts))


def sift(stage: GRPOStage, detector: Detector, code: str, drafts: Sequence[Draft], tally: Tally) -> None:
    """Judges drafts of a language and takes into the tally the first good one of each problem, up to the quota."""
    from jaxrl_ml.data import score_rows
    from jaxrl_ml.rewards.combined import reward_of

    examples = [replace(e, fields={**e.fields, "languages": (code,)}) for e in (stage.task[draft.problem] for draft in drafts)]
    scores = score_rows(reward_of(stage.name, stage), [draft.completion for draft in drafts], examples, 1)
    found = detector([draft.thinking for draft in drafts])
    compliant = found.code == code
    tally.sampled += len(drafts)
    tally.correct += int(scores.correct.sum())
    tally.compliant += int(compliant.sum())
    for row in np.flatnonzero(scores.correct & compliant):
        draft, example = drafts[row], examples[row]
        identity = f"{code}/{example.task}/{example.id}"
        if not draft.ended or identity in tally.rows or not tally.missing:
            continue
        verdicts = {"correct": True, "reward": float(scores.rewards[row]), "detected": code}
        verdicts |= {"switched": float(found.switched[row]), "letters": int(found.letters[row])}
        tally.rows[identity] = {
            "id": identity,
            "language": code,
            "task": example.task,
            "prompt_language": example.language,
            "fields": {name: value for name, value in example.fields.items() if name != "languages"},
            "answer": example.answer,
            "completion": draft.completion,
            "provenance": {**draft.source, "verdicts": verdicts},
        }


def write_jsonl(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Writes rows as JSON in UTF-8, one a line; the file appears when it is complete."""
    temporary = path.with_name(path.name + ".tmp")
    # A lone surrogate, of which a model's text may have some, is spelled out: \\udxxx, which is also how JSON escapes it.
    with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for row in rows:
            file.write(json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n")
    temporary.replace(path)


def tally_table(tallies: Mapping[str, Tally]) -> Table:
    """What became of each language's drafts."""
    table = Table("language", "sampled", "correct", "compliant", "kept")
    for code, tally in tallies.items():
        table.add_row(visible(code), *(f"{n:,}" for n in (tally.sampled, tally.correct, tally.compliant, len(tally.rows))))
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; raises UserError where the config has no such stage, or nothing could be kept."""
    tyro.cli(_build, args=argv, prog="python -m jaxrl_ml.coldstart")


def _build(
    config: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG.py")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.jsonl")],
    arm: str | None = None,
    teacher: Path | None = None,
    step: int | None = None,
    languages: tuple[str, ...] = (),
    per_language: int = 500,
    problems: int | None = None,
) -> None:
    """Collect verified thinking in each language of a config's first GRPO stage that has some, for a cold start.

    Args:
        config: Config file; its stage gives problems, prompt, reward, sampling, group size and tags.
        out: JSONL file to write.
        arm: Which of the config file's arms.
        teacher: Run folder or Hugging Face folder of the model that thinks; by default Countdown's templates do.
        step: Checkpoint of the teacher, if it is a run; by default the best, or else the latest.
        languages: Languages to think in; by default all of the stage's.
        per_language: Traces of each language.
        problems: Most problems to try in each language; by default ten times per-language.
    """
    settings = load(config, [] if arm is None else ["--arm", arm])
    stage = _stage_of(settings, config)
    codes = _codes(stage, languages, OPENINGS if teacher is not None else LANGUAGES)
    require(per_language >= 1, f"--per-language {per_language} must be at least 1")
    require(problems is None or problems >= 1, f"--problems {problems} must be at least 1")
    require(teacher is not None or step is None, f"--step {step} is a teacher's; name one with --teacher")
    require(
        teacher is not None or "numbers" in stage.task[0].fields,
        f"there are templates for Countdown alone, and stage {stage.name} has other problems; name a model with --teacher",
    )
    storage.make_room(out)
    count = min(10 * per_language if problems is None else problems, len(stage.task))
    tags = dict(zip(stage.language.languages, stage.language.tags(), strict=True))
    detector = Detector(stage.language.languages)
    detector([])  # an unknown code fails before anything is sampled

    tallies, main_process = {code: Tally(per_language) for code in codes}, True
    if teacher is None:
        stopped = _collect(stage, detector, tallies, lambda code: templates(stage.task, code, tags[code], count))
    else:
        from jaxrl_ml import processes
        from jaxrl_ml.evaluate import StoredModel

        with processes.together(settings.distributed) as main_process:
            model = Teacher(StoredModel(teacher, settings, step, main_process), stage, codes)
            stopped = _collect(
                stage,
                detector,
                tallies,
                lambda code: model.drafts(code, tags[code], count),
                main_process,
                lambda missing: processes.gather(missing)[0],
            )
    if main_process:
        _write(tallies, "when it was stopped" if stopped else f"after {count:,} problems", out)
    if stopped:
        raise KeyboardInterrupt


def _collect(
    stage: GRPOStage,
    detector: Detector,
    tallies: Mapping[str, Tally],
    teach: Callable[[str], Iterator[list[Draft]]],
    main_process: bool = True,
    of_main: Callable[[int], int] = int,
) -> bool:
    """Fills the tallies, language by language, with what `teach` writes in it; returns whether it was interrupted.

    The main process keeps the tallies; `of_main` gives the others its number.
    """
    try:
        for code, tally in tallies.items():
            for drafts in teach(code):
                if main_process:
                    sift(stage, detector, code, drafts, tally)
                    print(f"{code}: {len(tally.rows):,} of {tally.quota:,} from {tally.sampled:,} drafts", flush=True)
                if not of_main(tally.missing):
                    break
    except KeyboardInterrupt:  # what a teacher wrote in hours is kept
        return True
    return False


def _write(tallies: Mapping[str, Tally], when: str, out: Path) -> None:
    """The traces, and what became of the drafts of each language; raises UserError where there is none to write."""
    Console(highlight=False).print(tally_table(tallies))
    rows = [row for tally in tallies.values() for row in tally.rows.values()]
    require(
        bool(rows),
        f"no draft of {sum(t.sampled for t in tallies.values()):,} was good, so {out} was not written; see the table",
    )
    write_jsonl(rows, out)
    print(f"wrote {out}")
    short = [f"{code} lacks {tally.missing:,}" for code, tally in tallies.items() if tally.missing]
    if short:
        print(f"quotas not met {when}: {', '.join(short)}; raise --problems, or lower --per-language", file=sys.stderr)


def _stage_of(config: Config, path: Path) -> GRPOStage:
    for stage in config.stages:
        if isinstance(stage, GRPOStage) and stage.language.mode != "off":
            return stage
    raise UserError(f"{path} has no GRPO stage with a language action; set language of one, with the languages to think in")


def _codes(stage: GRPOStage, asked: Sequence[str], possible: Collection[str]) -> tuple[str, ...]:
    known = stage.language.languages
    for code in asked:
        require(code in known, f"--languages {code}: the stage {stage.name} has no such language, only {', '.join(known)}")
    codes = tuple(dict.fromkeys(asked or known))
    lacking = ", ".join(code for code in codes if code not in possible)
    require(not lacking, f"nothing to think with in {lacking}; choose with --languages among {', '.join(possible)}")
    return codes


if __name__ == "__main__":
    run_command(main)
