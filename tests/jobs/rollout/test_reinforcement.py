"""Whole runs of reinforcement learning on real ranks: they learn, and go on bit for bit wherever they are cut."""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.kills import kill_at

from mmjobs.model.toys import models as toys
from mmjobs.model.toys import tokenizers
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.check import recipe_of
from mmlaunch.run import manifest

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]

LETTERS = """
import time

def share(answer, truth):
    return sum(" " <= letter < "P" for letter in answer) / 6

def slow(answer, truth):
    print("scored")
    time.sleep(0.1)
    return share(answer, truth)

def often(answer, truth):
    return None if " " < answer[:1] < "6" else share(answer, truth)
"""
SAMPLED = {"answers": 4, "max_new_tokens": 6, "prompts": 3}
GRPO = {"method": "grpo", "rewards": ["score.py:share"], "sampling": SAMPLED, "rollouts": 32, "epochs": 2,
        "kl": {"weight": 0.01, "place": "loss", "form": "k3"}}  # fmt: skip
PPO = {"method": "ppo", "rewards": ["score.py:share"], "sampling": {**SAMPLED, "answers": 2}, "rollouts": 32,
       "epochs": 2, "kl": 0.05, "shaping": {"normalise": True, "clip": 5}, "critic": {"lr": 1e-2},
       "entropy": 0.01}  # fmt: skip
RLOO = {"method": "rloo", "rewards": ["score.py:share"], "sampling": SAMPLED, "rollouts": 16,
        "kl": {"weight": 0.002, "target_per_sequence": 10.0, "horizon": 100}}  # fmt: skip
METHODS = {"grpo": GRPO, "ppo": PPO, "rloo": RLOO}


def _daily(*methods: str) -> list[Any]:
    """All methods, of which these are tried every day."""
    return [method if method in methods else pytest.param(method, marks=pytest.mark.nightly) for method in METHODS]


@pytest.fixture
def runs(job: Jobs, tiny: Recipes) -> Callable[..., Any]:
    """Make run directories that have the reward function of their recipe."""

    def _runs(name: str) -> Any:
        run = job(name)
        file = run.paths.plugin_file("score.py")
        file.parent.mkdir(parents=True)
        file.write_text(LETTERS)
        return run

    return _runs


def rl(tiny: Recipes, method: str, **changes: Any) -> Recipe:
    settings = {"batch__global": 16, "steps": 8, "optim__lr": 1e-2, **changes}
    return tiny(objective=METHODS[method], **settings)


def steps(run: Any) -> dict[int, dict[str, float]]:
    """The last numbers of each step that do not depend on the clock or the machine."""
    ignored = ("time", "attempt", "rate", "tokens_per_second", "memory", "fill")
    return {
        event["step"]: {name: value for name, value in event.items() if name not in ignored and "second" not in name}
        for event in run.events("step")
    }


@pytest.mark.parametrize("method", _daily("ppo"))
def test_it_learns_what_is_rewarded(runs: Any, tiny: Recipes, method: str) -> None:
    run = runs("run")
    assert run.run(rl(tiny, method, steps=60, data__train__limit=500, optim__lr=2e-2)) == [0], run.log()
    measured = steps(run)
    assert measured[60]["reward"] > measured[1]["reward"] + 0.2
    assert all(math.isfinite(value) for one in measured.values() for value in one.values() if isinstance(value, float))
    assert measured[1]["ratio"] == pytest.approx(1, abs=1e-6) and "not 1" not in run.log()
    if METHODS[method].get("epochs") == 2:
        assert measured[3]["kl_to_old"] > 0, "the second pass learns from answers of an older policy"


@pytest.mark.parametrize("method", _daily("ppo", "grpo"))
def test_two_ranks_are_one(runs: Any, tiny: Recipes, method: str) -> None:
    """The same answers, whatever the world, and losses that differ by rounding alone."""
    one, two = runs("one"), runs("two")
    assert one.run(rl(tiny, method, steps=4)) == [0], one.log()
    assert two.run(rl(tiny, method, steps=4, resources__tasks_per_node=2, batch__micro=4), 2) == [0, 0], two.log()
    assert [event["samples"] for event in one.events("rollout")] == [e["samples"] for e in two.events("rollout")]
    for step, measured in steps(one).items():
        for name, value in measured.items():
            if isinstance(value, float):
                assert steps(two)[step][name] == pytest.approx(value, abs=2e-4, rel=2e-3), (step, name)


