"""`python tools/bench.py countdown` and `maths`: completions checked per second, against the checkers that others use."""

from __future__ import annotations

import random
import re
import statistics
import time
from collections.abc import Callable, Sequence

from bench_timing import Row, interleaved, own_peak, ratios, seconds_of

from jaxrl_ml.rewards import countdown as reward
from jaxrl_ml.rewards.maths import MathsReward
from jaxrl_ml.tasks.countdown.generate import Countdown
from jaxrl_ml.types import Example

ROWS, CHARS, GROUP = 4096, 1000, 8
KINDS = {"correct": 30, "wrong value": 30, "wrong numbers": 15, "malformed": 10, "none": 15}  # percent


def countdown(repeats: int) -> list[Row]:
    """Countdown completions checked per second of CPU time: the library's reward against a per-row regex-and-eval checker."""
    texts, examples = _completions(random.Random(0))
    ours = reward.countdown_reward(texts, examples).rewards
    theirs = _regex_and_eval(texts, examples)
    disagree = sum(abs(a - b) > 1e-6 for a, b in zip(ours, theirs, strict=True))
    print(f"countdown: {ROWS} completions of {CHARS} characters, {GROUP} a problem, n = 3 and 4, numbers to 99")
    print("  " + ", ".join(f"{share}% {kind}" for kind, share in KINDS.items()) + f"; verdicts that differ: {disagree}")
    print(f"  identical answers to one problem: {100 * _repeated(texts, examples):.1f}% of rows")

    def cold() -> None:
        reward._program.cache_clear()
        reward.countdown_reward(texts, examples)

    sides: dict[str, Callable[[], object]] = {
        "regex and eval": lambda: _regex_and_eval(texts, examples),
        "Countdown checks": lambda: reward.countdown_reward(texts, examples),
        "Countdown checks, nothing remembered": cold,
    }
    seconds = interleaved(sides, repeats)
    baseline = seconds.pop("regex and eval")
    fields = {"numbers": (1, 1), "target": 24}
    problems = [Example(id=str(row), task="countdown/2", fields=fields) for row in range(ROWS)]  # nothing is shared
    for name, text in _adversarial().items():
        batch = [text] * ROWS, problems
        times = interleaved({name: lambda batch=batch: reward.countdown_reward(*batch)}, repeats)[name]
        print(f"  adversarial, {name:<17}{ROWS / statistics.median(times):>12,.0f} rows/s")
    against = f"regex and eval: {_rate(baseline, ROWS)}"
    return [
        Row(f"(f) {name}", _rate(times, ROWS), against, ratios(baseline, times), peak=own_peak())
        for name, times in seconds.items()
    ]


def _rate(seconds: Sequence[float], rows: int) -> str:
    return f"{rows / statistics.median(seconds):,.0f} rows/s"


def maths(repeats: int) -> list[Row]:
    """Maths answers graded per second: MathsReward against math-verify, row by row, in this process, on the same answers."""
    import math_verify

    texts, examples = _maths_completions(random.Random(0))

    def theirs() -> list[bool]:
        return [
            math_verify.verify(math_verify.parse(f"\\boxed{{{example.answer}}}"), math_verify.parse(text[-60:]))
            for text, example in zip(texts, examples, strict=True)
        ]

    print(f"maths: {len(texts)} completions, {GROUP} a problem; wall time, the pool has 2 processes")
    seconds: dict[str, list[float]] = {"math-verify": [], "Maths checks": [], "Maths checks, the same again": []}
    for repeat in range(repeats):
        start = time.perf_counter()
        expected = theirs()
        seconds["math-verify"].append(time.perf_counter() - start)
        with MathsReward(deadline_s=5.0 + repeat / 1e6) as fresh:  # its own pool: nothing is remembered
            fresh(["\\boxed{x+1}"], [Example("0", "maths", answer="1+x")])  # starts it
            began = time.perf_counter()
            verdicts = fresh(texts, examples)
            seconds["Maths checks"].append(time.perf_counter() - began)
            seconds["Maths checks, the same again"].append(seconds_of(lambda fresh=fresh: fresh(texts, examples)))
    pooled, differ = verdicts.details["verifier/pooled"].mean(), (verdicts.correct != expected).sum()
    print(f"  pooled {pooled:.1%} of rows; verdicts that differ {differ}")
    baseline = seconds.pop("math-verify")
    against = f"math-verify: {_rate(baseline, len(texts))}"
    return [
        Row(f"(f) {name}", _rate(times, len(texts)), against, ratios(baseline, times), peak=own_peak())
        for name, times in seconds.items()
    ]


