"""Which generated data stand for the data that a recipe names: rows of the same format in a file of the same name."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

from mmlaunch.errors import Problem
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.data import FORMATS, Source
from mmlaunch.recipe.scalars import STAGE
from mmlaunch.submit.toy_models import sees

ROWS, MOST = 16, 400
TEXT_ONLY = ("shp", "ultrafeedback", "rewardbench", "mt_bench")
STYLES = (
    ("choice", ("choice",)), ("yes_no", ("yes_no",)), ("number", ("numeric", "math", "relaxed", "boxed", "final")),
)  # fmt: skip
"""The kind of answers that reward functions read."""
AGAINST = "objective.against"
APART = 10_000
"""The drawings of two sources are so far from each other."""
OF_GROUP = {"train": 0, "input": 50 * APART, "eval": 100 * APART}


def unknown(recipe: Recipe, folder: Path) -> Iterator[Problem]:
    """Data of a format that only the file itself tells, where there is no file."""
    for group, index, source in _sources(recipe):
        path = source.path or ""
        if source.format == "auto" and not path.startswith(STAGE) and not (folder / Path(path).expanduser()).exists():
            what = f"no toy can be made of {path}: there is no such file, and nothing else tells its format"
            names = ", ".join(name for name, kind in FORMATS.items() if name != "auto" and not kind.generated)
            yield Problem(("data", group, index, "path"), what, f"add format: with one of {names}")


def pieces(recipe: Recipe, folder: Path) -> Iterator[tuple[str, Source, dict[str, Any]]]:
    """The sources of a recipe that read files: where each stands, and what is generated in its place."""
    for group, index, source in _sources(recipe):
        if source.path is None or source.path.startswith(STAGE):
            continue
        first = OF_GROUP[group] + index * APART
        yield f"data.{group}[{index}]", source, _piece(recipe, source, folder, first)
    against = recipe.objective.compared_with
    if against is not None and not against.startswith(STAGE):
        source = Source(path=against, format="predictions")
        yield AGAINST, source, _piece(recipe, source, folder, OF_GROUP["input"], turned=True)


def drawn(recipe: Recipe) -> Iterator[tuple[str, int, int]]:
    """The sources that are drawn and not read, with their limits: before, and in a toy."""
    for group, index, source in _sources(recipe):
        if source.path is None and source.limit is not None:
            yield f"data.{group}[{index}].limit", source.limit, min(source.limit, ROWS)


def _piece(recipe: Recipe, source: Source, folder: Path, first: int, turned: bool = False) -> dict[str, Any]:
    path = Path(source.path or "")
    kept = {"format": source.format, "split": source.split, "path": path.name, "images": source.images}
    if source.format == "auto":
        kept["path"] = str(folder / path.expanduser())  # its own rows tell what format it is in
    name = str(Path(path.parent.name, _ending(path)))
    return {
        "kind": "data", "title": f"{source.format} data for {source.path}", "source": kept, "name": name,
        "rows": min(MOST, max(ROWS, ceil(ROWS / 2 / source.repeat))), "first": first, "answers": _wanted(recipe),
        "images": _has_images(recipe, source), "style": _style(recipe), "turned": turned,
    }  # fmt: skip


def _ending(path: Path) -> str:
    """The name of the file; a sheet becomes a table of text, which is read alike."""
    return path.with_suffix(".tsv").name if path.suffix == ".xlsx" else path.name


def _wanted(recipe: Recipe) -> int:
    """How many answers a row needs: pairs, ranked answers, or one."""
    task = recipe.objective
    if task.has_scoring_head:
        return 3
    return max(1, task.requirements.least, 2 if task.reward_sources and not task.READS_MODEL else 1)


def _has_images(recipe: Recipe, source: Source) -> bool:
    if source.images == "none" or source.format in TEXT_ONLY or Path(source.path or "").suffix == ".txt":
        return False
    return not recipe.objective.READS_MODEL or sees(recipe.model)


def _style(recipe: Recipe) -> str:
    functions = {source.function for source in recipe.objective.reward_sources}
    return next((style for style, names in STYLES if functions & set(names)), "words")


def _sources(recipe: Recipe) -> Iterator[tuple[str, int, Source]]:
    for group in OF_GROUP:
        for index, source in enumerate(getattr(recipe.data, group)):
            yield group, index, source
