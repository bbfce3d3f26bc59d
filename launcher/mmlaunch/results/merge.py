"""Merges the records of all shards into one file: exactly one record for each row, in the order of the input."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mmlaunch.errors import BadInput, UserError
from mmlaunch.monitor import status
from mmlaunch.recipe import Recipe, resolved
from mmlaunch.recipe.inference import Inference
from mmlaunch.run import shards
from mmlaunch.run.files import publish, sync_folder
from mmlaunch.run.paths import RunPaths

MADE = "made"
"""The field of a record that holds the rows which were made of it: they go into a file of their own."""
Record = dict[str, Any]
_SHOWN = 10
"""So many rows or shards are named in a message."""


class NotWhole(UserError):
    """Some shards are not finished."""


@dataclass
class Merged:
    """What was merged."""

    output: Path
    rows: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """How many rows failed, by reason."""
    made: Path | None = None
    made_rows: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    """What the records count beside: pairs that were dropped, by reason."""
    allowed: float = 0.0
    """The share of rows that may fail."""

    @property
    def too_many_failed(self) -> bool:
        return self.failed.total() > self.allowed * self.rows


def merge(run: RunPaths, look: Callable[[Record], None] = lambda record: None) -> Merged:
    """Write the output of a task beside its shards; `look` sees every record. Nothing is written if one is missing."""
    recipe = resolved.read(run.resolved)
    task = recipe.objective
    if not shards.is_task(run) or not isinstance(task, Inference):
        raise UserError(f"{run.name} is a run of {task.method}, and has no records; mmlaunch status {run.name}")
    definition, footers = shards.read(run), _footers(run)
    merged = Merged(run.root / task.OUTPUT, allowed=task.max_failed)
    merged.made = run.root / task.MADE if task.makes_rows else None
    _gather_images(run)
    with ExitStack() as stack:
        output = stack.enter_context(_replacing(merged.output))
        made = stack.enter_context(_replacing(merged.made)) if merged.made else None
        digest = hashlib.sha256()
        for number, (first, stop) in enumerate(definition.ranges):
            for record in _in_order(shards.shard(run, number), first, stop, footers[number]):
                look(record)
                merged.rows += 1
                merged.failed.update([record["error"]["reason"]] if record.get("error") else [])
                merged.notes.update(record.get("counts", {}))
                for row in record.pop(MADE, ()):
                    assert made is not None  # whoever makes rows says where they go
                    made.write(_line(row))
                    merged.made_rows += 1
                line = _line(record)
                digest.update(line)
                output.write(line)
    _describe(run, recipe, merged, footers, digest.hexdigest())
    return merged


def _gather_images(run: RunPaths) -> None:
    """Images that stood in rows, beside the output that names them."""
    for shard in shards.all_shards(run):
        for path in shards.images(shard).glob("*") if shards.images(shard).is_dir() else ():
            target = shards.images(run) / path.name
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                publish(target, path.read_bytes())


def _footers(run: RunPaths) -> list[dict[str, Any]]:
    """The footers of all shards; raises `NotWhole` where one is missing, and `BadInput` where they do not agree."""
    every = shards.all_shards(run)
    footers = [shards.read_footer(one) for one in every]
    missing = [number for number, footer in enumerate(footers) if footer is None]
    if missing:
        states = status.of_all([every[number] for number in missing[:_SHOWN]])
        named = ", ".join(f"{one.run} ({one.state})" for one in states)
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        what = f"{len(missing)} of {len(every)} shards are not whole: {named}{more}"
        raise NotWhole(f"{run.name}: {what}; mmlaunch status {run.name}, or mmlaunch resume {run.name}")
    whole = [footer for footer in footers if footer is not None]
    for number, footer in enumerate(whole):
        if footer.get("content") != whole[0].get("content"):
            what = f"{every[number].name} was made with other weights or files than {every[0].name}"
            raise BadInput(f"{what}: their answers cannot stand in one file; submit a new task")
    return whole


def _in_order(shard: RunPaths, first: int, stop: int, footer: dict[str, Any]) -> Iterator[Record]:
    """The records of a shard by their index; raises `BadInput` unless each row has exactly one, as it was committed."""
    path, digest, at = shards.records(shard), hashlib.sha256(), 0
    starts = array("q", [-1]) * (stop - first)
    """Where the record of each row begins: 8 bytes a row are all that is in memory."""
    double, others = list[int](), list[int]()
    try:
        with path.open("rb") as lines:
            for line in lines:
                digest.update(line)
                index = _index(path, line)
                if not first <= index < stop:
                    others.append(index)
                elif starts[index - first] >= 0:
                    double.append(index)
                else:
                    starts[index - first] = at
                at += len(line)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    missing = [first + place for place, start in enumerate(starts) if start < 0]
    problems = {"double": sorted({*double}), "missing": missing, "of other rows": sorted({*others})}
    if wrong := [f"{what}: {_some(rows)}" for what, rows in problems.items() if rows]:
        raise BadInput(f"{path}: its records are not those of rows {first} to {stop - 1}: {'; '.join(wrong)}")
    if digest.hexdigest() != footer.get("sha256"):
        raise BadInput(f"{path}: was changed after it was written (its hash is not that of footer.json)")
    with path.open("rb") as lines:
        for start in starts:
            lines.seek(start)
            yield json.loads(lines.readline())


def _index(path: Path, line: bytes) -> int:
    try:
        index = json.loads(line)["index"]
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path}: {line[:60]!r} is no record") from None
    return int(index)


def _some(rows: list[int]) -> str:
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f"{', '.join(map(str, rows[:_SHOWN]))}{more}"


def _describe(run: RunPaths, recipe: Recipe, merged: Merged, footers: list[dict[str, Any]], digest: str) -> None:
    """Beside the output: what it was made of and with, so that the file can be traced when it is somewhere else."""
    environment = json.loads(run.environment.read_text(encoding="utf-8"))
    definition = shards.read(run)
    facts = {
        "run": run.name,
        "method": recipe.objective.method,
        "rows": merged.rows,
        "failed": dict(merged.failed),
        "sha256": digest,
        "model": recipe.model.init_from or recipe.model.pretrained,
        "content": footers[0].get("content"),
        "seed": recipe.seed,
        "recipe": recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        "inputs": [vars(one) for one in definition.inputs],
        "shards": len(definition.ranges),
        "seconds": sum(float(footer.get("seconds", 0)) for footer in footers),
        "versions": environment.get("versions"),
        "git": (environment.get("git") or {}).get("commit"),
        **({"made": str(merged.made), "made_rows": merged.made_rows} if merged.made else {}),
        **({"counts": dict(merged.notes)} if merged.notes else {}),
    }
    publish(merged.output.with_suffix(".about.json"), json.dumps(facts, indent=1, default=str) + "\n")


def _line(record: Record) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode(errors="surrogatepass") + b"\n"


class _replacing:
    """A file that takes the place of `path` when it was written as a whole."""

    def __init__(self, path: Path) -> None:
        self._path, self._aside = path, path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> BinaryIO:
        self._file = self._aside.open("wb")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        if kind is not None:
            self._aside.unlink(missing_ok=True)
            return
        self._aside.replace(self._path)
        sync_folder(self._path.parent)
