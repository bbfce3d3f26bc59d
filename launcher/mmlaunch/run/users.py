"""The runs that start from a checkpoint of another run: that checkpoint is kept until they are done."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from mmlaunch.run import ledger
from mmlaunch.run.files import publish
from mmlaunch.run.paths import RunPaths, of_checkpoint


def register(user: RunPaths, checkpoint: Path) -> None:
    """Note in a checkpoint's run that `user` starts from it. A run of somebody else may not be ours to write in."""
    if (found := of_checkpoint(checkpoint)) is None:
        return
    source, step = found
    with suppress(OSError):
        source.users.mkdir(exist_ok=True)
        publish(source.users / f"{user.name}.json", json.dumps({"run": str(user.root), "step": step}) + "\n")


def needed_steps(run: RunPaths) -> set[int]:
    """The steps that runs start from which are not done."""
    steps = set()
    with suppress(OSError):
        for path in run.users.glob("*.json"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                fields = json.loads(path.read_text(encoding="utf-8"))
                user = RunPaths(Path(fields["run"]))
                if user.resolved.is_file() and not is_done(user):
                    steps.add(int(fields["step"]))
    return steps


def is_done(run: RunPaths) -> bool:
    """Whether a run has ended well, and was not submitted again."""
    try:
        ended = ledger.read_ends(run.events).of_this_submission.last("ended") or {}
    except OSError:
        return False
    return ended.get("state") == "done"
