"""Checkpoint manifests: a checkpoint without a valid one does not exist."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mmlaunch.run.files import publish, sync_folder
from mmlaunch.run.paths import CheckpointPaths, all_staging_in, checkpoint_in, staging_in

NAME = CheckpointPaths(Path()).manifest.name
FORMAT = 2
MOST = 64 << 20
"""Bytes of a manifest: those of a thousand ranks fit."""
FOREIGN = "this version reads another format"
_STEP = re.compile(r"step-(\d+)")
Entry = dict[str, object]
"""A file in a manifest: {"bytes": int, "sha256": str}."""


class InvalidCheckpoint(ValueError):
    """A folder is named like a checkpoint and is not a valid one; the message names the file and the reason."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds."""

    step: int
    world: int
    files: dict[str, Entry]  # by name

    @property
    def bytes(self) -> int:
        return sum(int(str(entry["bytes"])) for entry in self.files.values())


def staging(checkpoints: Path, step: int) -> Path:
    """Where a checkpoint is written before it exists; what a killed writer left there is swept by `sweep`."""
    return staging_in(checkpoints, step)


def seal(folder: Path, final: Path, step: int, world: int, written: Mapping[str, Entry] | None = None) -> Manifest:
    """Write the manifest last, and rename the whole folder to `final`.

    `written`: the files, as those know them that wrote and flushed them. Without it, this process reads and flushes
    every file.
    """
    files = {name: _entry(folder / name) for name in _names(folder)} if written is None else dict(written)
    files = dict(sorted(files.items()))
    for name, entry in files.items():
        if (actual := (folder / name).stat().st_size) != entry["bytes"]:
            raise OSError(errno.EIO, f"{actual} bytes instead of {entry['bytes']}", str(folder / name))
    manifest = Manifest(step, world, files)
    record = {"format": FORMAT, "step": step, "world": world, "files": files}
    publish(CheckpointPaths(folder).manifest, json.dumps({**record, "sha256": _digest_of(record)}, indent=1) + "\n")
    if final.is_dir():  # an invalid one of the same step: it was rejected, or we would not be here
        shutil.rmtree(final)
    else:
        final.unlink(missing_ok=True)
    folder.replace(final)
    sync_folder(final.parent)
    return manifest


def validate(folder: Path, contents: bool = True) -> Manifest:
    """The manifest of a checkpoint whose files are all there, of the right size and (if `contents`) the right hash."""
    try:
        record = json.loads(_bounded(CheckpointPaths(folder).manifest))
        manifest = Manifest(int(record["step"]), int(record["world"]), dict(record["files"]))
        written, digest = record["format"], record.pop("sha256", None)
    except FileNotFoundError:
        raise InvalidCheckpoint(f"{folder.name}: no {NAME}: the save never finished") from None
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
        raise InvalidCheckpoint(f"{folder.name}: {NAME} is damaged ({error})") from None
    oldest = written == 1 and digest is None  # format 1 had no hash of the manifest itself
    if digest != _digest_of(record) and not oldest:  # a flipped bit in the number of ranks would be believed
        raise InvalidCheckpoint(f"{folder.name}: {NAME} is damaged (its content is not what was written)")
    if written != FORMAT:
        raise InvalidCheckpoint(f"{folder.name}: {NAME} has format {written}; {FOREIGN}, {FORMAT}")
    if folder.name != f"step-{manifest.step}":
        raise InvalidCheckpoint(f"{folder.name}: its manifest is that of step {manifest.step}")
    try:
        _compare(folder, manifest, contents)
    except OSError as error:
        raise InvalidCheckpoint(f"{folder.name}: cannot be read ({error})") from None
    return manifest


def _compare(folder: Path, manifest: Manifest, contents: bool) -> None:
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise InvalidCheckpoint(f"{folder.name}/{name}: missing")
        if path.stat().st_size != entry["bytes"]:
            raise InvalidCheckpoint(f"{folder.name}/{name}: {path.stat().st_size} bytes instead of {entry['bytes']}")
    if strange := sorted(_names(folder) - manifest.files.keys() - {NAME}):  # DeepSpeed would load an extra shard
        raise InvalidCheckpoint(f"{folder.name}/{strange[0]}: is not in the manifest")
    if contents and (reason := damage(folder, manifest, manifest.files)):
        raise InvalidCheckpoint(reason)


def damage(folder: Path, manifest: Manifest, names: Iterable[str]) -> str | None:
    """Which of these files does not hold what was saved: each rank may look at some of them."""
    for name in names:
        try:
            if _digest(folder / name) != manifest.files[name]["sha256"]:
                return f"{folder.name}/{name}: its content is not what was saved"
        except OSError as error:
            return f"{folder.name}: cannot be read ({error})"
    return None


def _names(folder: Path) -> set[str]:
    """The names of all files, without those in which NFS keeps deleted ones (`.nfs...`)."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".nfs"))
    return {path.relative_to(folder).as_posix() for path in files}


def steps(checkpoints: Path) -> list[int]:
    """The steps of all folders that are named like checkpoints, oldest first; valid or not."""
    try:
        names = [entry.name for entry in os.scandir(checkpoints)]
    except FileNotFoundError:
        return []
    return sorted(int(match.group(1)) for name in names if (match := _STEP.fullmatch(name)))


def newest(checkpoints: Path, contents: bool = True, below: float = math.inf) -> tuple[Manifest | None, list[str]]:
    """The newest valid checkpoint, of steps below a number, and why each newer one was rejected."""
    rejected: list[str] = []
    for step in reversed([step for step in steps(checkpoints) if step < below]):
        try:
            return validate(checkpoint_in(checkpoints, step), contents), rejected
        except InvalidCheckpoint as error:
            rejected.append(str(error))
    return None, rejected


def delete(checkpoints: Path, step: int) -> None:
    """Delete a checkpoint: under the name of an unfinished one first, so that what a kill leaves of it is swept."""
    doomed = checkpoint_in(checkpoints, step).rename(staging(checkpoints, step))
    shutil.rmtree(doomed, ignore_errors=True)


def sweep(checkpoints: Path) -> None:
    """Remove what killed writers left half-made. Only the one job of a run may call it, at its start."""
    for path in all_staging_in(checkpoints):
        shutil.rmtree(path, ignore_errors=True)


def _bounded(path: Path) -> bytes:
    """The content of a regular file of bounded size: a pipe would hang, and an endless device fill the memory."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no regular file")
        content = file.read(MOST + 1)
    if len(content) > MOST:
        raise ValueError(f"it is longer than {MOST >> 20} MiB")
    return content


@contextmanager
def _descriptor(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _digest_of(record: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _entry(path: Path) -> Entry:
    return {"bytes": path.stat().st_size, "sha256": _digest(path, flush=True)}


def _digest(path: Path, flush: bool = False) -> str:
    """The SHA-256 of a file's content; with `flush`, its bytes are on the disk afterwards."""
    digest = hashlib.sha256()
    with _descriptor(path) as descriptor:
        while block := os.read(descriptor, 1 << 20):
            digest.update(block)
        if flush:
            os.fsync(descriptor)
    return digest.hexdigest()
