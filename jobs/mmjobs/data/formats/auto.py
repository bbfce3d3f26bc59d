"""The `auto` format: which of the others a file is in, by its name and its first rows."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from mmjobs.data.example import BadRow
from mmjobs.data.readers import lines
from mmjobs.data.readers.rows import LOOK, Table, columns, file_of, table_of
from mmlaunch.errors import BadInput
from mmlaunch.recipe.data import Source

SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("llava", ("conversations",)),
    ("mdpo", ("img_path", "prompt", "chosen", "rejected")),
    ("shp", ("history", "human_ref_A", "human_ref_B")),
    ("rlaif_v", ("question", "chosen", "rejected")),
    ("ultrafeedback", ("chosen", "rejected", "score_chosen", "score_rejected")),
    ("ultrafeedback", ("chosen", "rejected", "chosen_rating", "rejected_rating")),
    ("trl", ("chosen", "rejected")),
    ("trl", ("prompt", "completion")),
    ("trl", ("messages",)),
    ("prompts", ("prompt",)),
)
"""The first format all of whose columns are there is the one."""


def recognised(source: Source) -> str:
    """The name of the format that a source is in; raises `BadInput` with what was seen and what there is."""
    path = file_of(source)
    if path.suffix == ".txt":
        return "prompts"
    if path.is_dir() and (path / "meta.json").is_file():
        return "internvl"
    if path.suffix == ".json" and _is_meta(path):
        return "internvl"
    table = table_of(path, source.split, LOOK)
    found = columns(table)
    if not found:
        raise BadInput(f"{path}: its format cannot be told: {_trouble(table)}; {_known()}")
    for name, signs in SIGNS:
        if set(signs) <= set(found):
            return name
    raise BadInput(f"{path}: its format cannot be told from the columns {', '.join(found)}; {_known()}")


def _is_meta(path: Path) -> bool:
    """Whether a JSON file is an object of sets; a list or lines of rows are not."""
    try:
        found = lines.whole(path) if lines.first(path) == b"{" else None
    except BadInput:
        return False  # lines of JSON, each an object, or what `lines` has more to say about
    return isinstance(found, dict) and any(isinstance(one, dict) and "annotation" in one for one in found.values())


def _trouble(table: Table) -> str:
    try:
        return "its first rows have no columns" if table.row(0) else ""
    except BadRow as error:
        return f"its first row {error.what}"


def _known() -> str:
    told: dict[str, Collection[str]] = {}
    for name, signs in SIGNS:
        told.setdefault(name, signs)
    formats = ", ".join(f"{name} ({' '.join(signs)})" for name, signs in told.items())
    return f"write format: with one of {formats}, internvl (a meta file)"
