"""Trained models that a recipe names: `init_from: runs/sft-llama3-8b` becomes one checkpoint before anything is queued.

A name means what it means on the command line: a run's directory, its name, the beginning or the end of it, `last`. The
newest finished run of a name is taken. Later attempts start from the same checkpoint, whatever its run does meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mmlaunch.errors import Problem
from mmlaunch.load import reward_models
from mmlaunch.load.find_model import Missing, find
from mmlaunch.load.recipe import Loaded
from mmlaunch.recipe.reward_functions import FUNCTIONS
from mmlaunch.recipe.section import Section
from mmlaunch.recipe.suggest import closest
from mmlaunch.run.paths import of_checkpoint

Place = tuple[str | int, ...]
S = TypeVar("S", bound=Section)
REWARDS: Place = ("objective", "rewards")


@dataclass(frozen=True)
class Resolved:
    """A recipe whose trained models are pinned."""

    loaded: Loaded
    pinned: tuple[tuple[str, Path], ...] = ()
    """The field, and the folder that it starts from."""
    unfit: tuple[Callable[[], Problem], ...] = ()

    @property
    def missing(self) -> list[Problem]:
        """What names nothing that exists, or nothing that fits."""
        return [problem() for problem in self.unfit]

    @property
    def notes(self) -> list[str]:
        """`model.init_from: runs/sft-1128-6b53, step 600`."""
        return [f"{field}: {_shown(path)}" for field, path in self.pinned]


def resolve(loaded: Loaded, later: Collection[str] = ()) -> Resolved:
    """Pin every trained model that the recipe names, but those of `later`: other stages will make them."""
    recipe, pinned, missing = loaded.recipe, [], list[Callable[[], Problem]]()
    for place, name in names(recipe):
        if name in later:
            continue
        try:
            path = find(name)
        except Missing as error:
            missing.append(partial(_not_there, place, name, error))
            continue
        if path is not None and place[:2] == REWARDS and (wrong := reward_models.unfit(recipe, path)):
            missing.append(partial(Problem, place, *wrong))
        elif path is not None:
            recipe = with_value(recipe, place, str(path))
            pinned.append((".".join(map(str, place)), path))
    return Resolved(replace(loaded, recipe=recipe), tuple(pinned), tuple(missing))


def _not_there(place: Place, name: str, error: Missing) -> Problem:
    function = closest(name, FUNCTIONS) if place[:2] == REWARDS else None
    right = f"did you mean {function}, a function that comes with mmlaunch?" if function else error.right
    return Problem(place, str(error), right)


def names(section: Section, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """Every field of a recipe that names a trained model, and its value."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        here = (*place, field.alias or name)
        for index, item in enumerate(value if isinstance(value, list) else ()):
            if isinstance(item, Section):
                yield from names(item, (*here, index))
        if isinstance(value, Section):
            yield from names(value, here)
        elif name in section.TRAINED and value is not None:
            yield here, value


def with_value(section: S, place: Place, value: str) -> S:
    """The same section with another value there."""
    key, below = place[0], place[1:]
    name = next(name for name, field in type(section).model_fields.items() if (field.alias or name) == key)
    inner: Any = value
    if below and isinstance(below[0], int):
        inner = list(getattr(section, name))
        inner[below[0]] = with_value(inner[below[0]], below[1:], value)
    elif below:
        inner = with_value(getattr(section, name), below, value)
    return section.model_copy(update={name: inner})


def _shown(path: Path) -> str:
    checkpoint = of_checkpoint(path)
    return f"{checkpoint[0].name}, step {checkpoint[1]}" if checkpoint else str(path)
