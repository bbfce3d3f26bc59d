"""Makes a recipe of a configuration of another tool: which tool it is of, the text, what is still wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mmlaunch.errors import Problem, RecipeError, UserError
from mmlaunch.load.imports import internvl, llama_factory, trainer, trl
from mmlaunch.load.imports.configuration import Configuration, Machines
from mmlaunch.load.imports.draft import UNKNOWN, Draft
from mmlaunch.load.imports.recipe_text import text_of
from mmlaunch.load.imports.source import read
from mmlaunch.load.recipe import valid_recipe
from mmlaunch.load.text import parse


class Tool(Protocol):
    """One file of this folder."""

    NAME: str

    def recognises(self, config: Configuration) -> int:
        """How many signs there are that a configuration is of this tool."""
        ...

    def convert(self, config: Configuration, draft: Draft, machines: Machines, method: str | None) -> str:
        """Fill the draft; returns which of the tool's configurations it is."""
        ...


TOOLS: tuple[Tool, ...] = (trl, llama_factory, internvl)
LEAST = 2
"""So many arguments of its own make a tool recognised."""


@dataclass(frozen=True)
class Imported:
    """A recipe that was made of a configuration."""

    tool: str
    """`TRL`"""
    kind: str
    """Which of its configurations it is: `trl dpo`, `stage: rm`."""
    text: str
    """The recipe."""
    problems: Sequence[Problem]
    """What is wrong with the recipe, and has to be mended by hand."""
    guesses: int
    """How many of its lines are guesses."""
    left_out: int
    """How many arguments were not taken over."""


def imported(path: Path, nodes: int | None = None, gpus: int | None = None, method: str | None = None) -> Imported:
    """The recipe of a configuration file.

    `nodes` and `gpus` (of a node) say where it ran; `method`: what it trains, where the file does not say it. A file of
    no known tool is a `UserError`.
    """
    config = read(path)
    tool = max(TOOLS, key=lambda tool: tool.recognises(config))
    if tool.recognises(config) < LEAST:
        known = ", ".join(tool.NAME for tool in TOOLS)
        what = f"{path}: is no configuration of a tool that is known ({known})"
        raise UserError(f"{what}; name one with its model, its data and its method")
    if method is not None and tool is not trl:
        raise UserError(f"--method: {tool.NAME} says in {path} itself what is trained; leave it out")
    draft = Draft(tool.NAME)
    machines = trainer.machines_of(config, nodes, gpus)
    kind = tool.convert(config, draft, machines, method)
    for name, value in config.unused().items():
        draft.leave(name, value, UNKNOWN)
    head = f"{path.name}, a configuration of {tool.NAME} ({kind}), as a recipe of mmlaunch, by mmlaunch import-config."
    text = text_of(draft, head)
    return Imported(tool.NAME, kind, text, _problems(text, str(path)), draft.guesses, len(draft.left_out))


def _problems(text: str, name: str) -> Sequence[Problem]:
    """What the loader says of a recipe."""
    try:
        valid_recipe(parse(text, name), lambda data: ())
    except RecipeError as error:
        return error.problems
    return ()
