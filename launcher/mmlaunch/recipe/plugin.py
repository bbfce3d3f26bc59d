"""Plugins: functions and classes of the user's own, which a recipe names as file.py:name or package.module:name."""

import re
from dataclasses import dataclass

from mmlaunch.recipe.section import mistake

PLUGIN_SCHEMA = {"type": "string", "pattern": r".+:[^\W\d]\w*$"}
"""What editors know of the name of a plugin."""
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class Plugin:
    """Where something of the user's own is defined, and what it is called there."""

    file: str | None
    """The file, as it is written: `score.py` of `score.py:reward`. The run keeps a copy of it."""
    module: str | None
    """Otherwise the module, which is installed: `lab.rewards` of `lab.rewards:reward`."""
    name: str

    @property
    def written(self) -> str:
        """As the recipe names it."""
        return f"{self.file or self.module}:{self.name}"


def plugin_of(written: str) -> Plugin | None:
    """What is named; None if it is no name of a plugin."""
    where, colon, name = written.rpartition(":")
    if not colon or not name.isidentifier():
        return None
    if where.endswith(".py"):
        return Plugin(where, None, name)
    return Plugin(None, where, name) if _MODULE.fullmatch(where) else None


def must_be_plugin(written: str, example: str) -> Plugin:
    """The same, where nothing else can stand; `example` is the name of a function or a class of this kind."""
    plugin = plugin_of(written)
    if plugin is None:
        right = f"write my_code.py:{example} or package.module:{example}"
        raise mistake(f"{written!r} names no function or class", right)
    return plugin
