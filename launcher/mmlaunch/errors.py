"""The exceptions that are raised on purpose, and the exit code that each one ends a command with.

MmlaunchError                1   something failed; the message says what and what would help
├── UserError                2   the command line, a recipe, a profile or a template is wrong: nothing was written
│   ├── RecipeError              every problem of one recipe or profile, each with its place
│   └── TemplateError            a template that cannot be rendered; names its file and line
├── RunNotFound              3   no such run, or more than one
├── MachineError             4   this machine refuses: its disk is full, a permission or a program is missing
└── BadInput                94   the job cannot use this recipe or these data: never restarted; of a command, 2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class MmlaunchError(Exception):
    """The base of everything that is raised on purpose."""

    exit_code = 1


class UserError(MmlaunchError):
    """A mistake in what the user wrote or typed."""

    exit_code = 2


class TemplateError(UserError):
    """A template that cannot be rendered."""


class RunNotFound(MmlaunchError):
    """A run that does not exist, or a name that fits several."""

    exit_code = 3


class MachineError(MmlaunchError):
    """The machine refuses: disk full, no permission, a program is missing."""

    exit_code = 4


class BadInput(MmlaunchError):
    """A recipe or data that are wrong: a restart would fail again."""

    exit_code = 94


class InputChanged(BadInput):
    """An input file of a task is not what it was when its rows were split."""


class TooManyFailed(BadInput):
    """Most rows of a shard fail, and more than the task allows."""


class PluginFailed(BadInput):
    """Code of the user's own, which a recipe names, cannot be loaded or raises an error."""


@dataclass(frozen=True)
class Problem:
    """One mistake: where in the recipe, what is wrong, and what would be right."""

    path: tuple[str | int, ...]
    what: str
    right: str = ""
    on_key: bool = False  # the caret belongs under the key, not under its value
    place: str = ""  # file:line:col, once the text is known
    excerpt: str = ""  # the offending line with a caret under it

    @property
    def dotted(self) -> str:
        """`data.train[0].path`, the way a user writes it."""
        text = ""
        for part in self.path:
            text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
        return text

    def __str__(self) -> str:
        head = ": ".join(part for part in (self.place, self.dotted) if part)
        tail = f"{self.what}; {self.right}" if self.right else self.what
        return f"{head}: {tail}" if head else tail


class RecipeError(UserError):
    """All problems of one recipe or profile."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
