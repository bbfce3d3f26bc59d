"""The process in which a reward function runs: one sample a line in, one score a line out, until it is killed.

    python -m mmjobs.rollout.rewards.worker <process id of the rank>

The first line says which function. What the function prints goes to the log of the rank.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, BinaryIO

from mmjobs.data.parent import end_with_parent
from mmjobs.rollout.rewards.call import CannotLoad, Function, last_line

Line = dict[str, Any]


def main() -> None:
    end_with_parent(int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)  # they are meant for the rank; programs started from here have their own
    requests, replies = _private_pipes()
    setup = json.loads(requests.readline())
    _limit_memory(setup["memory"])
    function = _loaded(setup, replies)
    shown = False
    for line in requests:
        sample = json.loads(line)
        reply, trace = _scored(function, sample)
        if trace and not shown:  # the whole traceback of the first failure is enough
            shown = True
            print(f"{sample['origin']}: the reward function failed\n{trace}", file=sys.stderr)
        _send(replies, {"number": sample["number"], **reply})


def _private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pipes to the rank, out of the function's reach: its input is empty, its output is the rank's log."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]  # of a process of ours
    return requests, replies


def _limit_memory(size: int) -> None:
    """Have the function feel the limit itself, and the kernel choose this process before its rank."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (size, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _loaded(setup: Line, replies: BinaryIO) -> Function:
    sys.path.insert(0, setup["packages"])  # the copies of packages go before all others
    try:
        function = Function(setup["function"], setup["file"], setup["options"], setup["context"])
    except BaseException as error:  # noqa: BLE001  a process boundary, and whatever a user's module does
        _send(replies, {"problem": str(error) if isinstance(error, CannotLoad) else last_line(error)})
        raise SystemExit(1) from None
    _send(replies, {"ready": True})
    return function


def _scored(function: Function, sample: Line) -> tuple[Line, str]:
    """The score as the rank reads it, and the traceback of a function that failed."""
    process = os.getpid()
    try:
        result = function(sample)
        reply = {"value": result.score, "kind": result.kind, "detail": "", "extracted": result.extracted}
        trace = ""
    except BaseException as error:  # noqa: BLE001  a process boundary; SystemExit must not end the worker either
        reply, trace = {"value": None, "kind": "error", "detail": last_line(error)}, traceback.format_exc()
    if os.getpid() != process:  # a copy that the function has made of this process and left running
        os._exit(1)
    return reply, trace


def _send(replies: BinaryIO, message: Line) -> None:
    sys.stdout.flush()
    replies.write(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
