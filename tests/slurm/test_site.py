"""`mmlaunch doctor` on a real cluster: the facts that it reads, and what it makes of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.runs import mmlaunch
from tests.slurm.cluster import SlurmCluster


def test_the_facts_of_a_site(slurm: SlurmCluster, own_home: Path) -> None:
    done = mmlaunch("doctor", "--json")
    found = {one["what"]: (one["good"], one["means"]) for one in json.loads(done.stdout)}
    version = slurm.run("sbatch", "--version").split()[1].rpartition(".")[0]
    stat = ["stat", "--file-system", "--format=%T", str(own_home)]
    kind = subprocess.run(stat, capture_output=True, text=True, check=True).stdout.strip()
    runs = own_home / "runs"
    facts = {
        f"Slurm {version}": (True, ""),
        "proctrack/linuxproc": (True, "every process of a step"),
        "MinJobAge=300 sec": (True, "squeue remembers"),
        "SlurmdTimeout=300 s": (True, "before a dead node is noticed"),
        f"{runs} is on {kind}": (False, "compute nodes may not see it"),
        "KillWait=10 s": (False, "too short for most models"),
        "PreemptMode=REQUEUE": (True, "only SIGTERM comes with it"),
        "partition batch: PreemptMode=REQUEUE, GraceTime=0": (False, "KillWait is all there is: 10 s to save in"),
        "partition gentle: PreemptMode=REQUEUE, GraceTime=60": (True, "60 s to save in"),
        "partition urgent: PreemptMode=OFF": (True, "never preempted"),
        "JobRequeue=1": (True, ""),
        "a requeued job waits 5 s": (True, "before each restart"),
        "sacct answers": (True, ""),
        "GPUs: gpu:8": (True, "the profile asks for them with --gpus-per-node=N"),
    }
    for what, (good, means) in facts.items():
        assert what in found, f"{what} is not among {list(found)}"
        assert found[what][0] == good and means in found[what][1]
    assert done.returncode == 1  # something will not work here


def test_a_site_without_its_daemons(slurm: SlurmCluster) -> None:
    slurm.kill("slurmdbd")
    try:
        found = {one["what"]: one["means"] for one in json.loads(mmlaunch("doctor", "--json").stdout)}
        assert "never wrong" in found["sacct does not answer"]
        slurm.kill("slurmctld")
        done = mmlaunch("doctor")
        assert done.returncode == 1 and "look  Slurm does not answer" in done.stdout
    finally:
        slurm.start_dbd()
        slurm.start_ctld()
