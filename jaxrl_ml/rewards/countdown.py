"""The Countdown reward: B completions and their examples in, Scores out.

An answer stands in the answer part of a completion, after its thinking (`languages/thinking.py`): between the last `<answer>`
there and the `</answer>` that follows. A last `<answer>` that is never closed is no answer. Reward: 1.0 for a correct answer,
0.1 for any other, 0 for none. Correct is an expression

* of ASCII decimal numbers, the operators + - * / (or × ÷ −), parentheses and white space;
* that uses each of the example's numbers exactly once and no other. Numbers are compared as written, so `07` is not 7;
* whose exact rational value is the target. A division by zero is wrong, whatever follows;
* that may end in `= target`. Any other equation, `24 = 4 * 6` included, is wrong.

Signs in front of an operand (`-3`, `+3`), powers, floor divisions, decimals and juxtaposition (`2(3)`) are wrong: they would
make numbers out of none, or are not among the four operations.

The text is hostile, so all work is linear in it, a number that is not the example's is never computed with, and nothing
recurses. It is also checked for the whole batch at once: a few substring searches find each answer; the answers are joined
into one buffer whose numbers numpy reads and compares; the order of operations is worked out once for each *shape*, such as
`(0+0)*0`, of which a batch has few; then step k of all rows is one operation on arrays of numerators and denominators.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxrl_ml.languages.thinking import CLOSE, OPEN, answer_parts, is_answer
from jaxrl_ml.tasks.countdown.generate import MAX_NUMBER
from jaxrl_ml.types import Example, Scores, UserError

MAX_ANSWER_CHARS = 512
"""A longer answer is wrong. Bounds the depth of parentheses and the work of a row."""
_MAX_DIGITS = len(str(MAX_NUMBER))

_OPEN, _CLOSE = "<answer>", "</answer>"
_NONE, _WRONG, _CORRECT = range(3)
_REWARDS = np.array([0.0, 0.1, 1.0], np.float32)  # of none, wrong and correct
_CORRECT_PART = np.array([0.0, 0.0, 1.0], np.float32)
_FORMAT_PART = np.array([0.0, 0.1, 0.0], np.float32)

_BETWEEN = "\x1f"  # joins answers; one that holds it is no expression
_ASCII_OPERATORS = str.maketrans("×÷−", "*/-")
_WHITE_SPACE = b" \t\n\r\v\f"
_SHAPE = bytes(
    ord("0") if byte in b"0123456789" else byte if byte in b"+-*/()" + _BETWEEN.encode() else ord("?") for byte in range(256)
)
_PRECEDENCE = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2}
_OPERATIONS = "=+-*/"  # the first does nothing: programs are padded with zeros
_NOT_A_NUMBER, _ABSENT = -1, -2  # in matrices of numbers, which are not negative


def countdown_reward(texts: Sequence[str], examples: Sequence[Example]) -> Scores:
    """Scores B completions: 1.0 correct, 0.1 answered but wrong, 0 no answer.

    `parts` add up to `rewards`: `correct` is 1.0 or 0, `format` is 0.1 where there is an answer that is wrong. Raises UserError
    where an example's numbers or target are missing or not whole, or a number is not in 0..MAX_NUMBER, and ValueError where the
    lengths differ. Source: TinyZero's verl/utils/reward_score/countdown.py, for the three values.
    """
    if len(texts) != len(examples):
        raise ValueError(f"{len(texts)} texts for {len(examples)} examples")
    verdicts = np.full(len(texts), _NONE, np.int8)
    if len(texts):
        problems = _Problems.of(examples)
        rows, expressions = _expressions(texts, examples)
        if len(rows):
            verdicts[rows] = np.where(_are_correct(expressions, problems, problems.of_row[rows]), _CORRECT, _WRONG)
    return Scores(
        rewards=_REWARDS[verdicts],
        correct=verdicts == _CORRECT,
        parts={"correct": _CORRECT_PART[verdicts], "format": _FORMAT_PART[verdicts]},
    )


def _expressions(texts: Sequence[str], examples: Sequence[Example]) -> tuple[np.ndarray, list[str]]:
    """The rows that have an answer, and each one's expression."""
    rows, expressions, skip = [], [], len(_OPEN)
    near = len(CLOSE) + len(OPEN) - 1  # so close before an answer, `</think>` leaves no room for another `<think>`
    for row, text in enumerate(texts):
        start = text.rfind(_OPEN)
        clear = start < 0 or text.find(CLOSE, start - near, start) >= 0 > text.find(CLOSE, start)
        if not clear and not is_answer(text, start):
            (text,) = answer_parts([text])  # without the thinking that the last `<answer>` stands in
            start = text.rfind(_OPEN)
        if start >= 0 and (end := text.find(_CLOSE, start)) >= 0:
            rows.append(row)
            expressions.append(text[start + skip : end])
    long = np.fromiter(map(len, expressions), np.int64, len(rows)) > MAX_ANSWER_CHARS
    for i in np.flatnonzero(long | _holding_any_but_plain_text(expressions)).tolist():
        expressions[i] = _plain(expressions[i], examples[rows[i]])
    return np.array(rows, np.int64), expressions


