"""Laws of `python -m jaxrl_ml.plan`: what it prints, what it advises, and how it ends."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import COLUMNS

from jaxrl_ml import plan
from jaxrl_ml.config import model as model_config
from jaxrl_ml.planning import compiled, curve, topology
from jaxrl_ml.planning.roofline import estimates
from jaxrl_ml.planning.search import remedies
from jaxrl_ml.planning.stages import Planned
from jaxrl_ml.planning.work import Estimate
from jaxrl_ml.types import UserError

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
from jaxrl_ml.config import *
model = ModelConfig("qwen2", 512, 2, 64, 256, 4, 2, 16, tie_embeddings=False)
sampling = SamplingConfig(max_prompt_tokens=33, max_completion_tokens=32)
config = Config(
    run_dir="x",
    model=model,
    tokenizer=("a",),
    mesh=MeshConfig(data=1, fsdp=4, tensor=2),
    stages=(
        SFTStage(None, name="cold", batch_size=16, sequence_length=64),
        GRPOStage(None, None, name="rl", prompts_per_step=16, group_size=4, sampling=sampling, loss=LossConfig(kl="k3")),
    ),
)
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return str(path)


def table(text: str, row: str) -> list[str]:
    """The cells of the row of the last table that has it."""
    line = [line for line in text.splitlines() if line.strip().startswith(row)][-1]
    return line.strip().removeprefix(row).split()


def test_without_compilers_the_plan_is_worked_out_and_says_so(config, capsys, monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    assert plan.main([config, "--topology", "v5e:2x4", "--price", "2"]) == 0
    text = capsys.readouterr().out
    assert "libtpu" in text and "jaxrl_ml[plan]" in text and "not compiled" in text
    assert "splash attention" in " ".join(text.split())
    assert table(text, "of one device") == ["gather", "prefill", "decode", "score", "update"]
    assert table(text, "compiled in") == ["not"] * 5
    step = sum(float(runs) * float(s) for runs, s in zip(table(text, "runs a step"), table(text, "a run, s"), strict=True))
    predicted = re.findall(r"predicted: (\S+) s a step, (\S+) dollars at 2 a chip-hour", text)[-1]
    assert float(predicted[0]) == pytest.approx(step, rel=0.02)
    assert float(predicted[1]) == pytest.approx(step * 8 * 2 / 3600, rel=0.02)


def test_a_plan_is_compiled_and_kept(config, capsys, tmp_path):
    command = [
        config,
        "--topology",
        "cpu:8",
        "--stage",
        "rl",
        "--program",
        "gather",
        "prefill",
        "--cache",
        str(tmp_path / "kept"),
    ]
    assert plan.main(command) == 0
    text = capsys.readouterr().out
    assert table(text, "of one device") == ["gather", "prefill"] and "compiled with jax" in text
    assert all(cell in ("s", *map(str, range(100))) for cell in table(text, "compiled in"))
    assert len(list((tmp_path / "kept").glob("*.json"))) == 2
    assert plan.main(command) == 0
    assert table(capsys.readouterr().out, "compiled in") == table(text, "compiled in")


def test_a_sweep_ranks_and_plans_the_best_two(config, capsys):
    assert plan.main([config, "--topology", "v5e:2x4", "--stage", "rl", "--analytic", "--sweep"]) == 0
    text = capsys.readouterr().out
    flags = r"^--mesh.data (\d) --mesh.fsdp (\d) --mesh.tensor (\d) --mesh.context 1 --stages.1.num-microbatches (\d+)$"
    best = re.findall(flags, text, re.M)
    assert len(best) == 2 and best[0][:3] != best[1][:3]
    assert text.count("predicted:") == 2
    assert f"{best[0][0]} × {best[0][1]} × {best[0][2]}" in text


def test_what_is_advised_makes_a_plan_fit(config, capsys, monkeypatch):
    """A chip is taken that is a little too small for the update; each change that is advised is made, and the plan fits."""
    command = [config, "--topology", "cpu:8", "--analytic", "--stage", "rl"]
    assert plan.main(command) == 0
    loaded = plan.load(config, [])
    stage = loaded.stages[1]
    compute = dataclasses.replace(loaded.compute, dtype="float32")
    needs = {e.name: e.memory.total for e in estimates(loaded.model, compute, loaded.mesh, stage)}
    assert max(needs, key=needs.get) == "rl/update"
    limit = int(sorted(needs.values())[-2] * 0.5 + needs["rl/update"] * 0.5)
    monkeypatch.setitem(topology.CHIPS, "cpu", dataclasses.replace(topology.CHIPS["cpu"], memory=limit))
    capsys.readouterr()
    assert plan.main(command) == 1
    text = capsys.readouterr().out
    advised = re.findall(r"^  change: (--.*?) \(worked", text.replace("\n(worked", " (worked"), re.M)
    assert len(advised) >= 3 and any("num-microbatches" in change for change in advised)
    assert any("remat" in change for change in advised)
    for change in advised:
        assert plan.main([*command, *change.split()]) == 0, change


@pytest.mark.parametrize(
    ("overrides", "program", "advised"),
    [
        (["--mesh.data", "2", "--mesh.fsdp", "2"], "rl/gather", "--compute.sampling-weights split"),
        (["--stages.1.prompts-per-step", "4", "--compute.remat", "full"], "rl/update", "--mesh.context 2"),
    ],
    ids=["weights", "sequences"],
)
def test_what_microbatches_cannot_make_fit_is_split(overrides, program, advised, config, capsys, monkeypatch):
    """Weights that are too large when gathered are sampled with as they are split; a row that is too long is split itself."""
    command = [config, "--topology", "cpu:8", "--analytic", "--stage", "rl", "--program", program.split("/")[1], *overrides]
    loaded = plan.load(config, overrides)
    compute = dataclasses.replace(loaded.compute, dtype="float32")
    mesh = plan.filled(loaded.mesh, topology.parse("cpu:8"))
    (needed,) = [e.memory.total for e in estimates(loaded.model, compute, mesh, loaded.stages[1]) if e.name == program]
    small = dataclasses.replace(topology.CHIPS["cpu"], memory=int(0.9 * needed))
    monkeypatch.setitem(topology.CHIPS, "cpu", small)
    assert plan.main(command) == 1
    changes = re.findall(r"^  change: (--.*?) \(worked", capsys.readouterr().out, re.M)
    assert any(advised in change for change in changes), changes
    for change in changes:
        if advised in change:
            assert plan.main([*command, *change.split()]) == 0, change


OUT_OF_MEMORY = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. \
Used 47.90G of 15.75G hbm. Exceeded hbm capacity by 32.15G.

Total hbm usage >= 48.16G:
    reserved        260.00M
    program          47.90G
    arguments            0B

  Largest program allocations in hbm:

  1. Size: 16.00G
     Operator: op_type="dot_general" op_name="jit(f)/attention/bkxs"
     Shape: f32[64,16384,4096]{2,1,0:T(8,128)}
     Unpadded size: 16.00G
     XLA label: fusion.1
  2. Size: 512.0M
     Operator: op_name="jit(f)/mlp/dot_general"
     Shape: bf16[16384,16384]{1,0:T(8,128)(2,1)}
"""


