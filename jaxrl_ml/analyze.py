"""`python -m jaxrl_ml.analyze transfer|scaling|languages|skills RUN…`: what evaluations say, side by side.

In: results of `python -m jaxrl_ml.evaluate`, each by its JSON file or by the run folder whose evaluations/ hold it. Several
paths joined by commas are one model: its benchmarks, or its seeds, which `transfer` averages and `scaling` takes one by one.
`skills` reads the records that a run keeps of its evaluations on Countdown; paths joined by commas are an arm's seeds.
Out: tables, and in the folder `--out` their numbers as JSON, their figures as SVG, and COMMAND.html with both, which needs no
network. How numbers are made is told in `analysis/transfer.py`, `analysis/scaling_law.py` and `analysis/languages.py`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from jaxrl_ml import storage
from jaxrl_ml.analysis import transfer as transfers
from jaxrl_ml.analysis.language_tables import languages_table, settings_table
from jaxrl_ml.analysis.languages import by_language, language_metrics, win_tie_lose
from jaxrl_ml.analysis.passk import Estimate
from jaxrl_ml.analysis.scaling_law import Law, Run, budget_differences, language_curves, laws_of_arms, measure
from jaxrl_ml.cli import run_command
from jaxrl_ml.languages.settings import ENGLISH
from jaxrl_ml.metrics import plain, visible
from jaxrl_ml.report import html_page
from jaxrl_ml.types import UserError, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Form = Callable[[float], str]
Paths = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


def find_results(paths: str, name: str | None) -> list[Path]:
    """The result files that paths joined by commas stand for: a file itself, a run folder its one result, or that of `name`.

    A `name` with * in it is a shell pattern: all of a folder's results that it fits are taken. Raises UserError where there is
    no such path, and where a folder has no result or several.
    """
    found = []
    for path in map(storage.local, filter(None, paths.split(","))):
        if path.is_file():
            found.append(path)
            continue
        results = sorted((path / "evaluations").glob("*.json"))
        many = name is not None and "*" in name
        if name is not None:
            pattern = fnmatch.translate(name) if many else re.escape(name) + r"(-\d+)?"
            results = [file for file in results if re.fullmatch(pattern, file.stem)]
        if not path.is_dir():
            raise UserError(f"no file or folder {path}: give a run folder or a JSON file of python -m jaxrl_ml.evaluate")
        if not results:
            wanted = "" if name is None else f" of {name}"
            raise UserError(f"{path} has no evaluations/*.json{wanted}: run python -m jaxrl_ml.evaluate {path} first")
        if len(results) > 1 and not many:
            names = ", ".join(file.name for file in results[:6])
            raise UserError(f"{path} has {len(results)} results ({names}); choose with --name, or give the file")
        found += results
    if not found:
        raise UserError(f"{paths!r} names no file: give a run folder or a JSON file of python -m jaxrl_ml.evaluate")
    return found


def read_result(path: Path) -> dict[str, Any]:
    """A result as `evaluate` wrote it; raises UserError for a file that is none."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): evaluate again") from error
    records = result.get("records") if isinstance(result, dict) else None
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path} has no records: give a result of python -m jaxrl_ml.evaluate")
    return result


