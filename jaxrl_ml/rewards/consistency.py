"""The reward of the Parallel Scaling Law (arXiv 2510.02272): accuracy, format, and thinking in the language that was asked for.

    r = w.accuracy · correct  +  w.format · closed  +  w.consistency · on_target

* *correct*: the answer reward's verdict on what follows the thinking. With unclosed="read" the verdict on thinking that is not
  closed is that on all of it, for models that were never taught the marks.
* *closed*: the completion thinks and ends its thinking.
* *on_target*: the detected language of the thinking is `Example.language`. Thinking in which no sentence is long enough to tell
  abstains: it is not on target, nor does it count as off target.

The paper names the three parts; their weights are ours. A completion may start with `<think>` or with a given text that stands
for it: any of the tags of `language`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxrl_ml.config import LanguageConfig
from jaxrl_ml.languages.detect import Backend, Detector
from jaxrl_ml.languages.thinking import CLOSE, from_answer, parse
from jaxrl_ml.rewards.language import answer_verdict, check_weights, weighted
from jaxrl_ml.types import Example, Reward, Scores, require


@dataclass(frozen=True)
class ConsistencyWeights:
    """What each part of the reward is worth."""

    accuracy: float = 1.0
    format: float = 0.1
    consistency: float = 0.2

    def __post_init__(self) -> None:
        check_weights(self)


@dataclass(frozen=True)
class ConsistencyReward:
    """Scores thinking in an asked language: `ConsistencyReward(MathsReward(), ("en", "de"))`.

    `answer` is any reward: its `correct`, `timeout` and `details` are used. `languages` are those that the detector chooses
    among: all that the policy knows, or an unlisted one is taken for one of these or for none.
    """

    answer: Reward
    languages: tuple[str, ...]
    weights: ConsistencyWeights = ConsistencyWeights()
    language: LanguageConfig = LanguageConfig()
    unclosed: Literal["wrong", "read"] = "wrong"
    backend: Backend = "py3langid"

    def __post_init__(self) -> None:
        require(self.unclosed in ("wrong", "read"), f"ConsistencyReward: unclosed={self.unclosed!r} must be 'wrong' or 'read'")
        Detector(self.languages, self.backend)  # refuses what it cannot use

    def __call__(self, texts: Sequence[str], examples: Sequence[Example]) -> Scores:
        """Scores B completions.

        `parts` are the weighted terms and add up to `rewards`. `details`, besides the answer reward's: `language/compliant`,
        `language/off_target`, `language/abstain` (each 0 or 1) and `language/switched` (share of the thinking that is not in
        its main language). Raises ValueError where the lengths differ, and UserError for an answer reward that does not return
        one verdict a text.
        """
        if len(texts) != len(examples):
            raise ValueError(f"{len(texts)} texts for {len(examples)} examples")
        read = parse(texts, self.language)
        closes = [CLOSE in text for text in texts]
        whole = self.unclosed == "read"
        answers = [c.answer if ends or not whole else c.thinking + c.answer for c, ends in zip(read, closes, strict=True)]
        verdict = answer_verdict(self, [from_answer(answer) for answer in answers], examples)
        found = Detector(self.languages, self.backend)([completion.thinking for completion in read])
        asked = np.array([example.language for example in examples])
        on_target, abstain = found.code == asked, found.letters == 0
        closed = np.array([ends and bool(c.thinking.strip()) for c, ends in zip(read, closes, strict=True)], bool)
        terms = {"accuracy": verdict.correct, "format": closed, "consistency": on_target & ~abstain}
        parts = weighted(self.weights, terms)
        details = {
            "compliant": terms["consistency"],
            "off_target": ~on_target & ~abstain,
            "abstain": abstain,
            "switched": found.switched,
        }
        return Scores(
            rewards=np.sum(list(parts.values()), axis=0),
            correct=verdict.correct,
            parts=parts,
            timeout=verdict.timeout,
            details={**verdict.details, **{f"language/{name}": value.astype(np.float32) for name, value in details.items()}},
            plain_rewards=verdict.plain_rewards,
        )
