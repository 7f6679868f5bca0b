"""`python -m jaxrl_ml.report RUN`: one static page about a run.

In: the run's `metrics.jsonl`, and where they exist `samples.jsonl`, `records/`, `config.json` and `config.py`. Out:
`RUN/report.html`, a single file that needs no network and no script; its content policy forbids both. Model text is hostile: it
is escaped twice, control characters spelled out and HTML quoted.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jaxrl_ml import storage
from jaxrl_ml.analysis.learning import learning_summary
from jaxrl_ml.cli import run_command
from jaxrl_ml.metrics import METRICS_FILE, SAMPLES_FILE, duration, read_metrics, read_samples, visible
from jaxrl_ml.types import UserError

if TYPE_CHECKING:
    from jaxrl_ml.analysis import skills
    from jaxrl_ml.analysis.passk import Estimate

SAMPLES_SHOWN = 6
MAX_SAMPLE_CHARS = 4000

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff }
body { max-width: 76rem; margin: 2rem auto; padding: 0 1.2rem }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem } .note { color: #666; margin: .2rem 0 }
table { border-collapse: collapse }
td, th { padding: .25rem 1.2rem .25rem 0; text-align: left; border-bottom: 1px solid #e6e6e6 }
th { font-weight: 600; color: #555 } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
svg { width: 100%; height: auto } pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; font-size: .85rem }
.sample { border-left: 4px solid #D55E00; padding: .2rem 0 .2rem 1rem; margin: 1rem 0 }
.sample.correct { border-color: #009E73 }
.prompt { color: #777 } details > summary { cursor: pointer } details > pre { background: #f6f6f6; padding: 1rem }
"""


def write_report(run_dir: Path) -> Path:
    """Writes `run_dir/report.html`, atomically, and returns its path. Raises UserError where there is nothing to report."""
    place, run_dir = storage.at(run_dir), storage.local(run_dir)
    records = read_metrics(place)
    if not records:
        raise UserError(f"{place / METRICS_FILE} holds no records yet: wait for the run's first step")
    samples = read_samples(run_dir) if (run_dir / SAMPLES_FILE).is_file() else []
    path = run_dir / "report.html"
    temporary = path.with_name("report.html.tmp")
    temporary.write_text(_page(run_dir, records, samples), encoding="utf-8")
    temporary.replace(path)
    storage.push(place)
    return place / path.name


def html_page(title: str, parts: Sequence[str]) -> str:
    """A page that needs no network and no script, and may have neither; title and parts are HTML already."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">\n"""
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def final_evaluations(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int, dict[str, float]]]:
    """(evaluation, stage, step, {metric: value}) of every evaluation before the run's first step and last in every stage."""
    start = records[0]["step"]
    last: dict[tuple[str, str], tuple[int, dict[str, float]]] = {}
    for record in records:
        found: dict[str, dict[str, float]] = {}
        for key, value in record.items():
            kind, _, rest = key.partition("/")
            name, _, metric = rest.partition("/")
            if kind == "eval" and metric:
                found.setdefault(name, {})[metric] = value
        for name, values in found.items():
            place = (name, "start" if record["step"] == start else record["stage"])
            step, known = last.get(place, (record["step"], {}))
            last[place] = (record["step"], {**known, **values} if step == record["step"] else values)
    names = list(dict.fromkeys(name for name, _ in last))
    rows = [(name, stage, step, values) for (name, stage), (step, values) in last.items()]
    return sorted(rows, key=lambda row: (names.index(row[0]), row[2]))


