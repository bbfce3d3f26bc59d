"""`python -m mmlaunch.attempt`: the name by which job scripts, old ones too, call the restart policy.

A stage of a pipeline first checks what it needs, and last releases the stages that need it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmlaunch.errors import MmlaunchError
from mmlaunch.restart import attempt
from mmlaunch.run import pipeline
from mmlaunch.run.exits import JobExit
from mmlaunch.run.paths import RunPaths


def main(arguments: list[str]) -> int:
    """The command line of job scripts; users never type it."""
    if len(arguments) < 4 or arguments[0] not in ("open", "close"):
        return attempt.main(arguments)
    run, submission = RunPaths(Path(arguments[1])), int(arguments[-1])
    try:
        if (member := pipeline.membership(run)) is None:
            return attempt.main(arguments)
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
    except (MmlaunchError, OSError) as error:
        print(f"mmlaunch: {error}", file=sys.stderr)
        return JobExit.STOP
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
