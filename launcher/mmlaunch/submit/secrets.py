"""Keeps the values of the variables that a recipe passes through out of all files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from mmlaunch.errors import UserError
from mmlaunch.recipe.environment import looks_secret

MIN_LENGTH = 6  # shorter values, such as `1` or `true`, are no secrets and occur in every text


def values(names: Sequence[str]) -> dict[str, str]:
    """The values of the variables that a recipe passes through; all of them must be set."""
    missing = [name for name in names if name not in os.environ]
    if missing:
        right = f"export {missing[0]}=..., or remove it from env or notify"
        raise UserError(
            f"env, notify: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set in your shell; {right}"
        )
    return values_here(names)


def values_here(names: Sequence[str]) -> dict[str, str]:
    """Those of the named variables that are set, and long enough to be secret."""
    return {name: value for name in names if len(value := os.environ.get(name, "")) >= MIN_LENGTH}


def suspected() -> dict[str, str]:
    """The shell variables whose names look like secrets: no recipe names them, and no file may hold their values."""
    return values_here([name for name in os.environ if looks_secret(name)])


def _lines(value: str) -> list[str]:
    """A secret of several lines is hidden line by line: a diff puts signs before each."""
    return [line for line in (value, *value.splitlines()) if len(line.strip()) >= MIN_LENGTH]


def redact(text: str, values: Mapping[str, str]) -> str:
    """The text with every secret's value replaced by its name; longest first, since one may hold another."""
    for name, value in sorted(values.items(), key=lambda item: -len(item[1])):
        for line in _lines(value):
            text = text.replace(line, f"<{name}>")
    return text


def too_short(names: Sequence[str]) -> list[str]:
    """The passed variables whose values are too short to be looked for in what is written down."""
    return [name for name in names if 0 < len(os.environ.get(name, "")) < MIN_LENGTH]


def refuse(texts: Mapping[str, str | bytes], values: Mapping[str, str]) -> None:
    """Refuse a text that holds a secret and cannot be changed: a script must stay as it was rendered."""
    for where, content in texts.items():
        text = content if isinstance(content, str) else content.decode(errors="replace")
        for name, value in values.items():
            if any(line in text for line in _lines(value)):
                raise UserError(
                    f"{where} would hold the value of {name}; remove it there, env: [{name}] passes it along unseen"
                )
