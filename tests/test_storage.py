"""Laws of places: a bucket's folder is fetched, pushed back and named as one on local disk, and a whole run can live in one."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import fake_bucket
import fake_s3
import fsspec
import jax
import orbax.checkpoint as ocp
import pyarrow
import pytest
import test_processes
from conftest import assert_trees_close
from etils.epath.backend import fsspec_backend
from fake_bucket import NAME
from pyarrow import parquet
from test_checkpoint import ONE, make_state
from test_train import CONFIG

from jaxrl_ml import checkpoint, cli, orbax_s3, pretrained, storage
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
    monkeypatch.setattr(storage, "_copies", {})
    yield there
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


def test_an_error_in_a_copy_names_the_bucket(memory, capsys):
    memory.pipe_file(f"/{NAME}/run/model.json", b"{")

    def read() -> None:
        pretrained.read_model_config(f"gs://{NAME}/run")

    with pytest.raises(SystemExit, match="2"):
        cli.run_command(read)
    assert capsys.readouterr().err.startswith(f"error: gs://{NAME}/run/model.json cannot be read (")


def test_a_bucket_that_cannot_be_reached_is_one_line(memory, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("anonymous\nis not allowed")

    monkeypatch.setattr(memory, "find", refuse)
    with pytest.raises(UserError, match="gs://bucket/run cannot be read .PermissionError: anonymous.; check") as caught:
        storage.local("gs://bucket/run")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()


SERVERS = {"gs": fake_bucket.serve, "s3": fake_s3.serve}
PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}


@pytest.fixture(scope="module", params=SERVERS)
def bucket(request):
    """A bucket that this process, too, takes for the real one: tensorstore reads its address once."""
    scheme = request.param
    with SERVERS[scheme]() as bucket, pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.environment.items():  # before the package is imported
            patch.setenv(name, value)
        reason = f"buckets are tested where {PACKAGES[scheme]} is installed"
        pytest.importorskip(PACKAGES[scheme], reason=reason)
        bucket.place = f"{scheme}://{NAME}"
        yield bucket
        fsspec.get_filesystem_class(scheme).clear_instance_cache()


def forget(bucket) -> None:
    """Has this process list the bucket anew."""
    fsspec_backend.fs(bucket.place).invalidate_cache()


def test_a_save_to_a_bucket_that_breaks_off_after_any_object_leaves_the_one_before(bucket):
    def params(step: int):
        return make_state(ONE(), step).params

    def found() -> list[int]:
        forget(bucket)
        with Checkpoints(f"{bucket.place}/saves", CheckpointConfig(), read_only=True) as checkpoints:
            steps = checkpoints.steps()
            restored = checkpoints.restore_params(steps[-1], shapes_of(params(0)))
        assert_trees_close(restored, params(steps[-1]), rtol=0, atol=0)
        return steps

    with Checkpoints(f"{bucket.place}/saves", CheckpointConfig(keep=10)) as checkpoints:
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
    with Checkpoints(f"{bucket.place}/saves", CheckpointConfig(keep=1)) as checkpoints:  # what broke off is no hindrance
        checkpoints.save_params(2, params(2))
    assert found() == [2]
    assert {name.split("/")[2] for name in bucket.objects if name.startswith("saves/")} == {"2"}
    bucket.objects = after
    assert found() == [1, 2]


def test_a_reference_in_a_bucket_counts_when_it_is_complete(bucket):
    params = make_state(ONE(), 1).params
    shapes = shapes_of(params)
    save_reference(f"{bucket.place}/reference/a", params)
    assert_trees_close(load_reference(f"{bucket.place}/reference/a", shapes), params, rtol=0, atol=0)
    del bucket.objects["reference/a/commit_success.txt"]
    forget(bucket)
    with pytest.raises(UserError, match=f"the KL reference {bucket.place}/reference/a is missing"):
        load_reference(f"{bucket.place}/reference/a", shapes)


def test_arrays_are_written_in_parts_that_s3_takes(bucket, monkeypatch):
    monkeypatch.setattr(orbax_s3, "LARGEST_PART", 4096)
    params = {"large": jax.numpy.arange(2.0**14).reshape(16, 1024), "scalar": jax.numpy.float32(1)}
    save_reference(f"{bucket.place}/reference/parts", params)
    with ocp.PyTreeCheckpointer() as checkpointer:
        about = checkpointer.metadata(storage.for_orbax(f"{bucket.place}/reference/parts")).item_metadata.tree
    shape = about["large"].storage.chunk_shape
    assert math.prod(shape) * 4 <= 4096 if bucket.place.startswith("s3:") else shape == params["large"].shape
    assert_trees_close(load_reference(f"{bucket.place}/reference/parts", shapes_of(params)), params, rtol=0, atol=0)


def test_rows_are_read_from_a_bucket(bucket, tmp_path):
    rows = [{"question": "1 + 1", "answer": "2"}, {"question": "é", "answer": "3"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    bucket.write("data/rows.jsonl", lines.encode())
    bucket.write("data/bad.jsonl", (lines + "{").encode())
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    bucket.write("data/rows.parquet", (tmp_path / "rows.parquet").read_bytes())
    for name in ("rows.jsonl", "rows.parquet"):
        (table,) = files.read(f"{bucket.place}/data/{name}")
        assert [dict(row.values) for row in table] == rows
        assert table[1].place.startswith(f"{bucket.place}/data/{name}, ")
    with pytest.raises(UserError, match=f"{bucket.place}/data/bad.jsonl, line 3: malformed JSON"):
        files.read(f"{bucket.place}/data/bad.jsonl")
    with pytest.raises(UserError, match=f"{bucket.place}/data/none.jsonl: no such file"):
        files.read(f"{bucket.place}/data/none.jsonl")


def test_digests_are_those_that_the_bucket_keeps_unless_they_are_of_another_kind(bucket, monkeypatch):
    def digests() -> dict[str, str]:
        return json.loads(bucket.objects["kept/checkpoints/1/checksums.json"].data)

    def restore(read: list[Path]) -> None:
        forget(bucket)
        monkeypatch.setattr(checkpoint, "_digest", lambda path, kind: read.append(path) or digest(path, kind))
        with Checkpoints(f"{bucket.place}/kept", CheckpointConfig(), read_only=True) as checkpoints:
            restored = checkpoints.restore_params(1, shapes_of(params))
        assert_trees_close(restored, params, rtol=0, atol=0)

    params, digest, md5s = make_state(ONE(), 1).params, checkpoint._digest, storage.md5s
    for keeps in (True, False):
        monkeypatch.setattr(storage, "md5s", md5s if keeps else lambda folder: {})
        read: list[Path] = []
        monkeypatch.setattr(checkpoint, "_digest", lambda path, kind, read=read: read.append(path) or digest(path, kind))
        with Checkpoints(f"{bucket.place}/kept", CheckpointConfig()) as checkpoints:
            checkpoints.save_params(1, params)
        kind, expected = ("md5", []) if keeps else ("sha256", sorted(digests()))
        for name, found in digests().items():
            assert found == hashlib.new(kind, bucket.objects[f"kept/checkpoints/1/{name}"].data).hexdigest()
        assert sorted(str(path).split("/1/")[1] for path in read) == expected, "nothing is read back that need not be"
        restore(read := [])
        assert bool(read) != keeps
        monkeypatch.setattr(storage, "md5s", lambda folder: {})  # as of a copy on a disk, or in another bucket
        restore(read := [])
        assert read
        for name in [name for name in bucket.objects if name.startswith("kept/")]:
            del bucket.objects[name]
        forget(bucket)


def test_what_is_no_md5_is_not_taken_for_one(memory, monkeypatch):
    right, wrong = hashlib.md5(b"1").hexdigest(), hashlib.md5(b"?").hexdigest()
    memory.pipe_file("/bucket/a/small", b"1")
    memory.pipe_file("/bucket/a/large", b"12")
    find = memory.find
    for small, large, expected in (
        (right, wrong, {"small": right, "large": wrong}),  # it is the small one that is read
        (wrong, right, {}),
        (f"{right}-2", wrong, {}),  # of a file in two parts; of those that are left the smallest is another's
        (right, f"{wrong}-2", {"small": right}),
    ):
        tags = {"small": small, "large": large}

        def tagged(root, detail=False, tags=tags):
            return {p: {**i, "ETag": f'"{tags[p.rsplit("/", 1)[1]]}"'} for p, i in find(root, detail=True).items()}

        monkeypatch.setattr(memory, "find", tagged)
        assert storage.md5s("gs://bucket/a") == expected


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
    done = command(bucket, *train, f"{bucket.place}/run", FAULT="SIGKILL@6")
    assert done.returncode == -9, done.stderr[-2000:]
    killed = told(bucket.objects["run/metrics.jsonl"].data.decode())
    steps = {int(name.split("/")[2]) for name in bucket.objects if name.startswith("run/checkpoints/")}
    assert killed and max(steps) <= max(record["step"] for record in killed) < 9
    for run in (f"{bucket.place}/run", str(tmp_path / "run")):
        done = command(bucket, *train, run)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.splitlines()[-1] == f"report: {run}/report.html"
    assert told(bucket.objects["run/metrics.jsonl"].data.decode()) == told((tmp_path / "run/metrics.jsonl").read_text())
    for name in ("model.json", "config.py", "report.html", "tokenizer/tokenizer.json", "records/test-9.parquet"):
        assert bucket.objects[f"run/{name}"].data
    assert not list(ROOT.glob("??:*"))
    for run, out in ((f"{bucket.place}/run", "bucket"), (str(tmp_path / "run"), "local")):
        done = command(bucket, "jaxrl_ml.convert", "to-hf", run, str(tmp_path / out))
        assert done.returncode == 0, done.stderr[-2000:]
    exported, expected = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("bucket", "local"))
    assert exported == expected
    done = command(bucket, "jaxrl_ml.evaluate", f"{bucket.place}/run")
    assert done.returncode == 0 and f"wrote {bucket.place}/run/evaluations/test-9.json" in done.stdout, done.stderr[-2000:]
    assert json.loads(bucket.objects["run/evaluations/test-9.json"].data)["step"] == 9
    damaged = next(name for name in bucket.objects if name.startswith("run/checkpoints/9/params/") and "/d/" in name)
    data = bytearray(bucket.objects[damaged].data)
    data[len(data) // 2] ^= 16
    bucket.objects[damaged] = bucket.objects[damaged]._replace(data=bytes(data))
    done = command(bucket, "jaxrl_ml.convert", "to-hf", f"{bucket.place}/run", str(tmp_path / "damaged"))
    assert done.returncode == 2
    assert f"{damaged.removeprefix('run/checkpoints/9/')} is not as it was saved" in done.stderr


@pytest.mark.slow
def test_processes_write_their_shards_to_a_bucket_and_one_goes_on_with_them(bucket, tmp_path):
    (tmp_path / "tiny.py").write_text(test_processes.CONFIG)

    def train(run: str, count: int, **how) -> list[int]:
        command = ("-m", "jaxrl_ml.train", str(tmp_path / "tiny.py"), "--run-dir", run)
        return test_processes.statuses(test_processes.launch(tmp_path, count, *command, **how))

    assert train(f"{bucket.place}/two", 2, faults={1: "SIGTERM@3"}) == [75, 75]
    for process in range(2):
        assert any(f"/params/ocdbt.process_{process}/" in name for name in bucket.objects if name.startswith("two/"))
    assert train(f"{bucket.place}/two", 1) == [0]
    assert train(str(tmp_path / "one"), 1) == [0]
    (tmp_path / "two").mkdir()
    (tmp_path / "two/metrics.jsonl").write_bytes(bucket.objects["two/metrics.jsonl"].data)
    test_processes.assert_same_metrics(tmp_path / "two", tmp_path / "one")