def test_the_compilers_account_of_what_does_not_fit_is_read(config):
    loaded = plan.load(config, [])
    (expected, *_) = estimates(loaded.model, loaded.compute, loaded.mesh, loaded.stages[0])
    program = Planned("cold/fit", None, (), 1)
    found: Estimate = compiled._refused(OUT_OF_MEMORY, program, expected, topology.parse("v5e:2x4"), 1.0)
    assert found.refused and found.memory.peak == 47.9 * 2**30
    assert found.largest[0] == (16 * 2**30, "f32[64,16384,4096]", "jit(f)/attention/bkxs")
    assert found.largest[1][:2] == (2**29, "bf16[16384,16384]")
    early = (  # what libtpu 0.0.42.1 says where the temporaries alone are too much
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (32.04G) exceeds "
        "available HBM (15.75G)."
    )
    found = compiled._refused(early, program, expected, topology.parse("v5e:2x4"), 1.0)
    assert found.refused and found.memory.temporaries == pytest.approx(32.04 * 2**30) and found.largest == ()
    assert found.memory.peak == pytest.approx(32.04 * 2**30 + expected.memory.arguments)
    with pytest.raises(UserError, match="cold/fit is out of memory on v5e:2x4: RESOURCE_EXHAUSTED: more"):
        compiled._refused("RESOURCE_EXHAUSTED: more\nthan that", program, expected, topology.parse("v5e:2x4"), 1.0)


def test_nothing_helps_where_no_mesh_does(config):
    loaded = plan.load(config, [])
    tiny = topology.Topology(dataclasses.replace(topology.CHIPS["v5e"], memory=1000), (2, 4))
    over = estimates(loaded.model, loaded.compute, loaded.mesh, loaded.stages[1])[-1]
    (text,) = remedies(loaded.model, loaded.compute, loaded.stages[1], 1, loaded.mesh, tiny, over)
    assert "more chips" in text


