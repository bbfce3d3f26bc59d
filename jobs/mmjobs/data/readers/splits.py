"""Which files of a folder belong to a split: their names tell, or the folders that they are in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from mmlaunch.errors import BadInput

SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?")
"""`train-00000-of-00002`, as data sets name the files of a split."""
KNOWN = ("train", "test", "validation", "val", "eval")


def of_files(names: Iterable[str]) -> dict[str, list[str]]:
    """The files of each split, in their order; names begin in the folder of the data set."""
    splits: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: PurePath(name).parts):
        file = PurePath(name)
        named = SHARD.fullmatch(file.stem)
        above = file.parent.name if file.parent.name != "data" else ""
        known = file.stem if file.stem in KNOWN else "train"
        splits.setdefault(named[1] if named else above or known, []).append(name)
    return splits


def chosen(where: object, splits: Sequence[str], split: str | None) -> str:
    """The split that a source names, or the only one; raises `BadInput`."""
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None:
        raise BadInput(f"{where}: has the splits {', '.join(splits)}; choose one: split: {splits[-1]}")
    if split not in splits:
        raise BadInput(f"{where}: has no split {split}; it has {', '.join(splits)}")
    return split


def check_file(path: PurePath, split: str | None) -> None:
    """One file is of one split, which its name may tell."""
    named = SHARD.fullmatch(path.stem)
    if split not in (None, named[1] if named else path.stem):
        raise BadInput(f"{path}: is one file without splits; remove split: {split}, or name the folder")
