r"""Verdicts of the whole maths reward, and the laws of `agree` without math-verify.

`verdicts.jsonl` holds 2,900 labelled pairs: a gold answer, what stands in a model's box (or the whole text), and whether a
careful human grader would call it right. All but KNOWN get that verdict.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_ml.rewards.agreement import agree
from jaxrl_ml.rewards.latex import tidy
from jaxrl_ml.rewards.maths import MathsReward
from jaxrl_ml.types import Example

LABELLED = [json.loads(line) for line in Path(__file__).with_name("verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
KNOWN = {
    ("\\text{March 14}", "14 March"),  # dates are words
    ("12", "\\text{twelve}"),  # numbers are not read in words
    ("17", "\\text{n = 17이다}"),  # nor formulas within words
    ("|x|", "\\begin{cases} x & \\text{if } x \\ge 0 \\\\ -x & \\text{if } x < 0 \\end{cases}"),
    ("\\begin{pmatrix} 1 \\\\ -2 \\\\ 3 \\end{pmatrix}", "\\mathbf{i} - 2\\mathbf{j} + 3\\mathbf{k}"),
    ("B", "B) both A and C"),  # a letter beside it may be a second choice
    ("D", "D şıkkı"),  # Turkish is none of our languages
    ("\\$5", "\\$5¢"),  # of two signs of money the first counts
    ("5\\text{ km}", "5\\text{ apples}"),  # a word that is in no list may be the same unit in another form
    ("(0,\\infty)", "\\{0,\\infty\\}"),
    # Products of vectors are products of numbers.
    ("\\mathbf{a}\\times\\mathbf{b}", "\\mathbf{a}\\cdot\\mathbf{b}"),
    ("\\mathbf{a}\\times\\mathbf{b}", "\\mathbf{b}\\times\\mathbf{a}"),
    # Conditions in words are not read as conditions in signs.
    ("$k \\neq 1, k \\in \\mathbb{Z}$", "k\\in\\mathbb{Z}\\setminus\\{1\\}"),
    ("$P(x)=c(x^2+3)$ for any constant $c$", "P(x)=c(x^2+3), c\\in\\mathbb{R}"),
    ("$2^{2^l}$ for $l=1,2,4,8$", "2^{2^l}, l=1,2,4,8"),
    # Sums and products with letters are compared by their text, and `2p!^2` is read as 2 times (p factorial of 2).
    ("$\\sum_{n=0}^{\\infty} (n+1)(n+2) x^{n}$", "\\sum_{k=0}^\\infty (k+1)(k+2)x^k"),
    ("$\\frac{4\\pi}{5} \\sum_{i=1}^{6}a_i$", "\\frac{4\\pi}{5}(a_1+a_2+a_3+a_4+a_5+a_6)"),
    ("$\\prod_{i=1}^{1005}(4i-1)$", "3\\cdot7\\cdot11\\cdots4019"),
    ("$2(p!)^2$", "2p!^2"),
}

# Beyond those of the file: a gold answer, and below it right (+, ⊕) and wrong (-, ⊖) ones. Of those in a circle math-verify
# says the contrary: it reads less than the text says, or nothing.
TABLE = r"""
# congruences, bases, ellipses
n \equiv 2 \pmod{7}
  ⊕ n \equiv 9 \pmod 7 ¦ n\equiv 2\ (\mathrm{mod}\ 7) ¦ 2 \pmod 7 ¦ n \equiv -5 \pmod{7}
  - 7 ¦ m \equiv 2 \pmod 7
  ⊖ 2 ¦ n = 2 ¦ n \equiv 2 ¦ n \equiv 2 \pmod{5}
x \equiv 3 \pmod{10}
  ⊕ x ≡ 3 (mod 10)
  - x \equiv 7 \pmod{10}
  ⊖ x \equiv 3 \pmod{4} ¦ 3
n \equiv 1, 5 \pmod 6
  ⊕ n \equiv \pm 1 \pmod 6 ¦ n \equiv 5 \text{ or } 1 \pmod{6}
  - n \equiv 1 \pmod 6 ¦ 1, 5
52_8
  + 52_{8} ¦ 52 \text{ (base 8)} ¦ 052_8
  ⊕ (52)_8 ¦ 52_{\text{eight}} ¦ 52₈
  - 42 ¦ 25_8 ¦ 5_8 ¦ 2_8
  ⊖ 52_9 ¦ 52
