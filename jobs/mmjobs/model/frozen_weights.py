"""Frozen weights: no step changes them, so a run keeps them once, by their content, and its checkpoints name them.

`frozen/<name>/` of a run holds an index with a digest of each tensor, and a file from each rank with its share of the
tensors. Where `checkpoint.keep_base` leaves the weights where they came from, it holds the index alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from mmjobs.data.tensor_file import writing
from mmlaunch.errors import BadInput
from mmlaunch.run.files import publish, sync_folder
from mmlaunch.run.paths import RunPaths, run_of_checkpoint

_NAMED = "frozen"
"""The metadata of a checkpoint's weights that says under which name the frozen ones are kept."""
_INDEX, _CHECKED = "weights.json", ".checked"
_READ_ONLY = 0o444


@dataclass(frozen=True)
class Content:
    """What is in a tensor."""

    dtype: str
    sha256: str


Contents = dict[str, Content]
"""By the name of the tensor."""


def metadata(name: str | None) -> dict[str, str]:
    """What the weights of a checkpoint say of themselves. One key alone: several have no fixed order in the file."""
    return {_NAMED: name} if name else {"format": "pt"}


def contents(weights: Mapping[str, torch.Tensor], each: Callable[[], None] = lambda: None) -> Contents:
    """The content of each tensor; `each` is called before every one of them."""
    read = {}
    for name, value in weights.items():
        each()
        digest = hashlib.sha256(f"{tuple(value.shape)} ".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        read[name] = Content(str(value.dtype).removeprefix("torch."), digest.hexdigest())
    return read


def name_of(model: Contents) -> str:
    """The name under which a run keeps these weights: a digest of their names and contents."""
    return hashlib.sha256(repr(sorted(model.items())).encode()).hexdigest()[:16]


def staging(run: RunPaths, name: str) -> Path:
    """Where the files stand until all are written."""
    return run.frozen / f".{name}.writing"


def write(folder: Path, rank: int, weights: Mapping[str, torch.Tensor]) -> None:
    """Write the share of a rank."""
    if not weights:
        return
    path = folder / f"model-{rank}.safetensors"
    with writing(path) as file:
        safetensors.torch.save_file(dict(weights), file, metadata=metadata(None))
    path.chmod(_READ_ONLY)


def seal(run: RunPaths, name: str, model: Contents, kept: bool) -> None:
    """Write the index and publish the folder, when each rank has written its share. Not `kept`: of the index alone."""
    folder, final = staging(run, name), run.frozen_weights(name)
    folder.mkdir(parents=True, exist_ok=True)
    listed = {"kept": kept, "weights": {key: asdict(content) for key, content in model.items()}}
    publish(folder / _INDEX, json.dumps(listed, indent=0, sort_keys=True) + "\n")
    sync_folder(folder)
    _remove(final)
    folder.rename(final)
    sync_folder(run.frozen)


def link(other: RunPaths, run: RunPaths, name: str) -> bool:
    """Keep the weights by links to the files of another run, which keeps the same; whether that was possible."""
    source, target = other.frozen_weights(name), staging(run, name)
    try:
        if not is_whole(source) or not is_kept(source):
            return False
        target.mkdir(parents=True, exist_ok=True)
        for path in _files(source):
            if path.stat().st_mode & 0o222:  # somebody may still write into it
                return False
            os.link(path, target / path.name)
    except OSError:  # another file system, or none with links
        return False
    return True


def named_by(weights: Path) -> str | None:
    """The name of the frozen weights that belong to those of a checkpoint; None where that holds all."""
    with safetensors.safe_open(weights, "pt") as file:
        return (file.metadata() or {}).get(_NAMED)


def place(weights: Path) -> Path | None:
    """The folder of the frozen weights that belong to those of a checkpoint."""
    name = named_by(weights)
    return None if name is None else run_of_checkpoint(weights.resolve()).frozen_weights(name)


def damage(weights: Path, fully: bool = False, rank: int = 0, world: int = 1) -> str | None:
    """What is wrong with the frozen weights that belong to those of a checkpoint; None if nothing is.

    Files that were read once, and that nobody has changed since, are read again only where they have to be `fully`.
    Each of several ranks reads a part of them.
    """
    folder = place(weights) if weights.is_file() else None
    if folder is None or is_whole(folder, fully, rank, world):
        return None
    return f"{folder} is damaged" if folder.is_dir() else f"{folder} is not there"


def is_whole(folder: Path, fully: bool = False, rank: int = 0, world: int = 1) -> bool:
    """Whether the index is the one of this name, and the files hold what it says, as far as this rank reads them."""
    try:
        model = index(folder)
        if name_of(model) != folder.name:
            return False
        if not is_kept(folder):
            return True
        files = _files(folder)
        if not fully and _content(folder / _CHECKED) == _state_of(files):
            return True
        if names_in(files) != model.keys():
            return False
        for path in files[rank::world]:
            own = contents(safetensors.torch.load_file(path))
            if any(model[name] != content for name, content in own.items()):
                return False
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
        return False
    if world == 1:
        note_whole(folder)
    return True


def note_whole(folder: Path) -> None:
    """Note that all files were read, and are whole."""
    with suppress(OSError):  # then they are read again next time
        if files := _files(folder):
            (folder / _CHECKED).write_text(_state_of(files))


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


def index(folder: Path) -> Contents:
    """The content of each frozen tensor, as it was when the run kept them."""
    listed = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weights"]
    return {str(name): Content(str(one["dtype"]), str(one["sha256"])) for name, one in listed.items()}


@contextmanager
def opened(folder: Path) -> Iterator[Callable[[str], torch.Tensor]]:
    """In this context the frozen tensors that a run keeps can be read, each by its name."""
    with ExitStack() as stack:
        tensors: dict[str, Any] = {}
        for path in _files(folder):
            file = stack.enter_context(safetensors.safe_open(path, "pt"))
            tensors |= dict.fromkeys(file.keys(), file)
        yield lambda name: tensors[name].get_tensor(name)


def read(weights: Path, base: Callable[[], Mapping[str, torch.Tensor]] = dict) -> dict[str, torch.Tensor]:
    """All weights of a checkpoint: its own, and the frozen ones that it names.

    `base` reads the model that the run began with, for frozen weights that the run does not keep.
    """
    folder = place(weights)
    frozen: Mapping[str, torch.Tensor] = {}
    if folder is not None and not folder.is_dir():
        raise BadInput(f"{folder} is not there, and {weights} needs it: a checkpoint is read inside its run directory")
    if folder is not None and is_kept(folder):
        frozen = {name: value for path in _files(folder) for name, value in safetensors.torch.load_file(path).items()}
    elif folder is not None:
        frozen = _of_base(index(folder), base(), weights)
    own = (safetensors.torch.load_file(path) for path in files(weights))
    return {**frozen, **{name: value for file in own for name, value in file.items()}}


def _of_base(model: Contents, base: Mapping[str, torch.Tensor], weights: Path) -> dict[str, torch.Tensor]:
    """The tensors of the model that a run began with, if they are still the same."""
    same = {name: base[name].to(getattr(torch, one.dtype)) for name, one in model.items() if name in base}
    if changed := sorted(name for name, one in contents(same).items() if model[name] != one) or model.keys() - same:
        what = f"{weights} needs the frozen weights of the model that its run began with, and they have changed"
        raise BadInput(f"{what} ({', '.join(sorted(changed)[:2])}); put that model back as it was")
    return same


def is_kept(folder: Path) -> bool:
    """Whether the run has the tensors, and not their index alone."""
    return bool(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["kept"])


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def _remove(folder: Path) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        path.unlink()
    with suppress(FileNotFoundError):
        folder.rmdir()


def _state_of(files: list[Path]) -> str:
    """Changes with whoever writes into one of these files, or puts another in its place."""
    status = [(path.name, path.stat()) for path in files]
    return repr([(name, one.st_size, one.st_mtime_ns, one.st_ino) for name, one in status])


def _content(note: Path) -> str:
    try:
        return note.read_text(encoding="utf-8")
    except OSError:
        return ""
