"""The plan of a run: everything that the templates need of a recipe and a cluster, computed once, without torch."""

from __future__ import annotations

import getpass
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmlaunch.estimate.checkpointing import checkpointing
from mmlaunch.estimate.gathering import gathers
from mmlaunch.load.cluster import Cluster, gigabytes
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.batch import split
from mmlaunch.recipe.begin import NOW, delay_of
from mmlaunch.recipe.environment import settings
from mmlaunch.recipe.model import CHECKPOINTING
from mmlaunch.recipe.sampling import LAYERED
from mmlaunch.recipe.scalars import format_duration
from mmlaunch.run.paths import RunPaths


@dataclass(frozen=True)
class Plan:
    """The values that templates see, by name."""

    run: RunPaths
    recipe: Recipe
    cluster: Cluster
    cluster_name: str
    folder: Path  # the working directory of the job: where relative paths of the recipe start
    python: str  # runs the batch script's own commands
    rank_python: str  # runs the ranks, perhaps inside a container
    nodes: int
    ranks_per_node: int
    gpus_per_node: int
    cpus_per_rank: int
    memory: str | None
    whole_nodes: bool  # whether the job has its nodes for itself
    time: int
    partition: str | None
    account: str | None
    qos: str | None
    begin: str | None  # 22:00, 2026-12-01T22:00, now+2h
    micro: int
    accumulation: int
    environment: dict[str, str]
    passed: tuple[str, ...]  # variables whose values come from the shell: names only
    scratch: str | None
    mounts: tuple[str, ...]  # what a container sees of the machine: the profile's mounts, and what the job needs
    deepspeed: dict[str, Any]
    sharded: bool  # whether the run is split into shards, each with a run directory of its own
    engine: dict[str, int] | None  # what serves answers to the ranks: nodes, servers of a node; None: nothing
    saves: tuple[bool, str]  # whether activations are computed again instead of kept, and why

    @property
    def world(self) -> int:
        return self.recipe.trainers.world

    @property
    def facts(self) -> dict[str, Any]:
        """The fields of a `submitted` event."""
        return {
            "name": self.recipe.name,
            "method": self.recipe.objective.method,
            "executor": self.cluster.executor,
            "cluster": self.cluster_name,
            "nodes": self.nodes,
            "ranks": self.world,
            "steps": self.recipe.steps,
            "activation_checkpointing": {"on": self.saves[0], "reason": self.saves[1]},
        }

    @property
    def slurm_time(self) -> str:
        """`1-12:00:00`, as Slurm writes a time."""
        days, rest = divmod(self.time, 86400)
        clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
        return f"{days}-{clock}" if days else clock

    @property
    def slurm_begin(self) -> str | None:
        """`now+7200`, as Slurm writes a delay; times and dates are the same."""
        delay = delay_of(self.begin) if self.begin else None
        return self.begin if delay is None else f"{NOW}{delay}"

    @property
    def size(self) -> str:
        """`4 nodes x 8 GPUs, 24 h`."""
        unit = "GPUs" if self.gpus_per_node else "ranks"
        nodes = f"{self.nodes} nodes x " if self.nodes > 1 else ""
        each = f"{self.ranks_per_node} {unit if self.ranks_per_node > 1 else unit[:-1]}"
        return f"{nodes}{each}, {format_duration(self.time)}"


def make(recipe: Recipe, cluster: Cluster, cluster_name: str, run: RunPaths, folder: Path) -> Plan:
    """Make the plan of a recipe whose resources this cluster can give."""
    wanted, batch = recipe.resources, recipe.batch
    shares = split(batch.examples, recipe.trainers.world, batch.micro) if recipe.trains else (1, 1)
    assert shares is not None  # the recipe was validated
    micro, accumulation = shares
    saves, auto = checkpointing(recipe, gigabytes(cluster)), recipe.model.activation_checkpointing == "auto"
    return Plan(
        run=run,
        recipe=recipe,
        cluster=cluster,
        cluster_name=cluster_name,
        folder=folder,
        python=sys.executable,
        rank_python=cluster.python or sys.executable,
        nodes=wanted.nodes,
        ranks_per_node=wanted.ranks_per_node,
        gpus_per_node=wanted.gpus_per_node,
        cpus_per_rank=wanted.cpus_per_rank or cluster.cpus_per_rank,
        memory=wanted.memory or cluster.memory,
        whole_nodes=_whole(cluster, wanted.gpus_per_node),
        time=wanted.time,
        partition=wanted.partition or cluster.partition,
        account=wanted.account or cluster.account,
        qos=wanted.qos or cluster.qos,
        begin=wanted.begin,
        micro=micro,
        accumulation=accumulation,
        environment=_environment(recipe, cluster)
        | ({CHECKPOINTING: "on"} if auto and saves[0] else {})
        | ({} if gathers(recipe, gigabytes(cluster)) else {LAYERED: "1"}),
        sharded=not recipe.trains,
        engine=_engine(recipe),
        saves=saves,
        passed=tuple(recipe.passed),
        scratch=_here(cluster.scratch),
        mounts=_mounts(cluster, run.root, folder),
        deepspeed=deepspeed(recipe, micro, accumulation),
    )


