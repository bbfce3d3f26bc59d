"""A rank of a live attempt: where its process is, and how a command is run beside it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from mmlaunch.errors import UserError
from mmlaunch.monitor import status
from mmlaunch.run import heartbeats, ledger, shards
from mmlaunch.run.heartbeats import Heartbeat
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import choose
from mmlaunch.schedulers.base import JobRecord, Scheduler

_ENTER = """\
pid={pid}
[ -r "/proc/$pid/environ" ] || {{ echo "rank {rank} is no longer process $pid of $(hostname)" >&2; exit 3; }}
mapfile -d '' -t variables < "/proc/$pid/environ"
inside=()
if [ "$(readlink "/proc/$pid/ns/mnt")" != "$(readlink /proc/self/ns/mnt)" ]; then # the rank is in a container
  inside=(nsenter --target "$pid" --mount --user --preserve-credentials --)
fi
cd "/proc/$pid/cwd" 2>/dev/null || true
variables+=(RANK={rank} "RANK_PID=$pid" "TERM=${{TERM:-xterm}}")
exec "${{inside[@]}}" env --ignore-environment "${{variables[@]}}" {command}
"""
"""A script for bash on the node: the command gets the environment and the container of the rank."""


@dataclass(frozen=True)
class LiveRank:
    """A rank that works now."""

    run: RunPaths
    heartbeat: Heartbeat
    scheduler: Scheduler
    job: JobRecord

    def command(self, words: Sequence[str], terminal: bool) -> list[str]:
        """The argument list that runs these words beside the rank, as it would run them itself."""
        beat = self.heartbeat
        script = _ENTER.format(pid=beat.pid, rank=beat.rank, command=shlex.join(words))
        return [*self.scheduler.beside(self.job, beat.node, terminal), "bash", "-c", script]

    def signal(self, name: str) -> list[str]:
        """The argument list that sends a signal to the rank."""
        beside = self.scheduler.beside(self.job, self.heartbeat.node, False)
        return [*beside, "kill", f"-{name}", str(self.heartbeat.pid)]


def find(run: RunPaths, rank: int) -> LiveRank:
    """The rank of the newest attempt; raises `UserError` if the run does not work now, or has no such rank."""
    if shards.is_task(run):
        raise UserError(f"{run.name} is split into shards; name one of them: {run.name}/0")
    now = status.of(run)
    if now.state not in ("starting", "running"):
        raise UserError(f"{run.name} is {now.shown_state}: nothing of it works now; mmlaunch why {run.name}")
    events = ledger.skim(run.events)
    attempt = run.attempt(max(run.attempt_numbers))
    beat = heartbeats.read(attempt.heartbeat(rank))
    if beat is None or not beat.pid:
        known = sorted(int(path.stem.partition("-")[2]) for path in attempt.all_heartbeats)
        right = f"it has 0 to {known[-1]}" if known else "its ranks have not begun yet: wait a few seconds"
        raise UserError(f"{run.name} has no rank {rank} that works now; {right}")
    return LiveRank(run, beat, choose.of_run(events), events.last("started", "queued") or {})
