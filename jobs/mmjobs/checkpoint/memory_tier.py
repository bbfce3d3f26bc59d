"""The memory tier: checkpoints in the memory of the nodes, from which the next attempt of the same job goes on.

Each node keeps what its own ranks have saved, in a folder of /dev/shm that is laid out and sealed like one on the disk.
The job script names that folder in MMLAUNCH_MEMORY, and the restart policy deletes it unless the next attempt begins in
the same job.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mmjobs.checkpoint.background import write
from mmjobs.rank.context import Context
from mmjobs.rank.position import node
from mmlaunch.run import manifest
from mmlaunch.run.manifest import Entry
from mmlaunch.run.paths import CheckpointPaths, RunPaths

RANKS = "ranks.json"
"""Beside the files of a node: what each rank has saved, on whatever node."""
PIECE = 64 << 20
"""Bytes that go from one node to the others at once."""
LEFT_BEHIND = 86_400
"""Seconds after which a folder that nobody wrote to belongs to a job whose nodes were taken away."""

Entries = dict[str, Entry]
"""Files by name, as in a manifest."""


@dataclass
class MemoryTier:
    """The memory of all nodes, as one rank sees it."""

    context: Context
    paths: RunPaths
    """The folder of this node: its `checkpoints`, and a link to what the run keeps of frozen weights."""
    leaders: tuple[int, ...]
    """For each rank, the first rank of its node: it writes for its node."""
    resumed: int | None = None
    """The step that this attempt has begun with, if it was here: the disk may not have it."""

    @property
    def leads(self) -> bool:
        return self.leaders[self.context.ranks.rank] == self.context.ranks.rank

    def is_due(self, step: int) -> bool:
        every = self.context.recipe.checkpoint.memory_every
        return every is not None and step > 0 and step % every == 0

    def seal(self, folder: Path, step: int, of_ranks: Sequence[Entries]) -> None:
        """Make this node's part of a checkpoint one that can be read."""
        if not self.leads:
            return
        listed: dict[str, Entry] = {}
        write({folder / RANKS: json.dumps(of_ranks).encode()}, folder, listed)
        listed |= self._of_this_node(of_ranks)
        manifest.seal(folder, self.paths.checkpoint(step), step, len(of_ranks), listed)
        os.utime(self.paths.root.parent)  # nobody may think that it was left behind

    def keep_only(self, newest: int) -> None:
        """Every node has sealed this step: the ones before are not needed any more."""
        for step in manifest.steps(self.paths.checkpoints) if self.leads else ():
            if step != newest:
                with suppress(OSError):  # it costs memory, and not the run
                    manifest.delete(self.paths.checkpoints, step)

    def newest(self) -> int | None:
        """The newest step of which every node has all that its ranks have saved; called by all ranks together."""
        of_nodes = [one for one in self.context.ranks.gather(self._whole() if self.leads else None) if one]
        for reason in (reason for _, rejected in of_nodes for reason in rejected):
            self.context.events.warn(f"a checkpoint in memory is damaged: {reason}", step=0)
        return max(set.intersection(*(whole for whole, _ in of_nodes)), default=None)

    @contextmanager
    def opened(self, step: int) -> Iterator[CheckpointPaths | None]:
        """A checkpoint of `newest`. While it is read, the files of rank 0, which all need, are on every node; None
        if the memory of a node is full."""
        ranks, checkpoint = self.context.ranks, CheckpointPaths(self.paths.checkpoint(step))
        files: Entries = ranks.from_first(_of_ranks(checkpoint.root)[0] if ranks.first else None)
        brought = self.leads and self.leaders[ranks.rank] != 0
        full = False
        for name, entry in files.items() if any(self.leaders) else ():
            full |= not self._bring(checkpoint.root / name, int(str(entry["bytes"])), brought and not full)
        try:
            if ranks.any(full):  # all ranks meet here: whatever they are about to read is written
                self.context.events.warn("a checkpoint in memory cannot be read: that of a node is full", step=step)
                yield None
            else:
                yield checkpoint
                self.resumed = step
            ranks.any(False)  # not before all have read them
        finally:
            for name in files if brought else ():
                (checkpoint.root / name).unlink(missing_ok=True)

    def forget(self) -> None:
        """Free the memory of this node."""
        if self.leads:
            shutil.rmtree(self.paths.root, ignore_errors=True)

    def _whole(self) -> tuple[set[int], list[str]]:
        """The steps of which this node has all that its ranks have saved; and what is wrong with others."""
        manifest.sweep(self.paths.checkpoints)
        whole, rejected = set(), []
        for step in manifest.steps(self.paths.checkpoints):
            folder = self.paths.checkpoint(step)
            try:
                here, of_ranks = manifest.validate(folder).files, _of_ranks(folder)
            except (manifest.InvalidCheckpoint, OSError, ValueError) as error:
                rejected.append(str(error))
                continue
            if len(of_ranks) == len(self.leaders) and self._of_this_node(of_ranks).keys() <= here.keys():
                whole.add(step)
        return whole, rejected

    def _of_this_node(self, of_ranks: Sequence[Entries]) -> Entries:
        """What the ranks of this node have saved."""
        ours = (
            files for leader, files in zip(self.leaders, of_ranks, strict=True) if leader == self.context.ranks.rank
        )
        return {name: entry for files in ours for name, entry in files.items()}

    def _bring(self, path: Path, size: int, write: bool) -> bool:
        """Copy a file of rank 0's node to the others, piece by piece; whether this rank could write what it should."""
        ranks, written = self.context.ranks, True
        for begin in range(0, size, PIECE):
            content = ranks.from_first(_read(path, begin) if ranks.first else None)
            try:
                if write and written:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("ab" if begin else "wb") as file:
                        file.write(content)
            except OSError:
                written = False
        return written


