"""Arms of a skills study side by side: means over runs, against runs whose successes are set by hand; and the command."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from jaxrl_ml.analysis.skill_tables import compare, spread
from jaxrl_ml.analysis.skills import history
from jaxrl_ml.analyze import main
from jaxrl_ml.records import write_records
from jaxrl_ml.types import Example, UserError

PROBLEMS = (
    ({"numbers": [3, 4, 5], "target": 17, "pattern": "A*B+C"}, "3*4+5"),
    ({"numbers": [2, 3, 20], "target": 4, "pattern": "A/(B+C)"}, "20/(2+3)"),
)


def recorded(run: Path, right: tuple[int, int]) -> Path:
    """A run with four samples of each problem, of which so many are its solution; at step 0 none is."""
    examples = [Example(str(i), "countdown/3", fields) for i, (fields, _) in enumerate(PROBLEMS)]
    for step, counts in ((0, (0, 0)), (10, right)):
        records = [
            {
                "id": str(i),
                "task": "countdown/3",
                "sample": k,
                "reward": 0.0,
                "length": 1,
                "correct": k < count,
                "completion": solution if k < count else "3+4+5 2+3+20",
            }
            for i, ((_, solution), count) in enumerate(zip(PROBLEMS, counts, strict=True))
            for k in range(4)
        ]
        write_records(run, "n3", step, records, examples)
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [recorded(tmp_path / str(i), right) for i, right in enumerate(((4, 0), (2, 1), (3, 3)))]


def test_means_and_deviations_are_over_runs_at_their_last_step(runs: list[Path]) -> None:
    found = compare([history(run) for run in runs])
    shares = {"all": [4 / 8, 3 / 8, 6 / 8], "left-heavy": [1, 1 / 2, 3 / 4], "right-heavy": [0, 1 / 4, 3 / 4]}
    for patterns, values in shares.items():
        success = found["n3", 3, patterns]["success"]
        assert success.values == pytest.approx(values)
        assert success.mean == pytest.approx(statistics.mean(values))
        assert success.sd == pytest.approx(statistics.stdev(values))
    assert found["n3", 3, "right-heavy, depth 2"] == found["n3", 3, "right-heavy"]
    assert found["n3", 3, "right-heavy"]["precision"].values == (1, 1)  # the first run attempts none: no precision, not zero
    assert found["n3", 3, "right-heavy"]["coverage"].values == (0, 1, 1)
    assert spread([]) is None and spread([float("nan")]) is None


def test_the_command_compares_arms(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = map(str, runs)
    main(["skills", f"{first},{second}", third, "--out", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert "43.8 ± 8.8" in shown and "75.0" in shown
    report = json.loads((tmp_path / "out" / "skills.json").read_text())
    everything = next(one for one in report[third]["last"] if one["patterns"] == "all")
    assert everything["success"]["values"] == [0.75]
    assert len(report[f"{first},{second}"]["orders"]) == 2
    assert len(list((tmp_path / "out").glob("skills-*.svg"))) == 6


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_run_without_records_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"{name} holds no records of Countdown"):
        main(["skills", str(tmp_path / name), "--out", str(tmp_path / "out")])


def test_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no runs"):
        main(["skills", "--out", str(tmp_path / "out")])