def _holding_any_but_plain_text(expressions: Sequence[str]) -> np.ndarray:
    """Where, bool [R], a text holds `=`, the separator or anything that is not ASCII."""
    joined = _BETWEEN.join(expressions)
    if not joined.isascii() or joined.count(_BETWEEN) >= len(expressions):
        return np.array([not text.isascii() or "=" in text or _BETWEEN in text for text in expressions], bool)
    buffer = np.frombuffer(joined.encode("ascii"), np.uint8)
    found = np.zeros(len(expressions), bool)
    found[np.searchsorted(np.flatnonzero(buffer == ord(_BETWEEN)), np.flatnonzero(buffer == ord("=")))] = True
    return found


def _plain(answer: str, example: Example) -> str:
    """The answer in ASCII without `= target`; empty, hence wrong, where that alone shows that it is no expression."""
    if len(answer) > MAX_ANSWER_CHARS:
        return ""
    answer = answer.translate(_ASCII_OPERATORS)
    answer, equals, right = answer.partition("=")
    if equals and right.strip() != str(int(example.fields["target"])):
        return ""
    return answer if answer.isascii() and _BETWEEN not in answer else ""


class _Problems(NamedTuple):
    """What is read of the examples, once for the rows of a group. Targets are Python's integers where 64 bits may not do."""

    numbers: np.ndarray  # [problems, n], sorted; padded with _ABSENT, in front
    lengths: np.ndarray  # [problems]
    targets: np.ndarray  # [problems]
    of_row: np.ndarray  # [B]

    @staticmethod
    def of(examples: Sequence[Example]) -> _Problems:
        identities = np.fromiter(map(id, examples), np.int64, len(examples))
        is_first = np.ones(len(examples), bool)  # of a group, whose rows are adjacent
        np.not_equal(identities[1:], identities[:-1], out=is_first[1:])
        for_slot = [examples[row] for row in np.flatnonzero(is_first).tolist()]
        try:
            lists = [example.fields["numbers"] for example in for_slot]
            flat = np.array([number for own in lists for number in own])
            targets = np.array([example.fields["target"] for example in for_slot])
            lengths = np.array([len(own) for own in lists], np.int64)
            sound = flat.dtype.kind == targets.dtype.kind == "i" and lengths.all() and flat.min() >= 0
            sound = sound and flat.max() <= MAX_NUMBER
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise _complaint(for_slot)
        width = int(lengths.max())
        padded = np.full((len(lists), width), _ABSENT, np.int64)
        padded[np.arange(width) < lengths[:, None]] = flat
        # A fraction of k numbers, not reduced, has no part above 2^(k-1) times their product; it meets the target's product.
        bound = (2 * int(flat.max()) + 2) ** width * (max(-int(targets.min()), int(targets.max())) + 1)
        dtype = np.int64 if bound < 2**63 else object
        return _Problems(np.sort(padded, 1), lengths, targets.astype(dtype), np.cumsum(is_first) - 1)


def _complaint(examples: Sequence[Example]) -> UserError:
    """The error that names the first example that is no Countdown problem."""
    for example in examples:
        numbers, target = example.fields.get("numbers"), example.fields.get("target")
        whole = isinstance(numbers, Sequence) and all(isinstance(x, (int, np.integer)) for x in (*numbers, target))
        if not whole or not numbers or min(numbers) < 0 or max(numbers) > MAX_NUMBER or abs(target) >= 2**63:
            return UserError(
                f"countdown_reward: example {example.id!r} has numbers={numbers!r} and target={target!r}; "
                f"give whole numbers in 0..{MAX_NUMBER} and a whole target"
            )
    return UserError("countdown_reward: the examples' numbers and targets must be whole numbers of one type")


def _are_correct(expressions: Sequence[str], problems: _Problems, of_row: np.ndarray) -> np.ndarray:
    """Verdicts, bool [R], on R expressions, each about the problem that `of_row` [R] tells."""
    joined = _BETWEEN.join(expressions).encode("ascii")
    width = problems.numbers.shape[1]
    found, counts = _numbers_of(joined, len(expressions), width)
    each_once = (counts == problems.lengths[of_row]) & (np.sort(found, 1) == problems.numbers[of_row]).all(1)
    rows = np.flatnonzero(each_once)
    shapes = joined.translate(_SHAPE, _WHITE_SPACE)
    while b"00" in shapes:  # halves the runs of digits each time
        shapes = shapes.replace(b"00", b"0")
    shapes = shapes.split(_BETWEEN.encode())
    shapes = [shapes[row] for row in rows.tolist()]
    slots = {shape: slot for slot, shape in enumerate(set(shapes))}
    steps, num_steps = _programs_of(list(slots), width - 1)
    slot_of_row = np.fromiter(map(slots.__getitem__, shapes), np.int64, len(shapes))
    # Without white space `1 2` looks like one number: the shape then has fewer numbers than the text.
    sound = num_steps[slot_of_row] == counts[rows] - 1
    rows, slot_of_row = rows[sound], slot_of_row[sound]
    correct = np.zeros(len(expressions), bool)
    correct[rows] = _run(steps[slot_of_row], found[rows], problems.targets[of_row[rows]])
    return correct