1A_{16}
  + 1a_{16}
  ⊕ (1A)_{16} ¦ 1\text{A}_{16}
  - 1B_{16} ¦ 26 ¦ 1A_{12}
1, 2, \ldots, 10
  + 1, 2, 3, \ldots, 10
  ⊕ 1,2,\dots,10 ¦ 1,2,3,4,5,6,7,8,9,10
  - 1, 2, 10 ¦ 1, 2, \ldots, 9 ¦ 1, 2, \ldots
  ⊖ 10
1+2+\cdots+n
  ⊕ 1 + 2 + \dots + n
  - 1+2+n ¦ 1+2+\cdots+m
# signs, sets, cases
> 5
  ⊕ >5 ¦ x > 5 ¦ 5 < x ¦ (5, \infty)
  - [5, \infty)
  ⊖ < 5 ¦ \ge 5 ¦ 5 ¦ x = 5
x \le 3
  + (-\infty, 3] ¦ 3 \ge x
  ⊕ ]-\infty; 3] ¦ \{x \mid x \le 3\}
  - x < 3 ¦ x \ge 3 ¦ (-\infty, 3)
x < 1 \text{ or } x > 2
  ⊕ (-\infty,1) \cup (2,\infty) ¦ x>2 \text{ oder } x<1
  - 1 < x < 2 ¦ x > 2
  ⊖ x<1 \text{ and } x>2
(2, 3)
  + (2,3) ¦ (2; 3) ¦ (x,y) = (2,3)
  - (3, 2) ¦ [2,3] ¦ 2 ¦ 3
\begin{cases} 1 & x>0 \\ 2 & x<0 \end{cases}
  ⊕ \begin{cases} 2, & \text{if } x<0 \\ 1, & \text{if } x>0 \end{cases}
  - \begin{cases} 1 & x>0 \\ 3 & x<0 \end{cases} ¦ 1 ¦ 1, 2
  ⊖ \begin{cases} 1 & x<0 \\ 2 & x>0 \end{cases}
\begin{cases} x=1 \\ y=2 \end{cases}
  ⊕ x=1, y=2 ¦ y=2, x=1 ¦ 1, 2
  - 2, 1 ¦ x=2, y=1 ¦ x=1
# words
n \text{ is odd}
  + n \text{ is odd.}
  - \text{odd or even}
  ⊖ n \text{ is even} ¦ n
\text{Yes, for } n=4
  + \text{Yes, for } n = 4
  - n=4 ¦ \text{No, for } n=4 ¦ \text{Yes, for } n=5
  ⊖ 4
\text{No solution}
  + no solution
  ⊕ \text{no solutions}
  - \text{solution no} ¦ \text{one solution} ¦ 0
\angle ABC
  + \angle CBA
  - \angle ABD
  ⊖ \angle ACB
# quantities
5\text{ hours } 20\text{ minutes}
  ⊕ 5 h 20 min ¦ 5 hours and 20 minutes ¦ 5小时20分钟
  - 20
  ⊖ 5 ¦ 5 \text{ hours} ¦ 5\text{ hours } 30\text{ minutes} ¦ 5\text{ hours } 20\text{ seconds}
5
  + 5 cm ¦ 5\text{ cm}^2 ¦ 5\text{ apples} ¦ 5\text{ red apples} ¦ \$5
  ⊕ 5 km/h ¦ 5 €
  - 5\text{ or }6 ¦ 5x
  ⊖ 5\text{ dozen} ¦ 5\text{ or more} ¦ 5\text{ hours } 20\text{ minutes}
15\text{ km}
  + 15 ¦ 15 km ¦ 15\text{ kilometers}
  ⊕ 15 километров
  ⊖ 15\text{ m} ¦ 15\text{ kg}
12\pi\text{ cm}^2
  + 12\pi ¦ 12\pi \text{ square centimeters}
  - 12 ¦ 12\pi\text{ cm}^2 \text{ or } 6
35^\circ 20'
  + 35^{\circ}20'
  ⊕ 35° 20′
  - 35^\circ ¦ 20' ¦ 35^\circ 21'
# numbers
\frac{3}{11}
  ⊕ 0.\overline{27} ¦ 0.(27) ¦ 0.272727...
  - 0.27 ¦ 0.\overline{72}
\frac{1}{3}
  + 0.333333
  ⊕ 0.\dot{3} ¦ 0.\bar{3} ¦ 0,3333333
  - 0.33 ¦ 0.3333 ¦ 0.34
