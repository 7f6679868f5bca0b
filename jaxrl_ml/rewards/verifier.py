"""A pool of killable math-verify processes: pairs of LaTeX (gold, answer) in, verdicts out. Runs no sympy in this process.

An item has a deadline of wall time; one that is not answered by then, or takes its process down, costs that process and is
given up: the verdict says `timeout`. Each distinct pair is verified once and remembered. With a file of verdicts every one is
also written there and read back at the start, so that a recorded or resumed run sees the same verdicts, time-outs included.

The processes are started when the first item needs them, as programs of their own (`verifier_worker.py`) with pipes: no fork
of this process, whose threads are jax's, and no pickle. They have no environment and limited resources, and leave when this
process does, however it ends.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxrl_ml.types import UserError

Pair = tuple[str, str]  # (gold, answer), in LaTeX

ITEMS_A_CHILD = 256
"""A process is replaced after so many items: sympy's caches would make it grow, and verdicts depend on its history."""
START_S = 120.0
MAX_REMEMBERED = 2**18
_PROGRAM = Path(__file__).resolve().with_name("verifier_worker.py")
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}  # the order of sympy's sets, hence what it does, is the same in every run


class Verdict(NamedTuple):
    """What became of one pair; a pair that was given up is not correct."""

    correct: bool
    timeout: bool = False


