"""Several processes: how they start, what they tell each other, and that a run does not depend on how many they are."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow.parquet as parquet
import pytest
from conftest import assert_trees_close

from jaxrl_ml import processes
from jaxrl_ml.config import DistributedConfig, MeshConfig
from jaxrl_ml.models.transformer import Transformer
from jaxrl_ml.pretrained import load_params, read_model_config
from jaxrl_ml.sharding import Layout, make_mesh
from jaxrl_ml.train import main
from jaxrl_ml.types import Params, UserError

DEADLINE_S = 400  # for what takes a minute on a free core: a hang fails, and does not block
LOST_S = 20  # distributed.timeout_s of the tests

CONFIG = """
import os, signal
import numpy as np
from jaxrl_ml.config import *
from jaxrl_ml.rewards.countdown import countdown_reward
from jaxrl_ml.tasks.countdown import Countdown, compact

calls = 0

def reward(texts, examples):
    global calls
    calls += 1
    fault, _, at = os.environ.get("FAULT", "").partition("@")
    if fault and calls == int(at):
        if fault == "ValueError":
            raise ValueError("a mistake in the reward of one process")
        os.kill(os.getpid(), getattr(signal, fault))
    scores = countdown_reward(texts, examples)
    lengths = np.array([len(t) for t in texts])
    return type(scores)(scores.rewards + (lengths % 7).astype(np.float32) / 10, lengths % 3 == 0, scores.parts)

small = SamplingConfig(max_prompt_tokens=17, max_completion_tokens=16, prompts_per_chunk=8)
config = Config(
    run_dir="unset",
    tokenizer=(*"0123456789+-*/()=: ", "<answer>", "</answer>"),
    model=ModelConfig(family="qwen3", num_layers=1, embed_dim=16, mlp_dim=32, num_heads=4, num_kv_heads=2, head_dim=8),
    prompt_format=compact,
    stages=(
        SFTStage(Countdown(demonstrate=lambda e, _: f"<answer>{e.fields['solution']}</answer>"), name="cold_start",
                 num_steps=2, batch_size=8, sequence_length=64),
        GRPOStage(Countdown(), reward, num_steps=4, prompts_per_step=16, group_size=2, sampling=small,
                  loss=LossConfig(kl="k3", filter="resample", max_attempts=2)),
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    evaluations=(Evaluation(Countdown(split="test"), countdown_reward, num_prompts=9, prompts_per_batch=8, records=True,
                            sampling=SamplingConfig(max_prompt_tokens=17, max_completion_tokens=16), samples_per_prompt=2),),
    eval_every_steps=3,
    checkpoint=CheckpointConfig(every_steps=2, best_metric="eval/test/reward"),
    logging=LoggingConfig(console=False, tensorboard=False, samples_every_steps=1),
)
"""


TALK = """
import os, signal, sys, time
from datetime import date
from types import SimpleNamespace
import jax, numpy as np
from jaxrl_ml import pretrained, processes
from jaxrl_ml.config import DistributedConfig, MeshConfig
from jaxrl_ml.sharding import Layout, make_mesh
me = int(sys.argv[6])
with processes.together(DistributedConfig(sys.argv[2], int(sys.argv[4]), me, timeout_s=5)) as main_process:
    assert main_process == (me == 0)
    rows, key = np.arange(16, dtype=np.int32).reshape(8, 2), jax.random.key(3)
    for mesh, blocks in ((MeshConfig(fsdp=2), (0, 1)), (MeshConfig(tensor=2), (0, 1)), (MeshConfig(tensor=4), (0, 0))):
        layout = Layout(make_mesh(mesh))
        assert layout.blocks == blocks
        with jax.transfer_guard("disallow"):
            placed = layout.put_rows(layout.own_rows(rows))
            own = processes.local_rows(placed)
            copied = layout.put((key, np.float32(2)))
            found = layout.gather_blocks({"me": me, "rows": own, "other": [np.zeros(me + 1)]})
        assert placed.shape == rows.shape and copied[0].shape == () and copied[1].is_fully_replicated
        assert [one["me"] for one in found] == sorted(set(blocks))
        assert [one["other"][0].shape for one in found] == [(block + 1,) for block in sorted(set(blocks))]
        np.testing.assert_array_equal(np.concatenate([one["rows"] for one in found]), rows)
    pretrained.date = SimpleNamespace(today=lambda: date(2026, 11, 30 - me))  # midnight comes between the two
    assert pretrained.chat_date("nowhere", None) == "2026-11-30"
    vote = processes.Vote()
    assert [vote(number) for number in ((0, 2, 0, 0, 0) if me == 0 else (0, 0, 15, 15, 0))] == [0, 0, 2, 15, 15]
    if os.environ["FAULT"] == "raise":
        raise ValueError("a mistake of its own")
    if os.environ["FAULT"]:
        os.kill(os.getpid(), getattr(signal, os.environ["FAULT"]))
    time.sleep(1)
    processes.gather("is anybody there?")
"""


class Ended(NamedTuple):
    status: int
    error: str


def launch(folder: Path, count: int, *command: str, faults: dict[int, str] | None = None, slurm: bool = False) -> list[Ended]:
    """Runs Python with a command in `count` processes of two devices, told of each other by flags or as by SLURM.

    Waits for all to end but those that a SIGSTOP stopped.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "127.0.0.1:" + str(free.getsockname()[1])
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count)}
    started, errors = [], [(folder / f"stderr-{i}").open("w+") for i in range(count)]
    for i, error in enumerate(errors):
        environment = os.environ | cache | {"XLA_FLAGS": flags, "FAULT": (faults or {}).get(i, "")}
        told = [
            "--distributed.coordinator",
            address,
            "--distributed.num-processes",
            str(count),
            "--distributed.process-id",
            str(i),
        ]
        if slurm:
            environment |= step | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}
            told = []
        words = [sys.executable, *command, *told]
        root = Path(__file__).parent.parent
        started.append(subprocess.Popen(words, env=environment, cwd=root, stdout=subprocess.DEVNULL, stderr=error))
    stopped = [process for i, process in enumerate(started) if (faults or {}).get(i, "").startswith("SIGSTOP")]
    deadline = time.monotonic() + DEADLINE_S
    try:
        while any(process.poll() is None for process in started if process not in stopped):
            assert time.monotonic() < deadline, "a process hangs"
            time.sleep(0.05)
    finally:
        for process in started:
            process.kill()
            process.wait()
    texts = [(error.seek(0), error.read(), error.close())[1] for error in errors]
    return [Ended(process.returncode, text) for process, text in zip(started, texts, strict=True)]


