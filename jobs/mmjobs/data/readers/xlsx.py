"""Sheets of Excel, as VLMEvalKit writes its predictions; they need the library openpyxl."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmjobs.data.example import Origin
from mmjobs.data.readers.row import Row
from mmlaunch.errors import BadInput


@dataclass(frozen=True)
class Sheet:
    """The rows of the first sheet, in memory: Excel holds about a million at most, and no images in cells."""

    name: str
    columns: tuple[str, ...]
    cells: list[tuple[Any, ...]]

    def __len__(self) -> int:
        return len(self.cells)

    def row(self, index: int) -> Row:
        """Row `index` by its columns; its number is the sheet's own."""
        return Row(Origin(self.name, index + 2), dict(zip(self.columns, self.cells[index], strict=True)))


def opened(path: Path) -> Sheet:
    """The first sheet of a file; raises `BadInput`."""
    try:
        import openpyxl
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError:
        what = "this Python cannot read .xlsx; pip install openpyxl, or save the file as .tsv or .json"
        raise BadInput(f"{path}: {what}") from None
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        names, *cells = book.worksheets[0].iter_rows(values_only=True)
        book.close()
    except (OSError, ValueError, LookupError, zipfile.BadZipFile, InvalidFileException) as error:
        raise BadInput(f"{path}: cannot be read as a sheet of Excel: {error}") from None
    columns = tuple("" if name is None else str(name) for name in names)
    if len(set(columns)) < len(columns) or not all(columns):
        raise BadInput(f"{path}: its first row has to name each column once; it has {', '.join(columns)}")
    if not cells:
        raise BadInput(f"{path}: holds no rows; it needs at least one below the column names")
    wide = len(columns)
    return Sheet(str(path), columns, [(*one[:wide], *[None] * (wide - len(one))) for one in cells])
