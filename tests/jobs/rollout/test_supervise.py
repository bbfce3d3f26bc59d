"""The GPUs of a server where several share a node, with the environment that Slurm gives it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mmjobs.rollout.external import supervise
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe, resolved
from mmlaunch.recipe.engine import Engine
from mmlaunch.run.paths import RunPaths

VISIBLE = "CUDA_VISIBLE_DEVICES"


def recipe_of(tiny: Callable[..., Recipe], each: int | None) -> Recipe:
    engine = {"kind": "vllm", "nodes": 1, "gpus_per_server": each}
    objective = {"method": "grpo", "rewards": ["exact"], "rollouts": 8, "engine": engine,
                 "sampling": {"answers": 4, "max_new_tokens": 6}}  # fmt: skip
    gpus = {"resources__gpus_per_node": 4, "resources__tasks_per_node": None, "resources__nodes": 2}
    return tiny(objective=objective, **gpus)


def given(monkeypatch: pytest.MonkeyPatch, local: int, visible: str | None) -> None:
    monkeypatch.setenv("SLURM_LOCALID", str(local))
    monkeypatch.delenv(VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(VISIBLE, visible)


@pytest.mark.parametrize(
    "each, local, visible, own",
    [
        (None, 0, "0,1,2,3", None),  # all of the node: nothing to divide
        (4, 0, "0,1,2,3", None),
        (2, 1, None, "2,3"),
        (2, 0, "4,5,6,7", "4,5"),
        (2, 1, "GPU-a,GPU-b,GPU-c,GPU-d", "GPU-c,GPU-d"),
        (1, 3, "0,1,2,3", "3"),
        (1, 3, "0", None),  # Slurm shows each server its own
        (2, 1, "0,1", None),
        (1, 1, "MIG-b", None),
    ],
)
def test_each_server_has_gpus_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Recipe], each: int | None, local: int, visible: str | None,
    own: str | None,
) -> None:  # fmt: skip
    recipe = recipe_of(tiny, each)
    given(monkeypatch, local, visible)
    engine = Engine(kind="vllm", gpus_per_server=each)
    assert supervise.devices(engine, recipe) == ({} if own is None else {VISIBLE: own})


def test_too_few_gpus_are_told_to_the_trainer(
    monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe, run = recipe_of(tiny, 1), RunPaths(tmp_path)
    wrong = ("objective.engine.gpus_per_server: 4 servers of 1 GPUs need 4 GPUs of a node, "
             "and CUDA_VISIBLE_DEVICES={} names fewer")  # fmt: skip
    for visible in ("0,1", ""):
        given(monkeypatch, 1, visible)
        with pytest.raises(BadInput, match=wrong.format(visible)):
            supervise.devices(Engine(kind="vllm", gpus_per_server=1), recipe)
    run.resolved.write_text(resolved.text_of(recipe))
    assert supervise.Supervisor(run, 1, 1).run() == 1
    assert json.loads(run.server(1).read_text())["failed"] == wrong.format("")