def pick_samples(samples: Sequence[Mapping[str, Any]], count: int = SAMPLES_SHOWN) -> list[Mapping[str, Any]]:
    """A few samples, half from the first logged step and half from the last, right and wrong ones in turn."""
    if not samples:
        return []
    steps = sorted({sample["step"] for sample in samples})
    ends = [steps[0], steps[-1]] if len(steps) > 1 else steps
    chosen: list[Mapping[str, Any]] = []
    for step in ends:
        here = [sample for sample in samples if sample["step"] == step]
        right = [sample for sample in here if sample.get("correct")]
        wrong = [sample for sample in here if not sample.get("correct")]
        turns = [sample for i in range(len(here)) for sample in (right[i : i + 1] + wrong[i : i + 1])]
        chosen += turns[: count // len(ends)]
    return chosen


def _page(run_dir: Path, records: Sequence[Mapping[str, Any]], samples: Sequence[Mapping[str, Any]]) -> str:
    # Imported here: a UserError should not wait for matplotlib.
    from jaxrl_ml.analysis.plots import language_shares, learning_curves, to_svg

    config = _config(run_dir)
    name = escape(visible(run_dir.resolve().name))
    lines = [_headline(run_dir), _facts(records, config), *learning_summary(records)]
    parts = [
        f"<h1>{name}</h1>",
        *(f'<p class="note">{escape(visible(line))}</p>' for line in lines if line),
        "<h2>Stages</h2>",
        _stage_table(records, config),
    ]
    evaluations = final_evaluations(records)
    if evaluations:
        parts += ["<h2>Evaluation</h2>", _evaluation_table(evaluations)]
    parts += ["<h2>Learning curves</h2>", to_svg(learning_curves(records))]
    shares = language_shares(records)
    if shares is not None:
        parts += ["<h2>Thinking language, share of samples</h2>", to_svg(shares)]
    parts += _skills(run_dir)
    chosen = pick_samples(samples)
    if chosen:
        parts += ["<h2>Samples</h2>", *(_sample(sample) for sample in chosen)]
    if config:
        text = escape(visible(json.dumps(config, indent=1, ensure_ascii=False)))
        parts.append(f"<h2>Configuration</h2><details><summary>config.json</summary><pre>{text}</pre></details>")
    return html_page(name, parts)


def _config(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore it, or delete it to report without it") from error
    return config if isinstance(config, dict) else {}


def _headline(run_dir: Path) -> str:
    """First line of the docstring of the user's config file."""
    path = run_dir / "config.py"
    if not path.is_file():
        return ""
    try:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    except (SyntaxError, ValueError):
        return ""
    return (docstring or "").partition("\n")[0]


def _facts(records: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> str:
    model, source = config.get("model"), config.get("init_from")
    facts = [f"model from {source}"] if source else []
    if isinstance(model, Mapping):
        facts.append(f"{model.get('family')} of {model.get('num_layers')} layers, width {model.get('embed_dim')}")
    facts.append(f"{max(record['step'] for record in records):,} steps")
    facts.append(f"{duration(max(record.get('time/elapsed_s', 0.0) for record in records))} wall time")
    if "seed" in config:
        facts.append(f"seed {config['seed']}")
    return " · ".join(facts)


def _stage_table(records: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> str:
    from jaxrl_ml.analysis.plots import stages

    planned = {stage["name"]: stage for stage in config.get("stages", []) if isinstance(stage, Mapping) and "name" in stage}
    rows, begun_s = [], 0.0
    for name, low, high in stages(records):
        end_s = max(record.get("time/elapsed_s", 0.0) for record in records if record["stage"] == name)
        stage = planned.get(name, {})
        num_steps = stage.get("num_steps")
        rows.append(
            [
                name,
                str(stage.get("type", "")).removesuffix("Stage"),
                f"{low:,} to {high:,}",
                f"{num_steps:,}" if isinstance(num_steps, int) else "",
                duration(end_s - begun_s),
            ]
        )
        begun_s = end_s
    return _table(["stage", "kind", "steps", "planned", "wall time"], rows, text_columns=2)


def _evaluation_table(evaluations: Sequence[tuple[str, str, int, Mapping[str, float]]]) -> str:
    names = dict.fromkeys(metric for *_, values in evaluations for metric in values)
    shown = [metric for metric in names if not metric.endswith(("_low", "_high"))]
    rows = []
    for name, stage, step, values in evaluations:
        rows.append([name, stage if stage == "start" else f"after {stage}", f"{step:,}", *(_cell(values, m) for m in shown)])
    return _table(["evaluation", "model", "step", *(metric.replace("_", " ") for metric in shown)], rows, text_columns=2)


def _cell(values: Mapping[str, float], metric: str) -> str:
    """`57.3% [53.0, 61.5]` for a share with its confidence interval, a plain number for what is none."""
    if metric not in values:
        return ""
    share = metric in ("accuracy", "truncated", "timeout") or metric.startswith(("pass@", "avg@", "accuracy/"))
    if not share:
        return f"{values[metric]:,.4g}"
    low, high = values.get(f"{metric}_low"), values.get(f"{metric}_high")
    interval = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{values[metric]:.1%}{interval}"


def _skills(run_dir: Path) -> list[str]:
    """What the recorded evaluations on Countdown show of skills; nothing where there are none."""
    from jaxrl_ml.analysis import skill_plots, skills
    from jaxrl_ml.analysis.plots import to_svg

    histories = skills.history(run_dir)
    if not histories:
        return []
    first = skills.first_steps(histories.values())
    orders = {
        "First produced": skills.order_test({name: steps.produced for name, steps in first.items()}),
        "First mastered": skills.order_test({name: steps.mastered for name, steps in first.items()}),
    }
    figures = {
        "Success by balance": skill_plots.success_by_balance(histories),
        "Success by count of numbers": skill_plots.success_by_count(histories),
        "Coverage against precision": skill_plots.coverage_against_precision(histories),
    }
    for name, history in histories.items():
        for n in skill_plots.counts_of(history):
            figures[f"Precision by pattern and step: {name}, n = {n}"] = skill_plots.heat_map(history, n)
    notes = [
        "Coverage: share of problems whose own pattern is attempted. Precision: right attempts / attempts. Intervals: 95 %. "
        f"Mastered: precision of at least {skills.THRESHOLD:.0%} in at least {skills.MIN_ATTEMPTS} attempts at some step.",
        *(
            f"{what}: the base comes before the dependent in {order.share:.1%} of {order.pairs} pairs (p = {order.p_share:.2g} "
            f"where order is chance within each n); rank correlation {order.correlation:.2f} (p = {order.p_correlation:.2g})"
            for what, order in orders.items()
            if order.pairs
        ),
    ]
    return [
        "<h2>Skills</h2>",
        _skill_table(histories, first),
        *(f'<p class="note">{escape(note)}</p>' for note in notes),
        *(f"<h3>{escape(visible(title))}</h3>{to_svg(figure)}" for title, figure in figures.items() if figure is not None),
    ]


def _skill_table(histories: Mapping[str, skills.History], first: Mapping[str, skills.First]) -> str:
    """The last step of each evaluation: all problems of n numbers, then each balance."""
    from jaxrl_ml.analysis.skills import read_skill

    def share(found: Estimate) -> str:
        return "" if math.isnan(found.value) else f"{found.value:.1%} [{100 * found.low:.1f}, {100 * found.high:.1f}]"

    lines = []
    for name, history in histories.items():
        step = max(history)
        rows = [row for row in history[step] if row.level in ("n", "balance") and row.problems]
        for row in sorted(rows, key=lambda row: (row.n, row.level == "balance", row.name)):
            own = {other.name for other in history[step] if (other.level, other.n) == ("pattern", row.n) and other.problems}
            if row.level == "balance":
                own = {pattern for pattern in own if read_skill(pattern).balance == row.name}
            mastered = sum(first[pattern].mastered is not None for pattern in own)
            best = max(row.pass_at, default=1)
            lines.append(
                [
                    f"{name}, n = {row.n}",
                    "all" if row.level == "n" else row.name,
                    f"{step:,}",
                    f"{row.problems:,}",
                    share(row.success),
                    f"@{best} {share(row.pass_at.get(best, row.success))}",
                    share(row.coverage),
                    f"{row.attempts:,}",
                    share(row.precision),
                    f"{row.produced} of {row.patterns}",
                    f"{mastered} of {row.patterns}",
                ]
            )
    header = ["evaluation", "problems", "step", "number", "success", "pass", "coverage", "attempts", "precision", "produced"]
    return _table([*header, "mastered"], lines, text_columns=2)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        classes = ["" if i < text_columns else ' class="n"' for i in range(len(cells))]
        inner = "".join(f"<{tag}{c}>{escape(visible(x))}</{tag}>" for c, x in zip(classes, cells, strict=True))
        return f"<tr>{inner}</tr>"

    return f"<table>{line('th', header)}{''.join(line('td', row) for row in rows)}</table>"


def _sample(sample: Mapping[str, Any]) -> str:
    correct = bool(sample.get("correct"))
    parts = ", ".join(f"{name} {float(value):.3g}" for name, value in sample.get("parts", {}).items())
    facts = [f"step {sample['step']}", str(sample["stage"]), "correct" if correct else "wrong"]
    facts.append(f"reward {float(sample.get('reward', 0.0)):.3g}" + (f" ({parts})" if parts else ""))
    if "advantage" in sample:
        facts.append(f"advantage {float(sample['advantage']):+.3g}")
    if sample.get("truncated"):
        facts.append("truncated")
    return (
        f'<div class="sample{" correct" if correct else ""}"><p class="note">{escape(visible(" · ".join(facts)))}</p>'
        f'<pre class="prompt">{_clip(sample.get("prompt", ""))}</pre><pre>{_clip(sample.get("completion", ""))}</pre></div>'
    )


def _clip(text: str) -> str:
    left = len(text) - MAX_SAMPLE_CHARS
    return escape(visible(text[:MAX_SAMPLE_CHARS])) + (f" … ({left:,} more characters)" if left > 0 else "")


def main(argv: list[str] | None = None) -> None:
    """Entry point; raises UserError where there is nothing to report."""
    tyro.cli(_report, args=argv, prog="python -m jaxrl_ml.report")


def _report(run: Annotated[Path, tyro.conf.Positional]) -> None:
    """Write a static page about a run.

    Args:
        run: Folder of the run.
    """
    print(f"wrote {write_report(run)}")


if __name__ == "__main__":
    run_command(main)