def train(folder: Path, run: str, count: int, *overrides: str, **how: Any) -> list[Ended]:
    """Runs the config in `count` processes."""
    where = (str(folder / "tiny.py"), "--run-dir", str(folder / run), "--distributed.timeout-s", str(LOST_S))
    return launch(folder, count, "-m", "jaxrl_ml.train", *where, *overrides, **how)


def statuses(ended: list[Ended]) -> list[int]:
    return [one.status for one in ended]


def records(run_dir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "rate/"))} for line in lines]


def params_of(run_dir: Path) -> Params:
    """The parameters of the last checkpoint, on one device."""
    model = Transformer(read_model_config(run_dir))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    shardings = Layout(make_mesh(MeshConfig(), jax.devices()[:1])).tree(model.axes(), shapes)
    last = max(int(path.name) for path in (run_dir / "checkpoints").iterdir() if path.name.isdecimal())
    return load_params(run_dir, model, shardings, last)


def assert_same_metrics(found: Path, expected: Path) -> None:
    for one, other in zip(records(expected), records(found), strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"stage"}:
            assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), (one["step"], name)


def assert_same_run(found: Path, expected: Path) -> None:
    """Metrics, samples, records of evaluations, the best checkpoint, and the final parameters."""
    assert_same_metrics(found, expected)
    assert (found / "samples.jsonl").read_text() == (expected / "samples.jsonl").read_text()
    for path in (expected / "records").iterdir():
        assert parquet.read_table(found / "records" / path.name).equals(parquet.read_table(path)), path.name
    kept = [sorted(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdecimal()) for run in (found, expected)]
    assert kept[0] == kept[1]
    assert_trees_close(params_of(found), params_of(expected), rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has the run of one process with four devices, in `one`."""
    at = tmp_path_factory.mktemp("processes")
    (at / "tiny.py").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        first = jax.devices()[:4]
        patch.setattr(jax, "devices", lambda *_: first)
        assert main([str(at / "tiny.py"), "--run-dir", str(at / "one"), "--mesh.fsdp", "2"]) == 0
    return at


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        ("", (0, 0), ""),
        ("raise", (1, 1), "error: process 0 of 2 stops: process 1 failed: a mistake of its own; "),
        ("SIGKILL", (1, -signal.SIGKILL), "error: process 0 of 2 stops: "),
        pytest.param(
            "SIGSTOP", (1, -9), "error: process 0 of 2 stops: process 1 was not heard of for 5 s; ", marks=pytest.mark.slow
        ),
    ],
)
def test_processes_are_told_of_each_other_and_of_their_end(
    tmp_path: Path, fault: str, status: tuple[int, int], said: str
) -> None:
    ended = launch(tmp_path, 2, "-c", TALK, faults={1: fault})
    assert tuple(statuses(ended)) == status, ended
    lines = [line for line in ended[0].error.splitlines() if line.startswith("error: ")]
    assert len(lines) == bool(said), ended[0].error
    if said:
        assert lines[0].startswith(said) and lines[0].endswith("the run goes on from its last checkpoint")


@pytest.mark.slow
def test_two_processes_agree_where_to_stop_and_one_goes_on_as_if_there_had_only_been_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cold start, evaluation and two steps of RL by two processes, of which one gets SIGTERM; then by one, on another mesh."""
    ended = train(folder, "two", 2, "--mesh.fsdp", "2", faults={1: "SIGTERM@3"})
    assert statuses(ended) == [75, 75], ended
    steps = [int(path.name) for path in (folder / "two/checkpoints").iterdir()]
    stopped = max(steps)
    assert 3 <= stopped < 6
    assert records(folder / "two")[-1]["step"] == stopped
    first = jax.devices()[:2]
    monkeypatch.setattr(jax, "devices", lambda *_: first)
    assert main([str(folder / "tiny.py"), "--run-dir", str(folder / "two"), "--mesh.tensor", "2"]) == 0
    assert [r["step"] for r in records(folder / "two") if "policy/loss" in r] == [3, 4, 5, 6]
    assert_same_run(folder / "two", folder / "one")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [("--mesh.fsdp", "2"), ("--mesh.tensor", "2", "--mesh.fsdp", "4"), ("--mesh.tensor", "4")])
