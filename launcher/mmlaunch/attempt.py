"""`python -m mmlaunch.attempt`: the first and the last act of a job script, on the batch host.

`open RUN SCRIPT` begins an attempt and prints its number and a free port. `close RUN ATTEMPT STATUS` hands the ranks'
exit status to the restart policy, writes the answer to the ledger and exits with it: 90 for once more, otherwise the
run's own.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from pathlib import Path

from mmlaunch import policy
from mmlaunch.errors import BadInput, MachineError, MmlaunchError
from mmlaunch.local_process import identity
from mmlaunch.recipe import resolved
from mmlaunch.recipe.resources import Restarts
from mmlaunch.run import ledger
from mmlaunch.run.exits import CANCELLED, JobExit
from mmlaunch.run.paths import RunPaths
from mmlaunch.slurm.commands import requeue

EXCLUDED_FOR = 86_400  # seconds: a node that is still unfit after a day is its administrator's
MOST_EXCLUDED = 8


def begin(run: RunPaths, script: Path) -> tuple[int, int]:
    """Open the next attempt: its folder, its `started` event, a port."""
    events = ledger.read(run.events)
    number = len(events.all("started")) + 1
    if policy.left_open(events.events):
        reason = "preempted, or requeued by hand: it continues from its newest checkpoint"
        ledger.append(run.events, "requeued", attempt=number - 1, cause="preempted", reason=reason, pause=0)
        _stop_when_stuck(run, number - 1)
    attempt = run.attempt(number)
    for folder in (attempt.logs, attempt.stacks):
        folder.mkdir(parents=True, exist_ok=True)
    if not attempt.script.exists():  # a restart runs the script of the attempt before
        shutil.copyfile(script, attempt.script)
        shutil.copyfile(run.attempt(number - 1).deepspeed, attempt.deepspeed)
    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("SUBMITIT_LOCAL_JOB_ID", "")
    nodes = os.environ.get("SLURM_JOB_NODELIST", socket.gethostname())
    ledger.append(run.events, "started", attempt=number, job=job, nodes=nodes, **identity(os.getppid()))
    return number, free_port()


def end(run: RunPaths, number: int, exit_code: int) -> int:
    """Close an attempt: classify, decide, write it down; the answer is the exit code."""
    known = ledger.read(run.events).of_this_submission
    if ended := known.last("ended"):  # whoever cancelled the run has written it already
        return int(ended.get("exit_code", CANCELLED))
    events = known.events
    ending = policy.classify(exit_code, run.attempt(number), events)
    verdict = policy.decide(ending, events, _budgets(run))
    if ending.cause not in policy.NO_FAULT:
        ledger.append(
            run.events, "failed", attempt=number, cause=ending.cause, exit_code=exit_code, evidence=ending.evidence
        )
    if ending.node:
        ledger.append(run.events, "excluded", node=ending.node, until=round(time.time()) + EXCLUDED_FOR)
    if verdict.again:
        job = os.environ.get("SLURM_JOB_ID")
        pause = 0 if job else verdict.pause  # Slurm lets a requeued job wait by itself
        ledger.append(run.events, "requeued", attempt=number, cause=ending.cause, reason=verdict.reason, pause=pause)
        if job:
            _requeue(run, number, job)
        time.sleep(pause)
        return JobExit.AGAIN
    state = {"state": verdict.state, "cause": ending.cause, "reason": verdict.reason, "exit_code": exit_code}
    ledger.append(run.events, "ended", attempt=number, **state)
    return CANCELLED if verdict.state == "cancelled" else JobExit.STOP if exit_code == JobExit.AGAIN else exit_code


def _stop_when_stuck(run: RunPaths, number: int) -> None:
    """Slurm requeues without asking the policy: a run that gets nowhere ends here all the same."""
    stuck = policy.restarts_without_progress(ledger.read(run.events).of_this_submission.events)
    if stuck <= _budgets(run).no_progress:
        return
    reason = f"{stuck} restarts in a row brought no new checkpoint (restarts.no_progress)"
    state = {"state": "failed", "cause": "preempted", "reason": reason, "exit_code": int(JobExit.STOP)}
    ledger.append(run.events, "ended", attempt=number, **state)
    raise MmlaunchError(reason)


def _requeue(run: RunPaths, number: int, job: str) -> None:
    """Back into the queue. A running job cannot be kept off a node: when one is unfit, a new job takes over."""
    unfit = excluded(ledger.read(run.events), time.time())
    if not unfit:
        requeue(job)  # which ends this process too
        return
    from mmlaunch.submit import slurm

    try:
        ledger.append(run.events, "queued", **slurm.resubmit(run, number, job, unfit))
    except MachineError as error:  # no sbatch on this node: better on the same nodes again than not at all
        ledger.append(run.events, "warning", what=str(error))
        requeue(job)


def excluded(events: ledger.Events, now: float) -> list[str]:
    """The nodes that this run stays away from; the newest few, so that a bad day does not empty the cluster."""
    nodes = [str(event["node"]) for event in events.all("excluded") if event.get("until", 0) > now]
    return sorted(set(nodes[-MOST_EXCLUDED:]))


def _budgets(run: RunPaths) -> Restarts:
    """The recipe's budgets; a recipe that is damaged must not keep an ending out of the ledger."""
    try:
        return resolved.read(run.resolved).restarts
    except BadInput:
        return Restarts()


def free_port(low: int = 10_000, high: int = 32_000) -> int:
    """A port below the ephemeral range, which the kernel gives to no one else."""
    start = low + os.getpid() * 7 % (high - low)
    for offset in range(high - low):
        port = low + (start - low + offset) % (high - low)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise MachineError("no free port between 10000 and 32000")


def main(arguments: list[str]) -> int:
    """The command line of job scripts; users never type it."""
    try:
        if len(arguments) == 3 and arguments[0] == "open":
            print(*begin(RunPaths(Path(arguments[1])), Path(arguments[2])))
            return 0
        if len(arguments) == 4 and arguments[0] == "close":
            return end(RunPaths(Path(arguments[1])), int(arguments[2]), int(arguments[3]))
    except (MmlaunchError, OSError) as error:
        print(f"mmlaunch: {error}", file=sys.stderr)
        return JobExit.STOP
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
