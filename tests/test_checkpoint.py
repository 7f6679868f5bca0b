"""Laws of checkpoints: bit-equal on any mesh, complete or absent, and damage is told in one line with a remedy."""

from __future__ import annotations

import gc
import logging
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from conftest import assert_trees_close

from jaxrl_ml.checkpoint import Checkpoints, load_reference, save_reference, shapes_of
from jaxrl_ml.config import CheckpointConfig, MeshConfig
from jaxrl_ml.sharding import Layout, make_mesh
from jaxrl_ml.types import TrainState, UserError

PROGRESS = {"step": 7, "seed": 3, "data": {"next": [1, 2], "name": "é"}, "config": None}
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))


def layout(**mesh) -> Layout:
    config = MeshConfig(**mesh)
    return Layout(make_mesh(config, jax.devices()[: config.data * config.fsdp * config.tensor]))


ONE, EIGHT = partial(layout, data=1), partial(layout, data=1, fsdp=4, tensor=2)


def make_state(parts: Layout, seed: int = 0, size: int = 16) -> TrainState:
    """A state of odd numbers, moments and step included, laid out by its names."""
    rng = np.random.default_rng(seed)

    def tree():
        return {"embed": rng.normal(size=(8, size)).astype(np.float32), "norm": rng.normal(size=8).astype(np.float32)}

    def place(values):
        embed = parts.sharding(("vocab", "embed"), values["embed"].shape)
        return {"embed": jax.device_put(values["embed"], embed), "norm": parts.put(values["norm"])}

    params = place(tree())
    empty, (adam, rest) = OPTIMIZER.init(params)
    adam = adam._replace(count=parts.put(jnp.int32(seed + 5)), mu=place(tree()), nu=place(tree()))
    return TrainState(parts.put(np.int32(seed + 5)), params, (empty, (adam, rest)))


def save(folder, *steps, config=None, metrics=None):
    with Checkpoints(folder, config or CheckpointConfig(keep=10)) as checkpoints:
        for step in steps:
            found = None if metrics is None else metrics.get(step)
            checkpoints.save(step, make_state(ONE(), step), PROGRESS | {"step": step}, found)
        checkpoints.wait()
        return checkpoints.steps()


@pytest.mark.parametrize("to", [ONE, EIGHT], ids=["one", "eight"])
@pytest.mark.parametrize("start", [ONE, EIGHT], ids=["one", "eight"])
def test_a_state_comes_back_bit_for_bit_on_any_mesh(tmp_path, start, to):
    state = make_state(start())
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(7, state, PROGRESS)
    target = shapes_of(make_state(to(), seed=1))
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        restored, progress = checkpoints.restore(7, target)
        assert progress == PROGRESS
    assert_trees_close(restored, state, rtol=0, atol=0)
    assert int(restored.step) == int(restored.opt_state[1][0].count) == 5
    same = jax.tree.map(lambda leaf, shape: leaf.sharding == shape.sharding and leaf.dtype == shape.dtype, restored, target)
    assert all(jax.tree.leaves(same))


def test_a_saved_state_may_be_donated_at_once(tmp_path):
    """The save runs in the background while the next step overwrites the very buffers."""
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = make_state(ONE(), size=500_000)
    expected = jax.tree.map(lambda x: np.array(x), state)
    jax.block_until_ready(overwrite(jax.tree.map(lambda x: x.copy(), state)))  # compiled before the race
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, state, PROGRESS)
        for _ in range(3):
            state = overwrite(state)
        jax.block_until_ready(state)
        checkpoints.wait()
        restored, _ = checkpoints.restore(1, shapes_of(state))
    assert_trees_close(restored, expected, rtol=0, atol=0)


