"""The command: results in, tables, JSON and figures out; every mistake is one line that names a file or an option."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxrl_ml.analyze import find_results, main
from jaxrl_ml.evaluate import EvaluationResult, write_result
from jaxrl_ml.types import UserError

LANGUAGES = ("en", "de", "fr", "sw", "he")


def write(path: Path, right: Mapping[str, int], of: int = 60) -> str:
    """A result with this many right answers in each language, on problems that are drawn once for the file's name."""
    order = np.random.default_rng(len(path.name)).permutation(of)
    records = [
        {"id": f"{code}-{p}", "task": f"words/{code}", "sample": 0, "correct": bool(order[p] < count)}
        for code, count in right.items()
        for p in range(of)
    ]
    write_result(path, EvaluationResult({}, records), {"source": "x"})
    return str(path)


def model(path: Path, *right: int) -> str:
    return write(path, dict(zip(LANGUAGES, right, strict=True)))


def strict(path: Path) -> Any:
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def drawing(path: Path) -> str:
    return ET.tostring(ET.parse(path).getroot(), encoding="unicode")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    model(tmp_path / "base.json", 20, 20, 20, 20, 20)
    for x, right in ((1, (40, 22, 20, 22, 24)), (2, (40, 40, 20, 30, 34)), (3, (40, 40, 40, 40, 38))):
        model(tmp_path / "runs" / f"x{x}" / "evaluations" / "test-100.json", *right)
    model(tmp_path / "again.json", 40, 40, 20, 32, 32)
    model(tmp_path / "fixed.json", 38, 38, 20, 28, 30)
    return tmp_path


TRANSFER = "transfer runs/x2 again.json,runs/x2 --train en de --unseen sw he --base base.json --out out"