def read_table(files: Sequence[Path]) -> transfers.Table:
    """The accuracies of a model, problem by problem, from its result files."""
    return transfers.tabulate({str(path): read_result(path)["records"] for path in files})


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; raises UserError for results that are missing, broken or not of the same problems."""
    commands = {"transfer": _transfer, "scaling": _scaling, "languages": _languages, "skills": _skills}
    about = "Tell what evaluations say about languages and skills, side by side."
    tyro.extras.subcommand_cli_from_dict(commands, args=argv, prog="python -m jaxrl_ml.analyze", description=about)


def _transfer(
    runs: Paths,
    base: str,
    train: tuple[str, ...],
    unseen: tuple[str, ...] = (),
    name: str | None = None,
    out: Path = Path("runs/analysis"),
    seed: int = 0,
) -> None:
    """What training in some languages did in others: gains by language and the Multilingual Transferability Index.

    Args:
        runs: Trained models; a run folder or a result file each, or several joined by commas, whose average it is.
        base: The model before training, given likewise.
        train: Languages of the training, such as en.
        unseen: Languages to compare them with; by default all others of the results.
        name: Evaluation to take from a folder that has several; with * in it, all that it matches, such as 'math500-*'.
        out: Folder to write transfer.json and transfer*.svg to.
        seed: Of the bootstrap.
    """
    from jaxrl_ml.analysis.scaling_plots import gains_figure

    if not runs:
        raise UserError("no trained model: give run folders or result files")
    before = read_table(find_results(base, name))
    tables = [read_table(find_results(run, name)) for run in runs]
    found = [transfers.transfer(before, table, train, unseen, seed=seed) for table in tables]
    console = _console()
    for one in found:
        console.print(_cells_table(one))
    console.print(_index_table(found))
    for one in found:
        if one.refusal:
            console.print(f"no index: {visible(one.model)}: {one.refusal}")
    figures = {f"transfer-{i}" if i else "transfer": gains_figure(one) for i, one in enumerate(found)}
    _write(out, "transfer", {"base": before.source, "train": train, "models": found}, figures, console)


def _scaling(
    growing: tuple[str, ...] = (),
    fixed: tuple[str, ...] = (),
    base: str | None = None,
    train: tuple[str, ...] = (),
    test: tuple[str, ...] = (),
    name: str | None = None,
    out: Path = Path("runs/analysis"),
    seed: int = 0,
) -> None:
    """How accuracy and transfer grow with the number of parallel training languages: the law, the leap and the gap.

    Args:
        growing: Runs as X=RUN,RUN,… with X the number of their training languages, English included, and as many examples
            of each language whatever X; a RUN is a run folder or a result file, and one seed.
        fixed: Runs likewise, with as many examples in all whatever X.
        base: The model before training: with it and --train the index is fitted, too.
        train: Training languages in the order in which they were added, English first: a run of X had the first X of them.
        test: Languages to test in; by default all of the results that are in no run's training.
        name: Evaluation to take from a folder that has several.
        out: Folder to write scaling.json and scaling-*.svg to.
        seed: Of the bootstrap.
    """
    from jaxrl_ml.analysis.scaling_plots import languages_figure, law_figure

    runs = [*_read_runs("growing", growing, name), *_read_runs("fixed", fixed, name)]
    if not runs:
        raise UserError("no runs: give them as --growing 1=RUN 2=RUN,RUN …")
    _check_train(runs, base, train)
    before = None if base is None else read_table(find_results(base, name))
    seen = train[: max(run.x for run in runs)]
    if not test and not train:
        raise UserError("neither --train nor --test: name the languages of the training, or those to test in")
    test = test or tuple(dict.fromkeys(code for _, code in runs[0].table.cells if code not in seen))
    if not test or set(test) & set(seen):
        raise UserError(f"--test {' '.join(test)}: name languages of the results in which no run trained ({' '.join(seen)})")
    measures, refusals = measure(runs, test, before, train, seed=seed)
    report: dict[str, Any] = {"test": test, "train": train, "base": base, "index_refused": refusals}
    console, figures = _console(), {}
    for name_of, (f, draws) in measures.items():
        laws, percent = laws_of_arms(runs, f, draws, seed), name_of == "accuracy"
        for arm, one in laws.items():
            for shown in _law_tables(f"{name_of}, {arm} budget", one, percent):
                console.print(shown)
        report[name_of] = laws
        label = f"mean accuracy in {', '.join(test)}" if percent else "transferability index (MTI)"
        figures[f"scaling-{name_of}"] = law_figure({f"{arm} budget": one for arm, one in laws.items()}, label, percent)
    for source, reason in refusals.items():
        console.print(f"no law of the index: {visible(source)}: {reason}")
    report["growing_minus_fixed"] = budget_differences(runs, *measures["accuracy"], seed)
    for level, change in report["growing_minus_fixed"].items():
        console.print(f"accuracy at X = {level}, growing − fixed budget: {_span(change, _percent)}")
    report["by_language"] = language_curves(runs, seed=seed)
    figures["scaling-languages"] = languages_figure(report["by_language"], seen)
    _write(out, "scaling", report, figures, console)


def _read_runs(arm: str, texts: Sequence[str], name: str | None) -> list[Run]:
    """The runs of an arm from `X=RUN,RUN,…` texts, each path once."""
    found: list[tuple[int, Path]] = []
    for text in texts:
        number, equals, paths = text.partition("=")
        if not (equals and number.isascii() and number.isdigit() and int(number)):
            raise UserError(f"--{arm} {text!r}: write X=RUN,RUN,… with X the number of training languages, such as 2=runs/x2")
        found += [(int(number), path) for path in find_results(paths, name)]
    for _, path in found:
        if sum(path == other for _, other in found) > 1:
            raise UserError(f"--{arm}: {path} is given twice; a run counts once")
    return [Run(arm, x, read_table([path])) for x, path in found]


def _check_train(runs: Sequence[Run], base: str | None, train: Sequence[str]) -> None:
    if base is not None and not train:
        raise UserError("--base needs --train: the index compares with the languages of the training")
    most = max(run.x for run in runs)
    if train and (most > len(train) or len(set(train)) < len(train)):
        raise UserError(f"--train {' '.join(train)}: name {most} different languages, for there is a run of X = {most}")


def _languages(runs: Paths, name: str | None = None, out: Path = Path("runs/analysis"), seed: int = 0) -> None:
    """Compare settings of the thinking language: results of `python -m jaxrl_ml.evaluate RUN --languages …`.

    Args:
        runs: Result files, or run folders; several may be joined by commas.
        name: Evaluation to take from a folder that has several.
        out: Folder to write languages.json to.
        seed: Of the bootstrap.
    """
    results = {path: read_result(path) for run in runs for path in find_results(run, name)}
    if not results:
        raise UserError("no results: give result files or run folders")
    sizes = {path: _samples_a_problem(path, result["records"]) for path, result in results.items()}
    k = min(sizes.values())
    english = next((path for path, result in results.items() if result.get("setting") == ENGLISH), None)
    metrics, languages = {}, {}
    for path, result in results.items():
        records, label = result["records"], str(path)
        num_problems = len(records) // sizes[path]
        metrics[label] = language_metrics(records, num_problems, k, seed)
        if english not in (None, path):
            try:
                wins = win_tie_lose(records, results[english]["records"], num_problems)
            except ValueError as error:
                raise UserError(f"{path} and {english} are not of the same problems: evaluate them again, or apart") from error
            metrics[label] |= zip(("win", "tie", "lose"), wins, strict=True)
        languages[label] = by_language(records)
    console = _console()
    console.print(settings_table("thinking languages", metrics, k))
    console.print(languages_table(languages))
    _write(out, "languages", {"metrics": metrics, "by_language": languages}, {}, console)


def _skills(runs: Paths, out: Path = Path("runs/analysis")) -> None:
    """Compare skills on Countdown at the end of runs: success, coverage and precision by balance and depth, and their order.

    Args:
        runs: Run folders with records/ (`Evaluation.records`); several joined by commas are the seeds of one arm.
        out: Folder to write skills.json and the figures of each arm's first run to.
    """
    from jaxrl_ml.analysis import skill_plots, skill_tables
    from jaxrl_ml.analysis.skills import history

    arms = {paths: [_recorded(storage.local(path), history) for path in paths.split(",") if path] for paths in runs}
    if not arms or not all(arms.values()):
        raise UserError("no runs: give run folders whose evaluations have records=True")
    found = {arm: skill_tables.compare(of_arm) for arm, of_arm in arms.items()}
    orders = {arm: [skill_tables.orders(histories) for histories in of_arm] for arm, of_arm in arms.items()}
    console, figures = _console(), {}
    for metric in skill_tables.METRICS:
        console.print(skill_tables.arms_table(found, metric))
    console.print(skill_tables.orders_table(orders))
    for number, of_arm in enumerate(arms.values()):
        for kind in (skill_plots.success_by_balance, skill_plots.success_by_count, skill_plots.coverage_against_precision):
            figure = kind(of_arm[0])
            if figure is not None:
                figures[f"skills-{number}-{kind.__name__}"] = figure
    report = {arm: {"last": skill_tables.as_json(found[arm]), "orders": orders[arm]} for arm in arms}
    _write(out, "skills", report, figures, console)


def _recorded(run: Path, history: Callable[[Path], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The histories of a run; raises UserError where it has none."""
    found = history(run) if run.is_dir() else {}
    if not found:
        raise UserError(f"{run} holds no records of Countdown: give a run whose evaluations have records=True")
    return found


