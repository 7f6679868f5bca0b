from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from test_rewards_agreement import math_verify_alone

from jaxrl_ml import cli, data
from jaxrl_ml.rewards import verifier
from jaxrl_ml.rewards.maths import MathsReward
from jaxrl_ml.tasks.parallel import InLanguage
from jaxrl_ml.types import Example, UserError

ROOT = Path(__file__).resolve().parent.parent

# Gold answers and what models write for them, right and wrong: gold ¦ answer ¦ answer …
TABLE = r"""
# integers
42 ¦ 42 ¦ 42.0 ¦ 042 ¦ +42 ¦ 42 ¦ 43 ¦ -42 ¦ 4.2 ¦ 42.0000001 ¦ 42. ¦  ¦ forty-two ¦ 6 \cdot 7 ¦ 6*7
-7 ¦ -7 ¦ - 7 ¦ −7 ¦ 7 ¦ --7 ¦ -7.00 ¦ -\frac{14}{2} ¦ +-7 ¦ (-7)
0 ¦ 0 ¦ -0 ¦ 0.0 ¦ 0\% ¦ \frac{0}{5} ¦ 1-1 ¦  ¦ nan ¦ \infty ¦ 1/0 ¦ \emptyset
1000 ¦ 1,000 ¦ 1{,}000 ¦ 1\,000 ¦ 1 000 ¦ 1.000 ¦ 1,00 ¦ 10^3 ¦ 1000.00 ¦ 1'000 ¦ 1e3
1,234,567 ¦ 1234567 ¦ 1,234,567 ¦ 1 234 567 ¦ 1.234.567 ¦ 12,34,567 ¦ 1,234567 ¦ 1234567.0 ¦ 1234568
123456789012345678901234567890 ¦ 123456789012345678901234567890 ¦ 123456789012345678901234567891
2 ¦ \sqrt{4} ¦ 4/2 ¦ \frac{4}{2} ¦ 2=2 ¦ 1+1 ¦ \log_{2} 4 ¦ 2x ¦ 2! ¦ 8^{1/3} ¦ |{-2}| ¦ 3,3 ¦ \boxed{2}
# decimals
3.5 ¦ 3.5 ¦ 3.50 ¦ 7/2 ¦ \frac{7}{2} ¦ \dfrac72 ¦ 3\frac{1}{2} ¦ 3 1/2 ¦ 3,5 ¦ 3,500 ¦ 35 ¦ 3.51 ¦ 3.5.
0.5 ¦ .5 ¦ 0.50 ¦ 1/2 ¦ \frac12 ¦ 0,5 ¦ 50\% ¦ -0.5 ¦ 5 ¦ 2^{-1}
0.333 ¦ 1/3 ¦ 0.333 ¦ 0.3330 ¦ 0.33 ¦ 0.333333
3.14159265 ¦ \pi ¦ 3.14159265 ¦ 3.141593 ¦ 22/7
1,234.5 ¦ 1234.5 ¦ 1,234.50 ¦ 1 234.5 ¦ 1.234,5 ¦ 1234,5 ¦ 12345
# fractions
\frac{3}{4} ¦ 3/4 ¦ 0.75 ¦ \frac{6}{8} ¦ \dfrac{3}{4} ¦ \tfrac34 ¦ 75\% ¦ \frac{4}{3} ¦ 3:4 ¦ -\frac{-3}{4}
1/3 ¦ \frac{1}{3} ¦ 0.333333 ¦ 0.3333333333 ¦ 0.3333 ¦ 0.33 ¦ 0,333333 ¦ 2/6 ¦ \frac13 ¦ 3^{-1} ¦ 33.3333\%
-\frac{1}{2} ¦ \frac{-1}{2} ¦ \frac{1}{-2} ¦ -0.5 ¦ -1/2 ¦ 0.5 ¦ -.5 ¦ -\frac12 ¦ -50\%
\frac{3}{2} ¦ 1\frac{1}{2} ¦ 1 1/2 ¦ 1.5 ¦ 1\frac12 ¦ 3/2 ¦ 1 \frac{1}{2} ¦ \frac{\frac{3}{1}}{2} ¦ 11/2
\frac{x+1}{2} ¦ \frac{1+x}{2} ¦ (x+1)/2 ¦ \frac{x}{2}+\frac12 ¦ 0.5x+0.5 ¦ \frac{x+2}{2}
# percents
50\% ¦ 50 ¦ 50\% ¦ 50% ¦ 50 % ¦ 0.5 ¦ 1/2 ¦ \frac{1}{2} ¦ 5\% ¦ 50.0 ¦ 50 percent ¦ 50\text{ percent}
12.5\% ¦ 12.5\% ¦ 12.5 ¦ 0.125 ¦ 1/8 ¦ 12,5\% ¦ 12.50\% ¦ 12\%
20 ¦ 20\% ¦ 20% ¦ 0.2 ¦ 1/5 ¦ 20.0\% ¦ 2000\%
-50\% ¦ -50\% ¦ -50 ¦ -0.5 ¦ 50\% ¦ -50%
57 ¦ 5700\% ¦ 5700.0\% ¦ 57\%
# roots, powers, pi, logarithms
\sqrt{2} ¦ \sqrt2 ¦ 2^{1/2} ¦ \frac{2}{\sqrt{2}} ¦ 1.41421356 ¦ 1.41 ¦ sqrt(2) ¦ √2 ¦ -\sqrt{2} ¦ \sqrt{3}
2\sqrt{3} ¦ \sqrt{12} ¦ 2 \sqrt 3 ¦ 2√3 ¦ 3\sqrt{2} ¦ \sqrt[3]{12} ¦ 2\cdot\sqrt{3} ¦ 2*sqrt(3)
\pi ¦ \pi ¦ π ¦ 3.14159265 ¦ 3.14 ¦ 180^\circ ¦ pi ¦ 2\pi/2
\frac{\pi}{4} ¦ \pi/4 ¦ 0.25\pi ¦ \frac{1}{4}\pi ¦ \arctan(1) ¦ 45 ¦ \frac{\pi}{2}
2^{10} ¦ 2¹⁰ ¦ 2¹¹ ¦ 1024 ¦ 2^10 ¦ 32^2 ¦ 1000 ¦ 4^5
\ln 2 ¦ \log 2 ¦ \ln(2) ¦ 0.693147 ¦ \frac{\ln 4}{2} ¦ \ln 3
e^2 ¦ e^{2} ¦ 7.389056 ¦ \exp(2) ¦ 2e
# polynomials, functions, equations
x^2-1 ¦ (x-1)(x+1) ¦ -1+x^2 ¦ x^2 - 1 ¦ x²-1 ¦ x^2+1 ¦ y^2-1 ¦ x^{2}-1
x=3 ¦ 3 ¦ x=3 ¦ x = 3 ¦ y=3 ¦ 3=x ¦ x=4 ¦ x = 3.0
3 ¦ x=3 ¦ n = 3 ¦ x=y=3 ¦ f(2)=3 ¦ x>3 ¦ x=3,y=4 ¦ x=-3 ¦ x\approx 3 ¦ three ¦ 3, 3
y=2x+1 ¦ y=2x+1 ¦ 2x+1 ¦ y = 1+2x ¦ y-2x=1 ¦ 2x-y+1=0 ¦ y=2x-1
\sin x ¦ \sin(x) ¦ \sin{x} ¦ \cos(x-\frac{\pi}{2}) ¦ \cos x ¦ sin x
# inequalities and intervals
x<2 ¦ x<2 ¦ 2>x ¦ x \lt 2 ¦ x\le 2 ¦ (-\infty,2) ¦ x>2
1\le x<5 ¦ [1,5) ¦ 1 \leq x < 5 ¦ 1≤x<5 ¦ 5>x\ge 1 ¦ (1,5) ¦ 1\le x\le 5
[1,5) ¦ [1,5) ¦ [1, 5) ¦ (1,5) ¦ [1,5] ¦ 1\le x<5 ¦ \left[1,5\right) ¦ [1,6) ¦ [1.0,5.0) ¦ [1; 5) ¦ [1,0;5,0) ¦ [1;5]
(-\infty,0] ¦ (-\infty, 0] ¦ (-∞,0] ¦ x\le 0 ¦ (-\infty,0) ¦ \left(-\infty,0\right]
(0,1)\cup(2,3) ¦ (0,1) \cup (2,3) ¦ (2,3)\cup(0,1) ¦ (0,1) ¦ (0,3)
# tuples, lists, sets, matrices
(1,2) ¦ (1,2) ¦ (1, 2) ¦ (2,1) ¦ 1,2 ¦ [1,2] ¦ \left(1,2\right) ¦ (1.0,2) ¦ (1,2,3) ¦ \{1,2\}
3,5 ¦ 3,5 ¦ 5,3 ¦ 3, 5 ¦ 3 and 5 ¦ 3.5 ¦ 3;5 ¦ \{3,5\} ¦ 3\text{ and }5 ¦ 3\text{ or }5 ¦ 3,6 ¦ 3,5,5
\{1,2,3\} ¦ \{1,2,3\} ¦ \{3,2,1\} ¦ 1,2,3 ¦ {1,2,3} ¦ \{1,2\} ¦ \left\{1,2,3\right\} ¦ (1,2,3)
(\frac12,\sqrt{2}) ¦ (0.5,\sqrt2) ¦ (\frac{1}{2}, \sqrt{2}) ¦ (\sqrt2,0.5) ¦ (0.5,1.41421356)
\begin{pmatrix}1\\2\end{pmatrix} ¦ \begin{pmatrix} 1 \\ 2 \end{pmatrix} ¦ \begin{bmatrix}1\\2\end{bmatrix}
\begin{pmatrix}1\\2\end{pmatrix} ¦ \begin{pmatrix}2\\1\end{pmatrix} ¦ (1,2)
\begin{pmatrix}1&0\\0&1\end{pmatrix} ¦ \begin{pmatrix}1&0\\0&1\end{pmatrix} ¦ 1 ¦ \begin{pmatrix}0&1\\1&0\end{pmatrix}
# complex numbers
1+2i ¦ 1+2i ¦ 2i+1 ¦ 1 + 2 i ¦ 1-2i ¦ 3i ¦ 3
# units, money, degrees
12 ¦ 12 cm ¦ 12cm ¦ 12\text{ cm} ¦ 12\,\mathrm{cm} ¦ 12 \text{ km/h} ¦ 12 km/h ¦ 12 cm^2 ¦ 12\text{ cm}^2 ¦ 12 m ¦ 12 hours
12 ¦ 12 dollars ¦ $12 ¦ \$12 ¦ \$12.00 ¦ €12 ¦ 12 € ¦ 12 euros ¦ 12^\circ ¦ 12° ¦ 12 degrees ¦ 12\text{ apples} ¦ 12x ¦ 13 cm
12 ¦ 12~cm ¦ 12 \text{ Stunden} ¦ -\$12 ¦ 12 million
90^\circ ¦ 90 ¦ 90^\circ ¦ 90^{\circ} ¦ 90° ¦ 90 degrees ¦ \frac{\pi}{2} ¦ 91
15\text{ km} ¦ 15 ¦ 15\text{ km} ¦ 15 km ¦ 15\text{ m} ¦ 16\text{ km} ¦ 15.0
-3 ¦ -3 ¦ -\$3 ¦ \$-3 ¦ -3\text{ m} ¦ -3^\circ ¦ 3
# choices
A ¦ A ¦ a ¦ (A) ¦ \text{A} ¦ \textbf{(A)} ¦ \mathrm{A} ¦ A. ¦ B ¦ (B) ¦ 1 ¦ A, B ¦ A and B ¦ \boxed{A}
C ¦ C ¦ (C) ¦ \text{(C)} ¦ D ¦ \text{(C) }5 ¦ C) 5 ¦ C: 5 ¦  ¦ E ¦ c ¦ x=C
\text{(D)} ¦ D ¦ (D) ¦ \text{D} ¦ C ¦ \text{(D)}
# words
\text{yes} ¦ yes ¦ \text{yes} ¦ \text{Yes} ¦ no ¦ \text{no}
\text{Monday} ¦ Monday ¦ \text{Monday} ¦ Tuesday ¦ \text{monday}
# LaTeX noise
5 ¦ $5$ ¦ \(5\) ¦ \displaystyle 5 ¦ {5} ¦ \text{5} ¦ \mathbf{5} ¦ \!5 ¦ 5\, ¦ \ 5 ¦ \left(5\right) ¦ (5) ¦ **5** ¦ 5 \%
5 ¦ 5\text{ or }6 ¦ 6 or 5 ¦ 5, 6 ¦ \{5\} ¦ 5.000001 ¦ 5.0000001 ¦ 5} ¦ {5 ¦ \frac{5}{0}
# other scripts and separators
3.5 ¦ ٣٫٥ ¦ ３．５ ¦ ३.५ ¦ ๓.๕ ¦ 3．5 ¦ 3½ ¦ ３，５
1234 ¦ ١٢٣٤ ¦ १२३४ ¦ ১,২৩৪ ¦ １，２３４ ¦ 1.234 ¦ 1 234 ¦ 1٬234 ¦ ౧౨౩౪
\infty ¦ ∞ ¦ +\infty ¦ -\infty ¦ \infty
6 ¦ 2·3 ¦ 2×3 ¦ 2 \times 3 ¦ 12÷2 ¦ ２×３
"""
ROWS = [line.split("¦") for line in TABLE.splitlines() if "¦" in line]
PAIRS = [(gold.strip(" "), answer.strip(" ")) for gold, *answers in ROWS for answer in answers]