VARIANTS: dict[str, dict[str, Any]] = {
    "remax": {"advantage": "remax", "sampling": {**SAMPLED, "answers": 2}, "rewards": ["score.py:often"],
              "shaping": {"normalise": True, "no_end": "subtract", "no_end_reward": 0.5, "clip": 2}},
    "reinforce++ on single answers": {"advantage": "reinforce++", "sampling": {**SAMPLED, "answers": 1}},
    "gspo by answer": {"loss": "gspo", "aggregate": "sequence", "clip": 0.01, "kl": 0},
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name == "remax" else pytest.param(name, marks=pytest.mark.nightly) for name in VARIANTS]
)
def test_other_estimators_and_losses_run(runs: Any, tiny: Recipes, name: str) -> None:
    """Also where functions give no score to an answer, or to the one that the others are compared with."""
    run = runs("run")
    assert run.run(tiny(objective={**GRPO, **VARIANTS[name]}, batch__global=16, steps=8, optim__lr=1e-2)) == [0], (
        run.log()
    )
    measured = steps(run)
    assert all(math.isfinite(value) for one in measured.values() for value in one.values() if isinstance(value, float))
    assert max(one["advantage_std"] for one in measured.values()) > 0.1
    assert "remax" not in name or max(one["reward_missing"] for one in measured.values()) > 0.1


PLACES = {
    "generation": ("mmjobs.rollout.collect:generate", 4),
    "between tokens": ("mmjobs.model.generate:draw", 40),
    "scoring": ("mmjobs.rollout.scoring:Scorer.score", 2),
    "measuring": ("mmjobs.rollout.collect:Collector._numbers", 6),
    "sealing": ("mmjobs.rollout.parts:Parts.seal", 2),
    "update": ("mmjobs.engine.engine:Engine.accumulate", 7),
    "between the updates of actor and critic": ("mmjobs.engine.engine:Engine.step", 6),
    "saving": ("mmjobs.checkpoint.save:CheckpointWriter._snapshot", 2),
}


OTHERS = [
    ("ppo", 0, place) for place in ("between tokens", "scoring", "sealing", "between the updates of actor and critic")
]
OTHERS += [
    ("ppo", 0, "measuring"),
    ("ppo", 3, "generation"),
    ("grpo", 2, "generation"),
    ("ppo", 3, "update"),
    ("ppo", 2, "measuring"),
]


@pytest.fixture(scope="module")
def unbroken() -> dict[str, dict[int, dict[str, float]]]:
    """The steps of runs that nothing stops, by method, stage and world."""
    return {}


@pytest.mark.parametrize(
    ("method", "stage", "place"),
    [("ppo", 0, place) for place in ("generation", "update")]
    + [pytest.param(*one, marks=pytest.mark.nightly) for one in (("ppo", 0, "saving"), *OTHERS)],
)
def test_killed_anywhere_it_goes_on_bit_for_bit(
    runs: Any, tiny: Recipes, unbroken: dict[str, Any], method: str, stage: int, place: str
) -> None:
    recipe = rl(
        tiny, method, deepspeed__stage=stage, resources__tasks_per_node=2, batch__micro=4, checkpoint__every=[3]
    )
    key = f"{method} {stage}"
    if key not in unbroken:
        whole = runs("whole")
        assert whole.run(recipe, 2) == [0, 0], whole.log()
        unbroken[key] = steps(whole)
    run = runs("run")
    run.prepare = kill_at(*PLACES[place])
    assert run.run(recipe, 2) != [0, 0], "it was to be killed"
    run.prepare = None
    assert run.run(recipe, 2) == [0, 0], run.log()
    assert steps(run) == unbroken[key]
    assert "thrown away" not in run.log() and "not 1" not in run.log()
    again = [event for event in run.events("generated") if event["attempt"] == 2 and event["step"] == 4]
    if place in ("between tokens", "scoring", "measuring", "sealing"):
        assert not again, "its answers were kept"
    if place in ("scoring", "measuring", "sealing", "saving"):
        assert [event["step"] for event in run.events("resumed")] == [3]


