"""`python -m mmlaunch.submit.ranks ATTEMPT COMMAND...`: does on this machine what srun does on a cluster.

It starts the ranks, gives each a log of its own, forwards signals, warns them before the time limit, and ends all of
them when one fails. Its exit code is that of the rank that failed first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from submitit.local.local import Controller

from mmlaunch.run.exits import TIMED_OUT, WARNINGS, JobExit
from mmlaunch.run.paths import AttemptPaths
from mmlaunch.schedulers.process import die_with_parent

GRACE = 10.0  # seconds that the other ranks have to write down their own errors
KILL_WAIT = 30.0  # Slurm's default between SIGTERM and SIGKILL at the time limit
POLL = 0.1


class Ranks(Controller):
    """submitit's controller, which behaves as srun does."""

    def __init__(self, attempt: AttemptPaths, command: list[str]) -> None:
        super().__init__(attempt.root)
        self.attempt = attempt
        self.command = command
        self.pid = os.environ["SUBMITIT_LOCAL_JOB_ID"]  # the batch script's: the job's number over all attempts
        for number in (*WARNINGS, signal.SIGINT):
            signal.signal(number, self._forward)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._forward_signal(signal.SIGTERM if number == signal.SIGINT else signal.Signals(number))

    def start_tasks(self) -> None:
        """One process for each rank, its output in `logs/rank-<r>.out`."""
        os.environ.setdefault("MMLAUNCH_DEADLINE", str(int(time.time()) + self.timeout_s))
        for rank in range(self.ntasks):
            names = ("SUBMITIT_LOCAL_LOCALID", "SUBMITIT_LOCAL_GLOBALID")
            environment = {**os.environ, **dict.fromkeys(names, str(rank)), "SUBMITIT_LOCAL_JOB_ID": self.pid}
            with self.attempt.rank_log(rank).open("ab") as log:
                self.tasks.append(
                    subprocess.Popen(
                        self.command,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        preexec_fn=lambda: die_with_parent(signal.SIGKILL),
                    )
                )

    def finish(self) -> int:
        """Wait for all ranks, or for the first that fails."""
        started, warned = time.monotonic(), False
        while any(task.poll() is None for task in self.tasks):
            passed = time.monotonic() - started
            if not warned and passed > self.timeout_s - self.signal_delay_s:
                warned = True
                self._forward_signal(signal.SIGUSR2)
            if passed > self.timeout_s:
                self._end(signal.SIGTERM, KILL_WAIT)
                return TIMED_OUT
            failed = [code for task in self.tasks if (code := task.poll()) is not None and _bad(code)]
            if failed:
                self._wait(GRACE)
                self._end(signal.SIGTERM, 1.0)
                return _as_shell(failed[0])
            time.sleep(POLL)
        codes = [task.returncode for task in self.tasks]
        return _as_shell(next((code for code in codes if _bad(code)), max(codes)))

    def _end(self, number: signal.Signals, patience: float) -> None:
        self._forward_signal(number)
        self._wait(patience)
        self._forward_signal(signal.SIGKILL)
        for task in self.tasks:
            task.wait()

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and any(task.poll() is None for task in self.tasks):
            time.sleep(POLL)


def _bad(code: int) -> bool:
    return code not in (JobExit.DONE, JobExit.AGAIN)


def _as_shell(code: int) -> int:
    """128 + n for a rank that signal n ended, as a shell would say."""
    return 128 - code if code < 0 else code


def main() -> int:
    """Run the ranks of one attempt."""
    die_with_parent(signal.SIGTERM)  # then the ranks save; no attempt runs on without its script
    ranks = Ranks(AttemptPaths(Path(sys.argv[1])), sys.argv[2:])
    ranks.start_tasks()
    return ranks.finish()


if __name__ == "__main__":
    sys.exit(main())
