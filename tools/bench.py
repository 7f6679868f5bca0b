"""Benchmarks of the library: `python tools/bench.py ROW [--model HF_DIR] [--peer trl --peer tunix]`, or `all` for one table.

    step       (a), (b) whole GRPO steps against the peers      decode     (c) sampling against transformers.generate
    tail       (d) long-tail lengths against only live rows     logprob    (e) log-probs against the dense computation
    countdown, maths   (f) answers checked per second           start      (g) start-up, cold and again; late compilations
    limit      the machine's rates, the work's needs, and the share that is achieved

Each prints rows of one table. The folder of SmolLM2-135M is written by `tools/smollm2.py`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_step import PEERS, WORK, step
from bench_timing import HEADER, Busy, Row, collect, machine

from jaxrl_ml.cli import run_command

REPEATS = {"countdown": 15, "maths": 5, "step": 3, "limit": 5, "decode": 3, "tail": 3, "logprob": 5, "start": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=[*REPEATS, "all"], help="what to measure")
    parser.add_argument("--repeats", type=int, help="of the row; each has its own default")
    parser.add_argument("--model", default="runs/smollm2", help="folder that tools/smollm2.py wrote")
    parser.add_argument("--peer", action="append", choices=list(PEERS), default=[], help="step, decode: whom to compare with")
    parser.add_argument("--work", choices=list(WORK), default="a", help="step: how much of it")
    args = parser.parse_args()
    if args.row == "all":
        rest = ["--model", args.model, *(word for peer in args.peer for word in ("--peer", peer))]
        rows = [["step"], ["step", "--work", "b"], *([row] for row in REPEATS if row != "step")]
        collect([[*row, *rest] for row in rows])
        return
    before = Busy.now()
    found = measure(args.row, args.model, args.peer, args.work, args.repeats or REPEATS[args.row])
    print(f"{machine(before)}\n\n{HEADER}")
    print("\n".join(row.markdown() for row in found))


def measure(row: str, model: str, peers: list[str], work: str, repeats: int) -> list[Row]:
    """The rows of one name; what it does not need is not imported."""
    match row:
        case "step":
            return step(model, peers, work, repeats)
        case "limit":
            from bench_limit import limit

            return limit(model, repeats)
        case "decode":
            from bench_decode import decode

            return decode(model, peers, repeats)
        case "tail":
            from bench_decode import tail

            return tail(model, repeats)
        case "logprob":
            from bench_logprob import logprob

            return logprob(repeats)
        case "start":
            from bench_start import start

            return start(repeats)
    import bench_host

    return {"countdown": bench_host.countdown, "maths": bench_host.maths}[row](repeats)


if __name__ == "__main__":
    run_command(main)
