"""Rows whose image stands in another row: VLMEvalKit writes an image once, and its `index` where it is meant again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from mmjobs.data.example import BadRow
from mmjobs.data.readers.row import Row
from mmjobs.data.readers.rows import Table

SHORT = 64
"""A shorter text in `image` is an `index`, where a row has that; so VLMEvalKit tells the two apart."""


@dataclass(frozen=True)
class Resolved:
    """The rows of a table, each with its own image: a row that is copied elsewhere does not lose it."""

    table: Table

    def __len__(self) -> int:
        return len(self.table)

    def row(self, index: int) -> Row:
        row = self.table.row(index)
        meant = row.get("image")
        if not isinstance(meant, (str, int)) or isinstance(meant, bool) or len(str(meant)) > SHORT:
            return row
        place = self._places.get(str(meant))
        return (
            row if place is None else replace(row, values={**row.values, "image": self.table.row(place).get("image")})
        )

    @cached_property
    def _places(self) -> dict[str, int]:
        """Where the rows with images of their own are, by `index`; looked for only when a row points at another."""
        places = {}
        for place in range(len(self.table)):
            try:
                row = self.table.row(place)
            except BadRow:
                continue
            held = row.get("image")
            if isinstance(held, str) and len(held) > SHORT:
                places[str(row.get("index"))] = place
        return places