UNITS = "two units that mean different things, which math-verify drops"

# Where our verdict is not math-verify's. Ours is "right" in every one but the last. The reasons, one a line:
DEPARTURES = {
    "digits and punctuation of another script, which math-verify cannot parse": [
        ("3.5", "٣٫٥"), ("3.5", "３．５"), ("3.5", "३.५"), ("3.5", "๓.๕"), ("3.5", "3．5"), ("3.5", "３，５"),
        ("1234", "١٢٣٤"), ("1234", "१२३४"), ("1234", "১,২৩৪"), ("1234", "１，２３４"), ("1234", "1٬234"), ("1234", "౧౨౩౪"),
        ("6", "２×３"),
    ],
    "a symbol that has a LaTeX name": [
        ("\\sqrt{2}", "√2"), ("2\\sqrt{3}", "2√3"), ("x^2-1", "x²-1"), ("(-\\infty,0]", "(-∞,0]"), ("\\infty", "∞"),
        ("12", "12°"), ("90^\\circ", "90°"), ("3.5", "3½"), ("6", "2·3"), ("2^{10}", "2¹⁰"),
    ],
    "a decimal comma against one number, which math-verify takes for a list or for thousands": [
        ("3.5", "3,5"), ("3.5", "3,500"), ("0.5", "0,5"), ("1/3", "0,333333"), ("1,234.5", "1234,5"), ("12.5\\%", "12,5\\%"),
        ("3,5", "3.5"),
    ],
    "thousands set off as outside the USA, which math-verify takes for a product, a list or a decimal": [
        ("1000", "1\\,000"), ("1000", "1 000"), ("1000", "1.000"), ("1,234,567", "1 234 567"), ("1,234,567", "1.234.567"),
        ("1,234,567", "12,34,567"), ("1,234.5", "1 234.5"), ("1,234.5", "1.234,5"), ("1234", "1.234"), ("1234", "1\u202f234"),
    ],
    "a mixed number with a slash, of which math-verify reads the whole part only": [
        ("3.5", "3 1/2"), ("\\frac{3}{2}", "1 1/2"),
    ],
    "a semicolon in an interval, where a comma is the decimal sign": [("[1,5)", "[1; 5)"), ("[1,5)", "[1,0;5,0)")],
    "the text of a choice beside its letter": [("C", "\\text{(C) }5"), ("C", "C) 5"), ("C", "C: 5")],
    "a full stop or bold marks around the answer, which math-verify cannot parse": [
        ("42", "42."), ("3.5", "3.5."), ("A", "A."), ("5", "**5**"),
    ],
    "a unit or currency that math-verify takes for a product of letters or cannot parse": [
        ("12", "12 km/h"), ("12", "12 cm^2"), ("12", "12 dollars"), ("12", "€12"), ("12", "12 €"), ("12", "12 euros"),
        ("12", "12~cm"),
    ],
    "math-verify forgives a missing percent sign for 50% but not for -50%": [("-50\\%", "-50")],
    "math-verify's floats round before it compares": [("57", "5700.0\\%")],
    "a percentage with a decimal point, whose sign is missing": [("50\\%", "50.0"), ("12.5\\%", "12.5")],
    "a number with an exponent, which math-verify takes for a product with Euler's number": [("1000", "1e3")],
    "an inequality turned round, or beside its interval": [
        ("1\\le x<5", "5>x\\ge 1"), ("[1,5)", "1\\le x<5"), ("(-\\infty,0]", "x\\le 0"),
    ],
    "a function without its backslash": [("\\sin x", "sin x")],
    "math-verify takes an i that stands apart for another i": [("1+2i", "1 + 2 i")],
    UNITS: [("15\\text{ km}", "15\\text{ m}")],
}  # fmt: skip


