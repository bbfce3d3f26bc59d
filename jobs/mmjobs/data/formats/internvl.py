"""The `internvl` format: a meta file that names sets, each a file of JSON lines with settings of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmjobs.data.example import Example, LazyExamples
from mmjobs.data.formats import llava
from mmjobs.data.formats.llava import conversation
from mmjobs.data.readers import lines
from mmjobs.data.readers.answers import columns_pair
from mmjobs.data.readers.folder import Folder
from mmjobs.data.readers.row import Row, kind
from mmjobs.data.readers.rows import Part, Rows, chosen, file_of, must_be
from mmjobs.data.readers.turns import Message, prompt
from mmjobs.data.writers.fit import Holds
from mmjobs.data.writers.words import Facts, named, question
from mmlaunch.errors import BadInput
from mmlaunch.recipe.data import Source

ORDER = 0
NEEDED = "a meta file"
"""How a user recognises it, where no columns say so."""


def recognises(path: Path) -> bool:
    """A JSON object of sets, or a folder with one; a list or lines of rows are not."""
    if path.is_dir():
        return (path / "meta.json").is_file()
    if path.suffix != ".json":
        return False
    try:
        content = lines.whole(path) if lines.first(path) == b"{" else None
    except BadInput:
        return False  # lines of JSON, each an object, or what `lines` has more to say about
    return isinstance(content, dict) and any(isinstance(one, dict) and "annotation" in one for one in content.values())


HOLDS = Holds(fewest=1, most=2, turns=1)

EXPECTED = '{"name": {"root": "images", "annotation": "rows.jsonl", "repeat_time": 1}}'
SIGNS = ("conversations", "question", "chosen", "rejected")


@dataclass(frozen=True)
class Joined(LazyExamples):
    """The rows of several sets, one after the other."""

    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return sum(len(part.rows) for part in self.parts)

    def at(self, place: int) -> Example:
        part, place = self._part(place)
        return part.rows[place]

    def values(self, place: int) -> Mapping[str, Any]:
        part, place = self._part(place)
        return part.values(place)

    def _part(self, place: int) -> tuple[Part, int]:
        for part in self.parts:
            if place < len(part.rows):
                return part, place
            place -= len(part.rows)
        raise IndexError(place)


def rows(source: Source) -> Sequence[Example]:
    """All rows of all sets, once; how often each is shown is in `parts`."""
    return Joined(parts(source))


def parts(source: Source) -> tuple[Part, ...]:
    """The sets of a meta file, with their settings; the source's `skip` and `limit` count through all of them."""
    meta = file_of(source)
    meta = meta / "meta.json" if meta.is_dir() else meta
    if source.split is not None:
        raise BadInput(f"{meta}: names sets, not splits; remove split: {source.split}")
    found = lines.whole(meta)
    if not isinstance(found, dict) or not found or not all(isinstance(one, dict) for one in found.values()):
        raise BadInput(f"{meta}: is {kind(found)} and not a meta file of InternVL's: {EXPECTED}")
    tables = {name: _table(meta, name, one) for name, one in found.items()}
    keep = chosen(source, sum(map(len, tables.values())), meta)
    made, before = [], 0
    for name, table in tables.items():
        kept = range(max(keep.start - before, 0), max(min(keep.stop - before, len(table)), 0))
        before += len(table)
        make = partial(_example, folder=_folder(meta, source, found[name]))
        made.append(_part(meta, name, found[name], Rows(table, kept, make)))
    return tuple(part for part in made if len(part.rows))


def _table(meta: Path, name: str, one: Mapping[str, Any]) -> lines.Lines:
    file = one.get("annotation")
    if not isinstance(file, str) or not file:
        raise BadInput(f"{meta}: {name} has no annotation, but {', '.join(one) or 'nothing'}; write {EXPECTED}")
    places = [base / Path(file).expanduser() for base in (meta.parent, Path())]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise BadInput(f"{meta}: {name}: no such file: {' or '.join(dict.fromkeys(map(str, places)))}")
    table = lines.opened(path)
    must_be(table, path, "internvl", SIGNS)
    return table


def _folder(meta: Path, source: Source, one: Mapping[str, Any]) -> Folder:
    """A set's root: below the recipe's `images` if it names some, the meta file's folder or the current one."""
    root = one.get("root")
    if source.images == "none" or not root:
        return Folder.of(source, meta)
    images = [] if source.images is None else [Path(source.images).expanduser()]
    places = [base / Path(str(root)).expanduser() for base in (*images, meta.parent, Path())]
    return Folder(next((place for place in places if place.is_dir()), places[0]), True)


def _part(meta: Path, name: str, one: Mapping[str, Any], rows: Rows) -> Part:
    repeat, augment, tiles = one.get("repeat_time", 1), one.get("data_augment", False), one.get("max_dynamic_patch")
    if isinstance(repeat, bool) or not isinstance(repeat, (int, float)) or not 0 <= repeat < math.inf:
        raise BadInput(f"{meta}: {name}: repeat_time is {repeat!r}; it has to be a number from 0 on")
    if not isinstance(augment, bool):
        raise BadInput(f"{meta}: {name}: data_augment is {augment!r}; it has to be true or false")
    if tiles is not None and (isinstance(tiles, bool) or not isinstance(tiles, int) or tiles < 1):
        raise BadInput(f"{meta}: {name}: max_dynamic_patch is {tiles!r}; it has to be a whole number from 1 on")
    return Part(name, rows, float(repeat), "jpeg" if augment else "none", tiles)


def _example(row: Row, folder: Folder) -> Example:
    if "conversations" in row.values:
        return conversation(row, folder)
    images = folder.pictures(row, "image")
    asked = Message("user", row.clean(row.need("question"), "question"), "question")
    return Example(images, prompt(row, [asked], len(images)), columns_pair(row), row.origin)


def row_of(example: Example, images: Sequence[str], facts: Facts) -> dict[str, Any]:
    """A row of a set: a conversation, or a pair for MPO."""
    if len(example.answers) == 1:
        return llava.row_of(example, images, facts)
    chosen, rejected = example.answers
    row = {"id": facts.name, **named(images), "question": question(example)}
    return row | {"chosen": chosen.text, "rejected": rejected.text}


def meta_of(rows: Path, count: int, root: str) -> dict[str, Any]:
    """The meta file of one file of rows, which lies beside it."""
    one = {"root": root, "annotation": rows.name, "data_augment": False, "repeat_time": 1, "length": count}
    return {rows.stem: one}