def test_the_latest_are_kept_and_the_best_besides(tmp_path):
    assert save(tmp_path / "latest", 1, 2, 3, 4, config=CheckpointConfig(keep=2)) == [3, 4]
    metric = "eval/test/accuracy"
    scores = {1: {metric: 0.2}, 2: {metric: 0.9, "other": 5.0}, 4: {metric: 0.3}, 5: {"other": 9.0}}
    config = CheckpointConfig(keep=1, best_metric=metric)
    assert save(tmp_path / "best", 1, 2, 3, 4, 5, config=config, metrics=scores) == [2, 5]
    # A run that goes on from here still knows which is best.
    assert save(tmp_path / "best", 6, config=config) == [2, 6]
    with Checkpoints(tmp_path / "best", config, read_only=True) as checkpoints:
        assert checkpoints.best() == 2
        params = checkpoints.restore_params(None, shapes_of(make_state(ONE())).params)
    assert_trees_close(params, make_state(ONE(), 2).params, rtol=0, atol=0)
    with Checkpoints(tmp_path / "latest", CheckpointConfig(), read_only=True) as checkpoints:
        assert checkpoints.best() == 4


@pytest.fixture
def orbax_debris():
    """A failed restore leaves orbax coroutines that raise when they are collected: let that be here, not in a later test."""
    yield
    gc.collect()


DEBRIS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def damage(folder, how: str) -> None:
    data = [path for path in (folder / "params").rglob("*") if path.is_file()]
    if how == "truncated":
        for path in data:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "removed":
        shutil.rmtree(folder / "params")
    else:
        (folder / "progress" / "metadata").write_text("{")


@DEBRIS
@pytest.mark.parametrize("how", ["truncated", "removed", "progress"])
def test_a_damaged_checkpoint_is_one_line_with_a_remedy(tmp_path, how, orbax_debris):
    save(tmp_path, 1, 2)
    damage(tmp_path / "checkpoints" / "2", how)
    shapes = shapes_of(make_state(ONE()))
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        with pytest.raises(UserError) as error:
            checkpoints.restore(2, shapes)
        assert "\n" not in str(error.value)
        assert str(tmp_path / "checkpoints" / "2") in str(error.value)
        assert "delete that folder to fall back to step 1" in str(error.value)
        restored, _ = checkpoints.restore(1, shapes)
    assert_trees_close(restored, make_state(ONE(), 1), rtol=0, atol=0)


def each_damaged(files: Sequence[Path], how: str) -> Iterator[Path]:
    """Each file in turn, flipped, truncated or removed until the next is asked for."""
    for path in files:
        data = path.read_bytes()
        middle = len(data) // 2
        path.write_bytes(data[:middle] + (bytes([data[middle] ^ 16]) + data[middle + 1 :] if how == "flipped" else b""))
        if how == "removed":
            path.unlink()
        yield path
        path.write_bytes(data)


@DEBRIS
@pytest.mark.parametrize("how", ["flipped", "truncated", "removed"])
def test_no_damaged_file_restores_wrongly(tmp_path, how, orbax_debris):
    """Each file in turn: what restores is what was saved, or it is refused in one line that names the folder."""
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints" / "1"
    expected, shapes = make_state(ONE(), 1), shapes_of(make_state(ONE()))
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    refused = set()
    for path in each_damaged(files, how):
        try:
            with Checkpoints(tmp_path, CheckpointConfig(), read_only=True) as checkpoints:
                restored, progress = checkpoints.restore(1, shapes)
        except UserError as error:
            assert "\n" not in str(error) and str(tmp_path) in str(error)
            refused.add(path)
        else:
            assert_trees_close(restored, expected, rtol=0, atol=0)
            assert progress == PROGRESS | {"step": 1}
    stored = {path for path in files if path.parent != folder and path.name != "commit_success.txt"}
    assert len(stored) > 10 and stored <= refused