def example(answer: object, name: str = "0") -> Example:
    return Example(name, "maths", answer=answer)


@pytest.fixture(scope="module")
def reward():
    with MathsReward(deadline_s=20.0) as made:
        yield made


def test_agrees_with_math_verify_alone(reward):
    """The verdicts differ on the listed pairs and nowhere else."""
    assert len(set(PAIRS)) >= 300
    scores = reward([f"\\boxed{{{answer}}}" for _, answer in PAIRS], [example(gold) for gold, _ in PAIRS])
    ours = dict(zip(PAIRS, scores.correct.tolist(), strict=True))
    departures = [pair for pairs in DEPARTURES.values() for pair in pairs]
    assert {pair for pair in PAIRS if ours[pair] != math_verify_alone(*pair)} == set(departures)
    assert {pair for pair in departures if not ours[pair]} == set(DEPARTURES[UNITS])
    assert not scores.timeout.any()
    assert scores.details["verifier/pooled"].mean() < 0.6


def test_scores_of_a_batch(reward):
    texts = ["\\boxed{\\frac12}", "none", "\\boxed{x+1}", "\\boxed{}", "so \\boxed{1} no <answer>0.50</answer>", "\\boxed{x+1}"]
    golds = ["0.5", "0.5", "1+x", "1", "1/2", "x+2"]
    scores = reward(texts, [example(gold) for gold in golds])
    assert scores.rewards.tolist() == [1, 0, 1, 0, 1, 0] and scores.rewards.dtype == np.float32
    assert scores.correct.tolist() == [True, False, True, False, True, False]
    assert scores.timeout.tolist() == [False] * 6
    assert scores.details["answered"].tolist() == [1, 0, 1, 0, 1, 1]
    assert scores.details["verifier/pooled"].tolist() == [0, 0, 1, 0, 0, 1]
    assert (scores.details["verifier/time_ms"] > 0).all() and np.ptp(scores.details["verifier/time_ms"]) == 0
    assert scores.parts.keys() == {"correct"} and (scores.parts["correct"] == scores.rewards).all()


