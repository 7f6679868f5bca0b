r"""The program of a verifier process: pairs of LaTeX on standard input in, math-verify's verdicts on standard output out.

Run by path, never imported by the training process: it imports nothing of this package, so it starts without jax. It loads
math-verify once and then forks a child that answers; when the child dies (killed by the parent at a deadline, crashed, or
retired after its share of items) the next one is forked in milliseconds, warm, and untouched by what the last one read.

    verifier_worker.py DEADLINE_S ITEMS_A_CHILD

Messages are JSON behind four bytes of length. Out: {"ready": pid} by each new child, {"error": text} if math-verify cannot be
loaded, {"correct": bool, "last": bool} for each item, `last` where the child retires with it. In: {"gold": ..., "answer": ...}.

A child may not write files, dump core, or use more than MEMORY_BYTES, nor more CPU time on an item than its deadline. When
the training process is gone, however it went, the child is killed and the program ends within POLL_MS.
"""

from __future__ import annotations

import fcntl
import gc
import json
import logging
import math
import os
import resource
import select
import signal
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

MEMORY_BYTES = 2 * 2**30
POLL_MS = 500
_OPEN_FILES = 32
_WARM_UP = (
    (r"\frac{1}{2}", r"\sqrt{2}"),
    ("x^2+1=0", "(1,2]"),
    (r"\{1,2\}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ("1", "x<2"),
)


def main() -> None:
    """Serves items until standard input ends."""
    deadline_s, items = float(sys.argv[1]), int(sys.argv[2])
    parent = os.getppid()
    out = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)  # so that nothing a library prints is taken for a message
    os.dup2(null, 2)
    try:
        verify = _load()
    except Exception as error:  # whatever is wrong with the installation, the training process is to say so
        _send(out, {"error": f"{type(error).__name__}: {error}"})
        return
    gc.collect()
    gc.freeze()  # keeps the pages that children share from being written to
    while os.getppid() == parent:
        alive, hold = os.pipe()  # reports a hang-up when the child, which alone holds the other end, dies
        child = os.fork()
        if not child:
            os.close(alive)
            _answer(verify, out, deadline_s, items)
        os.close(hold)
        poller = select.poll()
        poller.register(alive, 0)
        while not poller.poll(POLL_MS):
            if os.getppid() != parent:
                os.kill(child, signal.SIGKILL)
        os.close(alive)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == os.EX_OK:
            return


def _load() -> Callable[[str, str], bool]:
    logging.disable(logging.CRITICAL)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # of this package, which the program is run by path from
    import math_verify
    from latex2sympy2_extended import NormalizationConfig, latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from math_verify import grader

    from jaxrl_ml.rewards import closeness
    from jaxrl_ml.rewards.agreement import agree

    # The parser is called without math-verify's search for an answer, which takes a part of what it cannot read whole.
    normalization = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    conversion = ConversionConfig(lowercase_symbols=False)
    their_numeric, their_symbolic = grader.sympy_numeric_eq, grader.sympy_symbolic_eq
    is_decided = False

    def numeric_equal(gold: Any, answer: Any, float_rounding: int, numeric_precision: int) -> bool:
        nonlocal is_decided
        verdict = closeness.equal(gold, answer)
        decided, equal = (
            (False, their_numeric(gold, answer, float_rounding, numeric_precision)) if verdict is None else (True, verdict)
        )
        is_decided = decided  # set last: theirs comes back here for the elements of a matrix
        return equal

    def symbolic_equal(gold: Any, answer: Any) -> bool:
        return not is_decided and their_symbolic(gold, answer)  # it is asked after `numeric_equal` has said no

    grader.sympy_numeric_eq = numeric_equal  # theirs compares to six decimal places, whatever the size
    grader.sympy_symbolic_eq = symbolic_equal
    grader.sympy_solve_and_compare = partial(closeness.equations_equal, grader.sympy_solve_and_compare)

    def equal(gold: str, answer: str) -> bool:
        is_real = not any(map(grader.should_treat_as_complex, (gold, answer)))
        try:
            parsed = [latex2sympy(text, None, is_real, False, normalization, conversion) for text in (gold, answer)]
        except Exception:  # the parser has no error of its own
            return False
        # Their time-outs are signals for the main thread; the parent's deadline replaces them.
        return bool(math_verify.verify(*parsed, timeout_seconds=None))

    def is_right(gold: str, answer: str) -> bool:
        try:
            return agree(gold, answer, equal)
        except MemoryError:
            raise  # the child is to end
        except Exception:  # a hostile text, such as one of brackets only, may exhaust the recursion
            return False

    for gold, answer in _WARM_UP:
        is_right(gold, answer)
    return is_right


def _answer(verify: Callable[[str, str], bool], out: int, deadline_s: float, items: int) -> None:
    """The child: answers items, then exits. Exit status 0: standard input has ended, do not fork another."""
    status = os.EX_SOFTWARE
    try:
        for kind, value in (
            (resource.RLIMIT_AS, MEMORY_BYTES),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_NOFILE, _OPEN_FILES),
        ):
            _limit(kind, value)
        _drain()
        _send(out, {"ready": os.getpid()})
        for left in reversed(range(items)):
            item = _receive()
            if item is None:
                status = os.EX_OK
                break
            used = resource.getrusage(resource.RUSAGE_SELF)
            _limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + deadline_s) + 1, soft_only=True)
            _send(out, {"correct": verify(item["gold"], item["answer"]), "last": not left})
    finally:
        os._exit(status)


def _limit(kind: int, value: int, soft_only: bool = False) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, hard if soft_only else value))


def _drain() -> None:
    """Drops what is left of an item that the last child had not read to its end; nothing is sent before `ready`."""
    flags = fcntl.fcntl(0, fcntl.F_GETFL)
    fcntl.fcntl(0, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    try:
        while os.read(0, 2**16):
            pass
    except BlockingIOError:
        pass
    fcntl.fcntl(0, fcntl.F_SETFL, flags)


def _receive() -> dict | None:
    header = _read(4)
    if header is None:
        return None
    body = _read(*struct.unpack(">I", header))
    return None if body is None else json.loads(body)


def _read(count: int) -> bytes | None:
    data = b""
    while len(data) < count:
        piece = os.read(0, count - len(data))
        if not piece:
            return None
        data += piece
    return data


def _send(out: int, message: dict) -> None:
    body = json.dumps(message).encode()
    os.write(out, struct.pack(">I", len(body)) + body)  # short enough to be written whole or not at all


if __name__ == "__main__":
    main()