def _samples_a_problem(path: Path, records: Sequence[Mapping[str, Any]]) -> int:
    """How many samples each problem has, which must be adjacent and as many for each."""
    needed = {"id": str, "sample": int, "correct": bool, "language": str, "detected": str, "thinking_tokens": int}
    for number, record in enumerate(records):
        if not all(isinstance(record.get(key), kind) for key, kind in needed.items()):
            raise UserError(f"{path}: record {number} tells of no thinking language; evaluate with --languages self en")
    samples = max(record["sample"] for record in records) + 1
    if [record["sample"] for record in records] != [i % samples for i in range(len(records))] or len(records) % samples:
        raise UserError(f"{path}: records are not {samples} a problem, one after the other; evaluate again")
    return samples


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _number(value: float) -> str:
    return f"{value:.3f}"


def _ends(estimate: Estimate | None, form: Form) -> str:
    """The ends of an interval, or a dash."""
    unknown = estimate is None or math.isnan(estimate.low)
    return "–" if unknown else f"{form(estimate.low)} to {form(estimate.high)}"


def _span(estimate: Estimate, form: Form) -> str:
    return f"{form(estimate.value)} ({_ends(estimate, form)})"


def _stacked(estimate: Estimate | None, form: Form) -> str:
    """A value over its interval, narrow, or a dash."""
    return "–" if estimate is None else f"{form(estimate.value)}\n{form(estimate.low)}…{form(estimate.high)}"


