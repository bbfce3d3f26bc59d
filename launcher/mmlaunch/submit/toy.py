"""A recipe as a toy: tiny random models of the same classes, generated data in the same formats, few steps, on CPU.

Every other field stays as it is. What a toy reads lies in `.toy` of the runs' folder, made once for each content.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmlaunch import __version__
from mmlaunch.errors import Problem, RecipeError
from mmlaunch.load import Loaded, load_recipe, rundir, trained
from mmlaunch.load.node import Node
from mmlaunch.load.overrides import apply
from mmlaunch.load.overrides import split as split_override
from mmlaunch.load.pipeline import LoadedPipeline, LoadedStage, load_pipeline
from mmlaunch.load.recipe import valid_recipe
from mmlaunch.load.text import parse
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.scalars import STAGE
from mmlaunch.run.pipeline import Reference
from mmlaunch.schedulers import choose
from mmlaunch.submit import run_task, toy_data, toy_models
from mmlaunch.submit.toy_sizes import OWN, Change, fruitful, sizes

FOLDER = ".toy"
"""Its name begins with a dot: it is no run."""
REWARD = "reward"
LONGEST = 76
_REWARD = """\
name: {name}
data: {{train: {{path: pairs.json, format: llava, images: {images}}}}}
objective: reward
optim: {{lr: 1e-4}}
batch: {{global: 8}}
steps: 2
precision: {precision}
resources: {{nodes: 1, gpus_per_node: 0, tasks_per_node: {ranks}}}
"""
_OF_STAGE = re.compile(r"^(shared|stages\.[^.]+)\.")
_ANY_MODEL = "model: {vision: {random: {width: 32}}, language: {random: {width: 32}}}"


@dataclass(frozen=True)
class Toy:
    """A recipe that became a toy."""

    loaded: Loaded
    changes: tuple[Change, ...]
    pieces: tuple[dict[str, Any], ...]
    """The models and data that it reads, each with the folder that it is to be in."""
    rewards: tuple[trained.Place, ...]
    """Its fields that name a reward model: one that is trained before it, as a toy too."""


@dataclass(frozen=True)
class ToyPipeline:
    """A pipeline of toys; a recipe that needs a reward model is one too."""

    loaded: LoadedPipeline
    changes: dict[str, tuple[Change, ...]]
    """By stage."""
    pieces: tuple[dict[str, Any], ...]


def toy_of(loaded: Loaded, cluster: str, own: Sequence[str] = (), feeds: bool = False) -> Toy:
    """The toy of a recipe; `own`: overrides of the toy itself; `feeds`: whether a later stage reads its rows."""
    recipe, given = loaded.recipe, {split_override(override)[0].strip() for override in own}
    if problems := list(toy_data.unknown(recipe, Path.cwd())):
        raise loaded.placed(problems)
    changes = [change for change in sizes(recipe, given) if change[0] not in given]
    changes += fruitful(recipe) if feeds else ()
    changes.append(("name", recipe.name, f"{recipe.name[:LONGEST]}-toy"))
    pieces, rewards = list[dict[str, Any]](), list[trained.Place]()
    for place, name in trained.names(recipe):
        if name.startswith(STAGE):
            continue
        if place[:2] == trained.REWARDS:
            rewards.append(place)
        changes.append((_dotted(place), name, f"{STAGE}{REWARD}" if place[:2] == trained.REWARDS else None))
    changes += _models(loaded, pieces)
    changes += _data(recipe, pieces)
    made = tuple(change for change in changes if change[1] != change[2])
    overrides = [*(f"{field}={_written(value)}" for field, _, value in made), *own]
    node = apply(loaded.node, overrides)
    toy = valid_recipe(node, partial(choose.misfits, cluster))
    whole = replace(loaded, recipe=toy, node=node, overrides=(*loaded.overrides, *overrides))
    return Toy(whole, made, tuple(pieces), tuple(rewards))


def _models(loaded: Loaded, pieces: list[dict[str, Any]]) -> Iterator[Change]:
    """The models of a recipe as toys, which are added to `pieces`."""
    if not loaded.recipe.objective.READS_MODEL:
        return
    try:
        models = toy_models.pieces(loaded.recipe.model)
    except toy_models.Unknown as error:
        raise loaded.placed([error.problem]) from None
    for place, name, piece in models:
        pieces.append(_placed(piece))
        yield _dotted(place), name, pieces[-1]["folder"]


def _data(recipe: Recipe, pieces: list[dict[str, Any]]) -> Iterator[Change]:
    """The data of a recipe as toys, which are added to `pieces`."""
    yield from toy_data.drawn(recipe)
    for field, source, piece in toy_data.pieces(recipe, Path.cwd()):
        pieces.append(_placed(piece))
        file = Path(pieces[-1]["folder"], piece["name"])
        if field == toy_data.AGAINST:
            yield field, source.path, str(file)
            continue
        yield f"{field}.path", source.path, str(file)
        yield f"{field}.skip", source.skip, 0
        if source.images not in (None, "none"):
            yield f"{field}.images", source.images, str(file.parent)
        if field != toy_data.AGAINST:  # the toy's files are here
            yield f"{field}.streaming", source.streaming, False
            yield f"{field}.cache_limit", source.cache_limit, None
            yield f"{field}.config", source.config, None


def alone(path: str | Path, overrides: Sequence[str], cluster: str) -> Toy | ToyPipeline:
    """The toy of a single recipe: one run, or two where it needs a reward model that a run of its own has to make."""
    of_recipe, own = _divided(overrides)
    loaded = load_recipe(path, of_recipe)
    toy = toy_of(loaded, cluster, own)
    if not toy.rewards:
        return toy
    stages = _with_rewards(toy, loaded, LoadedStage(loaded.recipe.objective.method, loaded, (), ()), REWARD, cluster)
    return _pipeline(f"{loaded.recipe.name[:LONGEST]}-toy", loaded.path, stages, overrides)


def together(path: str | Path, overrides: Sequence[str], cluster: str) -> ToyPipeline:
    """The toy of a pipeline; all stages that have mistakes as toys are named."""
    of_recipes, own = _divided(overrides)
    loaded = load_pipeline(path, of_recipes)
    stages, problems = list[tuple[LoadedStage, Toy]](), list[Problem]()
    read = {reference.stage for stage in loaded.stages for reference in stage.references if reference.file}
    for stage in loaded.stages:
        heads = ("shared.", f"stages.{stage.name}.")
        of_stage = [one.strip().removeprefix(head) for head in heads for one in own if one.strip().startswith(head)]
        try:
            toy = toy_of(stage.loaded, cluster, of_stage, stage.name in read)
            stages += _with_rewards(toy, stage.loaded, stage, f"{stage.name}-{REWARD}", cluster)
        except RecipeError as error:
            problems += [replace(one, path=("stages", stage.name, *one.path)) for one in error.problems]
    if problems:
        raise RecipeError(problems)
    return _pipeline(f"{loaded.name}-toy", loaded.path, stages, overrides)


def _divided(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides of what is rehearsed, and those of the toy itself: its sizes."""
    divided: tuple[list[str], list[str]] = ([], [])
    for override in overrides:
        field = _OF_STAGE.sub("", split_override(override)[0].strip())
        divided[field in OWN].append(override)
    return divided


