"""Frozen weights: no step changes them, so a run keeps them once, by their content, and its checkpoints name them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from mmlaunch.errors import BadInput
from mmlaunch.run.paths import RunPaths, run_of_checkpoint

_NAMED = "frozen"
"""The metadata of a checkpoint's weights that says under which name the frozen ones are kept."""


def metadata(name: str | None) -> dict[str, str]:
    """What the weights of a checkpoint say of themselves. One key alone: several have no fixed order in the file."""
    return {_NAMED: name} if name else {"format": "pt"}


def keep(run: RunPaths, weights: Mapping[str, torch.Tensor]) -> str:
    """Write them into the run directory; returns the name, which is a digest of their content."""
    run.frozen.mkdir(exist_ok=True)
    partial = run.frozen / ".writing"
    safetensors.torch.save_file(dict(weights), partial, metadata=metadata(None))
    name = _digest(partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(run.frozen_weights(name))
    return name


def named_by(weights: Path) -> str | None:
    """The name of the frozen weights that belong to those of a checkpoint; None where that holds all."""
    with safetensors.safe_open(weights, "pt") as file:
        return (file.metadata() or {}).get(_NAMED)


def place(weights: Path) -> Path | None:
    """The file of the frozen weights that belong to those of a checkpoint."""
    name = named_by(weights)
    return None if name is None else run_of_checkpoint(weights).frozen_weights(name)


def damage(weights: Path) -> str | None:
    """What is wrong with the frozen weights that belong to those of a checkpoint; None if nothing is."""
    path = place(weights) if weights.is_file() else None
    if path is None:
        return None
    if not path.is_file():
        return f"{path} is not there"
    return None if _digest(path) == path.stem else f"{path} is damaged"


def read(weights: Path) -> dict[str, torch.Tensor]:
    """All weights of a checkpoint: its own, and the frozen ones that it names."""
    path = place(weights)
    if path is not None and not path.is_file():
        raise BadInput(f"{path} is not there, and {weights} needs it: a checkpoint is read inside its run directory")
    frozen = safetensors.torch.load_file(path) if path is not None else {}
    return {**frozen, **safetensors.torch.load_file(weights)}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