def test_examples_that_are_made_anew_each_time_are_not_mixed_up(reward):
    task = InLanguage([example(str(number), str(number)) for number in range(100)], "en")
    texts = [f"\\boxed{{{number}}}" for number in range(100)]
    assert reward(texts, task).correct.all() and not reward(texts[::-1], task).correct.any()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>maybe \\boxed{5}, no.</think> It is 6.", False),
        ("<think>maybe \\boxed{5}", False),
        ("maybe \\boxed{5}</think> It is 6.", False),
        ("<think>\\boxed{6}</think> \\boxed{5}", True),
        ("\\boxed{6}</think> \\boxed{5}", True),
        ("<think>6</think> \\boxed{6} <think>\\boxed{5}", False),
        ("\\boxed{5}", True),
    ],
)
def test_thinking_is_not_paid_as_an_answer(reward, text, expected):
    assert reward([text], [example("5")]).correct.tolist() == [expected]


@pytest.mark.parametrize(
    "text", ["\\boxed{{}}", "\\boxed{{{}}}", "\\boxed{**{}**}", "<answer>{}</answer>", "\\boxed{},\\boxed{}", "\\boxed{$$}"]
)
def test_an_empty_answer_is_wrong(reward, text):
    assert reward([text], [example("5")]).correct.tolist() == [False]