def _engine(recipe: Recipe) -> dict[str, int] | None:
    engine = recipe.objective.served_by
    if engine is None:
        return None
    return {"nodes": engine.nodes, "servers_per_node": engine.servers_per_node(recipe.resources.gpus_per_node)}


def deepspeed(recipe: Recipe, micro: int, accumulation: int) -> dict[str, Any]:
    """DeepSpeed's configuration; no value is left to `auto`."""
    zero: dict[str, Any] = {"stage": recipe.deepspeed.stage}
    if recipe.deepspeed.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if recipe.deepspeed.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    config: dict[str, Any] = {
        "train_batch_size": recipe.batch.examples if recipe.trains else recipe.trainers.world,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": recipe.optim.clip,
        # Stage 0 keeps no fp32 copies of bf16 weights: there the weights are fp32, and autocast does the rest.
        "bf16": {"enabled": recipe.precision == "bf16" and recipe.deepspeed.stage > 0} | _states(recipe),
        "fp16": {"enabled": recipe.precision == "fp16"},
        "zero_optimization": zero,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": recipe.optim.lr,
                "betas": recipe.optim.betas,
                "eps": recipe.optim.eps,
                "weight_decay": recipe.optim.weight_decay,
                "torch_adam": True,  # the same arithmetic everywhere, and nothing to compile
                "fused": True,  # reads each number once instead of ten times
            },
        },
    }
    return _merged(config, recipe.deepspeed.overrides)


def _states(recipe: Recipe) -> dict[str, bool]:
    """DeepSpeed's switches for master weights, gradients and moments in bf16."""
    if recipe.deepspeed.optimizer_states == "fp32":
        return {}
    return {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}


def _environment(recipe: Recipe, cluster: Cluster) -> dict[str, str]:
    nccl = {f"NCCL_{name.removeprefix('NCCL_')}": value for name, value in cluster.nccl.items()}
    return {**nccl, **cluster.environment, **settings(recipe.env)}


def _here(path: str | None) -> str | None:
    """Only `$USER`, `$HOME` and `~` are filled in: a profile cannot pull a secret into a script."""
    if path is None:
        return None
    for name, known in (("USER", getpass.getuser), ("HOME", Path.home)):
        value = (os.environ.get(name) or str(known())).replace("\\", r"\\")
        path = re.sub(rf"\$(\{{{name}\}}|{name}\b)", value, path)
    return str(Path(path).expanduser())


def _whole(cluster: Cluster, gpus: int) -> bool:
    exclusive = cluster.exclusive or any(option.startswith("--exclusive") for option in cluster.sbatch)
    return exclusive or (gpus > 0 and gpus == cluster.gpus_in_node)


def _mounts(cluster: Cluster, *needed: Path) -> tuple[str, ...]:
    """The mounts of a container, and those folders of the job that they do not show under their own names."""
    mounts = list(cluster.container.mounts) if cluster.container else []
    for folder in needed:
        if not any(_shows(mount, folder) for mount in mounts):
            mounts.append(f"{folder}:{folder}")
    return tuple(mounts)


def _shows(mount: str, folder: Path) -> bool:
    """Whether `source[:target[:options]]` shows this folder under its own name, and lets it be written."""
    source, target, options = [*mount.split(":"), "", ""][:3]
    return (target or source) == source and folder.is_relative_to(source) and "ro" not in options.split(",")


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
