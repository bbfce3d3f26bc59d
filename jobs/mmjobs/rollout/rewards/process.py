"""One worker as its rank sees it: a process that is given samples, answers with scores, and can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

_OF_THE_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
_OWN = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
_AT_ONCE = 1 << 16
_MOMENT = 0.5
"""Seconds until the exit code of a process that has just ended is known."""
_PATIENCE = 5.0
"""Seconds for the kernel to end a killed process."""


class WorkerProcess:
    """A process of its own, started anew and not forked: it inherits no GPU, no process group and no open file."""

    def __init__(self, setup: dict[str, Any]) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in _OF_THE_RANK} | _OWN
        command = [sys.executable, "-m", "mmjobs.rollout.rewards.worker", str(os.getpid())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment, start_new_session=True
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        for pipe in (self._requests, self._replies):
            os.set_blocking(pipe.fileno(), False)
        self._unsent, self._unread = b"", b""
        self.ready, self.until = False, 0.0
        self.sample: int | None = None
        """The number of the sample that it works on."""
        self.send(setup)

    @property
    def reads(self) -> int:
        """The descriptor to wait at for replies."""
        return self._replies.fileno()

    @property
    def writes(self) -> int | None:
        """The descriptor to wait at until the rest of a request can be sent; None if all is sent."""
        return self._requests.fileno() if self._unsent else None

    def send(self, message: dict[str, Any]) -> None:
        self._unsent += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send as much as the pipe takes: a worker that does not read must not hold up its rank."""
        while self._unsent:
            try:
                self._unsent = self._unsent[os.write(self._requests.fileno(), self._unsent) :]
            except BlockingIOError:
                return
            except BrokenPipeError:  # it has ended, which `receive` finds
                self._unsent = b""

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """The messages that have come, and whether the process has ended."""
        ended = self._process.poll() is not None
        while True:
            try:
                part = os.read(self._replies.fileno(), _AT_ONCE)
            except BlockingIOError:
                break
            if not part:
                ended = True
                break
            self._unread += part
        *lines, self._unread = self._unread.split(b"\n")
        try:
            return [json.loads(line) for line in lines], ended
        except ValueError:  # the function has found the pipe and written into it
            return [], True

    def end(self, ended: bool = False) -> str:
        """Kill it with all that it has started; returns how it had ended, in words, where it has."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_MOMENT if ended else 0)
        code = self._process.poll()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                pipe.close()
        if code is None:
            return "the process has closed its pipe"
        if code >= 0:
            return f"the process ended with exit code {code}"
        memory = "; perhaps it needed too much memory" if code == -signal.SIGKILL else ""
        return f"the process was killed by {signal.Signals(-code).name}{memory}"
