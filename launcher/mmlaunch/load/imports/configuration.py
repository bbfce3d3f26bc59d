"""The arguments of a configuration of another tool, and which of them have been used."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmlaunch.errors import UserError

_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "none": None, "~": None, "": None}


def value_of(text: str) -> Any:
    """A number, a truth value or nothing, where a text means one; otherwise the text."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def words_of(value: Any) -> list[str]:
    """The words of a list, or of a text with commas: `a, b` and [a, b] are two words."""
    if value is None:
        return []
    items = value if isinstance(value, list) else str(value).split(",")
    return [str(item).strip() for item in items if str(item).strip()]


@dataclass(frozen=True)
class Machines:
    """The machines that a configuration was started on."""

    nodes: int
    gpus_per_node: int
    known: bool
    """Whether the configuration or the user says so; otherwise both are guesses."""

    @property
    def world(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass
class Configuration:
    """A file of another tool."""

    path: Path
    arguments: dict[str, Any]
    program: str = ""
    """What it is an argument of: `trl dpo`, `internvl_chat_mpo.py`, `DPOConfig`; empty where the file does not say."""
    launcher: dict[str, Any] = field(default_factory=dict)
    """Arguments of what starts the program: srun, torchrun, accelerate."""
    used: set[str] = field(default_factory=set)

    def has(self, name: str) -> bool:
        return name in self.arguments

    def take(self, *names: str, default: Any = None) -> Any:
        """The value of the first of these arguments that has one. All of them count as used."""
        self.used.update(names)
        values = (self.arguments[name] for name in names if self.arguments.get(name) is not None)
        return next(values, default)

    def number(self, *names: str, default: float = 0) -> float:
        """The same for a number; anything else is a `UserError`."""
        value = self.take(*names, default=default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            name = next(name for name in names if self.has(name))
            raise UserError(f"{self.path}: {name}: {str(value)!r} is not a number; write one")
        return value

    def whole(self, *names: str, default: int = 0) -> int:
        """The same for a whole number."""
        return int(self.number(*names, default=default))

    def numbers(self, name: str, count: int, of: str) -> list[float]:
        """A number for each of `count` things, such as losses; 1 for each where the configuration says nothing."""
        values = self.take(name)
        numbers = values if isinstance(values, list) else [value_of(word) for word in words_of(values)]
        if not numbers:
            return [1.0] * count
        if not all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in numbers):
            raise UserError(f"{self.path}: {name}: {values!r} are not numbers; write a list of them")
        if len(numbers) != count:
            raise UserError(f"{self.path}: {name}: {len(numbers)} numbers for {count} {of}; write as many")
        return [float(one) for one in numbers]

    def file(self, name: str) -> Path | None:
        """A file that it names relative to the working directory, or to a folder above its own, if it is there."""
        beside = self.path.resolve().parent
        folders = [Path.cwd(), *[beside, *beside.parents][:5]]
        return next((folder / name for folder in folders if (folder / name).is_file()), None)

    def unused(self) -> dict[str, Any]:
        """The arguments that nobody has asked for."""
        return {name: value for name, value in self.arguments.items() if name not in self.used}
