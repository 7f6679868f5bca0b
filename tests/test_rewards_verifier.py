from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxrl_ml.rewards import verifier
from jaxrl_ml.rewards.verifier import Verdict, Verifier
from jaxrl_ml.types import UserError

ROOT = Path(__file__).resolve().parent.parent
RIGHT, WRONG, GIVEN_UP = Verdict(True), Verdict(False), Verdict(False, timeout=True)

# The real worker program, but what it does with an item is up to the test.
MISBEHAVING = f"""
import os, runpy, sys, time
worker = runpy.run_path({str(verifier._PROGRAM)!r})
def verify(gold, answer):
    if answer == "hang":
        while True: pass
    if answer == "sleep": time.sleep(1000)
    if answer == "abort": os.abort()
    if answer == "exit": os._exit(0)
    if answer == "raise": raise ValueError
    if answer == "memory": return len(bytearray(2**33)) > 0
    if answer == "write": os.write(os.open(gold, os.O_CREAT | os.O_WRONLY), b"x")
    if answer == "print": os.write(1, b"x" * 100); print("noise")
    if answer == "environment": return set(os.environ) <= {{"PYTHONHASHSEED", "LC_CTYPE"}}
    if answer == "pid": return os.getpid() == int(gold)
    return gold == answer
worker["main"].__globals__["_load"] = lambda: LOAD
worker["main"]()
"""


def misbehaving(**settings) -> Verifier:
    command = (sys.executable, "-P", "-c", MISBEHAVING.replace("LOAD", "verify"))
    return Verifier(**{"num_workers": 2, "deadline_s": 0.5, "command": command, **settings})


def processes_of(made: Verifier) -> list[int]:
    """The ids of the workers and of their children."""
    groups = {worker._process.pid for worker in made._workers}
    return [pid for pid, group in process_groups().items() if group in groups]


def process_groups() -> dict[int, int]:
    """{process: its group} of all that are alive."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, group = folder.joinpath("stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if state != "Z":
            found[int(folder.name)] = int(group)
    return found


def wait_until_gone(pids: list[int], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while left := set(pids) & set(process_groups()):
        assert time.monotonic() < end, f"still alive: {left}"
        time.sleep(0.05)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


def test_verdicts_come_in_order_and_duplicates_once(monkeypatch):
    sent = []
    send = verifier._Worker.send
    monkeypatch.setattr(verifier._Worker, "send", lambda self, item, deadline: (sent.append(item), send(self, item, deadline)))
    with misbehaving(deadline_s=20.0) as verify:
        pairs = [("a", "a"), ("a", "b"), ("a", "a"), ("c", "c")] * 5
        assert verify(pairs) == [RIGHT, WRONG, RIGHT, RIGHT] * 5
        assert verify(pairs[:2]) == [RIGHT, WRONG]
    assert sorted(sent) == [("a", "a"), ("a", "b"), ("c", "c")]


@pytest.mark.parametrize("fault", ["hang", "sleep", "abort", "exit", "raise", "memory"])
def test_a_fault_costs_its_own_item_only(fault):
    """Also where every other item is at fault, as items follow each other on one worker."""
    with misbehaving(num_workers=1, deadline_s=0.5) as verify:
        pairs = [("a", "a"), ("1", fault), ("b", "b"), ("2", fault), ("c", "d")]
        assert verify(pairs) == [RIGHT, GIVEN_UP, RIGHT, GIVEN_UP, WRONG]


def test_workers_cannot_write_files(tmp_path):
    path = tmp_path / "written"
    with misbehaving(deadline_s=20.0) as verify:
        assert verify([(str(path), "write")]) == [GIVEN_UP]
    assert path.read_bytes() == b""


def test_workers_have_no_environment_and_a_private_output():
    with misbehaving(deadline_s=20.0) as verify:
        assert verify([("", "environment"), ("print", "print")]) == [RIGHT, RIGHT]


def test_children_are_retired():
    with misbehaving(num_workers=1, deadline_s=20.0, items_a_child=3) as verify:
        verify([("a", "a")])
        child = verify._workers[0]._child
        assert verify([(str(child), "pid"), ("c", "c")]) == [RIGHT, RIGHT]
        verify([("d", "d")])
        assert verify._workers[0]._child != child
        assert verify([(str(i), str(i)) for i in range(20)]) == [RIGHT] * 20


@needs_proc
def test_a_worker_that_is_killed_is_replaced():
    with misbehaving(num_workers=1, deadline_s=20.0) as verify:
        verify([("a", "a")])
        killed = verify._workers[0]._process.pid
        os.killpg(killed, signal.SIGKILL)
        wait_until_gone([killed])
        assert verify([("b", "b"), ("c", "c")])[1] == RIGHT
        assert verify._workers[0]._process.pid != killed


@needs_proc
def test_closing_leaves_no_process_and_a_closed_one_starts_anew():
    verify = misbehaving(deadline_s=20.0)
    assert not processes_of(verify)
    verify([("a", "a"), ("b", "b")])
    pids = processes_of(verify)
    assert len(pids) >= 2
    verify.close()
    wait_until_gone(pids)
    assert verify([("c", "c")]) == [RIGHT]
    verify.close()


@needs_proc
@pytest.mark.parametrize("answer", ["a", "hang"])
def test_a_killed_parent_leaves_no_worker(answer):
    """Idle workers and those in an endless loop go when the process that started them is killed."""
    program = f"""
