"""Makes validated recipes of a pipeline: each stage is a recipe, and `stage:sft` in it means what that stage makes.

    name: rlhf
    shared: {resources: {nodes: 2}}            # laid over what every stage extends
    stages:
      sft: sft_llama3.yaml                     # a recipe as it is, or one that is changed:
      reward: {extends: reward_llama3.yaml, model: {init_from: stage:sft}}
      ppo: {extends: ppo_llama3.yaml, model: {init_from: stage:sft}, objective: {rewards: stage:reward}}
      report: {extends: evaluate_llama3.yaml, needs: ppo, ...}

A stage needs the stages that it names, and those in `needs`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmlaunch.errors import Problem, RecipeError
from mmlaunch.load import reward_models, trained
from mmlaunch.load.model_of_run import with_model
from mmlaunch.load.node import Node
from mmlaunch.load.overrides import apply
from mmlaunch.load.overrides import split as split_override
from mmlaunch.load.recipe import Also, Loaded, extended, find, valid_recipe
from mmlaunch.load.text import read_file
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.inference import Inference
from mmlaunch.recipe.scalars import STAGE
from mmlaunch.recipe.suggest import closest
from mmlaunch.run.pipeline import Reference

KEYS = ("name", "stages", "shared", "extends")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,40}")
Field = tuple[str | int, ...]
"""The path of a field in a recipe."""


@dataclass(frozen=True)
class LoadedStage:
    """A stage: its recipe, what it needs, and which of its fields name other stages."""

    name: str
    loaded: Loaded
    needs: tuple[str, ...]
    references: tuple[Reference, ...]


@dataclass(frozen=True)
class LoadedPipeline:
    """A pipeline whose stages are valid, each behind those that it needs."""

    name: str
    path: Path
    stages: tuple[LoadedStage, ...]
    overrides: tuple[str, ...]


@dataclass
class _Written:
    """A stage as it is written: the mapping of its recipe, and the stages that it needs."""

    name: str
    node: Node
    needs: dict[str, Node]
    """Each with the node that names it."""
    overrides: tuple[str, ...]


def load_pipeline(path: str | Path, overrides: Sequence[str] = (), also: Also = lambda data: ()) -> LoadedPipeline:
    """Read and validate all stages; raises `RecipeError` with the problems of all of them."""
    file, problems = find(str(path)), list[Problem]()
    node = extended(read_file(file, str(path) if file == Path(path) else None, problems), file, problems)
    own, of_stages = _divided(overrides)
    node = apply(node, own)
    name = _name(node, problems)
    written = _stages(node, file, name, of_stages, problems)
    if problems:
        raise RecipeError(problems)
    ordered = _in_order(written)
    stages: dict[str, LoadedStage] = {}
    for stage in ordered:
        try:
            stages[stage.name] = _loaded(stage, written, stages, file, also)
        except RecipeError as error:
            problems += [replace(one, path=("stages", stage.name, *one.path)) for one in error.problems]
    if problems:
        raise RecipeError(_once(problems))
    return LoadedPipeline(name, file, tuple(stages.values()), tuple(overrides))


def problems_of(loaded: LoadedPipeline, look: Callable[[Loaded], Sequence[Problem]]) -> list[Problem]:
    """What `look` does not like of the stages, each problem with its place."""
    problems: list[Problem] = []
    for stage in loaded.stages:
        placed = stage.loaded.placed(look(stage.loaded)).problems
        problems += [replace(one, path=("stages", stage.name, *one.path)) for one in placed]
    return _once(problems)


def _once(problems: Sequence[Problem]) -> list[Problem]:
    """Stages that share a file share its mistakes: each is told once, with the override that mends it for all."""
    alike: dict[object, list[Problem]] = {}
    for one in problems:
        alike.setdefault((one.place or one.path, one.path[2:], one.what), []).append(one)
    return [_mendable(same[0], len(same) > 1) for same in alike.values()]


def _mendable(problem: Problem, shared: bool) -> Problem:
    where = "shared" if shared else ".".join(map(str, problem.path[:2]))
    return replace(problem, right=re.sub(r"-s (?=[a-z_]+[.=\[])", f"-s {where}.", problem.right))


def _divided(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides of the pipeline itself, and those of each stage with the path that they have in its recipe."""
    own, of_stages = list[str](), dict[str, list[str]]()
    for override in overrides:
        path, _, place = split_override(override)
        head, _, rest = path.strip().partition(".")
        stage, _, inner = rest.partition(".")
        if head == "stages" and stage and inner:
            of_stages.setdefault(stage, []).append(override.strip().removeprefix(f"stages.{stage}."))
        elif head == "shared" or path.strip() == "name":
            own.append(override)
        else:
            right = f"write -s stages.STAGE.{override} for one stage, or -s shared.{override} for all"
            raise RecipeError([place.problem("names no stage of the pipeline", right)])
    return own, of_stages


