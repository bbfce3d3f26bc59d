"""The task `split`: the rows of a file in parts that share no image and no question."""

from __future__ import annotations

import argparse
import hashlib
import sys
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from mmjobs.data.example import BadPicture, BadRow, Example
from mmjobs.data.images.likeness import content
from mmjobs.data.overlap import words
from mmjobs.data.readers.rows import Rows
from mmjobs.data.writers.copies import copied, kinds, one_table
from mmjobs.data.writers.files import free
from mmjobs.tasks.data_command import LeftOut, Progress, add_source, must_differ, opened
from mmjobs.tasks.program import end
from mmlaunch.errors import BadInput, UserError
from mmlaunch.run.files import explained

By = Literal["both", "images", "questions"]


@dataclass
class Groups:
    """Rows that may not be parted, because they share something: a forest, each tree of it one group."""

    parent: array[int] = field(default_factory=lambda: array("q"))
    first: dict[bytes, int] = field(default_factory=dict)
    """The first row that had each image and each question."""

    def add(self, keys: Sequence[bytes]) -> None:
        """The next row, with what it may share."""
        row = len(self.parent)
        self.parent.append(row)
        for key in keys:
            other = self.first.setdefault(key, row)
            self.parent[self.root(row)] = self.root(other)

    def root(self, row: int) -> int:
        while self.parent[row] != row:
            self.parent[row] = row = self.parent[self.parent[row]]
        return row

    def sizes(self) -> dict[int, int]:
        sizes: dict[int, int] = {}
        for row in range(len(self.parent)):
            root = self.root(row)
            sizes[root] = sizes.get(root, 0) + 1
        return sizes


def shared(sizes: Mapping[int, int], shares: Mapping[str, float], seed: int) -> dict[int, str]:
    """The part of each group: large ones first, each into the part that lacks most; the seed orders equal ones."""
    total = sum(sizes.values())
    lacks = {part: total * share / sum(shares.values()) for part, share in shares.items()}
    parts = {}
    for root in sorted(sizes, key=lambda root: (-sizes[root], hashlib.sha256(f"{seed}/{root}".encode()).digest())):
        part = max(lacks, key=lambda part: lacks[part])
        parts[root] = part
        lacks[part] -= sizes[root]
    return parts


def split(given: argparse.Namespace) -> dict[str, Any]:
    """Group the rows, share the groups among the parts, and copy each row to its part."""
    shares = _shares(given.parts)
    kind, part = opened(given.input, given.format, given.images, given.split)
    rows = one_table(part)
    files = _files(given, list(shares), kinds(rows))
    left_out, moved = LeftOut(given.on_bad == "skip"), Progress("split", 2 * len(rows))
    groups, usable = _grouped(rows, given.by, left_out, moved)
    sizes = groups.sizes()
    parts = shared(sizes, shares, given.seed)
    counts = {name: sum(sizes[root] for root, part in parts.items() if part == name) for name in shares}
    largest = max(sizes.values(), default=0)
    if empty := [name for name, count in counts.items() if not count]:
        what = f"{len(sizes):,} groups of rows that share an image or a question; the largest has {largest:,} rows"
        raise BadInput(f"{given.input}: nothing is left for {', '.join(empty)}: {what}. --by images looks at less")
    with ExitStack() as stack:
        copies = {name: stack.enter_context(copied(rows, file)) for name, file in files.items()}
        for row, place in enumerate(usable):
            moved()
            copies[parts[groups.root(row)]](place)
    whole = Counter(parts.values())
    made = {name: {"file": str(files[name]), "rows": counts[name], "groups": whole[name]} for name in shares}
    images = given.images or str(Path(given.input).absolute().parent)
    return {"format": kind.name, "parts": made, "largest": largest, "images": images, **left_out.facts()}


def _files(given: argparse.Namespace, names: list[str], endings: tuple[str, ...]) -> dict[str, Path]:
    """The file of each part, in the layout of what is read; none of them may stand there already."""
    folder, suffix = Path(given.output), Path(given.input).suffix
    with explained(f"{folder}: cannot be made"):
        folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}{suffix if suffix in endings else endings[0]}" for name in names}
    for file in files.values():
        free(file, given.overwrite, endings)
        must_differ(given.input, file)
    return files


def _grouped(rows: Rows, by: By, left_out: LeftOut, moved: Progress) -> tuple[Groups, array[int]]:
    """The rows that can be read, and which of them may not be parted."""
    groups, usable = Groups(), array("q")
    for place in range(len(rows)):
        moved()
        try:
            groups.add(_keys(rows[place], by))
            usable.append(place)
        except BadRow as error:
            left_out.bad(error)
    return groups, usable


def _keys(example: Example, by: By) -> list[bytes]:
    """The images by their content, and the question by its words, whatever their case and punctuation."""
    keys = []
    if by != "questions":
        try:
            keys += [b"image" + content(picture) for picture in example.images]
        except BadPicture as error:
            raise BadRow(example.origin, str(error)) from None
    if by != "images":
        text = " ".join(words(" ".join(turn.text for turn in example.prompt if turn.role == "user")))
        keys += [b"text" + hashlib.blake2b(text.encode(), digest_size=16).digest()] if text else []
    return keys


def _shares(text: str) -> dict[str, float]:
    """`train=90,test=10`, in any unit."""
    right = "write --parts train=90,test=10"
    shares: dict[str, float] = {}
    for one in text.split(","):
        name, _, share = one.partition("=")
        try:
            number = float(share)
        except ValueError:
            raise UserError(f"--parts: {one} is no part with its share; {right}") from None
        if not 0 < number < float("inf") or name in shares or not name.isidentifier():
            raise UserError(f"--parts: {one}: each part needs a name of its own and a share above 0; {right}")
        shares[name] = number
    if len(shares) < 2:
        raise UserError(f"--parts: {text} is one part; {right}")
    return shares


def main() -> int:
    """`python -m mmjobs.tasks.split`, which `mmlaunch split` calls."""
    parser = argparse.ArgumentParser(prog="mmlaunch split")
    add_source(parser)
    parser.add_argument("output")
    parser.add_argument("--parts", required=True)
    parser.add_argument("--by", choices=get_args(By), default="both")
    parser.add_argument("--seed", type=int, default=0)
    return end(parser, split)


if __name__ == "__main__":
    sys.exit(main())
