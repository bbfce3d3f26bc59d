"""Trained models that recipes name: what a run's name means, told before anything is queued."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.runs import mmlaunch

from mmlaunch.estimate.memory import estimate
from mmlaunch.load import load_recipe, trained
from mmlaunch.load.trained import Resolved
from mmlaunch.recipe import resolved
from mmlaunch.recipe.reinforcement import Ppo
from mmlaunch.run import ledger, manifest
from mmlaunch.run.paths import RunPaths

Make = Callable[..., RunPaths]


@pytest.fixture
def make(own_home: Path) -> Make:
    """A run in the folder of runs, the newest so far."""
    count = iter(range(1, 100))

    def _make(name: str, state: str = "done", steps: tuple[int, ...] = (4,)) -> RunPaths:
        run = RunPaths(own_home / "runs" / name)
        run.root.mkdir(parents=True)
        run.resolved.write_text("name: run\n")
        os.utime(run.resolved, (1e9 + next(count),) * 2)
        ledger.append(run.events, "submitted", executor="local")
        for step in steps:
            folder = manifest.staging(run.checkpoints, step)
            folder.mkdir(parents=True)
            (folder / "weights").write_text(name)
            manifest.seal(folder, run.checkpoint(step), step, 1)
        ledger.append(run.events, "ended", state=state)
        return run

    return _make


@pytest.fixture
def resolve(small: Path) -> Callable[[str], Resolved]:
    return lambda name: trained.resolve(load_recipe(small, [f"model.init_from={name}"]))


def test_a_name_means_the_newest_finished_run(make: Make, resolve: Callable[[str], Resolved]) -> None:
    make("sft-1120-aaaa", steps=(2, 4))
    run = make("sft-1121-bbbb", steps=(2, 4))
    make("sft-1122-cccc", state="failed", steps=(6,))
    make("sft-1123-dddd", state="failed", steps=())
    for name in ("sft", f"{run.root.parent}/sft", "sft-1121-bbbb", "sft-1121", "bbbb", str(run.root)):
        found = resolve(name)
        assert found.loaded.recipe.model.init_from == str(run.checkpoint(4)), name
        assert found.notes == ["model.init_from: sft-1121-bbbb, step 4"]
    assert resolve(str(run.checkpoint(2))).loaded.recipe.model.init_from == str(run.checkpoint(2))


def test_a_reward_model_that_cannot_score_is_told(make: Make, write: Callable[..., Path]) -> None:
    sft, reward = make("sft-1121-aaaa"), make("rm-1121-bbbb")
    text = "extends: recipes/ppo_llama3.yaml\nname: p\nmodel: {init_from: sft}\nobjective: {rewards: RUN}\n"
    for run, recipe, change in ((sft, "sft_llama3", ()), (reward, "reward_llama3", ())):
        run.resolved.write_text(resolved.text_of(load_recipe(Path(f"recipes/{recipe}.yaml"), change).recipe))
    (problem,) = trained.resolve(load_recipe(write(text.replace("RUN", "sft")))).missing
    assert problem.dotted == "objective.rewards[0].path" and "a run of sft, its model gives no scores" in str(problem)
    assert not trained.resolve(load_recipe(write(text.replace("RUN", "rm")))).missing
    other = load_recipe(Path("recipes/reward_llama3.yaml"), ["model.chat_template=vicuna"]).recipe
    reward.resolved.write_text(resolved.text_of(other))
    (problem,) = trained.resolve(load_recipe(write(text.replace("RUN", "rm")))).missing
    assert "another chat template than the policy" in str(problem)


def test_a_reward_model_scores_data_without_a_policy(make: Make, write: Callable[..., Path]) -> None:
    """`score` has no model of its own that a reward run could differ from."""
    reward = make("reward-llama3-8b-1121-bbbb")
    reward.resolved.write_text(resolved.text_of(load_recipe(Path("recipes/reward_llama3.yaml")).recipe))
    found = trained.resolve(load_recipe(Path("recipes/score_llama3.yaml")))
    assert not found.missing and "reward-llama3-8b-1121-bbbb, step 4" in found.notes[0]


def test_last_and_runs_that_never_saved(make: Make, resolve: Callable[[str], Resolved]) -> None:
    run = make("dpo-1121-aaaa", state="failed")
    make("dpo-1122-bbbb", state="failed", steps=())
    assert resolve("dpo").loaded.recipe.model.init_from == str(run.checkpoint(4))
    (problem,) = resolve("last").missing
    assert "dpo-1122-bbbb has no valid checkpoint yet" in problem.what


def test_what_names_nothing_is_told_with_a_guess(make: Make, resolve: Callable[[str], Resolved], small: Path) -> None:
    one, two = make("dpo-a-1121-aaaa"), make("dpo-b-1121-bbbb")
    (several,) = resolve("dpo").missing
    assert several.what == "dpo fits 2 runs" and one.name in several.right and two.name in several.right
    (near,) = resolve("runs/dpo-a-1121-aaab").missing
    assert "no run, checkpoint or model folder runs/dpo-a-1121-aaab" in near.what
    assert resolve("meta-llama/Llama-3").missing == []  # the hub is asked for it
    (empty,) = resolve(str(small.parent)).missing
    assert "holds neither a run, nor a checkpoint, nor a config.json" in empty.what

    told = mmlaunch("validate", small, "-s", "model.init_from=runs/dppo")
    assert told.returncode == 0 and "note: " in told.stdout and "no run, checkpoint or model folder" in told.stdout
    refused = mmlaunch("submit", small, "-s", "model.init_from=runs/dppo", "--cluster", "local")
    assert refused.returncode == 2 and "-s model.init_from=runs/dppo: model.init_from: no run" in refused.stderr


def test_a_damaged_newest_checkpoint_is_passed_over(make: Make, resolve: Callable[[str], Resolved]) -> None:
    run = make("sft-1121-aaaa", steps=(2, 4))
    (run.checkpoint(4) / "weights").unlink()
    assert resolve("sft").loaded.recipe.model.init_from == str(run.checkpoint(2))


def test_a_reward_run_in_a_list_is_pinned_too(
    make: Make, write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where this is typed there may be a folder of runs, which is called nearly `rn`
    run, sft = make("rm-1121-aaaa"), make("sft-1121-bbbb")
    text = "extends: recipes/ppo_llama3.yaml\nname: p\nmodel: {init_from: sft}\nobjective:\n  rewards: "
    for rewards, place in (("['score.py:f', {path: rm, weight: 2}]", "1"), ("rm", "0")):
        found = trained.resolve(load_recipe(write(text + rewards)))
        assert found.notes == [
            "model.init_from: sft-1121-bbbb, step 4",
            f"objective.rewards.{place}.path: rm-1121-aaaa, step 4",
        ]
        objective = found.loaded.recipe.objective
        assert isinstance(objective, Ppo) and objective.rewards[-1].path == str(run.checkpoint(4))
        assert found.loaded.recipe.model.init_from == str(sft.checkpoint(4))
    missing = trained.resolve(load_recipe(write(text + "['score.py:f', rn]"))).missing
    assert [problem.dotted for problem in missing] == ["objective.rewards[1].path"]
    assert "relative paths start at" in missing[0].right
    (problem,) = trained.resolve(load_recipe(write(text + "exakt"))).missing
    assert problem.right == "did you mean exact, a function that comes with mmlaunch?"


def test_a_task_that_only_scores_is_estimated_as_its_reward_runs(make: Make, write: Callable[..., Path]) -> None:
    """Whatever that has started from, which may be gone. Before there is one, or by functions alone, it is tiny."""
    trains = load_recipe("recipes/reward_llama3.yaml", ["model.init_from=runs/gone"]).recipe
    run = make("rm-1121-aaaa")
    run.resolved.write_text(resolved.text_of(trains))
    text = "name: s\nobjective: {method: score, rewards: REWARDS}\ndata: {input: rows.jsonl}\n"
    text += "resources: {nodes: 1, gpus_per_node: 1, time: 1h}\n"
    whole = estimate(trains).counts.total
    for rewards, more in (("rm", 0), ("[exact, {path: rm, weight: 2}]", 0), ("[rm, runs/rm, exact]", 1)):
        scores = load_recipe(write(text.replace("REWARDS", rewards))).recipe
        made = estimate(scores)
        assert (made.counts.total, scores.model.init_from) == (whole, None)
        memory = made.memory(False)
        assert memory.reference == pytest.approx(more * memory.parameters, rel=0.05)  # adapters are merged
        assert memory.parameters > 2 * 8_000_000_000
    for rewards in ("rn", "exact"):
        scores = load_recipe(write(text.replace("REWARDS", rewards))).recipe
        assert estimate(scores).counts.total < 10**6
    own = load_recipe(write(text.replace("REWARDS", "rm") + "model: {language: {random: {}}}\n")).recipe
    assert own.model.language != trains.model.language
