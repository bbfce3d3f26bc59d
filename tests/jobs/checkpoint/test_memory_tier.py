"""Checkpoints in the memory of the nodes: a killed run goes on from there bit for bit, or from the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.jobs.kills import kill_at

from mmlaunch.recipe import Recipe
from mmlaunch.run import manifest
from mmlaunch.run.paths import RunPaths

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]
Unbroken = dict[tuple[str, int, int | None], tuple[Any, Any]]
TWO_NODES = {"SLURMD_NODENAME": "node{rank}"}
SETTINGS: dict[str, Any] = {
    "steps": 12, "model__dropout": 0.2, "checkpoint": {"every": "1000 steps", "memory_every": 3, "background": False},
    "resources__tasks_per_node": 2,
}  # fmt: skip


STEP = "mmjobs.engine.engine:Engine.step"


@pytest.fixture
def memory(tmp_path: Path) -> RunPaths:
    """The folder of a job, as the memory of its nodes."""
    return RunPaths(tmp_path / "shm" / "mmlaunch" / "run-7-0-1")


@pytest.fixture(autouse=True)
def parents(memory: RunPaths) -> None:
    memory.root.parent.parent.mkdir()


@pytest.fixture(scope="module")
def unbroken() -> Unbroken:
    """The losses and the weights of runs that nothing stops, by stage and method."""
    return {}


def expected(job: Jobs, recipe: Recipe, unbroken: Unbroken) -> tuple[Any, Any]:
    key = (recipe.objective.method, recipe.deepspeed.stage, recipe.steps)
    if key not in unbroken:
        whole = job("whole")
        assert whole.run(recipe, 2) == [0, 0], whole.log()
        unbroken[key] = whole.losses(), whole.weights(recipe.steps)
    return unbroken[key]


def check(run: Any, wanted: tuple[Any, Any]) -> None:
    losses, weights = wanted
    assert {step: set(values) for step, values in run.losses().items()} == {s: set(v) for s, v in losses.items()}
    result = run.weights(12)
    assert result.keys() == weights.keys() and all(torch.equal(result[name], weights[name]) for name in weights)


def tiers(run: Any) -> list[tuple[int, str]]:
    return [(event["step"], event["tier"]) for event in run.events("resumed")]


@pytest.mark.parametrize(
    ("stage", "nodes"),
    [
        (0, 2),
        (2, 1),
        (3, 2),
        *(pytest.param(*one, marks=pytest.mark.nightly) for one in ((0, 1), (1, 2), (2, 2), (3, 1))),
    ],
)
def test_a_killed_rank_loses_steps_and_no_bit(
    job: Jobs, tiny: Recipes, memory: RunPaths, unbroken: Unbroken, stage: int, nodes: int
) -> None:
    recipe, run = tiny(**SETTINGS, deepspeed__stage=stage), job("run")
    place = {"MMLAUNCH_MEMORY": str(memory.root), **(TWO_NODES if nodes == 2 else {})}
    run.prepare = kill_at(STEP, 9, rank=1)
    assert run.run(recipe, 2, **place) != [0, 0], "it was to be killed"
    assert run.saved() == [], "nothing is on the disk"
    run.prepare = None
    assert run.run(recipe, 2, **place) == [0, 0], run.log()
    assert tiers(run) == [(6, "memory")]
    check(run, expected(job, recipe, unbroken))
    assert not memory.root.exists() or not any(memory.root.iterdir()), "an orderly end frees the memory"


PHASES = {
    "the files are written": ("mmjobs.checkpoint.save:write", 2, 3),
    "a node seals": ("mmlaunch.run.manifest:seal", 2, 3),
    "the step before is deleted": ("mmjobs.checkpoint.memory_tier:MemoryTier.keep_only", 2, 6),
}


@pytest.mark.nightly
@pytest.mark.parametrize("phase", PHASES)
def test_killed_while_it_is_saved(job: Jobs, tiny: Recipes, memory: RunPaths, unbroken: Unbroken, phase: str) -> None:
    """One node has the newer step, the other one only the step before."""
    settings = {**SETTINGS, "checkpoint": {"every": "1000 steps", "memory_every": 3}}
    recipe, run, (place, count, step) = tiny(**settings, deepspeed__stage=1), job("run"), PHASES[phase]
    environment = {"MMLAUNCH_MEMORY": str(memory.root), **TWO_NODES}
    run.prepare = kill_at(place, count, rank=1)
    assert run.run(recipe, 2, **environment) != [0, 0], "it was to be killed"
    run.prepare = None
    assert run.run(recipe, 2, **environment) == [0, 0], run.log()
    assert tiers(run) == [(step, "memory")]
    check(run, expected(job, recipe, unbroken))


@pytest.mark.nightly
def test_killed_while_it_is_read(job: Jobs, tiny: Recipes, memory: RunPaths, unbroken: Unbroken) -> None:
    """What was brought to a node is no part of its checkpoint: that one is not believed any more."""
    recipe, run = tiny(**SETTINGS, deepspeed__stage=1), job("run")
    environment = {"MMLAUNCH_MEMORY": str(memory.root), **TWO_NODES}
    for place, count in ((STEP, 9), ("mmjobs.checkpoint.resume:_load", 1)):
        run.prepare = kill_at(place, count, rank=1)
        assert run.run(recipe, 2, **environment) != [0, 0], "it was to be killed"
    run.prepare = None
    assert run.run(recipe, 2, **environment) == [0, 0], run.log()
    assert tiers(run) == [], "it begins anew: nothing is on the disk"
    check(run, expected(job, recipe, unbroken))


def _too_large() -> None:
    from mmjobs.checkpoint import memory_tier

    def refuse(path: Path, begin: int) -> bytes:
        return b"x" * 10**6

    memory_tier._read = refuse


@pytest.mark.nightly
def test_a_node_whose_memory_is_full_reads_from_the_disk(
    job: Jobs, tiny: Recipes, memory: RunPaths, unbroken: Unbroken, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "checkpoint": {"every": "4 steps", "memory_every": 3, "background": False}}
    recipe, run = tiny(**settings, deepspeed__stage=1), job("run")
    small = memory.root / "node1"
    small.mkdir(parents=True)
    if os.system(f"mount -t tmpfs -o size=900k none {small} 2>/dev/null"):
        pytest.skip("a small memory can be mounted by root only")
    try:
        environment = {"MMLAUNCH_MEMORY": str(memory.root), **TWO_NODES}
        run.prepare = kill_at(STEP, 8, rank=1)
        assert run.run(recipe, 2, **environment) != [0, 0], "it was to be killed"
        run.prepare = _too_large  # each file of rank 0 is larger than that memory
        assert run.run(recipe, 2, **environment) == [0, 0], run.log()
    finally:
        os.system(f"umount {small}")
    assert tiers(run) == [(4, "disk")] and "a checkpoint in memory cannot be read" in run.log()
    check(run, expected(job, recipe, unbroken))


def test_damage_of_any_file_is_found(
    job: Jobs, tiny: Recipes, memory: RunPaths, unbroken: Unbroken, tmp_path: Path
) -> None:
    """The run then goes on from the disk."""
    settings = {**SETTINGS, "checkpoint": {"every": "4 steps", "memory_every": 3, "background": False}}
    recipe, run = tiny(**settings, deepspeed__stage=1), job("run")
    environment = {"MMLAUNCH_MEMORY": str(memory.root), **TWO_NODES}
    run.prepare = kill_at(STEP, 8, rank=1)
    assert run.run(recipe, 2, **environment) != [0, 0], "it was to be killed"
    assert run.saved() == [4]
    kept = [RunPaths(memory.root / f"node{rank}").checkpoint(6) for rank in (0, 1)]
    files = [path for folder in kept for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= 8, "each node has what its rank saved, and a manifest"
    for path in files:
        content = path.read_bytes()
        for damaged in (content[:-2], bytes([content[0] ^ 1]) + content[1:], None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            folder = next(one for one in kept if one in path.parents)
            with pytest.raises(manifest.InvalidCheckpoint):
                manifest.validate(folder)
            path.write_bytes(content)
    files[-1].write_bytes(b"")
    run.prepare = None
    assert run.run(recipe, 2, **environment) == [0, 0], run.log()
    assert tiers(run) == [(4, "disk")]
    assert any("a checkpoint in memory is damaged" in event["what"] for event in run.events("warning"))
    check(run, expected(job, recipe, unbroken))


def test_a_node_without_memory_costs_the_tier_alone(job: Jobs, tiny: Recipes, memory: RunPaths) -> None:
    recipe, run = tiny(**SETTINGS), job("run")
    small = memory.root.parent
    small.mkdir()
    if os.system(f"mount -t tmpfs -o size=100k none {small} 2>/dev/null"):
        pytest.skip("a small memory can be mounted by root only")
    try:
        assert run.run(recipe, 2, MMLAUNCH_MEMORY=str(memory.root)) == [0, 0], run.log()
        assert not memory.root.exists() or not any(memory.root.rglob("step-*"))
    finally:
        os.system(f"umount {small}")
    (warning,) = run.events("warning")
    assert "no more checkpoints in memory: [Errno 28]" in warning["what"] and warning["step"] == 3
    assert run.run(tiny(**{**SETTINGS, "steps": 15}), 2) == [0, 0], run.log()
    assert "no checkpoints in memory: the job script names no folder" in run.events("warning")[-1]["what"]


def test_nobody_else_gives_it_a_folder(job: Jobs, tiny: Recipes, memory: RunPaths) -> None:
    shared = memory.root.parent
    shared.mkdir()
    try:
        os.chown(shared, 12345, 12345)
    except PermissionError:
        pytest.skip("only root gives files away")
    run = job("run")
    assert run.run(tiny(**{**SETTINGS, "steps": 4}), 2, MMLAUNCH_MEMORY=str(memory.root)) == [0, 0], run.log()
    assert "belongs to someone else" in run.events("warning")[0]["what"]


def test_what_a_job_has_left_behind_is_freed(job: Jobs, tiny: Recipes, memory: RunPaths) -> None:
    old, new = memory.root.parent / "other-1", memory.root.parent / "other-2"
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (1, 1))
    run = job("run")
    assert run.run(tiny(**{**SETTINGS, "steps": 4}), 2, MMLAUNCH_MEMORY=str(memory.root)) == [0, 0], run.log()
    assert not old.exists() and new.exists()
    shutil.rmtree(new)
