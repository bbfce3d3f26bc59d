"""`python -m mmlaunch.attempt`: the name by which job scripts, old ones too, call the restart policy.

A stage of a pipeline first checks what it needs, and last releases the stages that need it.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from mmlaunch.errors import MmlaunchError
from mmlaunch.restart import attempt
from mmlaunch.run import pipeline
from mmlaunch.run.exits import IN_JOB, JobExit
from mmlaunch.run.paths import RunPaths


def main(arguments: list[str]) -> int:
    """The command line of job scripts; users never type it."""
    if len(arguments) < 4 or arguments[0] not in ("open", "close"):
        return attempt.main(arguments)
    run, submission = RunPaths(Path(arguments[1])), int(arguments[-1])
    try:
        if (member := pipeline.membership(run)) is None:
            return _notified(run, arguments[0], attempt.main(arguments))
        from mmlaunch.submit import stages  # only stages wait for it

        if arguments[0] == "open":
            try:
                stages.enter(run, member, submission)
            except stages.NotReady:
                stages.after(run, member)
                raise
        code = attempt.main(arguments)
        stages.after(run, member)
        if (parent := stages.halving(member)) is not None and arguments[0] == "close":
            from mmlaunch.submit.halving import promote  # only sweeps by halving wait for it

            promote(parent)
        _notified(run, arguments[0], code)
    except (MmlaunchError, OSError) as error:
        print(f"mmlaunch: {error}", file=sys.stderr)
        return _notified(run, arguments[0], JobExit.STOP)
    return code


def _notified(run: RunPaths, act: str, code: int) -> int:
    """Send the notifications of a run that has ended, behind everything else; returns the exit code."""
    over = code not in (JobExit.AGAIN, IN_JOB) if act == "close" else code != JobExit.DONE
    if over and _has_notifications(run):
        from mmlaunch.monitor import notify  # most runs do not wait for it

        notify.after_attempt(run)
    return code


def _has_notifications(run: RunPaths) -> bool:
    """Whether the recipe has notifications; it is read as text, since a whole recipe takes longer."""
    with suppress(OSError):
        return "\nnotify:\n" in run.resolved.read_text(encoding="utf-8")
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
