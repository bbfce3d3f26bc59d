"""What `mmlaunch submit --toy` does: it says what a rehearsal changes, makes what it reads, and submits it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmlaunch.cli.columns import show
from mmlaunch.load.recipe import is_pipeline
from mmlaunch.submit import toy
from mmlaunch.submit.pipeline import PreparedPipeline, Selection, prepare_pipeline, submit_pipeline
from mmlaunch.submit.prepare import Prepared, prepare
from mmlaunch.submit.submission import submit as submit_run

CLUSTER = "local"
"""Where a toy runs if no profile is named."""


def toy_of(path: str, overrides: tuple[str, ...], cluster: str) -> toy.Toy | toy.ToyPipeline:
    """The toy of a recipe or of a pipeline."""
    return (toy.together if is_pipeline(path) else toy.alone)(path, overrides, cluster)


def submit(made: toy.Toy | toy.ToyPipeline, cluster: str, selection: Selection) -> Prepared | PreparedPipeline:
    """Make what the toy reads, and submit it."""
    toy.make(made.pieces)
    if isinstance(made, toy.Toy):
        return submit_run(made.loaded, cluster)
    return submit_pipeline(made.loaded, cluster, selection)


def prepared(made: toy.Toy | toy.ToyPipeline, cluster: str, selection: Selection) -> list[tuple[str, Prepared]]:
    """The runs that a toy would be, each with its stage; nothing is written."""
    if isinstance(made, toy.Toy):
        return [("", prepare(made.loaded, cluster))]
    return [(stage.name, one) for stage, one in prepare_pipeline(made.loaded, cluster, selection).new]


def say(made: toy.Toy | toy.ToyPipeline) -> None:
    """One table of what is different from the recipe."""
    changes = {"": made.changes} if isinstance(made, toy.Toy) else made.changes
    rows = [
        [f"  {stage}.{change[0]}" if stage else f"  {change[0]}", _shown(change[1]), _shown(change[2])]
        for stage, several in changes.items()
        for change in several
    ]
    show(["  field", "recipe", "toy"], rows)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "-"
    text = str(value)
    return os.path.relpath(text) if Path(text).is_absolute() and Path(text).is_relative_to(Path.cwd()) else text