def _maths_completions(rng: random.Random) -> tuple[list[str], list[Example]]:
    """Four fifths of the problems have a number for an answer, the rest an expression; a group gives about three answers."""
    texts, examples = [], []
    for index in range(64):
        if index % 5:
            gold = rng.choice([str(rng.randint(-999, 9999)), f"\\frac{{{rng.randint(1, 9)}}}{{{rng.randint(10, 99)}}}"])
            wrong = [str(rng.randint(-999, 9999)), f"\\frac{{{rng.randint(1, 9)}}}{{{rng.randint(10, 99)}}}"]
        else:
            a, b = rng.randint(2, 99), rng.randint(2, 99)
            gold, wrong = f"{a}\\sqrt{{{b}}}", [f"{b}\\sqrt{{{a}}}", f"\\sqrt{{{a * a * b}}}"]
        problem = Example(str(index), "maths", answer=gold)
        for _ in range(GROUP):
            answer = rng.choice([gold, *wrong])
            texts.append("We think step by step. " * 40 + f"The answer is \\boxed{{{answer}}}.")
            examples.append(problem)
    return texts, examples


def _completions(rng: random.Random) -> tuple[list[str], list[Example]]:
    """A step's completions: GROUP rows a problem, filled up with thinking aloud to CHARS characters."""
    problems = Countdown(num_numbers=(3, 4), max_number=99, size=ROWS // GROUP)
    texts, examples = [], []
    for problem in problems:
        for _ in range(GROUP):
            kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
            texts.append(_completion(kind, problem, rng))
            examples.append(problem)
    return texts, examples


def _completion(kind: str, problem: Example, rng: random.Random) -> str:
    numbers, target = list(problem.fields["numbers"]), problem.fields["target"]
    rng.shuffle(numbers)
    match kind:
        case "correct":
            answer = problem.fields["solution"]
        case "wrong value":
            answer = _some_expression(numbers, rng)
        case "wrong numbers":
            answer = _some_expression([*numbers[:-1], rng.randint(1, 99)], rng)
        case "malformed":
            answer = rng.choice(
                [
                    f"{_some_expression(numbers, rng)})",
                    f"({_some_expression(numbers, rng)}",
                    f"x = {numbers[0]} + {numbers[1]}",
                    f"{numbers[0]} plus {numbers[1]} gives {target}",
                    f"{numbers[0]} * ",
                    "",
                ]
            )
        case _:
            answer = None
    tail = f"</think>\n<answer> {answer} </answer>" if answer is not None else ""
    thoughts, length = [], len(tail)
    while length < CHARS:
        a, b, symbol = rng.choice(numbers), rng.choice(numbers), rng.choice("+-*/")
        thoughts.append(f"Let me try {a} {symbol} {b}, but that is not {target} < 100.\n")
        length += len(thoughts[-1])
    return ("".join(thoughts))[: CHARS - len(tail)] + tail


def _some_expression(numbers: Sequence[int], rng: random.Random) -> str:
    terms = [str(number) for number in numbers]
    while len(terms) > 1:
        left, right = terms.pop(rng.randrange(len(terms))), terms.pop(rng.randrange(len(terms)))
        term = f"{left} {rng.choice('+-*/')} {right}"
        terms.append(f"({term})" if terms and rng.random() < 0.6 else term)
    return terms[0]


def _repeated(texts: Sequence[str], examples: Sequence[Example]) -> float:
    answers = [(example.id, text.rpartition("<answer>")[2]) for text, example in zip(texts, examples, strict=True)]
    answered = [answer for answer, text in zip(answers, texts, strict=True) if "<answer>" in text]
    return 1 - len(set(answered)) / len(answered)


def _adversarial() -> dict[str, str]:
    """Completions made to be slow to check. They are shown to the library's reward only: eval might not return."""
    return {
        "open tags": "<answer>" * (CHARS // 8),
        "half tags": "<answer" * (CHARS // 7),
        "close tags": "</answer>" * (CHARS // 9),
        "parentheses": "<answer>" + "(" * 250 + "1+1" + ")" * 250 + "</answer>",
        "powers": "<answer>44**19**36</answer>".rjust(CHARS),
        "digits": "<answer>" + "9" * (CHARS - 17) + "</answer>",
        "division by zero": "<answer>1/(1-1)</answer>".rjust(CHARS),
    }


def _regex_and_eval(texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
    """The baseline: TinyZero's checker (verl/utils/reward_score/countdown.py), row by row.

    It calls eval on the answer, so it lives here only, and is only ever given the completions that `_completions` made. Its
    search for the last line, which presumes the prompt, is left out, so that answers over several lines count.
    """
    rewards = []
    for text, example in zip(texts, examples, strict=True):
        matches = list(re.finditer(r"<answer>(.*?)</answer>", text, re.DOTALL))
        if not matches:
            rewards.append(0.0)
            continue
        equation = matches[-1].group(1).strip()
        numbers = sorted(int(number) for number in re.findall(r"\d+", equation))
        if numbers != sorted(example.fields["numbers"]) or not re.match(r"^[\d+\-*/().\s]+$", equation):
            rewards.append(0.1)
            continue
        try:
            result = eval(equation, {"__builtins__": None}, {})
            rewards.append(1.0 if abs(result - example.fields["target"]) < 1e-5 else 0.1)
        except (SyntaxError, ZeroDivisionError, TypeError):
            rewards.append(0.1)
    return rewards