@DEBRIS
@pytest.mark.parametrize("how", ["flipped", "truncated", "removed"])
def test_no_damaged_file_of_a_reference_restores_wrongly(tmp_path, how, orbax_debris):
    """As above, and what is refused is named."""
    folder, expected = tmp_path / "reference", make_state(ONE(), 1).params
    save_reference(folder, expected)
    shapes = shapes_of(expected)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    refused = set()
    for path in each_damaged(files, how):
        try:
            assert_trees_close(load_reference(folder, shapes), expected, rtol=0, atol=0)
        except UserError as error:
            assert "\n" not in str(error) and str(folder) in str(error)
            assert path.name == "checksums.json" or path.relative_to(folder).as_posix() in str(error)
            refused.add(path)
    stored = {path for path in files if path.name not in ("checksums.json", "_CHECKPOINT_METADATA", "commit_success.txt")}
    assert len(stored) > 5 and stored <= refused


KILLED_WHILE_SAVING = """
import os, signal, sys, threading
sys.path.insert(0, "tests")
import test_checkpoint as t
from jaxrl_ml import checkpoint
delay = sys.argv[2]
if delay == "checksums":
    checkpoint._digest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with checkpoint.Checkpoints(sys.argv[1], t.CheckpointConfig(keep=10)) as checkpoints:
    state = t.make_state(t.ONE(), 2, size=200_000)
    if delay != "checksums":
        threading.Timer(float(delay), lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    checkpoints.save(2, state, t.PROGRESS | {"step": 2})
    checkpoints.wait()
    threading.Event().wait(5)
"""


@pytest.mark.parametrize("moment", ["checksums", "0.0", "0.02", "0.1"])
def test_a_kill_while_saving_leaves_the_one_before_or_the_whole(tmp_path, moment):
    with Checkpoints(tmp_path, CheckpointConfig(keep=10)) as checkpoints:
        checkpoints.save(1, make_state(ONE(), 1, size=200_000), PROGRESS)
    command = [sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path), moment]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    with Checkpoints(tmp_path, CheckpointConfig(keep=10)) as checkpoints:
        steps = checkpoints.steps()
        assert steps in ([1], [1, 2]) and (moment != "checksums" or steps == [1])
        restored, _ = checkpoints.restore(steps[-1], shapes_of(make_state(ONE(), size=200_000)))
    assert_trees_close(restored, make_state(ONE(), steps[-1], size=200_000), rtol=0, atol=0)


KILLED_WHILE_KEEPING = """
import os, signal, sys, threading
sys.path.insert(0, "tests")
import test_checkpoint as t
from jaxrl_ml import checkpoint
delay = sys.argv[2]
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if delay == "checksums":
    checkpoint._digest = kill
else:
    threading.Timer(float(delay), kill).start()
checkpoint.save_reference(sys.argv[1], t.make_state(t.ONE(), 2, size=200_000).params)
threading.Event().wait(5)
"""


@pytest.mark.parametrize("moment", ["checksums", "0.05"])
def test_a_kill_while_a_reference_is_kept_leaves_the_one_before_or_none_or_the_whole(tmp_path, moment):
    folder, before = tmp_path / "reference", make_state(ONE(), 1, size=200_000).params
    save_reference(folder, before)
    command = [sys.executable, "-c", KILLED_WHILE_KEEPING, str(folder), moment]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    if moment == "checksums":
        assert [path.name for path in tmp_path.iterdir()] == ["reference.orbax-checkpoint-tmp"]
    if folder.exists():
        found = load_reference(folder, shapes_of(before))
        after = make_state(ONE(), 2, size=200_000).params
        same = [bool((found["embed"] == params["embed"]).all()) for params in (before, after)]
        assert any(same)
        assert_trees_close(found, (before, after)[same.index(True)], rtol=0, atol=0)
    else:
        with pytest.raises(UserError, match="is missing"):
            load_reference(folder, shapes_of(before))
    save_reference(folder, before)  # what a kill has left is no hindrance
    assert_trees_close(load_reference(folder, shapes_of(before)), before, rtol=0, atol=0)


DISK_FULL = """
import resource, sys
sys.path.insert(0, "tests")
import test_checkpoint as t
from jaxrl_ml.checkpoint import Checkpoints
from jaxrl_ml.cli import run_command
def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    with Checkpoints(sys.argv[1], t.CheckpointConfig(keep=10)) as checkpoints:
        checkpoints.save(2, t.make_state(t.ONE(), 2, size=200_000), t.PROGRESS | {"step": 2})
run_command(main)
"""


