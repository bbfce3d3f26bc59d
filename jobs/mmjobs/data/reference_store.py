"""The reference's log-probabilities, token by token, of examples that are known by their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from mmjobs.data.tensor_file import writing

_WIDTH = 16
_DIGEST = "blake2b"


class ReferenceStore:
    """The values of all files that were read; each example is a slice of the values of one file."""

    def __init__(self) -> None:
        self._values: list[torch.Tensor] = []
        self._places: dict[bytes, tuple[int, int, int]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def get(self, key: bytes) -> torch.Tensor | None:
        """One number for each token in the loss of an example."""
        if key not in self._places:
            return None
        number, start, stop = self._places[key]
        return self._values[number][start:stop]

    def add(self, values: Mapping[bytes, torch.Tensor]) -> None:
        if values:
            self._take(list(values), [len(one) for one in values.values()], torch.cat(list(values.values())))

    def take(self, paths: Iterable[Path]) -> dict[Path, str]:
        """Read these files; returns those that are damaged, and why."""
        damaged = {}
        for path in paths:
            try:
                self._take(*_read(path))
            except (OSError, ValueError, safetensors.SafetensorError) as error:
                damaged[path] = str(error)
        return damaged

    def _take(self, keys: Sequence[bytes], lengths: Sequence[int], values: torch.Tensor) -> None:
        ends = [0, *accumulate(lengths)]
        places = ((len(self._values), start, stop) for start, stop in pairwise(ends))
        self._places.update(zip(keys, places, strict=True))
        self._values.append(values)


def write(path: Path, values: Mapping[bytes, torch.Tensor]) -> None:
    """Write one file, whole or not at all, with a digest of its content."""
    keys = torch.frombuffer(bytearray(b"".join(values)), dtype=torch.uint8).view(len(values), _WIDTH)  # [N, 16]
    lengths = torch.tensor([len(one) for one in values.values()])  # [N]
    state = {"keys": keys, "lengths": lengths, "values": torch.cat([one.float() for one in values.values()])}
    with writing(path) as file:
        file.write_bytes(safetensors.torch.save(state, metadata={_DIGEST: _digest(state)}))


def _read(path: Path) -> tuple[list[bytes], list[int], torch.Tensor]:
    with safetensors.safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in ("keys", "lengths", "values")}
        if (file.metadata() or {}).get(_DIGEST) != _digest(state):
            raise ValueError("its content is not what was written")
    return [key.tobytes() for key in state["keys"].numpy()], state["lengths"].tolist(), state["values"]


def _digest(state: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(json.dumps({name: list(state[name].shape) for name in sorted(state)}).encode())
    for name in sorted(state):
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
