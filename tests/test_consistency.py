"""The reward for thinking in the asked language, on completions worked by hand and on hostile ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxrl_ml.config import LanguageConfig
from jaxrl_ml.rewards.consistency import ConsistencyReward, ConsistencyWeights
from jaxrl_ml.types import Example, UserError

EN = "First we add the two numbers together, and then we subtract the smallest one from the result."
DE = "Zuerst addieren wir die beiden Zahlen, und danach ziehen wir die kleinste vom Ergebnis ab."


def is_five(texts, examples):
    return np.array([text.strip() == "5" for text in texts], np.float32)


REWARD = ConsistencyReward(is_five, ("en", "de", "zh"))
ASKED = {code: Example(f"{code}-1", f"t/{code}", language=code) for code in ("en", "de")}


@pytest.mark.parametrize(
    ("text", "language", "accuracy", "closed", "consistent", "off", "abstain"),
    [
        (f"<think>\n{DE}\n</think>\n5", "de", 1, 1, 1, 0, 0),
        (f"<think>\n{EN}\n</think>\n5", "de", 1, 1, 0, 1, 0),
        (f"<think>\n{DE}\n</think>\n6", "de", 0, 1, 1, 0, 0),
        (f"{DE}</think>5", "de", 1, 1, 1, 0, 0),
        (f"<think>{EN}", "en", 0, 0, 1, 0, 0),
        ("<think>1 + 2</think>5", "en", 1, 1, 0, 0, 1),
        ("<think></think>5", "en", 1, 0, 0, 0, 1),
        ("5", "en", 1, 0, 0, 0, 1),
        ("", "en", 0, 0, 0, 0, 1),
        (f"<think>{EN}</think>5</think>", "en", 0, 1, 1, 0, 0),
        ("<think>" + "9" * 100_000, "en", 0, 0, 0, 0, 1),
        (f"<think>{'enum > ' * 200}</think>5", "en", 1, 1, 0, 0, 1),
        (f"<think>{'Wert ' * 200}</think>5", "de", 1, 1, 0, 0, 1),
    ],
)
def test_parts_by_hand(text, language, accuracy, closed, consistent, off, abstain) -> None:
    scores = REWARD([text], [ASKED[language]])
    assert scores.rewards[0] == pytest.approx(accuracy + 0.1 * closed + 0.2 * consistent)
    found = tuple(scores.details[f"language/{name}"][0] for name in ("compliant", "off_target", "abstain"))
    assert found == (consistent, off, abstain)
    assert scores.correct[0] == accuracy


def test_parts_add_up_and_weights_scale_them() -> None:
    texts, examples = [f"<think>{DE}</think>5", f"<think>{EN}</think>5"], [ASKED["de"], ASKED["de"]]
    weights = ConsistencyWeights(2, 0.5, 3)
    scores = dataclasses.replace(REWARD, weights=weights)(texts, examples)
    np.testing.assert_allclose(scores.rewards, sum(scores.parts.values()))
    np.testing.assert_allclose(scores.rewards, [5.5, 2.5])


def test_a_given_opening_stands_for_the_mark() -> None:
    language = LanguageConfig("forced", ("de",), ("<think>Zuerst",))
    text = "<think>Zuerst" + DE.removeprefix("Zuerst") + "</think>5"
    assert dataclasses.replace(REWARD, language=language)([text], [ASKED["de"]]).rewards[0] == pytest.approx(1.3)


@pytest.mark.parametrize(
    ("text", "wrong", "read"), [("<think>5", 0, 1), ("5", 1, 1), ("<think>4</think>5", 1, 1), ("<think>5</think>4", 0, 0)]
)
def test_thinking_without_end_has_no_answer_unless_it_is_to_be_read(text: str, wrong: int, read: int) -> None:
    for unclosed, correct in (("wrong", wrong), ("read", read)):
        assert dataclasses.replace(REWARD, unclosed=unclosed)([text], [ASKED["en"]]).correct[0] == correct


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="accuracy=-1"):
        ConsistencyWeights(accuracy=-1)
    with pytest.raises(UserError, match="languages="):
        ConsistencyReward(is_five, ())
    with pytest.raises(UserError, match="unclosed='right'"):
        ConsistencyReward(is_five, ("en",), unclosed="right")
    with pytest.raises(UserError, match=r"ConsistencyReward: its answer reward returned verdicts of shape \(1,\) for 2 texts"):
        ConsistencyReward(lambda texts, examples: np.ones(1), ("en",))(["", ""], [ASKED["en"]] * 2)
    with pytest.raises(ValueError, match="1 texts for 2 examples"):
        REWARD([""], [ASKED["de"], ASKED["en"]])
