"""`mmlaunch attach`: A shell, the stacks or a command beside a live rank."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import click

from mmlaunch.cli import options
from mmlaunch.errors import MachineError, UserError
from mmlaunch.load import find_run
from mmlaunch.monitor import live_rank
from mmlaunch.monitor.live_rank import LiveRank

PATIENCE = 10.0
"""Seconds that a rank may take to write its stacks."""


@click.command(
    epilog="\b\nExamples:\n  mmlaunch attach dpo-llama3-8b\n  mmlaunch attach last --rank 12 --stacks\n"
    "  mmlaunch attach last --rank 8 -- nvidia-smi\n  mmlaunch attach last -- py-spy top --pid '$RANK_PID'"
)
@options.run(many=False)
@click.argument("words", nargs=-1, metavar="[-- COMMAND...]")
@click.option("--rank", type=click.IntRange(min=0), default=0, show_default=True, help="Which rank to go to.")
@click.option("--stacks", is_flag=True, help="Show what all threads of the rank do, and leave.")
def command(run: str, words: tuple[str, ...], rank: int, stacks: bool) -> None:
    """Open a shell on the node of a rank of RUN, in its container and with its environment, or run COMMAND there.

    The rank works on meanwhile; $RANK_PID is its process. Slurm runs the command inside the job, beside the ranks.
    """
    live = live_rank.find(find_run.resolve(run), rank)
    if stacks:
        if words:
            raise UserError("--stacks shows the stacks, and a command runs itself; write one of the two")
        click.echo(_stacks(live), nl=False)
        return
    pid, terminal = str(live.heartbeat.pid), not words and sys.stdin.isatty()
    shell = ["bash", "-i"] if terminal else ["bash"]
    if not words:
        click.echo(f"rank {rank} is process {pid} on {live.heartbeat.node}; type exit to leave", err=True)
    raise SystemExit(_call(live.command([word.replace("$RANK_PID", pid) for word in words] or shell, terminal)))


def _call(arguments: list[str]) -> int:
    try:
        return subprocess.run(arguments, check=False).returncode
    except FileNotFoundError:
        raise MachineError(f"{arguments[0]} is not on this machine's PATH; go to a login node of the cluster") from None


def _stacks(live: LiveRank) -> str:
    """What the rank writes into its log on SIGQUIT."""
    log = live.run.attempt(max(live.run.attempt_numbers)).rank_log(live.heartbeat.rank)
    begin = log.stat().st_size if log.exists() else 0
    if code := _call(live.signal("QUIT")):
        raise MachineError(f"the signal for the stacks could not be sent (exit code {code})")
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        time.sleep(0.3)
        if "File " in (new := _behind(log, begin)):
            time.sleep(0.3)  # the threads behind the first one
            return _behind(log, begin) or new
    raise MachineError(f"the rank has written no stacks within {PATIENCE:.0f} s; it may be caught in the kernel: {log}")


def _behind(log: Path, begin: int) -> str:
    with log.open("rb") as file:
        file.seek(begin)
        return file.read().decode(errors="replace")
