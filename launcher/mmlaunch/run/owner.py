"""Who owns a run. Every submission has a number; the newest one owns the run, and no other job may write into it.

A submission takes its number by creating `owners/<number>.json`. Of several that try at once, one succeeds: the file is
written aside and linked to its name, which is atomic on NFS as well. No file is ever deleted to pass the run on: the
next owner takes the next number, so that a job of an older submission can always see that it is too late.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmlaunch.errors import MmlaunchError
from mmlaunch.run.files import publish
from mmlaunch.run.paths import RunPaths

VARIABLE = "MMLAUNCH_SUBMISSION"
"""The number of its submission, in the environment of a job's ranks."""


class NotTheOwner(MmlaunchError):
    """A newer submission owns the run: this job must not write."""


def newest(run: RunPaths) -> int:
    """The number of the submission that owns the run; 0 for a run of a version without owners."""
    with suppress(FileNotFoundError):
        return max((int(path.stem) for path in run.owners.iterdir() if path.stem.isdecimal()), default=0)
    return 0


def take(run: RunPaths, number: int, **facts: Any) -> bool:
    """Make a submission the owner of the run; False if another one was faster."""
    run.owners.mkdir(exist_ok=True)
    path = _file(run, number)
    aside = path.with_name(f".{number}.{os.urandom(4).hex()}.tmp")
    publish(aside, json.dumps(facts) + "\n")
    try:
        os.link(aside, path)
    except FileExistsError:
        return aside.stat().st_nlink == 2  # NFS repeats a link whose answer was lost, and then finds its own
    finally:
        aside.unlink(missing_ok=True)
    return True


def write(run: RunPaths, number: int, **facts: Any) -> None:
    """Replace what is known of an owner: only the submission itself and its job do that."""
    if number:
        publish(_file(run, number), json.dumps({**read(run, number), **facts}) + "\n")


def read(run: RunPaths, number: int) -> dict[str, Any]:
    """What is known of an owner; empty if its file is missing or damaged."""
    with suppress(OSError, ValueError):
        facts = json.loads(_file(run, number).read_text(encoding="utf-8"))
        return facts if isinstance(facts, dict) else {}
    return {}


def release(run: RunPaths, number: int) -> None:
    """Give back a number under which nothing was submitted."""
    _file(run, number).unlink(missing_ok=True)


def check(run: RunPaths, number: int, attempt: int = 0) -> None:
    """Refuse to go on for a submission that no longer owns the run, or an attempt after which another one has begun:
    its node was lost to the scheduler, and its processes live. 0: a job script that knows no number."""
    owner = newest(run)
    facts = read(run, owner) if number else {}
    if number == owner and 0 < attempt < int(facts.get("attempt", 0)):
        raise NotTheOwner(f"attempt {facts['attempt']} of {run.name} has begun: attempt {attempt} ends here")
    if number and number != owner:
        who = f"job {facts['job']}" if facts.get("job") else f"submission {owner}"
        by = f" by {facts['by']} on {facts['host']}" if facts.get("by") and facts.get("host") else ""
        raise NotTheOwner(f"{run.name} was submitted again{by}: {who} owns it now, and submission {number} ends here")


def _file(run: RunPaths, number: int) -> Path:
    return run.owners / f"{number}.json"