def test_mistakes_are_told_in_one_line(config):
    for command, named in (
        ([], "usage"),
        ([config, "--topology", "v5e:8x8"], "data=1 fsdp=4 context=1 tensor=2 does not fit the 64 devices"),
        ([config, "--topology", "cpu:8", "--mesh.fsdp", "1", "--mesh.context", "8"], "does not fit the 8 devices"),
        ([config, "--topology", "cpu:8", "--mesh.fsdp", "1", "--mesh.context", "4"], "does not divide 4 heads"),
        (
            [config, "--topology", "cpu:8", "--mesh.fsdp", "2", "--mesh.context", "2", "--stages.0.sequence-length", "63"],
            "63 tokens cannot be split over mesh.context=2",
        ),
        ([config, "--topology", "cpu:8", "--stage", "sft"], "the config has cold, rl"),
        (
            ["configs/skills_qwen2p5.py", "--arm", "7b", "--init-from", "Nobody-9B", "--topology", "h100:8"],
            "no folder Nobody-9B",
        ),
        ([config, "--curve", "v5p"], "--curve is about no config"),
        ([config, "--topology", "cpu:8", "--stage", "rl", "--program", "fit"], "rl has no such program"),
        (
            [config, "--topology", "cpu:8", "--stages.1.num-microbatches", "8"],
            "4 row shards (mesh data·fsdp) with num_microbatches=8",
        ),
        ([config, "--topology", "v5e:4x8", "--mesh.fsdp", "32", "--mesh.tensor", "1"], "use another mesh, or --sweep"),
    ):
        with pytest.raises(UserError) as error:
            plan.main(command)
        assert named in str(error.value) and "\n" not in str(error.value)


def test_the_full_size_configs_are_worked_out_without_their_models(capsys):
    for path, arm in (("explang_qwen3_4b", "explang"), ("skills_qwen2p5", "7b"), ("parallel_qwen2p5_7b", "x2")):
        assert plan.main([f"configs/{path}.py", "--arm", arm, "--topology", "h100:8", "--analytic"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("predicted:") == text.count("plain attention, since cuDNN's cannot be compiled without a GPU") == 5


def test_a_page_holds_what_is_printed(tmp_path, capsys):
    page = tmp_path / "curve.html"
    assert plan.main(["--curve", "v5p", "--html", str(page)]) == 0
    assert "Qwen2.5-32B, strong scaling" in page.read_text() and "Qwen2.5-32B, strong scaling" in capsys.readouterr().out


def test_a_curve_ends_where_rows_do_and_never_asks_for_more_than_a_chip_has():
    chip = topology.CHIPS["v5e"]
    points = list(curve.curve(chip, ("Qwen2.5-1.5B", "Qwen2.5-7B"), (1, 8, 64, 512, 4096)))
    assert len(points) == 20
    for point in points:
        assert not point.fits or point.choice.memory <= chip.memory
    strong = [p for p in points if p.scaling == "strong" and p.fits and p.model == "Qwen2.5-1.5B"]
    weak = [p for p in points if p.scaling == "weak" and p.fits and p.model == "Qwen2.5-1.5B"]
    assert all(b.choice.step_s < a.choice.step_s for a, b in zip(strong, strong[1:], strict=False)) and len(strong) >= 2
    # More chips than a slice has send over the network: the step never gets faster for it.
    assert all(b.choice.step_s > 0.95 * a.choice.step_s for a, b in zip(weak, weak[1:], strict=False)) and len(weak) >= 3
    assert not [p for p in points if p.scaling == "strong" and p.chips == 4096 and p.fits and p.choice.mesh.tensor < 8]


def test_the_readme_has_what_the_tool_prints(monkeypatch):
    monkeypatch.setattr(model_config, "COLUMNS", COLUMNS)
    spec = importlib.util.spec_from_file_location("plans", ROOT / "tools" / "plans.py")
    plans = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plans)
    readme = (ROOT / "README.md").read_text()
    for row in (f"| | {plans.PLANS_HEAD} |", *plans.curve_rows()):
        assert f"{row}\n" in readme, f"README lacks what tools/plans.py prints: {row}"
    for model, *_, where, _, _ in plans.PLANS:  # their figures take minutes each
        assert readme.count(f"| {model}, {where}; step ") == 2, (model, where)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "package", "mesh"),
    [
        ("v5e:2x4", "libtpu", []),
        ("v5e:2x4", "libtpu", ["--mesh.fsdp", "2", "--mesh.context", "2"]),
        ("h100:8", "jax_cuda13_plugin", []),
    ],
)
def test_a_small_model_compiles_for_accelerators_as_it_is_worked_out(name, package, mesh, config, tmp_path):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: the extra `plan` has it")
    environment = {**os.environ, "XLA_FLAGS": "", "COLUMNS": "100"}
    found = []
    for more in ([], ["--analytic"]):
        command = [
            sys.executable,
            "-m",
            "jaxrl_ml.plan",
            config,
            "--topology",
            name,
            "--stage",
            "rl",
            "--cache",
            str(tmp_path / "kept"),
            *mesh,
        ]
        done = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append([float(cell.replace(",", "")) for cell in table(done.stdout, "TFLOP a run")])
        assert ("compiled with jax" in done.stdout) == (not more)
    assert found[0] == pytest.approx(found[1], rel=0.06)
