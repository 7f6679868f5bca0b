"""`python -m jaxrl_ml.observe CONFIG MODEL…`: what many models do on many evaluations, and one table of it all.

In: a config with evaluations, such as one for each benchmark and language (`configs/transfer_observational.py`), and models:
Hugging Face or run folders, called by their folders' names. A *cell* is a model on an evaluation. Out: each cell as `evaluate`
writes it, OUT/MODEL/evaluations/EVALUATION.json, and OUT/results.csv with a row a cell. A cell that is there is not done again,
so a study that was stopped goes on with the same command, with more models or evaluations, too. Of a run its best checkpoint is
taken, or else its latest, and a cell of another one is refused. OUT/study.json keeps the day on which the study began, which
chat templates are given as today's date where neither the config nor the run has one.

`python -m jaxrl_ml.analyze transfer OUT/MODEL --base OUT/MODEL --name '*' …` reads a model's cells as one.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from jaxrl_ml import storage
from jaxrl_ml.cli import first_difference, load, resolved, run_command
from jaxrl_ml.config import Config
from jaxrl_ml.evaluate import StoredModel, write_result
from jaxrl_ml.metrics import plain, visible
from jaxrl_ml.types import UserError, require

SHOWN = {"accuracy": "{:.1%}", "truncated": "{:.1%}", "language/off_target": "{:.1%}", "length_tokens": "{:.0f}"}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; raises UserError for a folder that is no model and for a cell that was made with other settings."""
    tyro.cli(_observe, args=argv, prog="python -m jaxrl_ml.observe")


def _observe(
    config: Annotated[Path, tyro.conf.Positional],
    models: Annotated[tuple[Path, ...], tyro.conf.Positional],
    arm: str | None = None,
    out: Path | None = None,
) -> None:
    """Evaluate models cell by cell, and tell all of them in one table.

    Args:
        config: Config file with the evaluations.
        models: Folders of Hugging Face models or of runs.
        arm: Which of the config file's arms.
        out: Folder of the results; by default the config's run_dir.
    """
    settings = load(config, [] if arm is None else ["--arm", arm])
    models = tuple(storage.at(model) for model in models)
    names = [model.resolve().name for model in models]
    if not settings.evaluations or not models:
        raise UserError(f"{config} with {len(models)} models: give evaluations in the config, and folders of models")
    for model, name in zip(models, names, strict=True):
        if not storage.local(model).is_dir():
            raise UserError(f"no folder {model}: give a Hugging Face model folder or a run folder")
        if names.count(name) > 1:
            raise UserError(f"two models are called {name}: results are kept by the folder's name, so rename one")
    place = storage.at(settings.run_dir if out is None else out)
    local = storage.local(place)
    require(not local.exists() or local.is_dir(), f"--out {place} is a file; give a folder")
    from jaxrl_ml import processes

    cells: dict[tuple[str, str], Mapping[str, float]] = {}
    with processes.together(settings.distributed) as main_process:
        day = _first_day(local, main_process)
        for source, name in zip(models, names, strict=True):
            found = _observe_model(source, place, name, settings, main_process, day)
            cells |= {(name, evaluation): metrics for evaluation, metrics in found.items()}
    if main_process:
        _write_csv(local / "results.csv", cells)
        storage.push(place)
        Console(highlight=False, markup=False).print(_table(cells))
        print(f"wrote {place / 'results.csv'}")


def _first_day(folder: Path, main_process: bool) -> str:
    """The day on which the study in a folder began, which the main process writes there, the same on all processes."""
    from jaxrl_ml import processes

    path, day = folder / "study.json", date.today().isoformat()
    if main_process and path.is_file():
        try:
            day = json.loads(path.read_text())["chat_date"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}); remove it to go on with today's date") from error
    elif main_process:
        folder.mkdir(parents=True, exist_ok=True)
        path.with_name("study.json.tmp").write_text(json.dumps({"chat_date": day}) + "\n")
        path.with_name("study.json.tmp").replace(path)
    return processes.gather(day)[0]


def _observe_model(
    source: storage.AnyPath, place: storage.AnyPath, name: str, settings: Config, main_process: bool, first_day: str
) -> dict[str, Mapping[str, float]]:
    """The metrics of a model's cells: those in `place`, which the main process reads, and those that were missing there."""
    from jaxrl_ml import processes
    from jaxrl_ml.pretrained import best_step, read_run_config

    about = {"source": str(source.resolve()), "step": best_step(source), "seed": settings.seed}
    if settings.chat_date is not None:
        about["chat_date"] = settings.chat_date
    elif (read_run_config(source) or {}).get("chat_date") is None:
        settings = replace(settings, chat_date=first_day)
    asked = {one.name: {**about, "evaluation": plain(resolved(one))} for one in settings.evaluations}
    folder = storage.local(place)
    paths = {evaluation: folder / name / "evaluations" / f"{evaluation}.json" for evaluation in asked}
    there = {evaluation: _finished(path, asked[evaluation]) for evaluation, path in paths.items()} if main_process else {}
    found = processes.gather(there)[0]
    missing = [evaluation for evaluation in settings.evaluations if found[evaluation.name] is None]
    if missing:
        model = StoredModel(source, settings, about["step"], main_process)
        for evaluation, result in zip(missing, model.run(missing), strict=True):
            found[evaluation.name] = result.metrics
            if model.writes:
                path = paths[evaluation.name]
                write_result(path, result, {**asked[evaluation.name], "chat_date": model.day})
                storage.push(place)
                print(f"wrote {place / path.relative_to(folder)}", flush=True)
    return found


def _finished(path: Path, asked: Mapping[str, Any]) -> dict[str, float] | None:
    """The metrics of a cell that is done, None of one that is not; raises UserError for one of another study."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        metrics = dict(found["metrics"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): remove it to have it done again") from error
    differing = first_difference({name: found.get(name) for name in asked}, dict(asked))
    if differing:
        name, old, new = differing
        raise UserError(f"{path} has {name}={old!r}, which is now {new!r}: give another --out, or remove it")
    return metrics


def _write_csv(path: Path, cells: Mapping[tuple[str, str], Mapping[str, float]]) -> None:
    """A row a cell: the model, the evaluation and all its metrics; written atomically."""
    columns = list(dict.fromkeys(name for metrics in cells.values() for name in metrics))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("model", "evaluation", *columns))
    for (model, evaluation), metrics in cells.items():
        writer.writerow((model, evaluation, *(metrics.get(column, "") for column in columns)))
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text.getvalue(), encoding="utf-8")
    temporary.replace(path)


def _table(cells: Mapping[tuple[str, str], Mapping[str, float]]) -> Table:
    """The metrics of SHOWN that any cell has, a row a cell."""
    metrics = [name for name in SHOWN if any(name in found for found in cells.values())]
    table = Table("model", "evaluation", *metrics, "95 % interval of accuracy")
    for (model, evaluation), found in cells.items():
        values = [SHOWN[name].format(found[name]) if name in found else "" for name in metrics]
        interval = f"{found['accuracy_low']:.1%} to {found['accuracy_high']:.1%}"
        table.add_row(visible(model), visible(evaluation), *values, interval)
    return table


if __name__ == "__main__":
    run_command(main)
