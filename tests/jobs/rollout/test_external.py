"""Whole runs whose answers come from servers of an external engine: here a stand-in that speaks the same protocol."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmlaunch.recipe import Recipe

Recipes = Callable[..., Recipe]
STAND_IN = [sys.executable, str(Path(__file__).with_name("stand_in.py"))]
LETTERS = """
def share(answer, truth):
    return sum(" " <= letter < "P" for letter in answer) / 6
"""
OBJECTIVE = {"method": "grpo", "rewards": ["score.py:share"], "rollouts": 32, "epochs": 2,
             "sampling": {"answers": 4, "max_new_tokens": 6, "prompts": 3}}  # fmt: skip


@pytest.fixture
def served(job: Any, tiny: Recipes) -> Iterator[Callable[..., Any]]:
    """Run a recipe in a run directory of this name, with its server beside it."""
    supervisors: list[subprocess.Popen[bytes]] = []
    runs: dict[str, Any] = {}

    def _served(name: str, world: int = 1, options: dict[str, Any] | None = None, **changes: Any) -> Any:
        run = runs[name] if name in runs else runs.setdefault(name, job(name))
        file = run.paths.reward_file("score.py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(LETTERS)
        engine = {
            "kind": "vllm",
            "nodes": 0,
            "command": STAND_IN,
            "options": options or {},
            **changes.pop("engine", {}),
        }
        settings = {"batch__global": 16, "steps": 8, "optim__lr": 1e-2, **changes}
        recipe = tiny(objective={**OBJECTIVE, "engine": engine}, **settings)
        run.start(recipe, world)
        environment = {**os.environ, "MMLAUNCH_ATTEMPT": str(run.attempt), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "mmjobs.rollout.external.supervise", str(run.paths.root), "0"]
        supervisors.append(subprocess.Popen(command, env=environment))
        codes = run.wait()
        supervisors[-1].kill()
        supervisors[-1].wait()
        return run, codes

    yield _served
    for one in supervisors:
        one.kill()
        one.wait()


def steps(run: Any) -> dict[int, dict[str, float]]:
    ignored = ("time", "attempt", "rate", "tokens_per_second", "memory", "fill")
    return {
        event["step"]: {name: value for name, value in event.items() if name not in ignored and "second" not in name}
        for event in run.events("step")
    }


def test_it_learns_from_the_answers_of_a_server(served: Any) -> None:
    run, codes = served("run")
    assert codes == [0], run.log()
    print(run.log())
    print(run.events("rollout")[-1])
    assert 0