def _cells_table(found: transfers.Transfer) -> Table:
    """The cells of a model, those of the training first: accuracies and gains in per cent, each over its interval."""
    table = Table("cell", "group", "n", "base", "model", "difference", "relative g")
    table.title, table.title_justify = visible(found.model), "left"
    for cell in sorted(found.cells, key=lambda cell: (["train", "unseen", ""].index(cell.group), cell.benchmark)):
        spans = (_stacked(one, _hundredths) for one in (cell.base, cell.model, cell.difference, cell.relative))
        table.add_row(visible(f"{cell.benchmark}/{cell.language}"), cell.group, str(cell.num_problems), *spans)
    table.caption, table.caption_justify = "in %, with 95 % intervals over problems", "left"
    return table


def _hundredths(value: float) -> str:
    return f"{100 * value:.1f}"


def _index_table(found: Sequence[transfers.Transfer]) -> Table:
    """The raw gains and the index of each model, a line each."""
    table = Table("model", "Δ train", "Δ unseen", "ΔR train", "ΔR unseen", "MTI")
    note = "Δ: mean difference of accuracies, ΔR: mean relative gain g, in %; MTI = ΔR unseen / ΔR train; 95 % over problems"
    table.caption, table.caption_justify = note, "left"
    for one in found:
        gains = [kind[group] for kind in (one.difference, one.relative) for group in ("train", "unseen")]
        table.add_row(visible(one.model), *(_stacked(gain, _hundredths) for gain in gains), _stacked(one.mti, _number))
    return table


def _law_tables(title: str, found: Law, percent: bool) -> list[Table]:
    """The results by X; the law with leap and gap; the forms compared. Notes stand under the second."""
    form = _percent if percent else _number
    means = Table("X", "runs", "mean (95 %)", title=title, title_justify="left")
    for x, mean in found.means.items():
        means.add_row(str(x), str(len(found.runs[x])), _span(mean, form))
    fitted = Table("f = α·X^β", "value", "95 %, drawn", "95 %, points")
    for fit in found.fits:
        for letter, drawn, points in (("α", fit.alpha_drawn, fit.alpha_points), ("β", fit.beta_drawn, fit.beta_points)):
            fitted.add_row(f"{letter}, {fit.method}", _number(drawn.value), _ends(drawn, _number), _ends(points, _number))
        fitted.add_row(f"R², {fit.method}", "–" if math.isnan(fit.r_squared) else _number(fit.r_squared), "", "")
    for name, one in (("leap f(2) − f(1)", found.leap), ("gap α − f(1)", found.gap)):
        fitted.add_row(name, "–" if one is None else form(one.value), _ends(one, form), "")
    about = ("drawn: problems and runs drawn anew; points: how far they lie off the law", *found.notes)
    fitted.caption, fitted.caption_justify = "\n".join(about), "left"
    forms = Table("form", "parameters", "AICc, lower is better")
    for other in found.alternatives:
        values = ", ".join(f"{letter} = {value:.3g}" for letter, value in other.parameters.items())
        forms.add_row(other.form, values, other.note if other.aicc is None else f"{other.aicc:.2f}")
    return [means, fitted, forms] if found.alternatives else [means, fitted]


def _write(out: Path, name: str, report: Any, figures: Mapping[str, Figure], console: Console) -> None:
    """The report as JSON, the figures, and a page of them and of all that the console was shown."""
    from jaxrl_ml.analysis.plots import to_svg

    texts = {f"{name}.json": json.dumps(plain(_told(report)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"}
    texts |= {f"{stem}.svg": to_svg(figure) for stem, figure in figures.items()}
    tables = f"<pre>{escape(console.export_text())}</pre>"
    parts = [f"<h1>{name}</h1>", *(texts[f"{stem}.svg"] for stem in figures), tables]
    texts[f"{name}.html"] = html_page(name, parts)
    require(not storage.is_remote(out), f"--out {storage.at(out)}: what is found is written to local disk; give a local folder")
    require(not out.exists() or out.is_dir(), f"--out {out} is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        temporary = out / (file + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(out / file)
        print(f"wrote {out / file}")


def _console() -> Console:
    """Shows, and remembers what it showed."""
    return Console(highlight=False, markup=False, record=True)


def _told(value: Any) -> Any:
    """Records as JSON-able objects of their fields."""
    if dataclasses.is_dataclass(value):
        return {field.name: _told(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return _told(value._asdict())
    if isinstance(value, Mapping):
        return {key: _told(item) for key, item in value.items()}
    return [_told(item) for item in value] if isinstance(value, (list, tuple)) else value


if __name__ == "__main__":
    run_command(main)
