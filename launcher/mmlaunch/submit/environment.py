"""The environment that a job begins with: the user's, without what an enclosing job left in it."""

from __future__ import annotations

from collections.abc import Mapping

KEPT = ("SLURM_CONF", "SLURM_TIME_FORMAT")
"""Not of a job: how Slurm's programs find their cluster, and how they write times."""

FOREIGN = (
    "SLURM_",
    "SLURMD_",
    "SRUN_",
    "SBATCH_",
    "SUBMITIT_",
    "TORCHELASTIC_",
    "MMLAUNCH_ATTEMPT",
    "MMLAUNCH_DEADLINE",
)
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def clean(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what an enclosing job left in it."""
    return {
        name: value
        for name, value in environment.items()
        if name in KEPT or not (name.startswith(FOREIGN) or name in RANKS)
    }