5040
  + 5{,}040
  ⊕ 5\text{,}040 ¦ 5.040 ¦ 5 040
  - 504 ¦ 5,40
0.0000123
  + 1.23\times 10^{-5}
  ⊕ 1.23e-5
  - 0
  ⊖ 0.0000118 ¦ 0.000012
1.6\times10^{-19}
  + 1.6 \cdot 10^{-19}
  - 0
  ⊖ 9.1\times10^{-31} ¦ 1.6\times10^{-18}
\frac{1}{2004!}
  - 0
  ⊖ 10^{-40} ¦ \frac{1}{2003!}
1-\frac{1}{2^{60}}
  + 1-2^{-60}
  - 1
  ⊖ 1-\frac{1}{2^{61}}
10^{18}
  + 1000000000000000000
  - 10^{18}+1 ¦ 999999999999999999
42
  + 42.0
  - 42.0000001 ¦ 41.9999999
(10^{-7}, 1)
  + (0.0000001, 1)
  - (2\cdot 10^{-7}, 1) ¦ (0, 1)
# formulas
f'(x) = 2x
  + f'(x)=2x
  ⊖ f(x) = 2x ¦ f''(x) = 2x
x+y=7
  + y + x = 7
  - x+y=8
  ⊖ 7
1:2:3
  ⊕ 2:4:6
  - 1:2 ¦ 3:2:1
  ⊖ 1:6
\log_2 3
  + \log_{2}{3} ¦ \frac{\ln 3}{\ln 2}
  - \log_3 2 ¦ 3
e^{i\pi/3}
  ⊕ \frac12 + \frac{\sqrt3}{2} i
  - \frac12 - \frac{\sqrt3}{2} i
# parts that math-verify leaves out, or takes for others
2\sqrt{2}
  + x = 2\sqrt{2} ¦ |AB| = 2\sqrt{2} ¦ a^2+b^2 = 2\sqrt{2}
  - 2\sqrt{2}_2 ¦ \neg 2\sqrt{2}
  ⊖ 2\sqrt{2}' ¦ 2\sqrt{2}^T ¦ x^2 = 2\sqrt{2} ¦ 2x = 2\sqrt{2}
\frac{r}{2(r+1)}
  ⊖ \frac{R}{2(r+1)} ¦ \frac{R}{2(R+1)}
[e, 7]
  + [e,7]
  ⊖ [E,7] ¦ [e \text{ or } 7]
(a,b,c)=(9,8,7)
  + (9,8,7) ¦ (a, b, c) = (9, 8, 7)
  - (a,c,b)=(9,8,7) ¦ (a,bc)=(9,8,7) ¦ (9,7,8)
f(x) = \frac{k}{1+x} \left( -\frac{1}{2} \le k \le 1 \right)
  - -\frac{1}{2}
  ⊖ f(x) = 7 \left( -\frac{1}{2} \le k \le 1 \right)
0 < c < \sqrt{2}
  ⊕ \sqrt{2} > c > 0
  ⊖ \text{not }0 < c < \sqrt{2}
\frac{dy}{dx} = 2x
  ⊕ 2x
  ⊖ 2\frac{dy}{dx} = 2x ¦ \frac{dz}{dx} = 2x
\text{Yes, since }f(0)=1
  - \text{Yes, since }f(1)=1 ¦ \text{Yes, since }f(0)=2
\text{red, blue}
  ⊕ red, blue ¦ \text{red}, \text{blue}
  - \text{erd, blue} ¦ \text{red}
2\text{ red}, 3\text{ blue}
  ⊕ 3\text{ blue}, 2\text{ red}
  - 3\text{ red}, 2\text{ blue}
  ⊖ 2\text{ red}, 3\text{ green}
\sqrt{9^{1010}-1}
  + \sqrt{3^{2020}-1}
  - \sqrt{9^{1010}-2} ¦ 3^{1010}
"""


def math_verify_alone(gold: str, answer: str) -> bool:
    """math-verify's own verdict, without anything of ours."""
    import math_verify

    parsed = [math_verify.parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (gold, answer)]
    return bool(math_verify.verify(*parsed, timeout_seconds=None))


@pytest.fixture(scope="module")
def reward():
    with MathsReward(deadline_s=20.0) as made:
        yield made


