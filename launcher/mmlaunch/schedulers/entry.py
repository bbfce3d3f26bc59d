"""The callable that submitit runs in every rank: tiny, pickled by reference, holding only the run directory."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any

import submitit

from mmlaunch.run.plugins import RUN

JOB = "mmjobs.main"  # by name: the launcher never imports torch


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
        run = os.environ.get(RUN, self.run)  # all tasks of a job array share one callable
        result = importlib.import_module(JOB).run(run)
        return dict(result)