def _programs_of(shapes: Sequence[bytes], width: int) -> tuple[np.ndarray, np.ndarray]:
    """The programs of shapes: steps [shapes, width, 3], and how many each has, [shapes]; −1 for what is no expression."""
    programs = [_program(shape) for shape in shapes]
    size = 3 * width
    joined = b"".join([program.ljust(size, b"\0") if program and len(program) <= size else bytes(size) for program in programs])
    num_steps = [-1 if program is None else len(program) // 3 for program in programs]
    return np.frombuffer(joined, np.uint8).reshape(len(shapes), width, 3).astype(np.int64), np.array(num_steps, np.int64)


def _numbers_of(joined: bytes, num_rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers that each row of a joined text shows: the first `width`, int64 [R, width], and how many, [R]."""
    buffer = np.frombuffer(joined, np.uint8)
    digits = buffer - ord("0")  # wraps round below zero
    is_digit = np.zeros(len(digits) + 2, bool)
    np.less(digits, 10, out=is_digit[1:-1])
    edges = np.flatnonzero(is_digit[1:] != is_digit[:-1])
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    values = digits[starts].astype(np.int64)
    leading_zero = (values == 0) & (lengths > 1)
    for place in range(1, min(lengths.max(initial=0), _MAX_DIGITS)):
        longer = np.flatnonzero(lengths > place)
        values[longer] = 10 * values[longer] + digits[starts[longer] + place]
    values[leading_zero | (lengths > _MAX_DIGITS)] = _NOT_A_NUMBER
    ends_of_rows = np.flatnonzero(buffer == ord(_BETWEEN))
    first = np.zeros(num_rows + 1, np.int64)  # of each row's numbers, and one past the last row's
    first[1:-1] = np.searchsorted(starts, ends_of_rows)
    first[-1] = len(starts)
    counts = np.diff(first)
    place_in_row = np.arange(width)
    shown = place_in_row < counts[:, None]
    found = np.full((num_rows, width), _ABSENT, np.int64)
    found[shown] = values[(first[:-1, None] + place_in_row)[shown]]
    return found, counts


def _run(steps: np.ndarray, numbers: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Whether programs [R, k, 3] turn numbers [R, n] into targets [R], in exact fractions; bool [R]."""
    numerators = numbers.astype(targets.dtype).ravel()  # flat: indexing by pairs takes twice as long
    denominators = np.ones_like(numerators)
    first = np.arange(len(numbers)) * numbers.shape[1]
    defined = np.ones(len(numbers), bool)
    for step in range(steps.shape[1]):
        operation, i, j = steps[:, step].T
        i, j = first + i, first + j
        a, b, c, d = numerators[i], denominators[i], numerators[j], denominators[j]
        ad, bc, bd = a * d, b * c, b * d
        numerators[i] = np.choose(operation, (a, ad + bc, ad - bc, a * c, ad))
        denominators[i] = bottom = np.choose(operation, (b, bd, bd, bd, bc))
        defined &= bottom != 0
    return defined & (numerators[first] == targets * denominators[first])


@functools.lru_cache(maxsize=4096)
def _program(shape: bytes) -> bytes | None:
    """How to evaluate a shape, by Dijkstra's shunting yard; None where it is no expression.

    A shape has `0` for each number, no white space, and `?` for whatever has no place in an expression. The program is
    steps of three bytes (operation, i, j): number i becomes the result of the operation, an index into _OPERATIONS, on numbers
    i and j, which MAX_ANSWER_CHARS keeps under 256. The last result is number 0.
    """
    program: list[int] = []
    operands: list[int] = []
    operators: list[str] = []

    def apply_down_to(precedence: int) -> None:
        while operators and _PRECEDENCE[operators[-1]] >= precedence:
            right = operands.pop()
            program.extend((_OPERATIONS.index(operators.pop()), operands[-1], right))

    num_numbers = 0
    after_operand = False
    for symbol in shape.decode("ascii"):
        if after_operand != (symbol in "+-*/)"):  # an operand is missing, or there is one too many
            return None
        if symbol == "0":
            operands.append(num_numbers)
            num_numbers += 1
            after_operand = True
        elif symbol == "(":
            operators.append(symbol)
        elif symbol == ")":
            apply_down_to(1)
            if not operators:
                return None
            operators.pop()
        elif symbol in _PRECEDENCE:
            apply_down_to(_PRECEDENCE[symbol])
            operators.append(symbol)
            after_operand = False
        else:
            return None
    if not after_operand:
        return None
    apply_down_to(1)
    return None if operators else bytes(program)