@pytest.mark.nightly
@pytest.mark.parametrize(("place", "count", "step"), [("scoring", 2, 4), ("update", 5, 2)])
def test_killed_it_goes_on_from_memory(
    runs: Any, tiny: Recipes, unbroken: dict[str, Any], tmp_path: Path, place: str, count: int, step: int
) -> None:
    """Also in the midst of a rollout, and of the updates from one."""
    shape = {"deepspeed__stage": 0, "resources__tasks_per_node": 2, "batch__micro": 4}
    recipe = rl(tiny, "ppo", **shape, checkpoint={"every": [1000], "memory_every": 1, "background": False})
    if "ppo 0" not in unbroken:
        whole = runs("whole")
        assert whole.run(recipe, 2) == [0, 0], whole.log()
        unbroken["ppo 0"] = steps(whole)
    run, memory = runs("run"), str(tmp_path / "shm" / "run")
    Path(memory).parent.parent.mkdir(exist_ok=True)
    run.prepare = kill_at(PLACES[place][0], count)
    assert run.run(recipe, 2, MMLAUNCH_MEMORY=memory) != [0, 0], "it was to be killed"
    run.prepare = None
    assert run.run(recipe, 2, MMLAUNCH_MEMORY=memory) == [0, 0], run.log()
    assert steps(run) == unbroken["ppo 0"] and "thrown away" not in run.log()
    assert [(event["step"], event["tier"]) for event in run.events("resumed")] == [(step, "memory")]


def _write_late() -> None:
    """In a rank: the files of a checkpoint wait until the answers to the rollout after it are kept."""
    saving: Any = importlib.import_module("mmjobs.checkpoint.save")
    plain = saving.write

    def late(files: dict[Path, bytes], *rest: Any) -> None:
        run = next(folder for folder in next(iter(files)).parents if (folder / "rollouts").is_dir())
        until = time.monotonic() + 10
        while not (run / "rollouts" / "4" / "rollout.json").exists() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)
        plain(files, *rest)

    saving.write = late


@pytest.mark.nightly
def test_a_rollout_stays_while_the_checkpoint_that_needs_it_is_written(runs: Any, tiny: Recipes) -> None:
    run = runs("run")
    run.prepare = _write_late
    assert run.run(rl(tiny, "grpo", checkpoint__every=[3], steps=5)) == [0], run.log()
    assert run.saved() == [3, 5]
    assert (run.paths.rollout(0) / "rollout.safetensors").is_file(), "step 3 goes on with it"


def test_a_signal_does_not_wait_for_all_scores(runs: Any, tiny: Recipes) -> None:
    """A function may take its deadline for each answer, and a preempted job has a minute."""
    objective = {**GRPO, "rewards": ["score.py:slow"], "rollouts": 64}
    run = runs("run")
    run.start(tiny(objective=objective, batch__global=16), 1)
    log, until = run.paths.attempt(1).rank_log(0), time.monotonic() + 60
    while not log.exists() or "scored" not in log.read_text():
        assert time.monotonic() < until and run.ranks[0].is_alive()
        time.sleep(0.01)
    os.kill(run.ranks[0].pid, signal.SIGTERM)
    assert run.wait() == [90], run.log()
    assert run.log().count("scored") < 50 and not run.events("rollout")


def test_another_world_goes_on_with_the_same_prompts(runs: Any, tiny: Recipes) -> None:
    """Two ranks are killed in the midst of a rollout; one goes on, with the answers that are there."""
    recipe = rl(tiny, "ppo", resources__tasks_per_node=2, batch__micro=4, checkpoint__every=[3])
    whole, run = runs("whole"), runs("run")
    assert whole.run(recipe, 2) == [0, 0], whole.log()
    run.prepare = kill_at(*PLACES["update"])
    assert run.run(recipe, 2) != [0, 0]
    run.prepare = None
    assert run.run(rl(tiny, "ppo", batch__micro=4, checkpoint__every=[3])) == [0], run.log()
    for step, measured in steps(whole).items():
        assert steps(run)[step]["loss"] == pytest.approx(measured["loss"], abs=1e-4), step
        assert steps(run)[step]["reward"] == pytest.approx(measured["reward"], abs=1e-6), step


@pytest.mark.parametrize("method", ["ppo", pytest.param("grpo", marks=pytest.mark.nightly)])
def test_layer_by_layer_is_the_same(runs: Any, tiny: Recipes, method: str) -> None:
    """A policy that is divided over the ranks and never whole; at the end one of them has no prompts left."""
    recipe = rl(tiny, method, steps=4, deepspeed__stage=3, resources__tasks_per_node=2, batch__micro=4)
    whole, layered = runs("whole"), runs("layered")
    assert whole.run(recipe, 2) == [0, 0], whole.log()
    assert layered.run(recipe, 2, MMLAUNCH_LAYERED="1") == [0, 0], layered.log()
    assert steps(layered) == steps(whole)