def test_a_save_that_finds_no_room_is_told_and_leaves_the_one_before(tmp_path):
    """No file may grow beyond 100 kB, as if the disk were full."""
    save(tmp_path, 1)
    command = [sys.executable, "-c", DISK_FULL, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-2000:]
    told = re.findall("error: the checkpoint of step 2 could not be written.*", done.stderr)  # a thread's log may precede it
    assert len(told) == 1
    assert "step 1 is the last that is complete: make room there" in told[0]
    assert save(tmp_path, 3) == [1, 3]


@DEBRIS
def test_another_shape_is_refused(tmp_path, orbax_debris):
    save(tmp_path, 1)
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints, pytest.raises(UserError, match="cannot be restored"):
        checkpoints.restore(1, shapes_of(make_state(ONE(), size=32)))


@DEBRIS
def test_parameters_alone_start_a_run_but_do_not_resume_one(tmp_path, orbax_debris):
    state = make_state(ONE(), 4)
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save_params(0, state.params)
    with Checkpoints(tmp_path, CheckpointConfig(), read_only=True) as checkpoints:
        shapes = shapes_of(make_state(EIGHT()))
        assert_trees_close(checkpoints.restore_params(0, shapes.params), state.params, rtol=0, atol=0)
        with pytest.raises(UserError, match="cannot be restored"):
            checkpoints.restore(0, shapes)


def test_a_save_that_was_killed_leaves_nothing_that_restores(tmp_path):
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "1", folder / "2.orbax-checkpoint-tmp-17")
    with Checkpoints(tmp_path, CheckpointConfig(), read_only=True) as checkpoints:
        assert checkpoints.steps() == [1]
    assert save(tmp_path, 3) == [1, 3]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["1", "3"]


def test_a_missing_checkpoint_is_named(tmp_path):
    save(tmp_path, 1)
    shapes = shapes_of(make_state(ONE())).params
    with Checkpoints(tmp_path, CheckpointConfig(), read_only=True) as checkpoints, pytest.raises(UserError) as error:
        checkpoints.restore_params(5, shapes)
    assert "has no checkpoint 5; it has [1]" in str(error.value)


def test_a_reference_comes_back_bit_for_bit_and_its_absence_is_told(tmp_path):
    params = make_state(ONE(), 2).params
    shapes = shapes_of(make_state(EIGHT()).params)
    with pytest.raises(UserError, match=r"KL reference .* is missing"):
        load_reference(tmp_path / "reference", shapes)
    save_reference(tmp_path / "reference", make_state(ONE(), 1).params)
    save_reference(tmp_path / "reference", params)
    found = load_reference(tmp_path / "reference", shapes)
    assert_trees_close(found, params, rtol=0, atol=0)
    assert found["embed"].sharding == shapes["embed"].sharding


def test_orbax_is_quiet_while_checkpoints_are_open_and_others_are_heard(tmp_path, caplog):
    absl, before = logging.getLogger("absl"), list(logging.getLogger("absl").filters)
    level = absl.level
    orbax_file = ocp.__file__

    def heard(pathname: str, at: int) -> bool:
        caplog.clear()
        absl.handle(logging.LogRecord("absl", at, pathname, 1, "said", None, None))
        return len(caplog.records) == 1

    first, second = (Checkpoints(tmp_path / name, CheckpointConfig()) for name in ("a", "b"))
    for opened in ([first, second], [second]):
        assert [heard(orbax_file, at) for at in (logging.INFO, logging.WARNING, logging.ERROR)] == [False, False, True]
        assert heard("/home/user/reward.py", logging.WARNING)
        opened[0].close()
    assert heard(orbax_file, logging.WARNING)
    assert absl.filters == before and absl.level == level
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        Checkpoints(tmp_path / "file", CheckpointConfig())
    assert absl.filters == before