class Verifier:
    """A pool of at most `num_workers` processes that give each item `deadline_s` seconds; safe to call from any thread.

    `verdicts` is the path of a JSONL file of verdicts to read and to append to; give each process its own. `command` starts a
    worker, for tests. Use as a context manager, or call `close()`; a closed verifier starts its processes anew when called.
    """

    def __init__(
        self,
        num_workers: int,
        deadline_s: float,
        verdicts: str | None = None,
        command: Sequence[str] = (sys.executable, "-P", "-s", "-B", str(_PROGRAM)),
        items_a_child: int = ITEMS_A_CHILD,
    ):
        self._command = (*command, str(deadline_s), str(items_a_child))
        self._num_workers, self._deadline_s = num_workers, deadline_s
        self._file = None if verdicts is None else Path(verdicts)
        self._known: dict[Pair, Verdict] = {} if self._file is None else _read_verdicts(self._file)
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __call__(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """One verdict a pair. Raises UserError where the processes cannot be started."""
        with self._lock:
            new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
            if new:
                try:
                    found = self._run(new)
                except BaseException:
                    self._stop()  # workers may hold items of the call that failed
                    raise
                self._known |= found
                self._record(found)
            verdicts = [self._known[pair] for pair in pairs]
            while self._file is None and len(self._known) > MAX_REMEMBERED:
                del self._known[next(iter(self._known))]
            return verdicts

    def close(self) -> None:
        """Kills the processes and waits for them."""
        if self._process == os.getpid():  # a fork of this process must not touch its workers
            with self._lock:
                self._stop()

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop(self) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers.clear()

    def _run(self, items: Sequence[Pair]) -> dict[Pair, Verdict]:
        waiting, found = deque(items), {}
        while len(found) < len(items):
            while len(self._workers) < min(self._num_workers, len(items)):
                self._workers.append(_Worker(self._command))
            for worker in self._workers:
                if worker.idle and waiting:
                    worker.send(waiting.popleft(), self._deadline_s)
            self._wait()
            for worker in self._workers.copy():
                for pair, verdict in worker.progress():
                    found[pair] = verdict
                if worker.gone:
                    worker.stop()
                    self._workers.remove(worker)
        return {pair: found[pair] for pair in items}

    def _wait(self) -> None:
        """Until a worker has something to say or is late."""
        poller = select.poll()
        for worker in self._workers:
            poller.register(worker.output, select.POLLIN)
        late = min((worker.deadline for worker in self._workers if not worker.idle), default=0.0)
        poller.poll(max(0.0, late - time.monotonic()) * 1000 + 1)

    def _record(self, found: dict[Pair, Verdict]) -> None:
        if self._file is not None:
            lines = (
                json.dumps({"gold": gold, "answer": answer, **verdict._asdict()}) + "\n"
                for (gold, answer), verdict in found.items()
            )
            with self._file.open("a") as file:
                file.write("".join(lines))


class _Worker:
    """One worker process: being started (or replacing its child), idle, or busy with an item."""

    def __init__(self, command: Sequence[str]):
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd="/",
                env=_ENVIRONMENT,
                start_new_session=True,  # its own group: Ctrl-C does not reach it, and one kill ends it with its child
            )
        except OSError as error:
            raise _cannot_start(error) from None
        self.output = self._process.stdout.fileno()
        os.set_blocking(self.output, False)
        self._buffer = bytearray()
        self._item: Pair | None = None
        self._child = 0  # the process that answers; 0 while there is none
        self._was_ready = False
        self.gone = False
        self.deadline = time.monotonic() + START_S

    @property
    def idle(self) -> bool:
        return self._child != 0 and self._item is None

    def send(self, item: Pair, deadline_s: float) -> None:
        body = json.dumps({"gold": item[0], "answer": item[1]}).encode()
        self._item, self.deadline = item, time.monotonic() + deadline_s
        with contextlib.suppress(BrokenPipeError):  # died while idle: its output ends, which says so
            self._process.stdin.write(struct.pack(">I", len(body)) + body)

    def progress(self) -> list[tuple[Pair, Verdict]]:
        """The verdict on its item, if there is one by now. Raises UserError where a worker cannot be started."""
        found = []
        for message in self._messages():
            if "error" in message:
                raise _cannot_start(message["error"])
            if "ready" in message:
                found += self._give_up()
                self._child, self._was_ready = message["ready"], True
            elif self._child and self._item is not None:
                found.append((self._item, Verdict(message["correct"])))
                self._item = None
                if message["last"]:
                    self._expect_child()
        if self.gone:
            if not self._was_ready:
                raise _cannot_start(f"{self._process.args[0]} ended with status {self._process.wait()}")
            found += self._give_up()
        elif not self.idle and time.monotonic() >= self.deadline:
            if not self._child:
                raise _cannot_start(f"not ready after {START_S:g} s")
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
            found += self._give_up()
            self._expect_child()
        return found

    def _give_up(self) -> list[tuple[Pair, Verdict]]:
        item, self._item = self._item, None
        return [] if item is None else [(item, Verdict(correct=False, timeout=True))]

    def _expect_child(self) -> None:
        self._child, self.deadline = 0, time.monotonic() + START_S

    def _messages(self) -> list[dict]:
        """Those that have arrived; sets `gone` at the end of the output."""
        try:
            while piece := os.read(self.output, 2**16):
                self._buffer += piece
            self.gone = True
        except BlockingIOError:
            pass
        messages = []
        while len(self._buffer) >= 4:
            end = 4 + struct.unpack_from(">I", self._buffer)[0]
            if len(self._buffer) < end:
                break
            messages.append(json.loads(self._buffer[4:end]))
            del self._buffer[:end]
        return messages

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def _cannot_start(why: object) -> UserError:
    return UserError(f"the maths verifier cannot be started ({why}); install it with `pip install math-verify[antlr4-13-2]`")


def _read_verdicts(path: Path) -> dict[Pair, Verdict]:
    """The verdicts of a file, first ones first; none where it does not exist. Mends a last line that was cut off."""
    if not path.is_file():
        if not path.parent.is_dir():
            raise UserError(f"verdicts={str(path)!r}: its folder does not exist; create it")
        return {}
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    verdicts = {}
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            entry = json.loads(line)
            pair = entry["gold"], entry["answer"]
            verdict = Verdict(entry["correct"], entry["timeout"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}:{number} is no verdict; mend the line or remove the file") from None
        verdicts.setdefault(pair, verdict)
    return verdicts


_SHARED: dict[tuple, Verifier] = {}
_SHARED_LOCK = threading.Lock()


def shared(num_workers: int, deadline_s: float, verdicts: str | None) -> Verifier:
    """The one verifier of this process for these settings; closed when the process ends."""
    key = (os.getpid(), num_workers, deadline_s, verdicts)
    with _SHARED_LOCK:
        if key not in _SHARED:
            _SHARED[key] = Verifier(num_workers, deadline_s, verdicts)
            atexit.register(_SHARED[key].close)
        return _SHARED[key]
