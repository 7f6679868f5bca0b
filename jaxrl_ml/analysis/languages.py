"""What the thinking language does to results: records of an evaluation in; compliance, AccF, Acc*, wins and shares out.

Of a record, `correct`, `language` (the one it is to think in, "" for none), `detected` (the one it does, "" where there is too
little to tell: it *abstains*) and `thinking_tokens` are read. It is *compliant* where it has a language and that is detected;
one without a tag is not, nor is one that abstains. As in ExpLang (arXiv 2602.21887, its evaluation): AccF is the accuracy of
the compliant samples alone, Acc* counts samples that are not compliant as wrong. Where no record has a language, as for a model
without tags, there is nothing to comply with: these are NaN.

Records of a problem are adjacent, as many for each. Intervals are over problems, as in `passk`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_ml.analysis.passk import Estimate, avg_at_k, estimate, pass_at_k

Records = Sequence[Mapping[str, Any]]
_UNKNOWN = Estimate(math.nan, math.nan, math.nan)


class _Columns(NamedTuple):
    correct: np.ndarray  # bool [B]
    language: np.ndarray  # str [B]
    compliant: np.ndarray  # bool [B]
    abstain: np.ndarray  # bool [B]
    tokens: np.ndarray  # int [B]


def _columns(records: Records) -> _Columns:
    language, detected = (np.array([record[name] for record in records], str) for name in ("language", "detected"))
    tagged = language != ""
    return _Columns(
        correct=np.array([record["correct"] for record in records], bool),
        language=language,
        compliant=tagged & (language == detected),
        abstain=tagged & (detected == ""),
        tokens=np.array([record["thinking_tokens"] for record in records], int),
    )


def language_metrics(records: Records, num_problems: int, k: int, seed: int = 0) -> dict[str, float]:
    """The row of a setting in the table of settings; `seed` is of the bootstrap.

    `accuracy`, `pass@{k}`, `accuracy_compliant` (AccF), `accuracy_strict` (Acc*) and `compliance`, each also with _low and
    _high (95 % interval over problems), and the means `abstain` and `thinking_tokens`. Raises UserError where k is over the
    samples of a problem.
    """
    columns, G = _columns(records), len(records) // num_problems
    num_correct = columns.correct.reshape(num_problems, G).sum(1)
    estimates = {
        "accuracy": estimate(avg_at_k(num_correct, G), seed=seed),
        f"pass@{k}": estimate(pass_at_k(num_correct, G, k), seed=seed),
    }
    right, compliant = (x.reshape(num_problems, G).mean(1) for x in (columns.correct & columns.compliant, columns.compliant))
    has_languages = bool((columns.language != "").any())
    estimates["accuracy_compliant"] = ratio(right, compliant, seed)
    estimates["accuracy_strict"] = estimate(right, seed=seed) if has_languages else _UNKNOWN
    estimates["compliance"] = estimate(compliant, seed=seed) if has_languages else _UNKNOWN
    metrics = {}
    for name, found in estimates.items():
        metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"] = found
    metrics["abstain"] = float(columns.abstain.mean()) if has_languages else math.nan
    metrics["thinking_tokens"] = float(columns.tokens.mean())
    return metrics


def ratio(part: np.ndarray, whole: np.ndarray, seed: int = 0) -> Estimate:
    """Σ part / Σ whole of f64 [P], 0 ≤ part ≤ whole, with its interval over problems; NaN where whole is 0.

    The interval is that of the mean of the linearised values r + (part − r·whole) / mean(whole), whose mean is r. Source: the
    delta method, Cochran 1977, Sampling Techniques, 3rd ed., §6.4. It is rough where few problems have a whole.
    """
    mean = whole.mean()
    if not mean:
        return _UNKNOWN
    r = part.mean() / mean
    value, low, high = estimate(r + (part - r * whole) / mean, seed=seed)
    return Estimate(value, max(low, 0.0), min(high, 1.0))


def win_tie_lose(records: Records, english: Records, num_problems: int) -> tuple[float, float, float]:
    """The shares of problems that are solved more often, as often and less often than in English.

    Compared is the share of right samples of a problem, so the two may have different numbers of samples. Raises ValueError
    where the problems differ.
    """
    rates = []
    for side in (records, english):
        rates.append(_columns(side).correct.reshape(num_problems, -1).mean(1))
    ids = [[record["id"] for record in side[:: len(side) // num_problems]] for side in (records, english)]
    if ids[0] != ids[1]:
        raise ValueError("the records are not of the same problems in the same order")
    # Shares of samples are multiples of 1 / samples: further apart than rounding.
    tie = np.isclose(*rates, rtol=0, atol=1e-9)
    win = (rates[0] > rates[1]) & ~tie
    return float(win.mean()), float(tie.mean()), float((~win & ~tie).mean())


def by_language(records: Records) -> dict[str, dict[str, float]]:
    """For each language that a record has, by falling share: its share, accuracy, AccF, Acc*, compliance, abstain and tokens.

    Under "" are records without a language, whose compliance is 0.
    """
    columns = _columns(records)
    codes, counts = np.unique(columns.language, return_counts=True)
    found = {}
    for place in np.argsort(-counts, kind="stable"):
        code = str(codes[place])
        rows = columns.language == code
        correct, compliant = columns.correct[rows], columns.compliant[rows]
        found[code] = {
            "share": float(rows.mean()),
            "accuracy": float(correct.mean()),
            "accuracy_compliant": float(correct[compliant].mean()) if compliant.any() else math.nan,
            "accuracy_strict": float((correct & compliant).mean()),
            "compliance": float(compliant.mean()),
            "abstain": float(columns.abstain[rows].mean()),
            "thinking_tokens": float(columns.tokens[rows].mean()),
        }
    return found
