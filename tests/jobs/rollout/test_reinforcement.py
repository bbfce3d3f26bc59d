"""Whole runs of reinforcement learning on real ranks: they learn, and go on bit for bit wherever they are cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mmlaunch.recipe import Recipe

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]

GROUP = {"method": "grpo", "rewards": ["exact"], "sampling": {"answers": 4, "max_new_tokens": 6}, "rollouts": 16}
CRITIC = {"method": "ppo", "rewards": ["exact"], "sampling": {"answers": 2, "max_new_tokens": 6}, "rollouts": 16, "epochs": 2}


@pytest.mark.parametrize("objective", [GROUP, CRITIC], ids=["grpo", "ppo"])
def test_a_run(job: Jobs, tiny: Recipes, objective: dict[str, Any]) -> None:
    run = job("run")
    assert run.run(tiny(objective=objective, steps=6)) == [0], run.log()
    print(run.log())
    print(run.events("step")[-1])
    print(run.events("rollout")[-1])
    print(run.events("evaluated"))
