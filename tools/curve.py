#!/usr/bin/env python3
"""Draws the README's learning curve from runs: `tools/curve.py OUT.svg [--metric NAME] ARM=RUN,RUN,… ARM=RUN,…`.

Prints, for each arm, the metric's mean and standard deviation over its runs at the last step, so that no figure in the README
is typed from memory.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from jaxrl_ml.analysis.plots import accuracy_curve, to_svg
from jaxrl_ml.metrics import read_metrics, series

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("out", type=Path)
parser.add_argument("arms", nargs="+", help="ARM=RUN,RUN")
parser.add_argument("--metric", default="eval/sampled/accuracy")
parser.add_argument("--title", default="Countdown, held-out problems")
parser.add_argument("--ylabel", default="accuracy")
parser.add_argument("--x", default="minutes", choices=("minutes", "step"))
arguments = parser.parse_args()

arms = {}
for arm in arguments.arms:
    name, _, folders = arm.partition("=")
    arms[name] = [read_metrics(Path(folder)) for folder in folders.split(",")]
    last = [series(records, arguments.metric)[1][-1] for records in arms[name]]
    spread = statistics.stdev(last) if len(last) > 1 else 0.0
    print(
        f"{name}: {arguments.metric} {statistics.mean(last):.3f} ± {spread:.3f} over {len(last)}: {[round(v, 3) for v in last]}"
    )
figure = accuracy_curve(arms, arguments.metric, x=arguments.x, title=arguments.title, ylabel=arguments.ylabel)
arguments.out.write_text(to_svg(figure))