def verdicts(reward: MathsReward, pairs: list[tuple[str, str]]) -> list[bool]:
    return reward([text for _, text in pairs], [Example("0", "maths", answer=gold) for gold, _ in pairs]).correct.tolist()


def boxed(answer: str) -> str:
    return f"The answer is $\\boxed{{{answer}}}$."


def test_labelled_answers(reward):
    by_form = {"boxed": reward, "last_number": MathsReward(deadline_s=20.0, answer="last_number")}
    wrong = []
    for form, scorer in by_form.items():
        rows = [row for row in LABELLED if row.get("form", "boxed") == form]
        given = verdicts(scorer, [(row["gold"], row["text"] if "text" in row else boxed(row["answer"])) for row in rows])
        wrong += [row for row, verdict in zip(rows, given, strict=True) if verdict != row["right"]]
    assert len(LABELLED) > 2800 and min(Counter(row["right"] for row in LABELLED).values()) > 900
    assert {(row["gold"], row.get("answer", row.get("text"))) for row in wrong} == KNOWN


def test_the_table(reward):
    expected, by_math_verify, gold = {}, {}, ""
    for line in filter(None, TABLE.splitlines()):
        if not line.startswith("  "):
            gold = line
            continue
        for answer in line[4:].split("¦"):
            expected[gold, answer.strip(" ")] = line[2] in "+⊕"
            by_math_verify[gold, answer.strip(" ")] = line[2] in "+⊖"
    assert len(expected) > 190
    given = verdicts(reward, [(gold, boxed(answer)) for gold, answer in expected])
    assert [pair for pair, verdict in zip(expected, given, strict=True) if verdict != expected[pair]] == []
    assert [pair for pair in expected if math_verify_alone(*pair) != by_math_verify[pair]] == []


REWRITES = (
    "{}", " {} ", "{}.", "${}$", "\\({}\\)", "**{}**", "\\displaystyle {}", "\\text{{}}{}", "{{{}}}", '"{}"', "Answer: {}",
    "= {}",
)  # fmt: skip


def test_what_surrounds_an_answer_changes_no_verdict(reward):
    golds = [
        "3+2\\sqrt{2}",
        "x^2-1",
        "\\frac{\\pi}{4}",
        "[1,5)",
        "(1,2)",
        "n \\equiv 2 \\pmod 7",
        "52_8",
        "\\text{odd}",
        "5\\text{ cm}",
    ]
    pairs = [(gold, boxed(form.format(answer))) for gold in golds for answer in golds for form in REWRITES]
    given = verdicts(reward, pairs)
    expected = [gold == answer for gold in golds for answer in golds for _ in REWRITES]
    assert [pair for pair, verdict, right in zip(pairs, given, expected, strict=True) if verdict != right] == []


def same_text(gold: str, answer: str) -> bool:
    return gold.replace(" ", "") == answer.replace(" ", "")


SIGNS = (
    "1", "2", "x", "n", "+", "-", "=", ",", "(", ")", "\\text{ cm}", "\\text{odd}", " and ", "_8", "<", "\\ldots", "\\equiv",
    "\\pmod{7}", "\\frac{1}{2}", "%", "'", ":", "&", "\\\\", "\\AND", "\\begin{cases}", "\\end{cases}",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(SIGNS), min_size=1, max_size=8).map("".join)


@settings(deadline=None, derandomize=True, max_examples=500)
@given(TEXTS, TEXTS)
def test_agree_has_a_verdict_on_any_text_and_a_text_agrees_with_itself(gold, answer):
    assert agree(gold, gold, same_text) is True
    assert agree(gold, answer, same_text) in (True, False)
    assert agree(gold, answer, lambda *_: False) <= agree(gold, answer, lambda *_: True)


def test_work_on_hostile_text_is_bounded():
    """The longest texts, of what the patterns look for, take a moment each."""
    units = [
        "\\begin{cases}",
        "1, ",
        "\\ldots,",
        "\\text{a}",
        "x<",
        "\\mod ",
        "\\equiv ",
        "5 cm ",
        "_8",
        "(",
        "{a}",
        "1_{}",
        "\\{x|",
        "\\AND ",
        "a'",
        "1:",
    ]
    for unit in units:
        text = tidy((unit * 1000)[:1000])
        assert agree(text, text + "1", partial(same_text)) in (True, False)
    builder = "\\{x | x > " + "{a}" * 200 + "\\} y"  # once exponential in the number of braces
    assert agree(builder, builder + "1", same_text) is False
