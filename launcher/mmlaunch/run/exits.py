"""How a job is told to end, and the exit codes by which it tells the restart policy how it ended."""

from __future__ import annotations

import signal
from enum import IntEnum

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
"""The signals by which time limits and preemption announce themselves."""

CANCELLED = 130
"""The exit code of a cancelled run, as after Ctrl-C."""


IN_JOB = 95
"""The restart policy's answer to a job script: the next attempt begins in the same job. No job ends with it."""

TIMED_OUT = 124
"""The ranks did not end before their time limit; timeout(1) uses the same code."""

PEER_LOST = "PeerLost"
"""The error type of a rank that failed only because another one had ended: that one's record holds the cause."""


class JobExit(IntEnum):
    """0 and 90 to 94 are a contract; every other code is classified from the rank's error record and log."""

    DONE = 0
    AGAIN = 90  # saved, and asks for another attempt
    UNFIT_NODE = 91
    HANG = 92
    STOP = 93  # do not restart
    BAD_INPUT = 94  # the recipe or the data are wrong
