"""The data formats: every module of this folder that has `rows`, by its name, and how a source's format is recognised.

A format is one file. It must have `rows(source)`: the rows that a source names, after its `skip` and `limit`. It may
have `parts(source)`, where its own files name several sets. For `format: auto` it has `COLUMNS` and `ORDER`, or
`recognises(path)`. To be written it has `HOLDS`, what its rows hold of an example, and `row_of`, such a row.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmjobs.data import formats
from mmjobs.data.example import BadRow, Example
from mmjobs.data.readers.rows import LOOK, Part, Table, called, columns, file_of, table_of
from mmjobs.data.writers.fit import Holds
from mmjobs.data.writers.words import Facts
from mmlaunch.errors import BadInput
from mmlaunch.recipe.data import Source
from mmlaunch.run import plugins


@dataclass(frozen=True)
class Format:
    """What a module of this folder offers."""

    name: str
    rows: Callable[[Source], Sequence[Example]]
    parts: Callable[[Source], Sequence[Part]] | None
    recognises: Callable[[Path], bool]
    columns: tuple[tuple[str, ...], ...]
    order: int
    needed: str
    holds: Holds
    row_of: Callable[[Example, Sequence[str], Facts], dict[str, Any]] | None

    @classmethod
    def of(cls, name: str) -> Format | None:
        module = importlib.import_module(f"{formats.__name__}.{name}")
        if not hasattr(module, "rows"):
            return None
        signs = getattr(module, "COLUMNS", ())
        return cls(
            name=name,
            rows=module.rows,
            parts=getattr(module, "parts", None),
            recognises=getattr(module, "recognises", lambda path: False),
            columns=signs,
            order=getattr(module, "ORDER", 100),
            needed=getattr(module, "NEEDED", " ".join(signs[0]) if signs else ""),
            holds=getattr(module, "HOLDS", Holds()),
            row_of=getattr(module, "row_of", None),
        )


_MODULES = [module.name for module in pkgutil.iter_modules(formats.__path__) if module.name != "registry"]
_FOUND = [one for name in _MODULES if (one := Format.of(name)) is not None]
FORMATS: dict[str, Format] = {one.name: one for one in sorted(_FOUND, key=lambda one: (one.order, one.name))}
"""By name, in the order in which `recognised` tries them."""


def format_of(source: Source) -> Format:
    """The format that a recipe names, of the user's own or not, or the one that the files are in."""
    if (own := source.plugin) is not None:
        rows = plugins.load(own.file, own.module, own.name)
        return Format(own.name, rows, None, lambda path: False, (), 0, "", Holds(), None)
    return FORMATS[recognised(source) if source.format == "auto" else source.format]


def parts(source: Source) -> tuple[Part, ...]:
    """The rows of a source with the settings of the mixture: the recipe's, joined with those of the data's own file.

    Repeats multiply, the smaller tile budget holds, and either may ask for augmentation.
    """
    kind = format_of(source)
    own = kind.parts(source) if kind.parts else (Part(source.path or kind.name, kind.rows(source)),)
    return tuple(
        Part(
            part.name,
            part.rows,
            part.repeat * source.repeat,
            "jpeg" if "jpeg" in (part.augment, source.augment) else "none",
            min((tiles for tiles in (part.max_tiles, source.max_tiles) if tiles is not None), default=None),
        )
        for part in own
    )


def recognised(source: Source) -> str:
    """The name of the format that a source is in; raises `BadInput` with what was seen and what there is."""
    path, where = file_of(source), called(source)
    if by_file := next((name for name, kind in FORMATS.items() if kind.recognises(path)), None):
        return by_file
    table = table_of(source, LOOK)
    names = columns(table)
    if not names:
        raise BadInput(f"{where}: its format cannot be recognised: {_trouble(table)}; {_known()}")
    for name, kind in FORMATS.items():
        if any(set(signs) <= set(names) for signs in kind.columns):
            return name
    raise BadInput(f"{where}: its format cannot be recognised from the columns {', '.join(names)}; {_known()}")


def _trouble(table: Table) -> str:
    try:
        return "its first rows have no columns" if table.row(0) else ""
    except BadRow as error:
        return f"its first row {error.what}"


def _known() -> str:
    known = [f"{name} ({kind.needed})" for name, kind in FORMATS.items() if kind.needed]
    return f"write format: with one of {', '.join(known)}"
