"""Frozen weights: no step changes them, so a run keeps them once, by their content, and its checkpoints name them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from mmjobs.data.tensor_file import writing
from mmlaunch.errors import BadInput
from mmlaunch.run.files import sync_folder
from mmlaunch.run.paths import RunPaths, run_of_checkpoint

_NAMED = "frozen"
"""The metadata of a checkpoint's weights that says under which name the frozen ones are kept."""


def metadata(name: str | None) -> dict[str, str]:
    """What the weights of a checkpoint say of themselves. One key alone: several have no fixed order in the file."""
    return {_NAMED: name} if name else {"format": "pt"}


def keep(run: RunPaths, weights: Mapping[str, torch.Tensor]) -> str:
    """Write them into the run directory, unless they are there; returns their name, a digest of their content."""
    name = digest(weights)
    path = run.frozen_weights(name)
    if not _is_whole(path):
        run.frozen.mkdir(exist_ok=True)
        with writing(path) as file:
            safetensors.torch.save_file(dict(weights), file, metadata=metadata(None))
        sync_folder(run.frozen)
    return name


def digest(weights: Mapping[str, torch.Tensor]) -> str:
    """A digest of the names, the shapes and the content of weights."""
    sums = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name]
        sums.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        sums.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sums.hexdigest()[:16]


def named_by(weights: Path) -> str | None:
    """The name of the frozen weights that belong to those of a checkpoint; None where that holds all."""
    with safetensors.safe_open(weights, "pt") as file:
        return (file.metadata() or {}).get(_NAMED)


def place(weights: Path) -> Path | None:
    """The file of the frozen weights that belong to those of a checkpoint."""
    name = named_by(weights)
    return None if name is None else run_of_checkpoint(weights.resolve()).frozen_weights(name)


def damage(weights: Path, fully: bool = False) -> str | None:
    """What is wrong with the frozen weights that belong to those of a checkpoint; None if nothing is.

    A file that was read once, and that nobody has changed since, is read again only where it has to be `fully`.
    """
    path = place(weights) if weights.is_file() else None
    if path is None or _is_whole(path, fully):
        return None
    return f"{path} is damaged" if path.is_file() else f"{path} is not there"


def files(weights: Path) -> list[Path]:
    """The files of a checkpoint's own weights: at ZeRO stage 3 each rank has saved some of the tensors."""
    return [weights, *sorted(weights.parent.glob(of_rank(weights, "*").name))]


def of_rank(weights: Path, rank: int | str) -> Path:
    """The file in which a rank saves its tensors, if rank 0 does not save all."""
    return weights if rank == 0 else weights.with_name(f"{weights.stem}-{rank}{weights.suffix}")


def names_in(paths: Iterable[Path]) -> set[str]:
    """The names of the weights in some files."""
    names: set[str] = set()
    for path in paths:
        with safetensors.safe_open(path, "pt") as file:
            names |= set(file.keys())
    return names


def read(weights: Path) -> dict[str, torch.Tensor]:
    """All weights of a checkpoint: its own, and the frozen ones that it names."""
    path = place(weights)
    if path is not None and not path.is_file():
        raise BadInput(f"{path} is not there, and {weights} needs it: a checkpoint is read inside its run directory")
    frozen = safetensors.torch.load_file(path) if path is not None else {}
    own = (safetensors.torch.load_file(path) for path in files(weights))
    return {**frozen, **{name: value for file in own for name, value in file.items()}}


def _is_whole(path: Path, fully: bool = False) -> bool:
    note = path.with_suffix(".checked")
    try:
        file = path.stat()
        as_checked = f"{file.st_size} {file.st_mtime_ns} {file.st_ino}".encode()
        if not fully and _content(note) == as_checked:
            return True
        whole = digest(safetensors.torch.load_file(path)) == path.stem
    except (OSError, safetensors.SafetensorError):
        return False
    with suppress(OSError):  # then it is read again next time
        if whole:
            note.write_bytes(as_checked)
    return whole


def _content(note: Path) -> bytes:
    try:
        return note.read_bytes()
    except OSError:
        return b""