def make(pieces: Sequence[dict[str, Any]]) -> None:
    """Make the models and data that are not there yet."""
    missing = {piece["folder"]: piece for piece in pieces if not Path(piece["folder"]).is_dir()}
    if missing:
        run_task.run("mmjobs.tasks.make_toy", [json.dumps(list(missing.values()))])


def _with_rewards(
    toy: Toy, loaded: Loaded, stage: LoadedStage, name: str, cluster: str
) -> list[tuple[LoadedStage, Toy]]:
    """A stage, behind the one that makes its reward model if it needs one."""
    if not toy.rewards:
        return [(replace(stage, loaded=toy.loaded), toy)]
    reward = toy_of(_reward(loaded), cluster)
    fields = [f"{_dotted(place)}={STAGE}{name}" for place in toy.rewards]
    node = apply(toy.loaded.node, fields)
    own = replace(toy.loaded, node=node, recipe=valid_recipe(node, lambda data: ()))
    references = (*stage.references, *(Reference(place, name, "") for place in toy.rewards))
    later = replace(stage, loaded=own, needs=(*stage.needs, name), references=references)
    return [(LoadedStage(name, reward.loaded, (), ()), reward), (later, toy)]


def _reward(loaded: Loaded) -> Loaded:
    """A recipe that trains a reward model from the model of another recipe, on pairs."""
    recipe = loaded.recipe
    own = recipe.objective.READS_MODEL
    images = "data" if not own or toy_models.sees(recipe.model) else "none"
    precision = "bf16" if recipe.precision == "fp16" else recipe.precision
    title = f"{recipe.name[: LONGEST - 10]}-{REWARD}"
    ranks = min(2, recipe.resources.world)
    written = parse(_REWARD.format(name=title, images=images, precision=precision, ranks=ranks), "the reward model")
    model = loaded.node.child("model") if own else parse(_ANY_MODEL, "the reward model").child("model")
    assert isinstance(written.value, dict) and model is not None and isinstance(model.value, dict)
    parts = {key: value for key, value in model.value.items() if key != "init_from"}
    value = {**written.value, "model": Node(parts, model.place, model.key_places)}
    node = Node(value, written.place, {**written.key_places, "model": model.place})
    return Loaded(valid_recipe(node, lambda data: ()), loaded.path, node, ())


def _pipeline(
    name: str, path: Path, stages: Sequence[tuple[LoadedStage, Toy]], overrides: Sequence[str]
) -> ToyPipeline:
    loaded = LoadedPipeline(name, path, tuple(stage for stage, _ in stages), tuple(overrides))
    pieces = tuple(piece for _, toy in stages for piece in toy.pieces)
    return ToyPipeline(loaded, {stage.name: toy.changes for stage, toy in stages}, pieces)


def _placed(piece: dict[str, Any]) -> dict[str, Any]:
    """The same piece with its folder, whose name is of its content."""
    content = json.dumps({**piece, "title": "", "version": __version__}, sort_keys=True)
    kind = str(piece.get("family") or piece["source"]["format"])
    folder = rundir.runs_folder() / FOLDER
    return {**piece, "folder": str(folder / f"{kind}-{hashlib.sha256(content.encode()).hexdigest()[:12]}")}


def _dotted(place: trained.Place) -> str:
    return Problem(place, "").dotted


def _written(value: Any) -> str:
    """A value as `-s` reads it."""
    return "" if value is None else json.dumps(value)