def test_groups_that_teach_nothing_are_replaced(runs: Any, tiny: Recipes) -> None:
    objective = {**GRPO, "rewards": ["score.py:share"], "groups": {"low": 0.15, "high": 0.5, "tries": 30}}
    run = runs("run")
    assert run.run(tiny(objective=objective, batch__global=16, steps=4, data__train__limit=200)) == [0], run.log()
    made = run.events("rollout")[-1]
    assert made["metrics"]["prompts_dropped"] > 0 and 0.15 < made["metrics"]["reward"] < 0.5
    never = runs("never")
    objective = {**objective, "groups": {"low": 0.99, "tries": 2}}
    assert never.run(tiny(objective=objective, batch__global=16, steps=4)) == [94]
    assert "all failed or all succeeded" in never.log()


FAILING = """
import os, time
def share(answer, truth, *, how, origin):
    if how == "raise": raise KeyError("nothing here")
    if how == "hang": time.sleep(60)
    if how == "exit": os._exit(3)
    if how == "text": return "good"
    if how == "none": return None
    if how == "some" and int(origin.rpartition(":")[2]) % 4: return len(answer) / 6
    return float("nan")
"""


@pytest.mark.parametrize(
    ("how", "words"),
    [("raise", "KeyError"), ("exit", "exit"), ("text", "'good'"), ("some", "nan")],
)
def test_failing_rewards_are_counted_and_end_the_run_above_a_share(
    runs: Any, tiny: Recipes, how: str, words: str
) -> None:
    run = runs("run")
    run.paths.plugin_file("score.py").write_text(FAILING)
    source = {"function": "score.py:share", "options": {"how": how}, "deadline": "1s"}
    objective = {**RLOO, "rewards": [source], "max_failed": 0.2}
    recipe = tiny(objective=objective, batch__global=16, steps=2)
    assert run.run(recipe) == [94], run.log()
    assert "more than objective.max_failed (20%)" in run.log() and words in run.log() and "shapes:" in run.log()


def test_missing_scores_leave_their_group(runs: Any, tiny: Recipes) -> None:
    run = runs("run")
    run.paths.plugin_file("score.py").write_text(FAILING)
    source = {"function": "score.py:share", "options": {"how": "some"}}
    recipe = tiny(objective={**RLOO, "rewards": [source], "max_failed": 0.5}, batch__global=16, steps=6)
    assert run.run(recipe) == [0], run.log()
    missing = [event["metrics"]["reward_missing"] for event in run.events("rollout")]
    assert 0 < sum(missing) / len(missing) < 0.5
    nothing = runs("nothing")
    nothing.paths.plugin_file("score.py").write_text(FAILING)
    source = {"function": "score.py:share", "options": {"how": "none"}}
    recipe = tiny(objective={**RLOO, "rewards": [source]}, batch__global=16, steps=2)
    assert nothing.run(recipe) == [0], nothing.log()
    assert nothing.events("rollout")[-1]["metrics"]["reward_missing"] == 1 and set(steps(nothing)) == {1, 2}
    assert "no answer of this rollout has a score" in nothing.events("warning")[0]["what"]
    assert not run.events("warning")


