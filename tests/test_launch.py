"""The launchers: each parses, marks what to edit, requeues on 75 and on nothing else, and runs a command that exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from jaxrl_ml import storage
from jaxrl_ml.cli import load
from jaxrl_ml.config import DistributedConfig
from jaxrl_ml.processes import arguments_of

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "tools" / "launch"
REQUEUE = 75  # EX_TEMPFAIL of sysexits.h
NODES = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}


def read(name: str) -> str:
    return (LAUNCH / name).read_text()


def stand_in(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def run_slurm(at: Path, srun: str) -> subprocess.CompletedProcess:
    """The script runs, with an srun and a scontrol of our own."""
    stand_in(at / "srun", srun)
    stand_in(at / "scontrol", f'echo "$@" > {at}/called')
    environment = {"PATH": f"{at}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "17"}
    return subprocess.run(["bash", str(LAUNCH / "slurm.sbatch")], env=environment, capture_output=True, text=True, timeout=60)


def run_sky(at: Path) -> str:
    """The `run` of a node, with a Python of our own that prints what it is given."""
    stand_in(at / ".venv/bin/python", 'for word in "$@"; do echo "$word"; done')
    script = yaml.safe_load(read("skypilot.yaml"))["run"]
    environment = {"PATH": "/usr/bin:/bin"} | NODES
    return subprocess.run(["bash", "-c", script], env=environment, cwd=at, capture_output=True, text=True, check=True).stdout


def train_arguments(name: str, at: Path) -> list[str]:
    """What a launcher gives to `python -m jaxrl_ml.train`."""
    if name == "slurm.sbatch":
        words = run_slurm(at, 'for word in "$@"; do echo "$word"; done').stdout.splitlines()
    else:
        words = run_sky(at).splitlines() if name == "skypilot.yaml" else container()["command"]
    assert words[words.index("jaxrl_ml.train") - 1] == "-m"
    return words[words.index("jaxrl_ml.train") + 1 :]


def job() -> dict:
    (replicated,) = yaml.safe_load(read("gke_tpu_jobset.yaml"))["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container() -> dict:
    (only,) = job()["template"]["spec"]["containers"]
    return only


@pytest.mark.parametrize("name", sorted(path.name for path in LAUNCH.iterdir()))
def test_the_command_line_is_accepted_and_the_edits_are_marked(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config, *overrides = train_arguments(name, tmp_path)
    found = load(config, overrides)
    assert storage.is_remote(found.run_dir) or name == "slurm.sbatch", "it must outlive the machine"
    assert found.run_dir == overrides[overrides.index("--run-dir") + 1]
    assert found.distributed == (DistributedConfig("10.0.0.1:8476", 2, 1) if name == "skypilot.yaml" else DistributedConfig())
    assert 2 <= read(name).count("EDIT") <= 4


def test_slurm_is_a_script_with_one_process_a_node_that_requeues():
    subprocess.run(["bash", "-n", str(LAUNCH / "slurm.sbatch")], check=True)
    options = dict(
        (line.split(maxsplit=1)[1].split("#")[0].strip().removeprefix("--").partition("=")[::2])
        for line in read("slurm.sbatch").splitlines()
        if line.startswith("#SBATCH ")
    )
    assert options["ntasks-per-node"] == "1" and int(options["gpus-per-node"]) >= 1 and int(options["nodes"]) >= 1
    assert "requeue" in options and options["signal"].startswith("TERM@") and options["open-mode"] == "append"
    # What SLURM tells a task of it: as many tasks as nodes, each with all the GPUs.
    told = {"SLURM_NTASKS": options["nodes"], "SLURM_STEP_NUM_NODES": options["nodes"], "SLURM_STEP_NODELIST": "n[1-2]"}
    arguments = arguments_of(DistributedConfig(), told | {"SLURM_GPUS_ON_NODE": options["gpus-per-node"]})
    assert arguments["local_device_ids"] == list(range(int(options["gpus-per-node"])))


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (REQUEUE, True), (143, False)])
def test_slurm_requeues_on_that_status_alone_and_hands_it_on(tmp_path, status, requeued):
    assert run_slurm(tmp_path, f"exit {status}").returncode == status
    called = tmp_path / "called"
    assert (called.read_text().strip() if called.exists() else None) == ("requeue 17" if requeued else None)


def test_skypilot_has_the_fields_of_a_managed_job():
    task = yaml.safe_load(read("skypilot.yaml"))
    assert set(task) <= {"name", "resources", "num_nodes", "workdir", "setup", "run", "envs", "secrets"}
    assert re.fullmatch(r"[A-Z]\w+:\d+", task["resources"]["accelerators"])
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [REQUEUE]


def test_jobset_has_a_pod_a_host_and_restarts_on_preemption():
    manifest = yaml.safe_load(read("gke_tpu_jobset.yaml"))
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", manifest["metadata"]["name"])
    spec, pod = job(), job()["template"]["spec"]
    chips = 1
    for size in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(size)
    assert spec["parallelism"] == spec["completions"] == chips // container()["resources"]["limits"]["google.com/tpu"]
    assert spec["completionMode"] == "Indexed" and spec["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    on_exit, on_disruption = spec["podFailurePolicy"]["rules"]
    assert on_exit["action"] == on_disruption["action"] == "FailJob"
    assert on_exit["onExitCodes"] == {"containerName": container()["name"], "operator": "In", "values": [REQUEUE]}
    (first,) = manifest["spec"]["failurePolicy"]["rules"]
    assert (first["action"], first["onJobFailureReasons"]) == ("RestartJobSetAndIgnoreMaxRestarts", ["PodFailurePolicy"])
