"""Toys: what a rehearsal changes of a recipe, and every shipped recipe rehearsed to its end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT
from tests.runs import mmlaunch

from mmlaunch.errors import RecipeError
from mmlaunch.load import load_recipe
from mmlaunch.load.pipeline import load_pipeline
from mmlaunch.load.recipe import is_pipeline
from mmlaunch.recipe import Recipe
from mmlaunch.submit import toy

SHIPPED = sorted(path.name for path in (ROOT / "recipes").glob("*.yaml"))

pytestmark = pytest.mark.usefixtures("stop_all")


def toys(path: str | Path, *overrides: str) -> list[tuple[Recipe | None, toy.Toy]]:
    """The toys of a recipe or of the stages of a pipeline, behind the recipes that they are made of."""
    if is_pipeline(path):
        whole = toy.together(path, overrides, "local")
        before = {stage.name: stage.loaded.recipe for stage in load_pipeline(path).stages}
    else:
        alone = toy.alone(path, overrides, "local")
        one = load_recipe(path, [] if any("steps" in override for override in overrides) else overrides).recipe
        if isinstance(alone, toy.Toy):
            return [(one, alone)]
        whole, before = alone, {one.objective.method: one}
    return [
        (before.get(stage.name), toy.Toy(stage.loaded, whole.changes[stage.name], (), ()))
        for stage in whole.loaded.stages
    ]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_toy_of_every_shipped_recipe_is_valid_and_keeps_every_other_field(name: str) -> None:
    for recipe, made in toys(f"recipes/{name}"):
        own = made.loaded.recipe
        assert own.resources.world <= 2 and not own.resources.gpus_per_node and own.name.endswith("-toy")
        assert own.batch.examples <= 8 and (not own.trains or (own.steps or 9) <= (5 if own.objective.ROLLOUTS else 2))
        if recipe is None:  # the reward model that is trained before it
            continue
        fields = {field for field, _, _ in made.changes}
        before, after = (
            flat(recipe.model_dump(mode="json", by_alias=True)),
            flat(own.model_dump(mode="json", by_alias=True)),
        )
        different = {path for path in before | after if before.get(path) != after.get(path)}
        assert not {path for path in different if not any(same(path, field) for field in fields)}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """The leaves of a recipe by their paths."""
    if isinstance(value, dict):
        return {leaf: one for key, below in value.items() for leaf, one in flat(below, f"{path}.{key}").items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {leaf: one for at, below in enumerate(value) for leaf, one in flat(below, f"{path}[{at}]").items()}
    return {path.removeprefix("."): value}


def same(path: str, field: str) -> bool:
    return path == field or path.startswith(f"{field}.")


def test_sizes_that_are_written_on_the_command_line_stay() -> None:
    ((_, made),) = toys("recipes/sft_llama3.yaml", "steps=5", "batch.global=16", "resources.tasks_per_node=1")
    own = made.loaded.recipe
    assert (own.steps, own.epochs, own.batch.examples, own.resources.world) == (5, None, 16, 1)
    whole = toy.together("recipes/quickstart_rlhf.yaml", ["stages.sft.steps=3", "shared.log.every=7"], "local")
    assert [stage.loaded.recipe.steps for stage in whole.loaded.stages][:3] == [3, 2, 2]
    assert {stage.loaded.recipe.log.every for stage in whole.loaded.stages} == {7}


def test_a_toy_that_learns_from_a_reward_run_trains_one_first() -> None:
    whole = toy.alone("recipes/ppo_llama3.yaml", (), "local")
    assert isinstance(whole, toy.ToyPipeline)
    reward, ppo = whole.loaded.stages
    assert ppo.needs == ("reward",) and [one.stage for one in ppo.references] == ["reward"]
    assert ppo.loaded.recipe.model.vision == reward.loaded.recipe.model.vision
    assert reward.loaded.recipe.objective.has_scoring_head


def test_a_stage_whose_rows_are_read_later_makes_some() -> None:
    """A random model is never right: `correctness` would make no pair, and the stage that reads them would fail."""
    whole = toy.together("recipes/mpo_data_llama3.yaml", (), "local")
    task = {stage.name: stage.loaded.recipe.objective for stage in whole.loaded.stages}["correctness"]
    assert [source.function for source in task.reward_sources] == ["length"]
    alone = toy.alone("recipes/correctness_llama3.yaml", (), "local")
    assert isinstance(alone, toy.Toy)
    assert [source.function for source in alone.loaded.recipe.objective.reward_sources] == ["final"]


def test_what_is_streamed_is_read_from_the_files_of_the_toy() -> None:
    source = "{path: hf://datasets/lab/pairs, format: rlaif_v, config: all, streaming: true, cache_limit: 2GB}"
    ((_, made),) = toys("recipes/dpo_llama3.yaml", f"data.train={source}", "data.shuffle=shards")
    data = made.loaded.recipe.data
    assert (data.train[0].streaming, data.train[0].config, data.shuffle) == (False, None, "shards")


def test_data_that_exist_only_as_a_name_are_a_mistake_with_its_place(write: Callable[..., Path]) -> None:
    path = write("extends: sft_llama3.yaml\ndata: {train: {path: data/mine.json}, eval: []}\nevaluate: {every:}\n")
    with pytest.raises(RecipeError, match=r"yaml:2:\d+: data.train\[0\].path: no toy .*mine.json.*; add format: with"):
        toys(path)
    rows = write(
        json.dumps([{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "A"}]}]), "a.json"
    )
    ((_, made),) = toys(path, f"data.train.path={rows}")
    assert made.loaded.recipe.data.train[0].path != str(rows)


def test_a_model_whose_class_nothing_tells_is_a_mistake_with_its_place() -> None:
    with pytest.raises(RecipeError, match=r"model.pretrained: no toy .* lab/secret: .*; put its config"):
        toys("recipes/mdpo_llava15_7b.yaml", "model.pretrained=lab/secret")


def test_a_folder_of_runs_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs: of [mine], #1"
    monkeypatch.setenv("MMLAUNCH_RUNS", str(runs))
    ((_, made),) = toys("recipes/mdpo_llava15_7b.yaml")
    assert Path(str(made.loaded.recipe.model.pretrained)).parent == runs / toy.FOLDER


def test_the_family_of_a_model_is_read_from_its_config_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_next", "vision_config": {}}))
    ((_, made),) = toys("recipes/mdpo_llava15_7b.yaml", f"model.pretrained={tmp_path}")
    assert "llava_next" in str(made.loaded.recipe.model.pretrained)


def test_a_dry_run_writes_nothing_and_sweeps_are_refused(own_home: Path) -> None:
    done = mmlaunch("submit", "recipes/ppo_llama3.yaml", "--toy", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "ppo.objective.rewards[0].path" in done.stdout and "##### stage ppo" in done.stdout
    assert not (own_home / "runs").exists()
    refused = mmlaunch("submit", "recipes/sft_llama3.yaml", "--toy", "--sweep", "-s", "seed=1..3")
    assert refused.returncode == 2 and "leave out --sweep" in refused.stderr


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What toys read, made once for all tests."""
    return tmp_path_factory.mktemp("toys")


@pytest.mark.timeout(900)  # a pipeline of eight stages
@pytest.mark.nightly  # half a minute each
@pytest.mark.parametrize("name", SHIPPED)
def test_a_toy_of_every_shipped_recipe_runs_to_its_end(name: str, own_home: Path, made: Path) -> None:
    (own_home / "runs").mkdir()
    (own_home / "runs" / toy.FOLDER).symlink_to(made)
    command = [sys.executable, "-m", "mmlaunch", "submit", f"recipes/{name}", "--toy", "--follow"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
