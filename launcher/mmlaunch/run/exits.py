"""The exit codes by which a job tells the restart policy how it ended."""

from __future__ import annotations

from enum import IntEnum

CANCELLED = 130
"""What a cancelled run ends with, as after Ctrl-C."""


TIMED_OUT = 124
"""The ranks did not leave before their time limit; the code that timeout(1) uses."""

PEER_LOST = "PeerLost"
"""The error type of a rank that only saw another one go: the cause stands in that one's record."""


class JobExit(IntEnum):
    """0 and 90 to 94 are a contract; every other code is classified from the rank's error record and log."""

    DONE = 0
    AGAIN = 90  # saved, and asks for another attempt
    UNFIT_NODE = 91
    HANG = 92
    STOP = 93  # do not restart
    BAD_INPUT = 94  # the recipe or the data are wrong
