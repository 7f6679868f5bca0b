"""ExpLang's reward: B completions and their examples in, Scores out. Source: arXiv 2602.21887 and its released code.

    r = w.format · tag  +  w.compliance · compliant  +  w.answer · correct  +  w.diversity · k_min / k  +  w.group_pass · passed

* *tag*: the completion starts with the tag of a language that its prompt allows. Any other completion earns the answer's term
  only, and no statistic counts it. (`languages/thinking.py` splits a completion into tag, thinking and answer part.)
* *compliant*: the detected language of the thinking is the tag's. Where the detector *abstains* (`languages/detect.py`: no
  sentence is long enough, or the text has no words of a language), the completion is not compliant, and is counted apart.
* *correct*: the answer reward's verdict on the answer part. An answer that only the thinking has does not count.
* *k_min / k*: k completions carry the tag of this completion's language; k_min is that number for the rarest language that
  any completion carries the tag of. All that carry a tag count, compliant or not, but only compliant ones earn the term.
* *passed*: some completion with the same tag is correct. Neither that one nor the one that earns the term need be compliant.

The last two terms are statistics of all completions of a step (scope `step`, as in the authors' code) or of those of one
problem (scope `prompt`). A call sees one chunk of one round of sampling on one process; `over_step` computes them again from
the whole step. That includes the rounds that resampling leaves out, as they show what the policy chooses, too. Over a large
step some completion of every language is correct: then *passed* is close to a constant, and teaches only to write a tag.

Departures from the paper and from the authors' code (theirs as read in November 2026), and choices:

1. Detector: theirs is lingua on the whole thinking, ours py3langid on sentences. `backend="lingua"` is theirs, except that it
   abstains from text without words.
2. k: the paper counts the completions in a language; the authors' code, and ours, those that carry its tag.
3. k_min: theirs is the smallest k over the languages with a compliant completion. Ours is over all languages that any
   completion carries the tag of: a language with no compliant completion can be the rarest.
4. Without a compliant completion in a step, their diversity term is NaN. Ours is 0, as for every completion that is not
   compliant.
5. Completions without a tag form a group of their own in their exploitation stage: if one of them is correct, all of them earn
   the pass term. Ours earn neither of the two statistical terms.
6. Format term: theirs is earned by any text in a tag, such as the code of a language that does not exist. Ours is earned by
   the tags of the languages that the prompt allows only.
7. Place of the tag: theirs counts anywhere in the text. Ours must be the text's very beginning.
8. The detector does not read formulas, code and markup, in which a policy could think unseen: watch `language/letters` against
   `language/thinking_chars`.
9. Where an answer reward gives points for less than a correct answer (Countdown's 0.1), these are left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxrl_ml.config import LanguageConfig
from jaxrl_ml.languages.detect import Backend, Detector
from jaxrl_ml.languages.tags import allowed_languages
from jaxrl_ml.languages.thinking import from_answer, parse
from jaxrl_ml.rewards.combined import as_scores
from jaxrl_ml.types import Example, Reward, Scores, require


def check_weights(weights: Any) -> None:
    """Raises UserError for a dataclass of weights of which one is negative or not finite."""
    for name, value in dataclasses.asdict(weights).items():
        require(math.isfinite(value) and value >= 0, f"{type(weights).__name__}: {name}={value} must be a number of at least 0")


@dataclass(frozen=True)
class Weights:
    """What each part of the reward is worth at most: λf, λc, λv, λd and λp of the paper."""

    format: float = 0.2
    compliance: float = 0.2
    answer: float = 1.0
    diversity: float = 0.0
    group_pass: float = 0.0

    def __post_init__(self) -> None:
        check_weights(self)


EXPLORATION = Weights(diversity=0.2)
"""The paper's first quarter of the steps, without KL."""
EXPLOITATION = Weights(group_pass=0.5)
"""The rest of them, with KL (k3, 0.001)."""
EXPLOITATION_RELEASED = Weights(answer=0.5, group_pass=0.5)
"""The same in the authors' code."""