def _name(node: Node, problems: list[Problem]) -> str:
    assert isinstance(node.value, dict)
    for key in node.value:
        if key not in KEYS:
            near = closest(key, KEYS)
            right = f"did you mean {near}?" if near else "values of all stages stand below shared"
            problems.append(node.key_places[key].problem("unknown key of a pipeline", right, (key,)))
    name = node.child("name")
    if name is None or not isinstance(name.value, str) or not re.fullmatch(r"[A-Za-z0-9._-]+", name.value):
        place = name.place if name is not None else node.place
        problems.append(place.problem("a pipeline has a plain name", "write name: rlhf-llama3", ("name",)))
        return "pipeline"
    return name.value


def _stages(
    node: Node, file: Path, pipeline: str, overrides: Mapping[str, Sequence[str]], problems: list[Problem]
) -> dict[str, _Written]:
    """Every stage with what it extends, what all share and what is special of it."""
    stages = node.child("stages")
    if stages is None or not isinstance(stages.value, dict) or not stages.value:
        place = stages.place if stages is not None else node.place
        raise RecipeError(
            [*problems, place.problem("stages is a mapping of names to recipes", "write stages: {sft: sft.yaml}")]
        )
    written: dict[str, _Written] = {}
    for name, value in stages.value.items():
        if not _NAME.fullmatch(name):
            what = f"{name!r} is no name of a stage"
            problems.append(stages.key_places[name].problem(what, "use letters, digits, '_' and '-'", ("stages",)))
            continue
        try:
            written[name] = _written(name, value, node.child("shared"), file, pipeline, overrides.get(name, ()))
        except RecipeError as error:
            problems += [replace(one, path=("stages", name, *one.path)) for one in error.problems]
    for name in overrides:
        if name not in stages.value:
            near = closest(name, list(stages.value))
            right = f"did you mean {near}?" if near else f"the stages are {', '.join(stages.value)}"
            problems.append(Problem((), f"-s stages.{name}: no such stage", right))
    for stage in written.values():
        for need, place_of in stage.needs.items():
            if need not in stages.value:
                near = closest(need, [other for other in stages.value if other != stage.name])
                right = f"did you mean {near}?" if near else f"the stages are {', '.join(stages.value)}"
                problems.append(place_of.place.problem(f"no stage {need!r}", right, ("stages", stage.name)))
    return written


def _written(
    name: str, value: Node, shared: Node | None, file: Path, pipeline: str, overrides: Sequence[str]
) -> _Written:
    if isinstance(value.value, str):  # the name of a recipe
        value = Node({"extends": value}, value.place, {"extends": value.place})
    if not isinstance(value.value, dict):
        raise RecipeError([value.place.problem("a stage is a recipe", "write extends: sft_llama3.yaml")])
    own = Node(dict(value.value), value.place, dict(value.key_places))
    assert isinstance(own.value, dict)
    needs = _needs(own.value.pop("needs", None))
    own.key_places.pop("needs", None)
    problems: list[Problem] = []
    extends = own.value.pop("extends", None)
    base = Node({}, value.place)
    if extends is not None:
        base = extended(Node({"extends": extends}, value.place, {"extends": extends.place}), file, problems)
    if shared is not None:
        base = base.merged(shared)
    node = base.merged(own)
    if "name" not in own.value:
        named = Node(f"{pipeline}-{name}", value.place)
        node = node.merged(Node({"name": named}, value.place, {"name": value.place}))
    node = apply(node, overrides)
    if problems:
        raise RecipeError(problems)
    for _, leaf in _leaves(node):
        if isinstance(leaf.value, str) and leaf.value.startswith(STAGE):
            needs.setdefault(leaf.value.removeprefix(STAGE), leaf)
    return _Written(name, node, needs, tuple(overrides))


def _needs(node: Node | None) -> dict[str, Node]:
    if node is None:
        return {}
    items = node.value if isinstance(node.value, list) else [node]
    if not all(isinstance(item.value, str) for item in items):
        raise RecipeError([node.place.problem("needs names stages", "write needs: [sft, reward]", ("needs",))])
    return {str(item.value).removeprefix(STAGE): item for item in items}


