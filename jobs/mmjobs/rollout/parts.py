"""Parts: answers that are generated already, kept in the run directory until their rollout is learnt from.

A part is used again only by the same policy, recipe and world, or its answers would not be those of the unbroken run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mmjobs.model.generate import Generated
from mmjobs.rollout.rollout import Group, Rollout
from mmlaunch.run.files import publish

_KEY, _SEALED = "key.json", "rollout.json"


class Parts:
    """The folder of one rollout; rank 0 opens it, every rank adds to it."""

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        """`key`: what the answers depend on."""
        self._folder, self._key = folder, key

    def open(self) -> str | None:
        """Make the folder; what is in it stays where the key is the same. Otherwise says why it was thrown away."""
        discarded = None
        if self._folder.is_dir() and (old := _read(self._folder / _KEY)) != self._key:
            different = [name for name in self._key if (old or {}).get(name) != self._key[name]]
            discarded = f"answers of another {' and '.join(different)}" if old else "answers that nothing belongs to"
            shutil.rmtree(self._folder)
        if not self._folder.is_dir():
            self._folder.mkdir(parents=True)
            publish(self._folder / _KEY, json.dumps(self._key) + "\n")
        return discarded

    def add(self, name: str, groups: list[Group]) -> None:
        """Seal the answers to the prompts of one batch."""
        rows = [
            {"prompt": group.prompt, "answers": [[one.ids, one.log_probs, one.ended] for one in group.answers]}
            for group in groups
        ]
        publish(self._folder / f"{name}.json", json.dumps(rows) + "\n")

    def read(self, name: str) -> list[Group] | None:
        """The answers of a batch; None where they are not sealed."""
        rows = _read(self._folder / f"{name}.json")
        if rows is None:
            return None
        return [Group(row["prompt"], tuple(Generated(*one) for one in row["answers"])) for row in rows]

    def seal(self, rollout: Rollout, after: dict[str, Any]) -> str:
        """Keep the whole rollout, with the state of its source behind it; its digest."""
        digest = rollout.save(self._folder)
        publish(self._folder / _SEALED, json.dumps({"digest": digest, "after": after}) + "\n")
        return digest

    def sealed(self, step: int) -> tuple[Rollout, str, dict[str, Any]] | None:
        """The whole rollout, its digest, and that state; None where it is not whole yet."""
        record = _read(self._folder / _SEALED)
        rollout = Rollout.load(self._folder, step, record["digest"]) if record else None
        return (rollout, record["digest"], record["after"]) if rollout and record else None


class NoParts(Parts):
    """Nothing is kept: for answers that no step is learnt from."""

    def __init__(self) -> None:
        super().__init__(Path(), {})

    def add(self, name: str, groups: list[Group]) -> None:
        """Nothing."""

    def read(self, name: str) -> list[Group] | None:
        return None


def prune(rollouts: Path, kept: Collection[int]) -> None:
    """Delete the rollouts of steps that no checkpoint and no rank needs any more."""
    for folder in rollouts.glob("[0-9]*"):
        if int(folder.name) not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
