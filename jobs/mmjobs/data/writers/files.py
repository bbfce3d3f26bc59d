"""Files of rows: written beside their place under another name, and renamed when the last row is in them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from mmlaunch.errors import UserError
from mmlaunch.run.files import explained, sync_folder

KINDS: Final = (".jsonl", ".ndjson", ".json", ".tsv", ".txt")
"""JSON lines, one JSON list, a table of text, and one prompt a line."""


def free(path: Path, overwrite: bool, kinds: Sequence[str] = KINDS) -> None:
    """Refuse a place where no file of rows can or may be written."""
    if path.suffix not in kinds:
        raise UserError(f"{path}: no kind of file that is written; its name has to end with {' or '.join(kinds)}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "is a folder; name a file" if path.is_dir() else f"there is no folder {path.absolute().parent}"
        raise UserError(f"{path}: {what}")
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists already; name another file, or write --overwrite")


class RowFile:
    """Rows of one file, in the layout that its name tells; it is there when the `with` block ends without an error."""

    def __init__(self, path: Path, columns: Sequence[str] = ()) -> None:
        self.path, self.columns, self.count = path, tuple(columns), 0
        self._temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
        self._stream: BinaryIO | None = None

    def __enter__(self) -> RowFile:
        with explained(f"{self.path}: cannot be written"):
            self._stream = self._temporary.open("xb")
            if self.path.suffix == ".tsv":
                self._write("\t".join(map(_cell, self.columns)) + "\n")
        return self

    def write(self, row: Mapping[str, Any]) -> None:
        """One row more."""
        kind = self.path.suffix
        if kind == ".tsv":
            if more := [name for name, value in row.items() if value is not None and name not in self.columns]:
                what = f"a row has the columns {', '.join(more)}, and the first rows had none of them"
                raise UserError(f"{self.path}: {what}; write .jsonl")
            text = "\t".join(_cell(row.get(column)) for column in self.columns) + "\n"
        elif kind == ".txt":
            text = f"{row['prompt']}\n"
        else:
            text = (("[\n" if not self.count else ",\n") if kind == ".json" else "") + _json(row)
            text += "" if kind == ".json" else "\n"
        with explained(f"{self.path}: cannot be written"):
            self._write(text)
        self.count += 1

    def __exit__(self, kind: object, *_: object) -> None:
        assert self._stream is not None
        try:
            with explained(f"{self.path}: cannot be written"), self._stream:
                if self.path.suffix == ".json":
                    self._write("\n]\n" if self.count else "[]\n")
                self._stream.flush()
                os.fsync(self._stream.fileno())
            if kind is None:
                with explained(f"{self.path}: cannot be written"):
                    self._temporary.replace(self.path)
                    sync_folder(self.path.parent)
        finally:
            self._temporary.unlink(missing_ok=True)

    def _write(self, text: str) -> None:
        assert self._stream is not None
        self._stream.write(text.encode())


def _json(row: Mapping[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, which only an escape can hold
        return json.dumps(row)
    return text


def _cell(value: object) -> str:
    """A cell of a table of text; in quotes where its text would be read as several."""
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if re.search('["\t\r\n]', text) else text
