"""Whole runs whose answers come from servers of an external engine: here a stand-in that speaks the same protocol."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.runs import ended, losses, mmlaunch, submit, wait_for

from mmjobs.rollout.external import external
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

    def _served(name: str, world: int = 1, options: Any = None, prepare: Any = None, **changes: Any) -> Any:
        run = runs[name] if name in runs else runs.setdefault(name, job(name))
        file = run.paths.plugin_file("score.py")
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
        run.prepare = prepare
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
    """The numbers of each step that do not depend on the clock or the machine."""
    ignored = ("time", "attempt", "rate", "tokens_per_second", "memory", "fill")
    return {
        event["step"]: {name: value for name, value in event.items() if name not in ignored and "second" not in name}
        for event in run.events("step")
    }


def test_a_run_outlives_its_server(served: Any, tmp_path: Path) -> None:
    """It dies once in the midst of a rollout; the one that is started in its place answers the same prompts."""
    once = tmp_path / "died"
    run, codes = served("run", options={"fault": "dies", "once": str(once)}, steps=5)
    assert codes == [0], run.log()
    assert once.exists() and set(steps(run)) == set(range(1, 6))
    assert steps(run)[1]["ratio"] == pytest.approx(1, abs=1e-6) and "not 1" not in run.log()
    for event in run.events("rollout"):
        measured = event["metrics"]
        assert measured["generation_gap_max"] < 1e-5 and measured["generation_outside"] == 0
        assert 0 <= measured["generation_kl"] < 1e-9 and measured["seconds_sync"] > 0


@pytest.mark.nightly
def test_it_learns_from_the_answers_of_a_server(served: Any) -> None:
    run, codes = served("run", steps=60, data__train__limit=500, optim__lr=2e-2)
    assert codes == [0], run.log()
    assert steps(run)[60]["reward"] > steps(run)[1]["reward"] + 0.2


@pytest.mark.nightly
def test_killed_in_a_rollout_it_goes_on_bit_for_bit(served: Any) -> None:
    settings = {"resources__tasks_per_node": 2, "batch__micro": 4, "checkpoint__every": [3]}
    whole, codes = served("whole", 2, **settings)
    assert codes == [0, 0], whole.log()
    run, codes = served("run", 2, prepare=partial(_die_at, 6), **settings)
    assert codes != [0, 0], "it was to be killed"
    run, codes = served("run", 2, prepare=None, **settings)
    assert codes == [0, 0], run.log()
    assert steps(run) == steps(whole) and "thrown away" not in run.log()


def _die_at(count: int) -> None:
    """In a rank: die by SIGKILL when so many batches were answered."""
    plain, calls = external.checked, [0]

    def deadly(*values: Any) -> Any:
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*values)

    setattr(external, "checked", deadly)  # noqa: B010  mypy knows that it is a function


@pytest.mark.nightly
@pytest.mark.parametrize("stage", [0, 3])
def test_adapters_and_divided_weights_are_served(served: Any, stage: int) -> None:
    train = {"vision": "lora", "projector": "full", "language": "lora"}
    settings = {"model__lora": {"rank": 4, "alpha": 8}, "model__train": train, "deepspeed__stage": stage}
    run, codes = served("run", 2, resources__tasks_per_node=2, batch__micro=4, **settings)
    assert codes == [0, 0], run.log()
    assert all(event["metrics"]["generation_gap_max"] < 1e-4 for event in run.events("rollout"))


@pytest.mark.nightly
def test_a_server_that_hangs_is_started_again(served: Any, tmp_path: Path) -> None:
    options = {"fault": "hangs", "once": str(tmp_path / "hung")}
    run, codes = served("run", options=options, engine={"timeout": "5s"}, steps=4)
    assert codes == [0], run.log()
    assert (tmp_path / "hung").exists()


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"fault": "dies", "once": "/nowhere"},
            "3 times in a row",
        ),  # over the same prompts, or before it was seen to be ready
        ({"name": "vllm", "release": "0.11.0"}, ">=0.22,<0.34"),
        ({"fault": "expands"}, "the engine has read its prompt as"),
        ({"fault": "stale"}, "has other weights than the trainer"),
    ],
)
def test_what_is_wrong_with_a_server_ends_the_run_and_is_named(
    served: Any, options: dict[str, str], words: str
) -> None:
    run, codes = served("run", options=options)
    assert codes not in ([0], [None]) and words in run.log(), run.log()


@pytest.mark.nightly
def test_other_log_probabilities_are_shown_and_weighed(served: Any) -> None:
    """The server says that each token was less likely by a factor of e: its weight would be e, and is 2."""
    run, codes = served("run", options={"fault": "log_probs"}, steps=4)
    assert codes == [0], run.log()
    measured = run.events("rollout")[0]["metrics"]
    assert measured["generation_gap"] == pytest.approx(1, abs=1e-4) and measured["generation_outside"] == 1
    assert measured["generation_kl"] == pytest.approx(math.e - 2, abs=1e-3)
    assert "differ by 1 on average" in run.log()


ON_THIS_MACHINE = f"""\
name: served
model:
  vision: {{random: {{width: 16, layers: 1, heads: 2, image_size: 16, patch: 8}}}}
  language: {{random: {{width: 16, layers: 1, heads: 2, max_positions: 128}}}}
data: {{train: {{format: shapes, limit: 64}}, workers: 0}}
objective:
  method: rloo
  rewards: exact
  sampling: {{answers: 4, max_new_tokens: 6}}
  rollouts: 16
  kl: 0
  engine: {{kind: vllm, nodes: 0, command: [{STAND_IN[0]}, {STAND_IN[1]}]}}
optim: {{lr: 1e-3}}
batch: {{global: 16}}
steps: 2
precision: fp32
resources: {{nodes: 1, gpus_per_node: 0, tasks_per_node: 2, time: 10m}}
"""


@pytest.mark.nightly
def test_a_run_on_this_machine_starts_its_server_and_ends_it(tmp_path: Path) -> None:
    recipe = tmp_path / "served.yaml"
    recipe.write_text(ON_THIS_MACHINE)
    assert "vllm (by " in mmlaunch("validate", recipe).stdout
    run = submit(recipe)
    events = wait_for(run, ended)
    log = run.attempt(1).rank_log(0).read_text()
    assert events[-1]["state"] == "done" and len(losses(events)) == 2, log
    assert run.servers_over(1).exists()
    address = json.loads(run.server(0).read_text())
    with socket.socket() as asks:
        assert asks.connect_ex((address["host"], address["port"])), "the server has ended with the run"
