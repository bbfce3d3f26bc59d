"""The reference's log-probabilities, token by token, of examples that are known by their content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

_WIDTH = 16
_DIGEST = "blake2b"


class Store:
    """What was measured so far, from any number of files."""

    def __init__(self) -> None:
        self._found: dict[bytes, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: bytes) -> torch.Tensor | None:
        """One number for each learnt token of an example."""
        return self._found.get(key)

    def add(self, values: Mapping[bytes, torch.Tensor]) -> None:
        self._found.update(values)

    def take(self, folder: Path) -> list[str]:
        """Read all files of a folder; why some were not believed."""
        doubts = []
        for path in sorted(folder.glob("*.safetensors")):
            try:
                self.add(dict(_read(path)))
            except (OSError, ValueError, safetensors.SafetensorError) as error:
                doubts.append(f"{path}: {error}")
        return doubts


def write(path: Path, values: Mapping[bytes, torch.Tensor]) -> None:
    """One file, whole or not at all, that tells when it was changed."""
    keys = torch.frombuffer(bytearray(b"".join(values)), dtype=torch.uint8).view(len(values), _WIDTH)  # [N, 16]
    lengths = torch.tensor([len(one) for one in values.values()])  # [N]
    state = {"keys": keys, "lengths": lengths, "values": torch.cat([one.float() for one in values.values()])}
    partial = path.with_name(f".{path.name}.writing")
    with partial.open("wb") as file:
        file.write(safetensors.torch.save(state, metadata={_DIGEST: _digest(state)}))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read(path: Path) -> Iterator[tuple[bytes, torch.Tensor]]:
    with safetensors.safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in ("keys", "lengths", "values")}
        if (file.metadata() or {}).get(_DIGEST) != _digest(state):
            raise ValueError("its content is not what was written")
    keys = state["keys"].numpy()
    for key, values in zip(keys, state["values"].split(state["lengths"].tolist()), strict=True):
        yield key.tobytes(), values


def _digest(state: Mapping[str, torch.Tensor]) -> str:
    found = hashlib.blake2b(json.dumps({name: list(state[name].shape) for name in sorted(state)}).encode())
    for name in sorted(state):
        found.update(state[name].contiguous().numpy().tobytes())
    return found.hexdigest()
