"""Another machine that ssh reaches: how a command is given there, and what a refusal of ssh means."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mmlaunch.errors import MachineError

if TYPE_CHECKING:  # whoever only asks where a run is does not wait for the schema
    from mmlaunch.load.cluster import Cluster

VARIABLE = "MMLAUNCH_SSH"
"""Another ssh program, or more options for it: `ssh -F my_config`."""
REFUSED, NO_PROGRAM = 255, 127
"""The exit codes of ssh itself, and of a shell that does not find a program."""
_LONGEST_SOCKET = 40
"""The longest folder of a shared connection: with the name in it, a socket has to fit into 104 characters."""

_REASONS = (
    ("could not resolve", "there is no host of this name", "write its address, or an alias of ~/.ssh/config"),
    ("permission denied", "it does not let you in without a password", "add your key: ssh-add, ssh-copy-id {host}"),
    ("host key verification", "its host key is not known here", "type ssh {host} once, and compare the key"),
    ("timed out", "it does not answer", "check the network, a VPN, and its address"),
    ("refused", "it does not answer", "check the network, a VPN, and its address"),
    ("no route", "it does not answer", "check the network, a VPN, and its address"),
)
"""Words of ssh, what they mean, and what would be right."""


@dataclass(frozen=True)
class Host:
    """Where a project lives on another machine."""

    name: str
    """What ssh is given: `me@login.cluster.org`, or an alias."""
    folder: str
    """The working folder of the project there; `~/` is the home there."""
    program: str
    """mmlaunch there."""

    def script(self, arguments: Sequence[str], variables: Mapping[str, str], attached: bool) -> str:
        """The shell lines that run mmlaunch there.

        They travel on standard input: values of variables stand in no file, and in no list of processes. `attached`:
        the command ends when this side of the connection does, as in a terminal that is closed.
        """
        command = f"{quoted(self.program)} {shlex.join(arguments)} </dev/null"
        lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        lines.append(f"cd {quoted(self.folder)} || exit {MachineError.exit_code}")
        if not attached:
            return "\n".join([*lines, f"exec {command}\n"])
        lines += [
            "exec 3<&0",
            f"{command} 3<&- & command=$!",
            "(cat <&3; kill $command) >/dev/null 2>&1 &",
            "wait $command; code=$?; kill $! 2>/dev/null; exit $code",
        ]
        return "\n".join(["{", *lines, "}\n"])  # a shell reads all of a group before it begins


def host_of(cluster: Cluster, project: str) -> Host:
    """The host of a profile that has one, with the folder of this project there."""
    assert cluster.host is not None
    return Host(cluster.host, f"{cluster.host_folder.rstrip('/')}/{project}", cluster.host_program)


def quoted(path: str) -> str:
    """A path for a shell; `~/` stays the home of whoever runs the shell."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


@cache
def ssh(name: str) -> tuple[str, ...]:
    """The ssh program with the options of every call. Calls share one connection for a minute, unless the user's own
    ssh configuration says how connections are shared."""
    program = shlex.split(os.environ.get(VARIABLE) or "ssh")
    options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
    known = _called([*program, "-G", name]).stdout.splitlines()
    own = [line for line in known if line.startswith("controlpath ") and line != "controlpath none"]
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or Path.home() / ".ssh")
    if not own and folder.is_dir() and len(str(folder)) <= _LONGEST_SOCKET:
        socket = f"ControlPath={folder}/mm-%C"
        options += ["-o", "ControlMaster=auto", "-o", socket, "-o", "ControlPersist=60"]
    return (*program, *options)


def run(
    host: Host, arguments: Sequence[str], variables: Mapping[str, str], on_line: Callable[[str], None] | None = None
) -> int:
    """Run mmlaunch on a host; returns its exit code. What it prints is shown here as it comes: `on_line` gets each line
    of its standard output, if it is given."""
    output = None if on_line is None else subprocess.PIPE
    with _log() as log, open_shell(host, host.script(arguments, variables, attached=True), log, output) as process:
        for line in process.stdout or ():
            assert on_line is not None
            on_line(line)
        code = process.wait()
        raise_refusal(host, code, log.read_text(errors="replace"))
    return code


def ask(host: Host, script: str, seconds: float) -> str:
    """What a short script prints on a host; raises `MachineError` with the reason where it fails."""
    with _log() as log, open_shell(host, script, log, subprocess.PIPE, subprocess.PIPE) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise MachineError(f"{host.name}: no answer within {seconds:g} s; check it with: ssh {host.name}") from None
        raise_refusal(host, process.returncode, log.read_text(errors="replace"))
        if process.returncode:
            raise MachineError(f"{host.name}: {errors.strip() or output.strip() or 'it failed without a word'}")
    return output


def open_shell(
    host: Host, script: str, log: Path, output: int | None = None, errors: int | None = None
) -> subprocess.Popen[str]:
    """A shell on a host that runs a script. What ssh itself has to say goes into `log`."""
    command = [*ssh(host.name), "-E", str(log), host.name, "sh", "-s"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=errors, text=True)
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # ssh has ended already: its exit code says so
        process.stdin.write(script)
        process.stdin.flush()
    return process


def raise_refusal(host: Host, code: int, output: str) -> None:
    """Raise `MachineError` if ssh did not come through, or if there is no mmlaunch on the host."""
    if code == NO_PROGRAM:
        right = "install it there, or write host_program: /path/to/bin/mmlaunch in the profile"
        raise MachineError(f"{host.name}: there is no program {host.program} on the PATH of a plain shell; {right}")
    if code != REFUSED:
        return
    last = output.strip().splitlines()[-1].strip() if output.strip() else "ssh ended without a word"
    for words, what, right in _REASONS:
        if words in output.lower():
            raise MachineError(f"{host.name}: {what} ({last}); {right.format(host=host.name)}")
    raise MachineError(f"{host.name}: the connection failed or ended ({last}); check it with: ssh {host.name}")


@contextmanager
def _log() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mmlaunch-") as folder:
        (path := Path(folder) / "ssh").touch()
        yield path


def _called(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        right = f"install the client of OpenSSH, or set ${VARIABLE}"
        raise MachineError(f"{command[0]} cannot be run ({error.strerror}); {right}") from None