def test_the_last_number_is_not_taken_from_thinking():
    scores = MathsReward(answer="last_number")(["<think>5", "<think>6</think> 5", "<think>5</think> 6"], [example("5")] * 3)
    assert scores.correct.tolist() == [False, True, False]


def test_an_empty_batch(reward):
    scores = reward([], [])
    assert scores.rewards.shape == scores.correct.shape == scores.timeout.shape == (0,)


def test_gold_answers(reward):
    assert reward(["\\boxed{7}"] * 2, [example(7), example(np.int64(7))]).correct.all()
    for answer in (None, "", "  ", 0.5, True, ["7"], "9" * 1001):
        with pytest.raises(UserError, match="example 'bad'"):
            reward(["\\boxed{7}"], [example(answer, "bad")])
    with pytest.raises(ValueError):
        reward(["a", "b"], [example(7)])


def test_last_number_is_for_texts_without_a_box(reward):
    texts = ["it is 3, so 42.", "\\boxed{41} or 42", "no number", "half: \\frac{1}{2}"]
    golds = [example(answer) for answer in (42, 42, 42, "0.5")]
    assert MathsReward(answer="last_number")(texts, golds).correct.tolist() == [True, False, False, True]
    assert not reward([texts[0]], golds[:1]).correct.any()


@pytest.mark.parametrize("field", [{"num_workers": 0}, {"deadline_s": 0}, {"deadline_s": float("nan")}, {"answer": "any"}])
def test_senseless_settings_are_refused(field):
    with pytest.raises(UserError, match=next(iter(field))):
        MathsReward(**field)