def _leaves(node: Node, path: Field = ()) -> Iterator[tuple[Field, Node]]:
    if isinstance(node.value, dict):
        for key, below in node.value.items():
            yield from _leaves(below, (*path, key))
    elif isinstance(node.value, list):
        for index, below in enumerate(node.value):
            yield from _leaves(below, (*path, index))
    else:
        yield path, node


def _in_order(written: Mapping[str, _Written]) -> list[_Written]:
    """Every stage behind those that it needs, otherwise as they are written; a circle is an error that names it."""
    ordered: dict[str, _Written] = {}
    while len(ordered) < len(written):
        rest = [stage for name, stage in written.items() if name not in ordered]
        ready = next((stage for stage in rest if stage.needs.keys() <= ordered.keys()), None)
        if ready is None:
            raise RecipeError([_circle(rest[0], written, ordered)])
        ordered[ready.name] = ready
    return list(ordered.values())


def _circle(stage: _Written, written: Mapping[str, _Written], ordered: Collection[str]) -> Problem:
    """The circle that one comes to from this stage; every stage here needs another one of the circle or before it."""
    chain: list[str] = []
    while stage.name not in chain:
        chain.append(stage.name)
        need, node = next((need, node) for need, node in stage.needs.items() if need not in ordered)
        stage = written[need]
    shown = " -> ".join([*chain[chain.index(stage.name) :], stage.name])
    return node.place.problem(f"stages need each other in a circle: {shown}", "break the circle")


def _loaded(
    stage: _Written, written: Mapping[str, _Written], before: Mapping[str, LoadedStage], file: Path, also: Also
) -> LoadedStage:
    def of_stage(name: str) -> Node | None:
        source = written.get(name.removeprefix(STAGE)) if name.startswith(STAGE) else None
        return source.node.child("model") if source is not None else None

    stage.node = with_model(stage.node, of_stage)
    loaded = Loaded(valid_recipe(stage.node, also), file, stage.node, stage.overrides)
    references, problems = [], []
    places = dict(_places(loaded.recipe))
    for path, leaf in _leaves(stage.node):
        if not isinstance(leaf.value, str) or not leaf.value.startswith(STAGE):
            continue
        place = next((one for one, value in places.items() if value == leaf.value and _is_at(one, path)), None)
        if place is None:
            what = "a stage can stand for a trained model (model.init_from, objective.rewards) or for data (data.train)"
            problems.append(Problem(path, "this field takes no stage", what))
            continue
        name = leaf.value.removeprefix(STAGE)
        if (source := before.get(name)) is None:  # it has mistakes of its own
            continue
        file_name, problem = _made(place, name, source.loaded.recipe, loaded.recipe)
        references.append(Reference(place, name, file_name))
        problems += [Problem(path, *problem)] if problem else []
    if problems:
        raise loaded.placed(problems)
    return LoadedStage(stage.name, loaded, tuple(stage.needs), tuple(references))


def _is_at(place: Field, written: Field) -> bool:
    """Whether a field of a recipe is the one that is written there: short forms leave out indices and keys."""
    rest = list(place)
    for part in written:
        while rest and rest[0] != part:
            rest.pop(0)
        if not rest:
            return False
        rest.pop(0)
    return True


def _places(recipe: Recipe) -> Iterator[tuple[Field, str]]:
    """Every field that may name another stage, and its value."""
    yield from trained.names(recipe)
    for group in ("train", "input", "eval"):
        for index, source in enumerate(getattr(recipe.data, group)):
            if source.path is not None:
                yield ("data", group, index, "path"), source.path
    if recipe.objective.compared_with is not None:
        yield ("objective", "against"), recipe.objective.compared_with


def _made(place: Field, name: str, source: Recipe, recipe: Recipe) -> tuple[str, tuple[str, str] | None]:
    """The file of a stage's run that a field means (empty: its checkpoint), and what is wrong with that."""
    task = source.objective
    if place[0] == "data" or place[-1] == "against":
        if not isinstance(task, Inference):
            return "", (f"{name} trains a model ({task.method}) and makes no rows", "name a stage such as score")
        return task.MADE if task.makes_rows and place[0] == "data" else task.OUTPUT, None
    if isinstance(task, Inference):
        return "", (f"{name} trains nothing ({task.method}): it makes {task.OUTPUT}", "name a stage that trains")
    is_reward = place[:2] == trained.REWARDS
    return "", reward_models.unlike(recipe, source, f"stage {name}") if is_reward else None
