"""The reference's log-probabilities, token by token, of examples that are known by their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch

from mmjobs.data.tensor_file import writing

_WIDTH = 16
_KEY = np.dtype(f"S{_WIDTH}")
_DIGEST = "blake2b"
Array = np.ndarray[Any, np.dtype[Any]]


class _Index(NamedTuple):
    """Where the values of each example are, by its key: 36 bytes an example."""

    keys: Array  # [N], in their order
    piece: Array  # [N]
    start: Array  # [N]
    length: Array  # [N]


class ReferenceStore:
    """The values of all pieces that were read; each example is a slice of the values of one piece.

    Files are mapped into memory, so that the ranks of a node share them.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._values: list[torch.Tensor] = []
        self._unsorted: list[_Index] = []
        self._index = _sorted([])
        self._used: set[int] = set()

    def __len__(self) -> int:
        return len(self._sorted.keys)

    def __contains__(self, key: bytes) -> bool:
        return self._place(key) is not None

    def get(self, key: bytes) -> torch.Tensor | None:
        """One number for each token in the loss of an example."""
        if (place := self._place(key)) is None:
            return None
        index = self._sorted
        start, length = int(index.start[place]), int(index.length[place])
        return self._values[int(index.piece[place])][start : start + length]

    @property
    def used(self) -> set[str]:
        """The names of the files that hold an example which somebody has looked up."""
        return {self._names[number] for number in self._used} - {""}

    def add(self, values: Mapping[bytes, torch.Tensor], name: str = "") -> None:
        """Take values that were just computed, and written to the file of this name."""
        if values:
            lengths = np.array([len(one) for one in values.values()])
            self._take(np.array(list(values), dtype=_KEY), lengths, torch.cat(list(values.values())), name)

    def take(self, paths: Iterable[Path]) -> dict[Path, str]:
        """Read these files; returns those that are damaged, and why."""
        damaged = {}
        for path in paths:
            try:
                self._take(*_read(path), path.name)
            except (OSError, ValueError, safetensors.SafetensorError) as error:
                damaged[path] = str(error)
        return damaged

    def _take(self, keys: Array, lengths: Array, values: torch.Tensor, name: str) -> None:
        starts = np.cumsum(lengths) - lengths
        piece = np.full(len(keys), len(self._values), dtype=np.int32)
        self._unsorted.append(_Index(keys, piece, starts.astype(np.int64), lengths.astype(np.int64)))
        self._values.append(values)
        self._names.append(name)

    def _place(self, key: bytes) -> int | None:
        keys = self._sorted.keys
        place = int(np.searchsorted(keys, np.array(key, dtype=_KEY)))
        if place == len(keys) or keys[place] != np.array(key, dtype=_KEY):
            return None
        self._used.add(int(self._index.piece[place]))
        return place

    @property
    def _sorted(self) -> _Index:
        if self._unsorted:
            self._index = _sorted([*self._unsorted[::-1], self._index])  # the newest values of a key count
            self._unsorted = []
        return self._index


def _sorted(parts: list[_Index]) -> _Index:
    """One index of several; of equal keys that of the first."""
    if not parts:
        none = np.empty(0, dtype=np.int64)
        return _Index(np.empty(0, dtype=_KEY), none.astype(np.int32), none, none)
    joined = _Index(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    keys, first = np.unique(joined.keys, return_index=True)
    return _Index(keys, joined.piece[first], joined.start[first], joined.length[first])


def write(path: Path, values: Mapping[bytes, torch.Tensor]) -> None:
    """Write one file, whole or not at all, with a digest of its content."""
    keys = torch.frombuffer(bytearray(b"".join(values)), dtype=torch.uint8).view(len(values), _WIDTH)  # [N, 16]
    lengths = torch.tensor([len(one) for one in values.values()])  # [N]
    state = {"keys": keys, "lengths": lengths, "values": torch.cat([one.float() for one in values.values()])}
    with writing(path) as file:
        file.write_bytes(safetensors.torch.save(state, metadata={_DIGEST: _digest(state)}))


def _read(path: Path) -> tuple[Array, Array, torch.Tensor]:
    with safetensors.safe_open(path, "pt") as file:
        written = (file.metadata() or {}).get(_DIGEST)
    state = safetensors.torch.load_file(path)
    if {"keys", "lengths", "values"} != state.keys() or written != _digest(state):
        raise ValueError("its content is not what was written")
    return state["keys"].numpy().reshape(-1).view(_KEY), state["lengths"].numpy(), state["values"]


def _digest(state: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(json.dumps({name: list(state[name].shape) for name in sorted(state)}).encode())
    for name in sorted(state):
        digest.update(state[name].contiguous().numpy().data)
    return digest.hexdigest()