def test_four_processes_give_the_run_of_one(folder: Path, mesh: tuple[str, ...]) -> None:
    """With tensor=4 two processes hold the same rows."""
    run = "four" + "".join(mesh)
    ended = train(folder, run, 4, *mesh)
    assert statuses(ended) == [0] * 4, ended
    assert_same_run(folder / run, folder / "one")


@pytest.mark.slow
def test_tasks_of_a_slurm_step_evaluate_as_one(folder: Path) -> None:
    command = ("-m", "jaxrl_ml.evaluate", str(folder / "one"), "--samples-per-prompt", "2", "--out")
    assert statuses(launch(folder, 1, *command, str(folder / "alone.json"), slurm=True)) == [0]
    assert statuses(launch(folder, 2, *command, str(folder / "both.json"), slurm=True)) == [0, 0]
    alone, both = (json.loads((folder / f"{name}.json").read_text()) for name in ("alone", "both"))
    assert len(alone["records"]) == 18 and both == alone


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("fault", ["SIGKILL@4", "SIGSTOP@4", "ValueError@4"])
def test_where_a_process_is_lost_the_other_stops_and_the_run_goes_on_with_both(folder: Path, fault: str, victim: int) -> None:
    run = f"lost-{fault}-{victim}"
    ended = train(folder, run, 2, "--mesh.fsdp", "2", faults={victim: fault})
    lost, other = ended[victim], ended[1 - victim]
    assert other.status not in (0, 2, 75), "it failed, and is not started again as a run that was preempted"
    assert lost.status == (1 if fault.startswith("Value") else -signal.SIGKILL)
    assert statuses(train(folder, run, 2, "--mesh.fsdp", "2")) == [0, 0]
    assert_same_run(folder / run, folder / "one")


# ------------------------------------------------------------------------------------------------------ without a process


