"""A task that is split into shards: its definition, and where everything of it stands.

The run directory of the task holds the definition, and `shards/<n>`, a run directory for each shard. A shard has a
ledger, owners and attempts of its own; the recipe, the code and the job folder are links to those of the task. Only
commands that a user types write into the task's own directory; what it is doing is derived from its shards.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmlaunch.errors import BadInput
from mmlaunch.run.files import publish
from mmlaunch.run.paths import SHARDS, RunPaths

IMAGES = "images"
"""The folder beside an output that holds images of its rows, as records name it."""


@dataclass(frozen=True)
class InputFile:
    """A source as it was when the task was submitted."""

    name: str
    """What its rows are counted under: the name of its file or folder."""
    path: str
    rows: int
    bytes: int
    digest: str


@dataclass(frozen=True)
class Definition:
    """How the rows of a task are split. It never changes, once the rows are there."""

    rows: int
    window: int
    """Rows that are sorted by length together; no window is divided."""
    batch: int
    ranges: tuple[tuple[int, int], ...]
    """The first row of each shard, and the one behind its last."""
    inputs: tuple[InputFile, ...]
    against: tuple[InputFile, ...] = ()
    """The second file of predictions, where one is compared with the input."""
    open: bool = False
    """Whether the input is still to be made, by another stage: the rows are split when the task begins."""

    @property
    def text(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def split(rows: int, shards: int, window: int) -> tuple[tuple[int, int], ...]:
    """So many ranges of whole windows, as even as they can be; fewer where there are not enough windows."""
    windows = -(-rows // window)
    shards = min(shards, windows)
    edges = [min(rows, window * (windows * number // shards)) for number in range(shards + 1)]
    return tuple(pairwise(edges))


def is_task(run: RunPaths) -> bool:
    """Whether this run is split into shards."""
    return run.definition.is_file()


def write(run: RunPaths, definition: Definition) -> None:
    publish(run.definition, definition.text, 0o444)


def read(run: RunPaths) -> Definition:
    """The definition of a task; raises `BadInput` where it was damaged."""
    path = run.definition
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        inputs, against = (tuple(InputFile(**one) for one in kept.pop(key, ())) for key in ("inputs", "against"))
        ranges = tuple((int(first), int(stop)) for first, stop in kept.pop("ranges"))
        return Definition(**kept, ranges=ranges, inputs=inputs, against=against)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: is no definition of shards ({error}); it was written at submission") from None


def shard(run: RunPaths, number: int) -> RunPaths:
    """The run directory of a shard."""
    return RunPaths(run.root / SHARDS / str(number))


def all_shards(run: RunPaths) -> list[RunPaths]:
    """All shards, in the order of their rows."""
    return [shard(run, number) for number in range(len(read(run).ranges))]


def task_of(run: RunPaths) -> RunPaths | None:
    """The task that a shard is part of; None for any other run."""
    shard_of = run.root.parent.name == SHARDS and run.definition_above.is_file()
    return RunPaths(run.root.parent.parent) if shard_of else None


def number_of(run: RunPaths) -> int:
    return int(run.root.name)


def make(run: RunPaths, number: int) -> RunPaths:
    """The run directory of a shard, with its links; what is there of it stays."""
    one = shard(run, number)
    one.owners.mkdir(parents=True, exist_ok=True)
    one.attempts.mkdir(exist_ok=True)
    for shared in (run.resolved, run.environment, run.profile, run.code, run.job):
        with suppress(FileExistsError):
            (one.root / shared.name).symlink_to(Path("..", "..", shared.name))
    return one


def write_tasks(run: RunPaths, submission: int, tasks: Iterable[Sequence[RunPaths]]) -> None:
    """The run directories that each task of a submission's job arrays goes through, a line for each."""
    path = tasks_file(run, submission)
    path.parent.mkdir(exist_ok=True)
    lines = (" ".join(os.path.relpath(one.root, run.root) for one in runs) for runs in tasks)
    publish(path, "".join(f"{line}\n" for line in lines))


def tasks_file(run: RunPaths, submission: int) -> Path:
    return run.root / "tasks" / f"{submission}.txt"


def submitted(run: RunPaths, submission: int) -> list[int]:
    """The shards that a submission of a task goes through."""
    return [int(Path(word).name) for word in tasks_file(run, submission).read_text(encoding="utf-8").split()]


def records(one: RunPaths) -> Path:
    """The records of a shard, in the order in which they were made."""
    return one.root / "records.jsonl"


def commits(one: RunPaths) -> Path:
    """What was committed when: batches, the size of the records behind them, seconds."""
    return one.root / "commits.jsonl"


def images(run: RunPaths) -> Path:
    """The images that stood in rows and have no file of their own: of a shard, and, once it is merged, of a task."""
    return run.root / IMAGES


def footer(one: RunPaths) -> Path:
    """It is there once a shard is whole: the number and the hash of its records, and what made them."""
    return one.root / "footer.json"


def read_footer(one: RunPaths) -> dict[str, Any] | None:
    """None while the shard is not whole."""
    try:
        kept = json.loads(footer(one).read_text(encoding="utf-8"))
        return kept if isinstance(kept, dict) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BadInput(f"{footer(one)}: cannot be read ({error})") from None


def is_whole(one: RunPaths) -> bool:
    """Whether a shard has the records that its footer names."""
    try:
        kept = read_footer(one)
        with records(one).open("rb") as file:
            return kept is not None and hashlib.file_digest(file, "sha256").hexdigest() == kept.get("sha256")
    except (OSError, BadInput):
        return False


def set_aside(one: RunPaths, name: str) -> None:
    """Begin a damaged shard anew: what is there of its records is kept under another name."""
    for path in (records(one), commits(one), footer(one)):
        if path.exists():
            path.replace(path.with_name(f"{path.stem}.{name}{path.suffix}"))


def output(run: RunPaths, name: str) -> Path:
    """A file that is made of all shards' records."""
    return run.root / name