def test_settings_are_plain_values():
    made = MathsReward(deadline_s=2.0, verdicts="x.jsonl")
    assert made == MathsReward(deadline_s=2.0, verdicts="x.jsonl") and hash(made) is not None
    assert cli.resolved(made) == {
        "type": "MathsReward", "num_workers": 2, "deadline_s": 2.0, "answer": "boxed", "verdicts": "x.jsonl",
    }  # fmt: skip
    assert not Path("x.jsonl").exists()


def test_model_text_never_meets_sympy_in_this_process():
    """A fresh interpreter scores: it loads neither sympy nor math-verify, and compiles nothing of the answers."""
    program = """
import sys
from jaxrl_ml.rewards.maths import MathsReward
from jaxrl_ml.types import Example
assert not {"jax", "sympy", "math_verify"} & set(sys.modules)
with MathsReward() as reward:
    reward(["\\\\boxed{2}"], [Example("0", "m", answer="2.0")])
    compiled = []
    sys.addaudithook(lambda event, arguments: event in ("compile", "exec") and compiled.append((event, arguments)))
    texts = ["\\\\boxed{31337}", "\\\\boxed{\\\\sqrt{31337}}", "\\\\boxed{__import__('os').getcwd()}"]
    print(reward(texts, [Example("0", "m", answer="31337")] * 3).correct.tolist())
assert not {"jax", "sympy", "math_verify"} & set(sys.modules)
assert "31337" not in repr(compiled) and "getcwd" not in repr(compiled)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[True, False, False]"


def test_a_recorded_run_replays_bit_for_bit(tmp_path, monkeypatch):
    """Time-outs are replayed too, and no process is started for it."""
    path = tmp_path / "verdicts.jsonl"
    texts = ["\\boxed{2x}", "\\boxed{9^{9^{9^{9}}}+\\sqrt{2}}", "\\boxed{x+y}", "\\boxed{3}"]
    golds = [example("x+x"), example("\\sqrt{2}"), example("x"), example("3.0")]
    with MathsReward(deadline_s=0.7, verdicts=str(path)) as recording:
        first = recording(texts, golds)
    assert first.correct.tolist() == [True, False, False, True] and first.timeout.tolist() == [False, True, False, False]
    assert len(path.read_text().splitlines()) == 3
    monkeypatch.setattr(verifier, "_SHARED", {})
    monkeypatch.setattr(verifier, "_Worker", None)
    second = MathsReward(deadline_s=0.7, verdicts=str(path))(texts, golds)
    for name in ("rewards", "correct", "timeout"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
    assert first.details["verifier/pooled"].tobytes() == second.details["verifier/pooled"].tobytes()
    assert [json.loads(line)["timeout"] for line in path.read_text().splitlines()].count(True) == 1


def test_works_from_threads(reward):
    found = {}

    def score(name: int) -> None:
        scores = reward([f"\\boxed{{{name}+x}}", "\\boxed{1}"], [example(f"x+{name}"), example(1)])
        found[name] = scores.correct.tolist()

    threads = [threading.Thread(target=score, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: [True, True] for name in range(4)}


def test_works_in_the_grain_pipeline(reward):
    """As the training loop uses it: chunks are sampled in a background thread, rows belong to examples by group."""

    def sample(chunk: int):
        return [example(f"x+{chunk}"), example(chunk)], [f"\\boxed{{{chunk}+x}}", "\\boxed{y}", f"\\boxed{{{chunk}}}", ""]

    def judge(examples, texts):
        return data.score_rows(reward, texts, examples, group_size=2)

    scores = list(data.experience(sample, 3, judge))
    assert [s.correct.tolist() for s in scores] == [[True, False, True, False]] * 3
    assert all(s.details["verifier/pooled"].tolist() == [1, 1, 0, 0] for s in scores)
    assert not any(s.timeout.any() for s in scores)