@dataclass(frozen=True)
class ExpLangReward:
    """Scores completions that choose the language they think in: `ExpLangReward(language, MathsReward(), EXPLORATION)`.

    `language` is the stage's; the detector chooses among its languages, so a forced evaluation in one language had better be
    judged with all that the policy knows. `answer` is any reward: its `correct`, `timeout` and `details` are used. Nothing is
    loaded before the first call. Raises UserError for settings that make no sense.
    """

    language: LanguageConfig
    answer: Reward
    weights: Weights
    scope: Literal["step", "prompt"] = "step"
    backend: Backend = "py3langid"

    def __post_init__(self) -> None:
        require(
            self.language.mode != "off",
            "ExpLangReward: language.mode=off has no tags to reward; give it the stage's language, or use the answer's reward",
        )
        require(self.scope in ("step", "prompt"), f"ExpLangReward: scope={self.scope!r} must be 'step' or 'prompt'")
        require(
            self.backend != "lingua" or len(self.language.languages) > 1,
            f"ExpLangReward: backend='lingua' finds any text to be in the only language {self.language.languages[0]!r}; "
            "give all the languages of the policy, or use 'py3langid'",
        )
        self._detector()  # refuses an unknown backend

    def __call__(self, texts: Sequence[str], examples: Sequence[Example]) -> Scores:
        """Scores B completions.

        `parts` are the five weighted terms and add up to `rewards`; `language_rewards` are compliance, diversity and
        group_pass; `correct` and `timeout` are the answer reward's. `details`, besides the answer reward's:
        `language/tagged`, `language/compliant`, `language/abstain` (each 0 or 1), `language/switched` (share of the thinking
        that is not in its main language), `language/letters` (of the thinking, that were judged) and `language/thinking_chars`;
        all but the last are 0 without a tag. Raises ValueError where the lengths differ, and UserError for an example that
        allows an unknown language, for an answer reward that does not return one verdict a text, and for a language that the
        detector does not know.
        """
        if len(texts) != len(examples):
            raise ValueError(f"{len(texts)} texts for {len(examples)} examples")
        completions = parse(texts, self.language)
        places = {code: place for place, code in enumerate(self.language.languages)}
        chosen = np.array([places.get(completion.code, -1) for completion in completions], np.int64)
        allowed = allowed_languages(self.language, examples)
        tagged = (chosen >= 0) & allowed[np.arange(len(texts)), chosen]

        verdict = answer_verdict(self, [from_answer(completion.answer) for completion in completions], examples)
        thinking = [c.thinking if is_tagged else "" for c, is_tagged in zip(completions, tagged, strict=True)]
        detected = self._detector()(thinking)
        compliant = detected.code == np.array(self.language.languages)[chosen]  # nothing is detected where there is no tag
        group = self._groups(examples)
        chosen = np.where(tagged, chosen, -1).astype(np.int32)
        count, passed = language_counts(chosen, group, verdict.correct, len(places))
        terms = {"format": tagged, "compliance": compliant, "answer": verdict.correct}
        parts = weighted(self.weights, terms) | self._batch_parts(chosen, group, compliant, count, passed)
        details = {
            "tagged": tagged,
            "compliant": compliant,
            "abstain": tagged & (detected.letters == 0),
            "switched": detected.switched,
            "letters": detected.letters,
            "thinking_chars": np.array([len(completion.thinking) for completion in completions]),
        }
        return Scores(
            **_totals(parts),
            correct=verdict.correct,
            timeout=verdict.timeout,
            details={**verdict.details, **{f"language/{name}": value.astype(np.float32) for name, value in details.items()}},
            languages=chosen,
            plain_rewards=verdict.plain_rewards,
        )

    def over_step(self, scores: Scores) -> Scores:
        """The scores with diversity and group pass taken from all rows of the step (`types.StepReward`)."""
        if self.scope == "prompt":
            return scores
        chosen, group = scores.languages, np.zeros(len(scores.rewards), np.int64)
        count, passed = language_counts(chosen, group, scores.correct, len(self.language.languages))
        compliant = scores.details["language/compliant"] > 0
        parts = {**scores.parts, **self._batch_parts(chosen, group, compliant, count, passed)}
        return dataclasses.replace(scores, **_totals(parts))

    def _batch_parts(
        self, chosen: np.ndarray, group: np.ndarray, compliant: np.ndarray, count: np.ndarray, passed: np.ndarray
    ) -> dict[str, np.ndarray]:
        diversity, group_pass = batch_terms(chosen, group, compliant, count, passed)
        return weighted(self.weights, {"diversity": diversity, "group_pass": group_pass})

    def _groups(self, examples: Sequence[Example]) -> np.ndarray:
        """The number of the statistics that each row counts in, int [B]: those of its problem, or of all rows."""
        if self.scope == "step":
            return np.zeros(len(examples), np.int64)
        numbers: dict[tuple[str, str], int] = {}
        return np.array([numbers.setdefault((example.task, example.id), len(numbers)) for example in examples], np.int64)

    def _detector(self) -> Detector:
        return Detector(self.language.languages, self.backend)