import sys, threading, time
from jaxrl_ml.rewards.verifier import Verifier
verify = Verifier(1, 30.0, command=(sys.executable, "-P", "-c", {MISBEHAVING.replace("LOAD", "verify")!r}))
verify([("a", "b")])
threading.Thread(target=verify, args=([("x", {answer!r})],), daemon=True).start()
time.sleep(0.3)
print(verify._workers[0]._process.pid, verify._workers[0]._child, flush=True)
time.sleep(1000)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2 and set(pids) <= set(process_groups())
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    wait_until_gone(pids)


def test_an_interrupted_call_does_not_spoil_the_next(monkeypatch):
    with misbehaving(deadline_s=20.0) as verify:
        verify([("a", "a")])
        wait = Verifier._wait

        def interrupt(self):
            raise KeyboardInterrupt

        monkeypatch.setattr(Verifier, "_wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            verify([("b", "b")])
        monkeypatch.setattr(Verifier, "_wait", wait)
        assert verify([("c", "d"), ("b", "b")]) == [WRONG, RIGHT]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ((sys.executable, "-P", "-c", MISBEHAVING.replace("LOAD", "__import__('no_such_module')")), "no_such_module"),
        (("/no/such/program",), "No such file"),
        ((sys.executable, "-c", "raise SystemExit(3)"), "status 3"),
    ],
)
def test_a_failed_start_is_an_error_with_a_remedy(command, reason):
    verify = Verifier(2, 5.0, command=command)
    with pytest.raises(UserError, match=f"(?s){reason}.*install it with") as error:
        verify([("a", "a")])
    assert "\n" not in str(error.value)
    assert not verify._workers


def test_a_worker_that_never_gets_ready_is_an_error(monkeypatch):
    monkeypatch.setattr(verifier, "START_S", 0.3)
    with pytest.raises(UserError, match="not ready after 0.3 s"):
        Verifier(1, 5.0, command=(sys.executable, "-c", "import time; time.sleep(1000)"))([("a", "a")])