@pytest.mark.parametrize(
    "kind", ["qwen2_vl", *(pytest.param(kind, marks=pytest.mark.nightly) for kind in ("internvl", "llama", "gemma2"))]
)
def test_other_families_run(runs: Any, tmp_path: Path, kind: str) -> None:
    """Image-text models with their own processor, rows without branches, and models of text alone."""
    text = kind in ("llama", "gemma2")
    if kind == "llama":
        folder = toys.llama(tmp_path / "model", tokenizers.llama3_tokenizer())
    elif kind == "gemma2":
        folder = toys.in_turns(tmp_path / "model", kind, head_dim=8, query_pre_attn_scalar=8)
    else:
        folder = getattr(toys, kind)(tmp_path / "model")
    rows = [{"prompt": f"What is {number} and one?"} for number in range(30)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = (
        {"path": str(tmp_path / "prompts.jsonl"), "format": "prompts"} if text else {"format": "shapes", "limit": 30}
    )
    template = {"chat_template": "llama-3"} if kind == "llama" else {}
    recipe = recipe_of({
        "name": "families", "model": {"pretrained": str(folder), **template},
        "data": {"train": prompts, "workers": 0, "max_tokens": 400}, "objective": {**PPO, "rollouts": 16},
        "optim": {"lr": 1e-3}, "batch": {"global": 8, "micro": 4}, "steps": 6, "precision": "fp32",
        "log": {"every": 1, "tensorboard": False},
        "resources": {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1, "cpus_per_rank": 1},
    })  # fmt: skip
    run = runs("run")
    assert run.run(recipe) == [0], run.log()
    assert "not 1" not in run.log() and all(
        event["metrics"]["generation_gap"] < 1e-4 for event in run.events("rollout")
    )
    assert len(run.losses()) == 6


@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.nightly)])
def test_the_critic_and_its_reward_model_share_their_weights(runs: Any, tiny: Recipes, stage: int) -> None:
    """Every number is that of a run with a reward model of its own: the critic without its adapter is the same."""
    data = {"format": "shapes", "limit": 200}
    reward = runs("reward")
    assert reward.run(tiny(objective="reward", steps=5, optim__lr=1e-2, data__train=data)) == [0], reward.log()
    rewards = str(reward.paths.checkpoint(5))
    lora: dict[str, Any] = {
        "model__train": {"vision": "frozen", "projector": "frozen", "language": "lora"}, "model__lora": {"rank": 2},
        "deepspeed": {"stage": stage}, "steps": 4, "optim__lr": 1e-2, "batch__global": 16,
    }  # fmt: skip
    numbers = []
    for shares in (False, True):
        run = runs(f"shares-{shares}")
        critic = {"lr": 1e-2, "shares_reward_model": shares}
        recipe = tiny(objective={**PPO, "rewards": [rewards], "critic": critic}, **lora)
        assert run.run(recipe) == [0], run.log()
        numbers.append(steps(run))
    assert numbers[0] == numbers[1] and len(numbers[0]) == 4


@pytest.mark.parametrize(
    ("shares", "how", "stage"),
    [
        (False, "is gone", 0),
        pytest.param(False, "has changed", 3, marks=pytest.mark.nightly),
        pytest.param(True, "is gone", 1, marks=pytest.mark.nightly),
    ],
)
def test_a_run_goes_on_without_its_reward_model(runs: Any, tiny: Recipes, shares: bool, how: str, stage: int) -> None:
    reward = runs("reward")
    data = {"format": "shapes", "limit": 200}
    assert reward.run(tiny(objective="reward", steps=5, optim__lr=1e-2, data__train=data)) == [0], reward.log()
    rewards = str(reward.paths.checkpoint(5))
    objective = {**PPO, "rewards": [{"path": rewards, "standardise": True}], "critic": {"shares_reward_model": shares}}
    changes: dict[str, Any] = {
        "objective": objective, "deepspeed": {"stage": stage}, "batch__global": 16, "optim__lr": 1e-2,
        "optim__schedule": "constant", "checkpoint__every": "2 steps", "steps": 4,
    }  # fmt: skip
    if shares:
        changes |= {"model__train": {"vision": "frozen", "projector": "frozen", "language": "lora"}}
        changes |= {"model__lora": {"rank": 2}}
    whole, broken = runs("whole"), runs("broken")
    assert whole.run(tiny(**changes)) == [0], whole.log()
    assert broken.run(tiny(**changes | {"steps": 2})) == [0], broken.log()
    if how == "is gone":
        shutil.rmtree(reward.paths.root)
    else:
        (Path(rewards) / manifest.NAME).write_text((Path(rewards) / manifest.NAME).read_text() + " ")
    assert broken.run(tiny(**changes)) == [0], broken.log()
    assert f"objective.rewards.0.path: {rewards} {how}" in broken.log()
    assert "goes on with the reward model that it has kept" in broken.log()
    numbers = [{step: one | {"steps": 4} for step, one in steps(run).items()} for run in (whole, broken)]
    assert numbers[0] == numbers[1] and len(numbers[0]) == 4
    shutil.rmtree(broken.paths.frozen)
    assert broken.run(tiny(**changes | {"steps": 6})) == [94]
    assert "has lost its copy; put it back as it was" in broken.log() or "frozen" in broken.log()
