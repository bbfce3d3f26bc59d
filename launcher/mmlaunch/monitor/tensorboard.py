"""Starts TensorBoard on a temporary folder that holds a link, named after the run, to the curves of each run."""

from __future__ import annotations

import errno
import getpass
import http.client
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from signal import SIGTERM

from mmlaunch.errors import MachineError, MmlaunchError, UserError
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import choose
from mmlaunch.schedulers.process import die_with_parent

FIRST_PORT, PORTS = 6006, 100
PATIENCE = 120.0  # a login node that is busy takes its time to import TensorBoard from a network disk
POLL = 0.2
LOOK_AGAIN = 5.0
"""Seconds between two searches for new runs; TensorBoard reads new points as often."""
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def has_curves(run: RunPaths) -> bool:
    """Whether any attempt has begun to write."""
    return bool(run.curves)


def port_for(host: str, wanted: int | None) -> int:
    """The requested port, or the first free one from 6006 on; 0 stands for any free port."""
    for port in (wanted,) if wanted is not None else range(FIRST_PORT, FIRST_PORT + PORTS):
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET  # as TensorBoard chooses
            address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4]
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # free if just closed
                probe.bind(address)
                return int(probe.getsockname()[1])
        except socket.gaierror:
            raise _not_here(host) from None
        except PermissionError:
            raise UserError(
                f"--port: {port} is not open to you; leave --port away and take the first free one"
            ) from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise _not_here(host) from None
            refusal = error
    if wanted is None:
        raise MachineError(f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free on {host}; choose a --port")
    raise MachineError(f"port {wanted} of {host}: {refusal.strerror}; leave --port away and take the first free one")


def _not_here(host: str) -> UserError:
    return UserError(f"--host: this machine is not {host!r}; localhost, or 0.0.0.0 for every network")


def tunnel(port: int) -> str:
    """The ssh command for the user's own machine to reach a board on this one; empty if this is the user's machine."""
    here, login = socket.gethostname(), choose.submitted_from()
    inside = bool(login and login != here)
    if not inside and not os.environ.get("SSH_CONNECTION"):
        return ""
    user = getpass.getuser()
    jump = f"-J {user}@{login} " if inside else ""  # a node of a job is reached over the login node
    return f"ssh -N {jump}-L {port}:localhost:{port} {user}@{here}"


@dataclass
class Board:
    """A running TensorBoard."""

    process: subprocess.Popen[bytes]
    url: str
    port: int
    link: Callable[[], None]

    def wait(self) -> int:
        """Wait until it ends; return its exit code. Runs that begin in the meantime are added."""
        while True:
            try:
                return self.process.wait(LOOK_AGAIN)
            except subprocess.TimeoutExpired:
                self.link()


@contextmanager
def serving(runs: Callable[[], Iterable[RunPaths]], host: str, wanted: int | None) -> Iterator[Board]:
    """Start TensorBoard on these runs, wait until it answers, and stop it at the end of the block."""
    if importlib.util.find_spec("tensorboard") is None:
        raise MachineError("this Python has no TensorBoard; pip install tensorboard, or: pip install 'mmlaunch[train]'")
    port = port_for(host, wanted)
    with tempfile.TemporaryDirectory(prefix="mmlaunch-board-") as name, tempfile.TemporaryFile() as output:
        link = partial(_link, Path(name), runs)
        link()
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", name, "--host", host, "--port", str(port)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=partial(die_with_parent, SIGTERM),
        )
        try:
            if not _answers(process, _EVERYWHERE.get(host, host), port, name):
                output.seek(0)
                words = output.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise MmlaunchError(f"TensorBoard did not start: {words or 'it said nothing'}")
            shown = socket.gethostname() if host in _EVERYWHERE else f"[{host}]" if ":" in host else host
            yield Board(process, f"http://{shown}:{port}/", port, link)
        finally:
            _end(process)


def _link(folder: Path, runs: Callable[[], Iterable[RunPaths]]) -> None:
    """Add a link for each new run. TensorBoard shows the links' names, and reads nothing else of a run."""
    known = {link.readlink() for link in folder.iterdir()}
    for run in runs():
        if run.tensorboard in known:
            continue
        name, count = run.name, 1
        while (folder / name).is_symlink():  # runs of two folders may have one name
            name, count = f"{run.name}-{count + 1}", count + 1
        (folder / name).symlink_to(run.tensorboard, target_is_directory=True)


def _answers(process: subprocess.Popen[bytes], host: str, port: int, folder: str) -> bool:
    """Wait until it answers, and check that it serves this folder: another program may have taken the port."""
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        connection = http.client.HTTPConnection(host, port, timeout=5)  # never by way of a proxy
        try:
            connection.request("GET", "/data/environment")
            return bool(json.loads(connection.getresponse().read())["data_location"] == folder)
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            time.sleep(POLL)
        finally:
            connection.close()
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
