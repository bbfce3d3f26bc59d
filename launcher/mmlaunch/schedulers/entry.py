"""The callable that submitit runs in every rank: tiny, pickled by reference, holding only the run directory."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any

import submitit

JOB = "mmjobs.main"  # by name: the launcher never imports torch
RUN = "MMLAUNCH_RUN"
"""The run directory, as the job script says it: all tasks of a job array share one callable."""


@dataclass(frozen=True)
class Entry:
    """Sets torch's variables for this rank from those of submitit, and starts the job."""

    run: str

    def __call__(self) -> dict[str, Any]:
        here = submitit.JobEnvironment()
        os.environ.update(
            RANK=str(here.global_rank),
            WORLD_SIZE=str(here.num_tasks),
            LOCAL_RANK=str(here.local_rank),
            NODE_RANK=str(here.node),
        )
        result = importlib.import_module(JOB).run(os.environ.get(RUN, self.run))
        return dict(result)