def answer_verdict(owner: Any, texts: Sequence[str], examples: Sequence[Example]) -> Scores:
    """The scores of answers by the reward `owner.answer`; raises UserError where it does not return one verdict a text."""
    verdict = owner.answer(texts, examples)
    name = type(owner).__name__
    shape = np.shape(verdict.correct if isinstance(verdict, Scores) else verdict)
    require(
        shape == (len(texts),),
        f"{name}: its answer reward returned verdicts of shape {shape} for {len(texts)} texts; return one verdict per text",
    )
    return verdict if isinstance(verdict, Scores) else as_scores(verdict, len(texts), f"the answer reward of {name}")


def weighted(weights: Any, terms: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Terms [B] as parts f32 [B], each times the field of its name in a dataclass of weights."""
    return {name: np.float32(getattr(weights, name)) * term.astype(np.float32) for name, term in terms.items()}


def _totals(parts: dict[str, np.ndarray]) -> dict[str, Any]:
    """The fields of Scores that the parts add up to."""
    language = parts["compliance"] + parts["diversity"] + parts["group_pass"]
    return {"rewards": np.sum(list(parts.values()), axis=0), "parts": parts, "language_rewards": language}


def language_counts(
    chosen: np.ndarray, group: np.ndarray, correct: np.ndarray, num_languages: int
) -> tuple[np.ndarray, np.ndarray]:
    """How many rows of each group chose each language, int [groups, languages], and whether one of them is correct, bool.

    chosen int [B]: the language, or −1; group int [B]: from 0; correct: bool [B].
    """
    rows = np.flatnonzero(chosen >= 0)
    cell = group[rows], chosen[rows]
    shape = group.max(initial=0) + 1, num_languages
    count, passed = np.zeros(shape, np.int64), np.zeros(shape, bool)
    np.add.at(count, cell, 1)
    np.logical_or.at(passed, cell, correct[rows])
    return count, passed


def batch_terms(
    chosen: np.ndarray, group: np.ndarray, compliant: np.ndarray, count: np.ndarray, passed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The unweighted diversity f32 [B] and group pass bool [B] of B rows, from their groups' `language_counts`."""
    diversity, group_pass = np.zeros(len(chosen), np.float32), np.zeros(len(chosen), bool)
    rows = np.flatnonzero(chosen >= 0)
    cell = group[rows], chosen[rows]
    rarest = np.where(count > 0, count, np.iinfo(np.int64).max).min(1)
    diversity[rows] = compliant[rows] * rarest[group[rows]] / count[cell]
    group_pass[rows] = passed[cell]
    return diversity, group_pass