def test_what_starts_a_process_is_found() -> None:
    alone = DistributedConfig()
    slurm = {"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]", "SLURM_STEP_NUM_NODES": "4"}
    given = DistributedConfig("host:1234", 2, 1)
    expected = {
        "coordinator_address": "host:1234",
        "num_processes": 2,
        "process_id": 1,
        "cluster_detection_method": "deactivate",
    }
    for config, environment, arguments in (
        (alone, {}, None),
        (given, {}, expected),
        (given, slurm, expected),
        (alone, {"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1", "SLURM_STEP_NUM_NODES": "1"}, None),
        (alone, {"SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "n[1-4]"}, None),  # the batch script itself, outside of a step
        (alone, slurm, {"cluster_detection_method": "slurm"}),
        (alone, slurm | {"SLURM_GPUS_ON_NODE": "2"}, {"cluster_detection_method": "slurm", "local_device_ids": [0, 1]}),
        (alone, slurm | {"SLURM_GPUS_ON_NODE": "2", "SLURM_STEP_NUM_NODES": "2"}, {"cluster_detection_method": "slurm"}),
        (alone, {"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        (alone, {"TPU_WORKER_HOSTNAMES": "a"}, None),
        (alone, {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, {}),
        (DistributedConfig(detect=True), {}, {}),
    ):
        assert processes.arguments_of(config, environment) == arguments, environment


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((None, 2, 0), "give all three, or none"),
        (("host:1", 2, None), "give all three, or none"),
        (("host", 2, 0), "distributed.coordinator=host must be HOST:PORT"),
        (("host:1", 2, 2), "distributed.process_id=2 must be 0 to num_processes - 1 = 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DistributedConfig(*values)


def test_what_is_gathered_comes_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.array([True, False]),
        np.zeros((0, 4), np.float32),
        np.float32(1.5),
    ]
    value = {"texts": ["é\ud800", ""], "none": None, "nan": float("nan"), "rows": (arrays[0], {"deep": arrays[1:]})}
    assert processes.gather(value)[0] is value, "alone there is nothing to do"
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "_gather_array", lambda array: np.stack([array, array]))
    for found in processes.gather(value):
        assert found["texts"] == value["texts"] and found["none"] is None and np.isnan(found["nan"])
        first, rest = found["rows"][0], found["rows"][1]["deep"]
        for one, other in zip([first, *rest], arrays, strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype


@pytest.mark.parametrize(
    ("shape", "per_process", "blocks"),
    [
        ((2, 4, 1), 2, (0, 1, 2, 3)),
        ((1, 4, 2), 4, (0, 1)),
        ((1, 2, 4), 2, (0, 0, 1, 1)),
        ((1, 1, 8), 2, (0, 0, 0, 0)),
        ((1, 3, 2), 3, None),
    ],
)
def test_rows_belong_to_processes_in_equal_blocks(shape, per_process, blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = np.array([SimpleNamespace(process_index=i // per_process) for i in range(np.prod(shape))]).reshape(shape)
    monkeypatch.setattr(jax, "process_count", lambda: devices.size // per_process)
    monkeypatch.setattr(jax, "local_device_count", lambda: per_process)
    layout = Layout(SimpleNamespace(devices=devices, shape=dict(zip(("data", "fsdp", "tensor"), shape, strict=True))))
    if blocks is None:
        with pytest.raises(UserError, match="mesh.tensor=2 does not fit 3 devices a process"):
            _ = layout.blocks
        return
    assert layout.blocks == blocks
    rows = np.arange(8)
    for process, block in enumerate(blocks):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        size = 8 // (max(blocks) + 1)
        np.testing.assert_array_equal(layout.own_rows({"x": rows})["x"], rows[block * size : (block + 1) * size])
    monkeypatch.setattr(processes, "gather", lambda value: [f"{value}{i}" for i in range(len(blocks))])
    assert layout.gather_blocks("p") == [f"p{blocks.index(b)}" for b in range(max(blocks) + 1)]


def test_a_process_alone_raises_and_votes_at_once() -> None:
    assert processes.Vote()(15) == 15
    with pytest.raises(ValueError, match="as it is"), processes.together(DistributedConfig(), {}) as main_process:
        assert main_process
        raise ValueError("as it is")


def test_a_command_for_one_process_is_not_started_in_several() -> None:
    processes.require_alone("generate", {"SLURM_NTASKS": "1"})
    with pytest.raises(UserError, match="generate is for one process, .* run it on one host"):
        processes.require_alone("generate", {"TPU_WORKER_HOSTNAMES": "a,b"})


def test_the_last_words_of_a_process_say_what_to_do() -> None:
    lost = jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection closed by peer [127.0.0.1]\nmore")
    words = processes.farewell(lost)
    assert words.startswith("error: process 0 of 1 stops: it lost another (UNKNOWN: Gloo AllGather failed")
    assert words.endswith("the run goes on from its last checkpoint") and "\n" not in words
    assert processes.farewell(UserError("seed=x: y")) == "error: seed=x: y (process 0 of 1)"
    own = processes.farewell(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"))
    assert "Out of memory" in own and own.endswith("error: process 0 of 1 failed")
