"""Gives commands on runs of another machine there."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from mmlaunch.errors import MachineError, UserError
from mmlaunch.remote import records
from mmlaunch.remote.host import Host, ask, quoted, run
from mmlaunch.remote.records import Record

COMMANDS = ("status", "logs", "why", "cancel", "resume", "report", "export", "results", "table", "watch")
"""What is given there; other commands have to be typed there."""
NEED_VALUES = ("resume", "watch")
"""Those that use the variables which a recipe passes through."""
PATIENCE = 8.0
"""Seconds for a host that is asked where its runs stand."""


def remote_runs(names: Sequence[str]) -> tuple[Host, dict[str, Record]] | None:
    """The host of the runs that a user names, and their records by their whole names; None for runs of this machine."""
    known = [records.find(name) for name in names]
    there = {one[1]: one[0] for one in known if one is not None}
    if not there:
        return None
    hosts = list(dict.fromkeys(record.host for record in there.values()))
    if None in known or len(hosts) > 1:
        places = ", ".join(["this machine"] * (None in known) + [f"{one.name}:{one.folder}" for one in hosts])
        raise UserError(f"{', '.join(names)}: runs of {places}; name those of one place at a time")
    return hosts[0], there


def forward(command: str, host: Host, runs: dict[str, Record], options: Sequence[str]) -> int:
    """Give a command on these runs there, and show what it prints; returns its exit code."""
    words = [command, *options, *runs]
    if command not in COMMANDS:
        there = f"cd {quoted(host.folder)} && {quoted(host.program)} {shlex.join(words)}"
        what = f"{next(iter(runs))} is a run of {host.name}, and mmlaunch {command} works there alone"
        raise UserError(f"{what}; type: ssh -t {host.name} {shlex.quote(there)}")
    needed = [name for record in runs.values() for name in record.passed] if command in NEED_VALUES else []
    return run(host, words, {name: os.environ[name] for name in needed if name in os.environ})


def ask_all(arguments: Sequence[str]) -> Iterator[tuple[Host, str, str]]:
    """What a command prints wherever recorded runs are, or why there is no answer; all are asked at once."""
    hosts = list(dict.fromkeys(record.host for record in records.records()))
    with ThreadPoolExecutor(max_workers=max(len(hosts), 1)) as pool:
        yield from pool.map(partial(_answer, arguments), hosts)


def _answer(arguments: Sequence[str], host: Host) -> tuple[Host, str, str]:
    try:
        return host, ask(host, host.script(arguments, {}, attached=False), PATIENCE), ""
    except MachineError as error:
        return host, "", str(error)
