"""submitit's local executor, whose job is our rendered script in a session of its own."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path
from typing import Any

from submitit.local.local import LocalExecutor, LocalJob

from mmlaunch.errors import MachineError
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers.entry import Entry
from mmlaunch.schedulers.environment import clean
from mmlaunch.schedulers.process import identity


class ScriptExecutor(LocalExecutor):
    """Starts the job script, which goes on when the terminal closes."""

    def __init__(self, run: RunPaths, script: Path, ranks: int, submission: int) -> None:
        super().__init__(run.job)
        self.run, self.script, self.submission = run, script, submission
        self.update_parameters(tasks_per_node=ranks)

    def _submit_command(self, command: str) -> LocalJob[Any]:
        with self.run.batch_log.open("ab") as log:
            process = subprocess.Popen(
                ["bash", str(self.script), str(self.submission)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=clean(os.environ),
            )
        # A notebook lives longer than the runs that it starts: without a wait they would stay as zombies.
        threading.Thread(target=process.wait, daemon=True).start()
        return LocalJob(self.run.job, str(process.pid), range(self.parameters["tasks_per_node"]), process)


def start(run: RunPaths, script: Path, ranks: int, submission: int) -> dict[str, Any]:
    """Submit; returns what the ledger keeps of the job."""
    try:
        job = ScriptExecutor(run, script, ranks, submission).submit(Entry(str(run.root)))
    except OSError as error:
        raise MachineError(f"cannot start the job: {error}") from error
    return {"job": job.job_id, **identity(int(job.job_id))}
