"""Laws of places: a bucket's folder is fetched, pushed back and named as one on local disk, and a whole run can live in one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pyarrow
import pytest
from conftest import assert_trees_close
from fake_bucket import NAME, serve
from pyarrow import parquet
from test_checkpoint import ONE, make_state
from test_train import CONFIG

from jaxrl_ml import storage
from jaxrl_ml.checkpoint import Checkpoints, load_reference, save_reference, shapes_of
from jaxrl_ml.config import CheckpointConfig
from jaxrl_ml.tasks import files
from jaxrl_ml.types import UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def memory(monkeypatch):
    """Buckets that are in memory."""
    there = fsspec.filesystem("memory")
    monkeypatch.setattr(storage, "_file_system", lambda url: (there, "/" + url.split("://")[1]))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    storage._copy.cache_clear()
    yield there
    storage._copy.cache_clear()
    there.store.clear()


def test_a_local_place_is_itself(tmp_path):
    assert storage.local(tmp_path) == storage.at(str(tmp_path)) == tmp_path
    assert storage.for_orbax("runs/x") == Path("runs/x").absolute()
    storage.push(tmp_path)
    assert not list(tmp_path.iterdir())
    for place in ("gs", "gs:", "runs/gs:/x", "gs:x"):
        assert not storage.is_remote(place)


def test_a_bucket_is_known_by_what_pathlib_makes_of_it():
    for place in ("gs://bucket/run", Path("gs://bucket/run")):
        assert storage.is_remote(place)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", lambda name: name)
            assert str(storage.at(place) / "model.json") == "gs://bucket/run/model.json"


def test_a_missing_package_is_told_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for place, extra in ((Path("gs://bucket/run"), "gcs"), ("s3://bucket/run", "s3")):
        with pytest.raises(UserError, match=rf"{str(place)[:2]}://bucket/run needs .*'jaxrl_ml\[{extra}\]'"):
            storage.local(place)


def test_checkpoints_in_s3_are_refused(memory):
    with pytest.raises(UserError, match=r"s3://bucket/run: checkpoints cannot be in s3://.* give a gs:// or a local run_dir"):
        Checkpoints("s3://bucket/run", CheckpointConfig())


def test_a_copy_has_all_but_what_orbax_keeps_and_pushes_what_changed(memory):
    there = {"model.json": b"{}", "records/a-1.parquet": b"1", "records/a-2.parquet": b"2", "checkpoints/1/params/d": b"large"}
    for name, data in there.items():
        memory.pipe_file(f"/{NAME}/run/{name}", data)
    folder = storage.local(f"gs://{NAME}/run")
    assert folder.name == "run"
    assert storage.names_below(folder) == ["model.json", "records/a-1.parquet", "records/a-2.parquet"]
    assert storage.local(Path(f"gs://{NAME}/run")) == folder
    memory.pipe_file(f"/{NAME}/run/model.json", b"another's")
    (folder / "records/a-2.parquet").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        for line in ("1\n", "2\n"):
            file.write(line)
            file.flush()
            storage.push(f"gs://{NAME}/run")
            assert memory.cat_file(f"/{NAME}/run/metrics.jsonl").decode().endswith(line)
    now = {name.removeprefix(f"/{NAME}/run/"): memory.cat_file(name) for name in memory.find(f"/{NAME}/run")}
    assert now == {
        "model.json": b"another's",  # what was not changed here is not written
        "records/a-1.parquet": b"1",
        "metrics.jsonl": b"1\n2\n",
        "checkpoints/1/params/d": b"large",
    }


def test_a_bucket_that_cannot_be_reached_is_one_line(memory, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("anonymous\nis not allowed")

    monkeypatch.setattr(memory, "find", refuse)
    with pytest.raises(UserError, match="gs://bucket/run cannot be read .PermissionError: anonymous.; check") as caught:
        storage.local("gs://bucket/run")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()


@pytest.fixture(scope="module")
def bucket():
    """A bucket that this process, too, takes for Google's: tensorstore reads its address once."""
    with serve() as bucket, pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.environment.items():  # before gcsfs is imported
            patch.setenv(name, value)
        reason = "buckets are tested where gcsfs is installed: pip install 'jaxrl_ml[gcs]'"
        gcsfs = pytest.importorskip("gcsfs", reason=reason)
        yield bucket
        gcsfs.GCSFileSystem.clear_instance_cache()