def test_verdicts_are_recorded_and_read_back(tmp_path):
    path = str(tmp_path / "verdicts.jsonl")
    pairs = [("a", "a"), ("\ud800\n", "hang"), ("a", "b")]
    with misbehaving(verdicts=path) as verify:
        assert verify(pairs) == [RIGHT, GIVEN_UP, WRONG]
    with open(path, "a") as file:
        file.write('{"gold": "cut o')
    replay = Verifier(1, 1.0, path, command=("/no/such/program",))
    assert replay(pairs) == [RIGHT, GIVEN_UP, WRONG]
    assert Path(path).read_text().endswith("}\n")  # what was cut off is gone, so the next line is whole
    with misbehaving(verdicts=path, deadline_s=20.0) as verify:
        assert verify([("new", "new"), *pairs]) == [RIGHT, RIGHT, GIVEN_UP, WRONG]
    assert len(Path(path).read_text().splitlines()) == 4


def test_a_broken_file_of_verdicts_is_refused(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    path.write_text('{"gold": "a", "answer": "a", "correct": true, "timeout": false}\n[]\n')
    with pytest.raises(UserError, match=":2 is no verdict"):
        Verifier(1, 1.0, str(path))
    with pytest.raises(UserError, match="folder does not exist"):
        Verifier(1, 1.0, str(tmp_path / "no" / "verdicts.jsonl"))


def test_memory_of_verdicts_is_bounded(monkeypatch):
    monkeypatch.setattr(verifier, "MAX_REMEMBERED", 3)
    with misbehaving(deadline_s=20.0) as verify:
        assert verify([(str(i), "1") for i in range(6)]) == [WRONG, RIGHT] + [WRONG] * 4
        assert list(verify._known) == [("3", "1"), ("4", "1"), ("5", "1")]


def test_equal_settings_share_a_pool_also_across_threads(monkeypatch):
    monkeypatch.setattr(verifier, "_SHARED", {})
    found = []
    threads = [threading.Thread(target=lambda: found.append(verifier.shared(1, 5.0, None))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    assert verifier.shared(2, 5.0, None) is not found[0]


HOSTILE = [
    "9^{9^{9^{9^{9}}}}+x",
    "9" * 1_000 + "!",
    "(" * 450 + "x" + ")" * 450,
    "\\frac{" * 150 + "x" + "}{2}" * 150,
    "\\sqrt{" * 160 + "x" + "}" * 160,
    "x^{" * 300 + "x" + "}" * 300,
    "\\int_0^{10^{9}} \\sin(x^{x^x}) dx",
    "\\sum_{n=1}^{10^{12}} \\frac{1}{n^n}",
    "\\lim_{x \\to 0} \\sin(1/x)^{x^{x}}",
    "(x+y+z)^{999999}",
    "10^{10^{10}}!",
    "1/0",
    "\\text{nan}",
    "nan",
    "\\infty - \\infty",
    "",
    " ",
    "\\",
    "{",
    "}",
    "\x00\x01",
    "\ud800\udfff",
    "𝟙𝟚+x",
    "0" * 900 + "x",
    "\\begin{pmatrix}" + "1&" * 200 + "1\\end{pmatrix}",
    "__import__('os').system('touch /tmp/owned')",
    "exec('while True: pass')",
    "1" + "+1" * 450,
    "\\boxed{" * 100,
    "\\binom{10^{9}}{10^{8}}",
]


def recovers(verify: Verifier) -> bool:
    """Whether sane items are answered, if need be after a few that are late because the machine is busy."""
    for _ in range(50):
        verify._known.clear()
        if verify([("x+1", "1+x"), ("x", "y")]) == [RIGHT, WRONG]:
            return True
    return False


@needs_proc
def test_hostile_answers_end_in_bounded_time_and_leave_nothing():
    """Each is right, wrong or given up at its deadline; the pool answers as before afterwards."""
    deadline_s = 0.4
    with Verifier(2, deadline_s) as verify:
        assert recovers(verify)
        start = time.monotonic()
        verdicts = verify([("x+2", answer) for answer in HOSTILE])
        assert time.monotonic() - start < 10 * len(HOSTILE) * deadline_s
        assert GIVEN_UP in verdicts and RIGHT not in verdicts
        assert recovers(verify)
        pids = processes_of(verify)
    wait_until_gone(pids)
    assert not Path("/tmp/owned").exists()
