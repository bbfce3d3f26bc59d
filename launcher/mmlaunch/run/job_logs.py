"""The logs of a run's job scripts."""

from __future__ import annotations

from pathlib import Path

from mmlaunch.run import ledger
from mmlaunch.run.paths import RunPaths


def batch_logs(run: RunPaths) -> list[Path]:
    """All of them; where several runs share a job folder (shards, points of a sweep), those of its own jobs.

    What the script of another one has said, such as that it was preempted, is no evidence here.
    """
    if not run.job.is_symlink():
        return run.batch_logs
    jobs = {str(event.get("job")) for event in ledger.skim(run.events).all("queued", "started")}
    own = {run.batch_log.name, *(f"batch-{job}.out" for job in jobs)}
    return [log for log in run.batch_logs if log.name in own]