def test_a_save_to_a_bucket_that_breaks_off_after_any_object_leaves_the_one_before(bucket):
    def params(step: int):
        return make_state(ONE(), step).params

    def found() -> list[int]:
        fsspec.filesystem("gs", finalize_on_close=True).invalidate_cache()
        with Checkpoints("gs://bucket/saves", CheckpointConfig(), read_only=True) as checkpoints:
            steps = checkpoints.steps()
            restored = checkpoints.restore_params(steps[-1], shapes_of(params(0)))
        assert_trees_close(restored, params(steps[-1]), rtol=0, atol=0)
        return steps

    with Checkpoints("gs://bucket/saves", CheckpointConfig(keep=10)) as checkpoints:
        checkpoints.save_params(1, params(1))
        before = dict(bucket.objects)
        bucket.writes.clear()
        checkpoints.save_params(2, params(2))
    writes, after = list(bucket.writes), dict(bucket.objects)
    assert len(writes) > 10
    last = [name.removeprefix("saves/checkpoints/2/") for name, _ in writes[-3:]]
    assert last == ["checksums.json", "_CHECKPOINT_METADATA", "commit_success.txt"]
    for count in (len(writes) // 2, len(writes) - 1):
        bucket.objects = {**before, **dict(writes[:count])}
        assert found() == [1]
    with Checkpoints("gs://bucket/saves", CheckpointConfig(keep=1)) as checkpoints:  # what broke off is no hindrance
        checkpoints.save_params(2, params(2))
    assert found() == [2]
    assert {name.split("/")[2] for name in bucket.objects if name.startswith("saves/")} == {"2"}
    bucket.objects = after
    assert found() == [1, 2]


def test_a_reference_in_a_bucket_counts_when_it_is_complete(bucket):
    params = make_state(ONE(), 1).params
    shapes = shapes_of(params)
    save_reference("gs://bucket/reference/a", params)
    assert_trees_close(load_reference("gs://bucket/reference/a", shapes), params, rtol=0, atol=0)
    del bucket.objects["reference/a/commit_success.txt"]
    fsspec.filesystem("gs", finalize_on_close=True).invalidate_cache()
    with pytest.raises(UserError, match="the KL reference gs://bucket/reference/a is missing"):
        load_reference("gs://bucket/reference/a", shapes)


def test_rows_are_read_from_a_bucket(bucket, tmp_path):
    rows = [{"question": "1 + 1", "answer": "2"}, {"question": "é", "answer": "3"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    bucket.write("data/rows.jsonl", lines.encode())
    bucket.write("data/bad.jsonl", (lines + "{").encode())
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    bucket.write("data/rows.parquet", (tmp_path / "rows.parquet").read_bytes())
    for name in ("rows.jsonl", "rows.parquet"):
        (table,) = files.read(f"gs://bucket/data/{name}")
        assert [dict(row.values) for row in table] == rows
        assert table[1].place.startswith(f"gs://bucket/data/{name}, ")
    with pytest.raises(UserError, match="gs://bucket/data/bad.jsonl, line 3: malformed JSON"):
        files.read("gs://bucket/data/bad.jsonl")
    with pytest.raises(UserError, match="gs://bucket/data/none.jsonl: no such file"):
        files.read("gs://bucket/data/none.jsonl")


# A whole run in a bucket, each command in a process of its own.


def command(bucket, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, **flags, **bucket.environment, **environment},
        capture_output=True,
        text=True,
    )


def told(lines: str) -> list[dict]:
    records = map(json.loads, lines.splitlines())
    return [{k: v for k, v in record.items() if not k.startswith(("time/", "rate/"))} for record in records]


@pytest.mark.slow
def test_a_run_in_a_bucket_is_killed_resumed_evaluated_and_exported(bucket, tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    train = ("jaxrl_ml.train", str(tmp_path / "tiny.py"), "--run-dir")
    done = command(bucket, *train, "gs://bucket/run", FAULT="SIGKILL@6")
    assert done.returncode == -9, done.stderr[-2000:]
    killed = told(bucket.objects["run/metrics.jsonl"].data.decode())
    steps = {int(name.split("/")[2]) for name in bucket.objects if name.startswith("run/checkpoints/")}
    assert killed and max(steps) <= max(record["step"] for record in killed) < 9
    for run in ("gs://bucket/run", str(tmp_path / "run")):
        done = command(bucket, *train, run)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.splitlines()[-1] == f"report: {run}/report.html"
    assert told(bucket.objects["run/metrics.jsonl"].data.decode()) == told((tmp_path / "run/metrics.jsonl").read_text())
    for name in ("model.json", "config.py", "report.html", "tokenizer/tokenizer.json", "records/test-9.parquet"):
        assert bucket.objects[f"run/{name}"].data
    assert not list(ROOT.glob("gs:*"))
    for run, out in (("gs://bucket/run", "bucket"), (str(tmp_path / "run"), "local")):
        done = command(bucket, "jaxrl_ml.convert", "to-hf", run, str(tmp_path / out))
        assert done.returncode == 0, done.stderr[-2000:]
    exported, expected = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("bucket", "local"))
    assert exported == expected
    done = command(bucket, "jaxrl_ml.evaluate", "gs://bucket/run")
    assert done.returncode == 0 and "wrote gs://bucket/run/evaluations/test-9.json" in done.stdout, done.stderr[-2000:]
    assert json.loads(bucket.objects["run/evaluations/test-9.json"].data)["step"] == 9
    damaged = next(name for name in bucket.objects if name.startswith("run/checkpoints/9/params/") and "/d/" in name)
    data = bytearray(bucket.objects[damaged].data)
    data[len(data) // 2] ^= 16
    bucket.objects[damaged] = bucket.objects[damaged]._replace(data=bytes(data))
    done = command(bucket, "jaxrl_ml.convert", "to-hf", "gs://bucket/run", str(tmp_path / "damaged"))
    assert done.returncode == 2
    assert f"{damaged.removeprefix('run/checkpoints/9/')} is not as it was saved" in done.stderr
