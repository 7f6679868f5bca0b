"""The launchers: each parses, marks what to edit, requeues on 75 and on nothing else, and runs a command that exists."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from jaxrl_ml.cli import load

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "tools" / "launch"
REQUEUE = 75  # EX_TEMPFAIL of sysexits.h


def read(name: str) -> str:
    return (LAUNCH / name).read_text()


def train_arguments() -> dict[str, list[str]]:
    """What each launcher gives to `python -m jaxrl_ml.train`."""
    slurm = shlex.split(re.search(r"^CONFIG=\((.*?)\)", read("slurm.sbatch"), re.M).group(1))
    sky = shlex.split(yaml.safe_load(read("skypilot.yaml"))["run"])
    gke = container()["command"]
    return {"slurm.sbatch": slurm} | {
        name: words[words.index("jaxrl_ml.train") + 1 :]
        for name, words in (("skypilot.yaml", sky), ("gke_tpu_jobset.yaml", gke))
    }


def job() -> dict:
    (replicated,) = yaml.safe_load(read("gke_tpu_jobset.yaml"))["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container() -> dict:
    (only,) = job()["template"]["spec"]["containers"]
    return only


@pytest.mark.parametrize("name", ["slurm.sbatch", "skypilot.yaml", "gke_tpu_jobset.yaml"])
def test_the_command_line_is_accepted_and_the_edits_are_marked(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    config, *overrides = train_arguments()[name]
    assert load(config, overrides).run_dir == overrides[overrides.index("--run-dir") + 1]
    assert 2 <= read(name).count("EDIT") <= 4
    assert sorted(train_arguments()) == sorted(path.name for path in LAUNCH.iterdir())


def test_slurm_is_a_script_with_one_process_a_node_that_requeues():
    subprocess.run(["bash", "-n", str(LAUNCH / "slurm.sbatch")], check=True)
    options = dict(
        (line.split(maxsplit=1)[1].split("#")[0].strip().removeprefix("--").partition("=")[::2])
        for line in read("slurm.sbatch").splitlines()
        if line.startswith("#SBATCH ")
    )
    assert options["ntasks-per-node"] == "1" and int(options["gpus-per-node"]) >= 1 and int(options["nodes"]) >= 1
    assert "requeue" in options and options["signal"].startswith("TERM@") and options["open-mode"] == "append"


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (REQUEUE, True), (143, False)])
def test_slurm_requeues_on_that_status_alone_and_hands_it_on(tmp_path, status, requeued):
    """The script runs, with an srun and a scontrol of our own."""
    for name, text in (("srun", f"exit {status}"), ("scontrol", f'echo "$@" > {tmp_path}/called')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "17"}
    assert subprocess.run(["bash", str(LAUNCH / "slurm.sbatch")], env=environment).returncode == status
    called = tmp_path / "called"
    assert (called.read_text().strip() if called.exists() else None) == ("requeue 17" if requeued else None)


def test_skypilot_has_the_fields_of_a_managed_job():
    task = yaml.safe_load(read("skypilot.yaml"))
    assert set(task) <= {"name", "resources", "num_nodes", "workdir", "file_mounts", "setup", "run", "envs", "secrets"}
    assert re.fullmatch(r"[A-Z]\w+:\d+", task["resources"]["accelerators"])
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [REQUEUE]
    (mount,) = task["file_mounts"]
    assert train_arguments()["skypilot.yaml"][-1].startswith(f"{mount}/"), "the run folder must outlive the machine"


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
    first = manifest["spec"]["failurePolicy"]["rules"][0]
    assert (first["action"], first["onJobFailureReasons"]) == ("RestartJobSetAndIgnoreMaxRestarts", ["PodFailurePolicy"])
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
    assert any(train_arguments()["gke_tpu_jobset.yaml"][-1].startswith(f"{path}/") for path in mounts.values())