def build(context: Context) -> MemoryTier | None:
    """The tier, if the recipe wants it; where a node has no memory for it, the run goes on without."""
    if context.recipe.checkpoint.memory_every is None:
        return None
    nodes = context.ranks.gather(node())
    leaders = tuple(nodes.index(node) for node in nodes)
    folder = os.environ.get("MMLAUNCH_MEMORY", "")
    # By the node's name: several pretended nodes of one machine share its memory.
    tier = MemoryTier(context, RunPaths(Path(folder, node())), leaders)
    problem = "the job script names no folder (MMLAUNCH_MEMORY)" if not folder else None
    if tier.leads and not problem:
        problem = _prepare(tier.paths, context.paths)
    if problem := next(filter(None, context.ranks.gather(problem)), None):
        context.events.warn(f"no checkpoints in memory: {problem}", step=0)
        return None
    return tier


def _prepare(memory: RunPaths, run: RunPaths) -> str | None:
    """Make the folder of this node; returns what is in the way."""
    try:
        shared = memory.root.parent.parent
        shared.mkdir(mode=0o700, exist_ok=True)
        if shared.lstat().st_uid != os.getuid() or shared.is_symlink():  # anybody may write to /dev/shm
            return f"{shared} belongs to someone else"
        _sweep(memory.root.parent)
        memory.checkpoints.mkdir(parents=True, exist_ok=True)
        if not memory.frozen.is_symlink():
            memory.frozen.symlink_to(run.frozen.absolute())
    except OSError as error:
        return str(error)
    return None


def _sweep(ours: Path) -> None:
    """Free what jobs have left behind that ended without their last act."""
    for folder in ours.parent.iterdir():
        with suppress(OSError):  # another job of this user frees its own in this moment
            if folder != ours and time.time() - folder.stat().st_mtime > LEFT_BEHIND:
                shutil.rmtree(folder, ignore_errors=True)


def _of_ranks(folder: Path) -> list[Entries]:
    files: list[Entries] = json.loads((folder / RANKS).read_text(encoding="utf-8"))
    return files


def _read(path: Path, begin: int) -> bytes:
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(PIECE)
