r"""The maths reward: B completions and their examples in, Scores out.

The answer is read from the answer part of a completion alone, never from its thinking (`languages/thinking.py`). `answers.py`
extracts it and compares it, exactly and within this process where it is a number or a choice. Every other pair goes, each
distinct one once, to a pool of math-verify processes (`verifier.py`). The reward is 1.0 for a right answer. It is 0.0 for a
wrong one, for none, and for one whose check was given up at its deadline, which is also counted as a time-out.

    reward = MathsReward(deadline_s=3.0)                                   # in a config file; starts nothing
    scores = reward(["so it is \\boxed{\\frac{1}{2}}"], [Example("1", "maths", answer="0.5")])
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxrl_ml.languages.thinking import answer_parts
from jaxrl_ml.rewards import answers, verifier
from jaxrl_ml.types import Example, Scores, UserError


@dataclass(frozen=True)
class MathsReward:
    r"""Scores maths answers against `example.answer`, a str (LaTeX, without box) or an int.

    `answer`: "boxed" takes the last `\boxed{...}` or `<answer>...</answer>`; "last_number" takes the last number of a text
    that has neither, for base models. `deadline_s`: seconds of wall time for an answer that needs algebra. `verdicts`: path of
    a JSONL file to which verdicts of the pool are written and from which they are read back; one for each training process.

    Equal rewards share their pool, which is started when first needed. Raises UserError for settings that make no sense.
    """

    num_workers: int = 2
    deadline_s: float = 3.0
    answer: Literal["boxed", "last_number"] = "boxed"
    verdicts: str | None = None

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise UserError(f"MathsReward: num_workers={self.num_workers} must be at least 1")
        if not 0 < self.deadline_s < float("inf"):
            raise UserError(f"MathsReward: deadline_s={self.deadline_s} must be a positive number of seconds")
        if self.answer not in ("boxed", "last_number"):
            raise UserError(f"MathsReward: answer={self.answer!r} must be 'boxed' or 'last_number'")

    def __call__(self, texts: Sequence[str], examples: Sequence[Example]) -> Scores:
        """Scores B completions.

        `details`: `answered` (1.0 where there is an answer), `verifier/pooled` (1.0 where the pool's verdict decided, now or
        earlier) and `verifier/time_ms` (the batch's wall time, shared out evenly). Raises UserError for an example without a
        gold answer and where the pool cannot be started, ValueError where the lengths differ.
        """
        start = time.perf_counter()
        examples = list(examples)  # a task makes them anew each time, and identities of what is gone are used again
        golds = {id(example): _gold(example) for example in examples}
        extracted = [answers.extract(text, self.answer) for text in answer_parts(texts)]
        asked = [(golds[id(example)], answer or "") for example, answer in zip(examples, extracted, strict=True)]
        judged = {pair: answers.judge(*pair) for pair in dict.fromkeys(asked)}
        hard = list(dict.fromkeys(verdict for verdict in judged.values() if not isinstance(verdict, bool)))
        verified = dict(zip(hard, self._verifier()(hard), strict=True)) if hard else {}
        # Of each pair: is it correct, was it given up, did it go to the pool.
        outcome = {
            pair: (verdict, False, False) if isinstance(verdict, bool) else (*verified[verdict], True)
            for pair, verdict in judged.items()
        }
        correct, timeout, pooled = np.array([outcome[pair] for pair in asked], bool).reshape(-1, 3).T
        rewards = correct.astype(np.float32)
        elapsed_ms = (time.perf_counter() - start) * 1e3
        return Scores(
            rewards=rewards,
            correct=correct,
            parts={"correct": rewards},
            timeout=timeout,
            details={
                "answered": np.array([bool(answer) for answer in extracted], np.float32),
                "verifier/pooled": pooled.astype(np.float32),
                "verifier/time_ms": np.full(len(texts), elapsed_ms / max(len(texts), 1), np.float32),
            },
        )

    def close(self) -> None:
        """Ends the pool's processes; the next call that needs them starts them again."""
        self._verifier().close()

    def __enter__(self) -> MathsReward:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _verifier(self) -> verifier.Verifier:
        return verifier.shared(self.num_workers, self.deadline_s, self.verdicts)


def _gold(example: Example) -> str:
    """The gold answer as text. Raises UserError where there is none."""
    answer = example.answer
    if isinstance(answer, (int, np.integer)) and not isinstance(answer, bool):
        return str(int(answer))
    if isinstance(answer, str) and answer.strip() and len(answer) <= answers.MAX_ANSWER_CHARS:
        return answer
    raise UserError(
        f"MathsReward: example {example.id!r} has answer={answer!r:.80}; "
        f"give a text of 1 to {answers.MAX_ANSWER_CHARS} characters or a whole number"
    )