def test_transfer(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(TRANSFER.split())
    shown = capsys.readouterr().out
    report = strict(results / "out" / "transfer.json")
    one, both = report["models"]
    assert one["mti"]["value"] == pytest.approx((1 / 2 + 14 / 20) / 2 / 1)
    assert one["mti"]["low"] < one["mti"]["value"] < one["mti"]["high"]
    assert both["mti"]["value"] == pytest.approx(((11 + 13) / 20) / 2), "seeds are averaged"
    assert one["relative"]["train"]["value"] == 1 and one["difference"]["unseen"]["value"] == pytest.approx(24 / 120)
    assert [cell["language"] for cell in one["cells"]] == sorted(LANGUAGES)
    assert "words/sw" in shown and "0.600" in shown and "wrote out/transfer.json" in shown
    for name in ("transfer.svg", "transfer-1.svg"):
        assert "path" in drawing(results / "out" / name)
    before = {path.name: path.read_bytes() for path in (results / "out").iterdir()}
    main(TRANSFER.split())
    assert {path.name: path.read_bytes() for path in (results / "out").iterdir()} == before


def test_a_refused_index_is_told_beside_the_raw_gains(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model(results / "weak.json", 20, 20, 20, 0, 20)
    main(f"{TRANSFER} --base weak.json".split())
    shown = " ".join(capsys.readouterr().out.split())
    assert "no index: runs/x2/evaluations/test-100.json: the base's accuracy is not distinguishable from 0 in words/sw" in shown
    found, _ = strict(results / "out" / "transfer.json")["models"]
    assert found["mti"] is None and found["difference"]["unseen"]["value"] == pytest.approx((30 + 14) / 120)


GROWING = "scaling --growing 1=runs/x1 2=runs/x2,again.json 3=runs/x3 --fixed 1=runs/x1 2=fixed.json --out out"


def test_scaling(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(f"{GROWING} --train en de fr --test sw he --base base.json --name test".split())
    report = strict(results / "out" / "scaling.json")
    growing, fixed = (report["accuracy"][arm] for arm in ("growing", "fixed"))
    assert {x: len(runs) for x, runs in growing["runs"].items()} == {"1": 1, "2": 2, "3": 1}
    assert growing["runs"]["2"] == pytest.approx([64 / 120, 64 / 120])
    assert growing["leap"]["value"] == pytest.approx((64 - 46) / 120)
    assert growing["fits"][0]["beta_drawn"]["value"] == pytest.approx(np.log(78 / 64) / np.log(3 / 2), rel=1e-5)
    assert fixed["fits"] == [] and any("no law" in note for note in fixed["notes"])
    assert report["mti"]["growing"]["means"]["2"]["value"] == pytest.approx(0.6)
    assert report["growing_minus_fixed"]["2"]["value"] == pytest.approx((64 - 58) / 120)
    shown = capsys.readouterr().out
    for text in (
        "accuracy, growing budget",
        "β, log-log",
        "gap α − f(1)",
        "c − a·X^−b",
        "mti, fixed budget",
        "accuracy at X = 2",
    ):
        assert text in shown
    curve = report["by_language"]["sw"]["growing"]
    assert {x: one["value"] for x, one in curve.items()} == pytest.approx({"1": 22 / 60, "2": 31 / 60, "3": 40 / 60})
    assert list(report["by_language"]["sw"]) == ["growing", "fixed"] and len(report["by_language"]) == len(LANGUAGES)
    for name in ("scaling-accuracy.svg", "scaling-mti.svg", "scaling-languages.svg"):
        assert drawing(results / "out" / name).count("path") > 30
    page = (results / "out" / "scaling.html").read_text()
    assert page.count("<svg") == 3 and "β, log-log" in page and "accuracy at X = 2" in page
    assert "<script" not in page and "default-src 'none'" in page


def test_scaling_without_a_base_or_with_a_weak_one(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(f"{GROWING} --test sw he".split())
    assert "mti" not in strict(results / "out" / "scaling.json")
    model(results / "weak.json", 0, 20, 20, 20, 20)
    main(f"{GROWING} --test sw he --train en de fr --base weak.json".split())
    report = strict(results / "out" / "scaling.json")
    assert "mti" not in report and "words/en" in report["index_refused"]["fixed.json"]
    assert "no law of the index" in capsys.readouterr().out


def told(path: Path, setting: str, rows: Sequence[tuple[bool, str, str]]) -> str:
    records = [
        {
            "id": str(i // 2), "task": "t", "sample": i % 2, "correct": correct, "language": language, "detected": detected,
            "thinking_tokens": 4,
        }
        for i, (correct, language, detected) in enumerate(rows)
    ]  # fmt: skip
    write_result(path, EvaluationResult({}, records), {"setting": setting})
    return str(path)


def test_languages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    english = told(
        tmp_path / "e.json", "en", [(True, "en", "en"), (False, "en", "en"), (False, "en", "de"), (False, "en", "en")]
    )
    other = told(
        tmp_path / "d.json", "multi", [(True, "de", "de"), (True, "de", "de"), (False, "sw", "sw"), (False, "sw", "en")]
    )
    main(["languages", english, other, "--out", str(tmp_path)])
    report = strict(tmp_path / "languages.json")
    assert report["metrics"][english]["compliance"] == 0.75 and "win" not in report["metrics"][english]
    found = report["metrics"][other]
    assert (found["accuracy"], found["pass@2"], found["win"], found["tie"], found["lose"]) == (0.5, 0.5, 0.5, 0.5, 0.0)
    assert report["by_language"][other]["de"]["accuracy"] == 1 and "AccF" in capsys.readouterr().out


def test_a_folder_stands_for_its_one_result(results: Path) -> None:
    folder = results / "runs" / "x1"
    assert find_results(str(folder), None) == [folder / "evaluations" / "test-100.json"]
    model(folder / "evaluations" / "other-100.json", 1, 1, 1, 1, 1)
    with pytest.raises(UserError, match="2 results .other-100.json, test-100.json.; choose with --name"):
        find_results(str(folder), None)
    assert find_results(f"{folder},base.json", "test") == [folder / "evaluations" / "test-100.json", Path("base.json")]
    with pytest.raises(UserError, match="no evaluations/.*of tes:"):
        find_results(str(folder), "tes")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("transfer --base base.json --train en", "no trained model"),
        ("transfer runs/x2 --base nowhere --train en", "no file or folder nowhere"),
        ("transfer runs/x2 --base , --train en", "',' names no file"),
        ("transfer runs --base base.json --train en", "runs has no evaluations"),
        ("transfer runs/x2 --base broken.json --train en", "broken.json cannot be read"),
        ("transfer runs/x2 --base deep.json --train en", "deep.json (cannot be read|has no records)"),
        ("transfer runs/x2 --base empty.json --train en", "empty.json has no records"),
        ("transfer runs/x2 --base short.json --train en", "short.json lacks 5 problem"),
        ("transfer runs/x2 --base base.json --train ja", "no results in language 'ja'"),
        ("scaling --test sw", "no runs"),
        ("scaling --growing runs/x1 --test sw", "'runs/x1': write X=RUN"),
        ("scaling --growing 0=runs/x1 --test sw", "'0=runs/x1': write X=RUN"),
        ("scaling --growing 1= --test sw", "'' names no file"),
        ("scaling --growing 1=base.json 2=base.json --test sw", "base.json is given twice"),
        ("scaling --growing 1=runs/x1", "neither --train nor --test"),
        ("scaling --growing 2=runs/x2 --train en", "name 2 different languages"),
        ("scaling --growing 2=runs/x2 --train en en", "name 2 different languages"),
        ("scaling --growing 2=runs/x2 --train en de --test de", "--test de: name languages"),
        ("scaling --growing 1=runs/x1 --test sw --base base.json", "--base needs --train"),
        ("scaling --growing 1=runs/x1 2=short.json --test sw", "short.json lacks"),
        ("transfer runs/x2 --base base.json --train en --out base.json", "--out base.json is a file"),
        ("transfer runs/x2 --base base.json --train en --out gs://bucket/out", "gs://bucket/out"),
        ("languages", "no results"),
        ("languages base.json", "base.json: record 0 tells of no thinking language"),
        ("languages ragged.json", "ragged.json: records are not 2 a problem"),
    ],
)
def test_mistakes_are_one_line(results: Path, line: str, message: str) -> None:
    (results / "broken.json").write_text('{"records": [')
    (results / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
    (results / "empty.json").write_text('{"records": []}')
    write(results / "short.json", dict.fromkeys(LANGUAGES, 20), of=59)
    told(results / "ragged.json", "en", [(True, "en", "en")] * 3)
    with pytest.raises(UserError, match=message) as error:
        main(line.split())
    assert "\n" not in str(error.value)


def test_settings_of_other_problems_are_refused(tmp_path: Path) -> None:
    english = told(tmp_path / "e.json", "en", [(True, "en", "en")] * 4)
    other = told(tmp_path / "d.json", "de", [(True, "de", "de")] * 6)
    with pytest.raises(UserError, match="not of the same problems"):
        main(["languages", english, other, "--out", str(tmp_path)])


def test_as_a_command(results: Path) -> None:
    command = [sys.executable, "-m", "jaxrl_ml.analyze"]
    root = Path(__file__).resolve().parent.parent
    wrong = subprocess.run([*command, "scaling"], capture_output=True, text=True, cwd=root, check=False)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and wrong.stderr.startswith("error: no runs")
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(root)}
    shown = subprocess.run([*command, *TRANSFER.split()], capture_output=True, cwd=results, env=ascii_only, check=True)
    assert shown.stdout.isascii() and b"words/sw" in shown.stdout and (results / "out" / "transfer.json").is_file()
    program = (
        "import runpy, sys; sys.argv = ['x', 'transfer', '--help']\n"
        "try: runpy.run_module('jaxrl_ml.analyze', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'jax', 'scipy', 'transformers', 'grain', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True, capture_output=True)
