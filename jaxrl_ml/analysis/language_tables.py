"""Tables for the terminal of what `analysis/languages.py` finds: metrics by name in, rich tables out."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.table import Table

from jaxrl_ml.metrics import visible


def settings_table(title: str, metrics: Mapping[str, Mapping[str, float]], k: int) -> Table:
    """The metrics of each setting, a line each, as ExpLang's table (arXiv 2602.21887), and the problems won against English."""
    names = ("accuracy", f"pass@{k}", "accuracy_compliant", "accuracy_strict", "compliance")
    headers = ("acc.", f"pass@{k}", "AccF", "Acc*", "comply", "tokens", "win/tie/lose")
    note = "AccF: of compliant samples; Acc*: others count as wrong; win/tie/lose: % of problems, against en"
    table = Table("thinking", *headers, title=visible(title), title_justify="left", caption=note, caption_justify="left")
    for setting, values in metrics.items():
        wins = " / ".join(f"{100 * values[name]:.0f}" for name in ("win", "tie", "lose")) if "win" in values else ""
        table.add_row(visible(setting), *(_share(values[name]) for name in names), f"{values['thinking_tokens']:.1f}", wins)
    return table


def languages_table(languages: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """The languages of each setting, by their share of its samples."""
    names = ("share", "accuracy", "accuracy_compliant", "compliance", "abstain")
    table = Table("thinking", "in", "share", "acc.", "AccF", "comply", "abstain", "tokens")
    for setting, of_one in languages.items():
        for code, values in of_one.items():
            cells = (_share(values[name]) for name in names)
            table.add_row(visible(setting), visible(code) or "none", *cells, f"{values['thinking_tokens']:.1f}")
    return table


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"
