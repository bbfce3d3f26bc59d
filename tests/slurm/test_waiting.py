"""A run that waits for another one, by the recipe alone: `resources.after`."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import SubmitStub
from tests.runs import at_step, mmlaunch, wait_for
from tests.slurm.cluster import SlurmCluster
from tests.slurm.jobs import LONG, QUICK, finished, job_of, status


def test_a_run_waits_until_another_has_ended(small: Path, slurm: SlurmCluster, submit_stub: SubmitStub) -> None:
    """However it ends: here by a cancel. A run that has ended already is waited for no more."""
    first = submit_stub(small, *LONG, "-s", "name=first", cluster="slurm")
    events = wait_for(first, at_step(3))
    waits = [*QUICK, "-s", "resources.after=first", "-s", "resources.begin=now+1s", "-s", "name=second"]
    second = submit_stub(small, *waits, cluster="slurm")
    shown = slurm.run(
        "scontrol", "show", "job", job_of(wait_for(second, lambda events: events[-1]["event"] == "queued"))
    )
    assert f"Dependency=afterany:{job_of(events)}" in shown and status(second)["state"] == "pending"
    assert mmlaunch("cancel", "--now", first.name).returncode == 0
    assert finished(second)[-1]["state"] == "done"
    third = submit_stub(small, *waits[:-1], "name=third", cluster="slurm")
    assert finished(third)[-1]["state"] == "done"
