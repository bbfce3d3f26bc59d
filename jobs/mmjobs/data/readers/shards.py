"""Shards: the files that one table is kept in, and where each is while somebody reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Shards(Protocol):
    """The files of a table, by their number."""

    @property
    def streamed(self) -> bool:
        """Whether they come from elsewhere, and only some of them are on this node at a time."""

    def __len__(self) -> int: ...

    @property
    def limit(self) -> int:
        """The bytes of them that may be on this node at a time, where they are streamed."""

    def name(self, number: int) -> str:
        """What a file is called in messages."""

    def size(self, number: int) -> int:
        """The bytes of a file."""

    def lease(self, number: int) -> AbstractContextManager[Path]:
        """A file on this node, which stays there until the block ends; raises `BadInput` where it cannot come."""


@dataclass(frozen=True)
class LocalShards:
    """Files that are here."""

    paths: tuple[Path, ...]

    @property
    def streamed(self) -> bool:
        return False

    @property
    def limit(self) -> int:
        return 0

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, number: int) -> str:
        return str(self.paths[number])

    def size(self, number: int) -> int:
        return self.paths[number].stat().st_size

    @contextmanager
    def lease(self, number: int) -> Iterator[Path]:
        yield self.paths[number]


def local(paths: Sequence[Path]) -> LocalShards:
    """These files as the shards of one table."""
    return LocalShards(tuple(paths))
