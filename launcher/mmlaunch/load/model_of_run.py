"""The model of a task without training, where a recipe says nothing else of it: that which it starts from, or, where it
only scores answers, its first reward run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mmlaunch.errors import RecipeError
from mmlaunch.load.find_model import Missing, find
from mmlaunch.load.node import Node
from mmlaunch.load.text import read_file
from mmlaunch.recipe.objective import SECTIONS, section_name
from mmlaunch.recipe.rewards import RewardSource
from mmlaunch.run.paths import RunPaths, of_checkpoint

PARTS = ("vision", "language", "pretrained", "projector")
"""The fields by which a recipe describes a model itself."""


def with_model(node: Node, of_stage: Callable[[str], Node | None] = lambda name: None) -> Node:
    """The same recipe with the model of the run or the folder that `model.init_from` names, where it trains nothing and
    says nothing else of its model.

    `of_stage` gives the model of a stage of the same pipeline, whose run does not exist yet.
    """
    objective, model = node.child("objective"), node.child("model")
    if objective is None or (section := SECTIONS[section_name(objective.plain())]).TASK == "train":
        return node
    if not section.READS_MODEL and model is None and isinstance(node.value, dict):
        reward = _first_reward_model(objective, of_stage)
        return node if reward is None else Node({**node.value, "model": reward}, node.place, node.key_places)
    start = model.child("init_from") if model is not None else None
    if model is None or start is None or not isinstance(start.value, str) or any(model.child(part) for part in PARTS):
        return node
    described = of_stage(start.value) or _of_name(start.value, start)
    if described is None or not isinstance(node.value, dict) or not isinstance(model.value, dict):
        return node
    if described.child("pretrained") is not None and described.child("vision") is None:  # the folder is all of it
        model = Node({k: v for k, v in model.value.items() if k != "init_from"}, model.place, model.key_places)
    return Node({**node.value, "model": described.merged(model, ("model",))}, node.place, node.key_places)


def _of_name(name: str, start: Node) -> Node | None:
    try:
        folder = find(name)
    except Missing as error:  # what names no model cannot say what the parts of one are
        raise RecipeError([start.place.problem(str(error), error.right, ("model", "init_from"))]) from None
    return _of_folder(folder, start) if folder is not None else None


def _first_reward_model(objective: Node, of_stage: Callable[[str], Node | None]) -> Node | None:
    """What the first reward run says of its model, apart from what it started from; None where there is none yet."""
    rewards = objective.child("rewards")
    for source in rewards.value if rewards is not None and isinstance(rewards.value, list) else [rewards]:
        name = source.child("path") or source if source is not None else None
        if name is None or not isinstance(name.value, str) or "path" not in RewardSource.of_word(name.value):
            continue
        with suppress(Missing):  # said of the reward itself, where it has to be there
            described = of_stage(name.value)
            if described is None and (folder := find(name.value)) is not None:
                described = _of_folder(folder, name)
            if described is not None and isinstance(described.value, dict):
                fields = {key: value for key, value in described.value.items() if key != "init_from"}
                return Node(fields, described.place, described.key_places)
    return None


def _of_folder(folder: Path, start: Node) -> Node | None:
    """What a checkpoint's run, or a folder that transformers reads, says of its model."""
    checkpoint = of_checkpoint(folder)
    if checkpoint is None:
        if not (folder / "config.json").is_file():
            return None
        name = Node(str(folder), start.place)
        return Node({"pretrained": name}, start.place, {"pretrained": start.place})
    return read_file(RunPaths(checkpoint[0].root).resolved).child("model")
