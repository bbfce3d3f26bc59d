"""What a rank does on a signal, in a process of its own."""

from __future__ import annotations

import subprocess
import sys


def test_a_quit_signal_shows_the_stacks_and_ends_nothing() -> None:
    code = "import os, signal; from mmjobs.rank import signals; signals.listen(); os.kill(os.getpid(), signal.SIGQUIT)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('goes on')"], capture_output=True, text=True, check=True
    )
    assert "goes on" in done.stdout and "most recent call first" in done.stderr


def test_what_waits_for_ever_at_the_end_holds_no_rank() -> None:
    """A thread of a library, say, that still sends what nobody receives."""
    code = (
        "import threading, time, mmjobs.main as main\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "main._LEAVING = 0.5\n"
        "main._leave_soon(90)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 90
