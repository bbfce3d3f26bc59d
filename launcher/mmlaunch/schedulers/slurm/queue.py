"""What Slurm knows of many jobs at once: one squeue, and at most one sacct for those that left the queue."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from mmlaunch.schedulers.base import Job, JobState
from mmlaunch.schedulers.slurm import commands
from mmlaunch.schedulers.slurm.commands import SlurmError
from mmlaunch.schedulers.slurm.states import ENDED_WITHOUT_POLICY, IN_SERVICE, advice, meaning

FLOOR = 10.0
"""Seconds between two questions: screens refresh more often, and every question costs the controller (squeue(1))."""
LEAVING = 180.0
"""Seconds that a cancelled job has to leave its nodes: Slurm's KillWait, and an epilog."""
NO_SUCH_JOB = "Invalid job id"
NO_ANSWER = "Slurm does not answer for its job: missing is not finished"


class Queue:
    """Slurm's newest answers. Slurm is asked again after a while, and at once for a job that is new here."""

    def __init__(self, floor: float = FLOOR) -> None:
        self._floor, self._asked = floor, float("-inf")
        self._jobs: dict[str, Job] = {}

    def look(self, numbers: Iterable[str]) -> dict[str, Job]:
        """Every job of these numbers; one that Slurm does not know, or does not answer for, is UNKNOWN."""
        wanted = sorted(set(numbers))
        if not self._jobs.keys() >= set(wanted) or time.monotonic() - self._asked >= self._floor:
            self._jobs, self._asked = _ask(wanted), time.monotonic()
        return {number: self._jobs[number] for number in wanted}


look = Queue().look
"""The queue that the whole process shares."""


def named(name: str, folder: str, but: str = "") -> str | None:
    """The number of the queued job of this name that writes its output below this folder, if there is one
    (and it is not `but`).

    Raises `SlurmError` if Slurm does not answer.
    """
    text = commands.call("squeue", "--noheader", f"--name={name}", "--Format=ArrayJobID:20,StdOut:2000")
    numbers = [line.split()[0] for line in text.splitlines() if f"{folder}/" in line]
    return next((number for number in reversed(numbers) if number != but), None)


def number_of(environment: Mapping[str, str]) -> str:
    """The number of the job around a process: `4211773`, or `4211773_12` for a task of an array."""
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID", "")


def taken_as(job: str, restarts: int) -> str:
    """Slurm's word for the end of a job before its newest requeue: NODE_FAIL, PREEMPTED ...; nothing if unknown.

    Accounting keeps a record of every restart. Where it lags, the record is missing, or the job still runs in it.
    """
    if restarts < 1:
        return ""
    options = ["--duplicates", "--allocations", "--parsable2", "--noheader", "--format=State"]
    try:
        words = commands.call("sacct", *options, f"--jobs={job}").split("\n")
    except SlurmError:
        return ""
    return words[restarts - 1].partition(" ")[0] if restarts <= len(words) else ""


def runs_on(job: str, nodes: str) -> bool:
    """Whether a job runs, and Slurm would give each of its nodes to another job as well."""
    try:
        running = commands.call("squeue", "--noheader", f"--jobs={job}", "--format=%T").split() == ["RUNNING"]
        words = commands.call("sinfo", "--noheader", "--Node", f"--nodes={nodes}", "--format=%T").split()
    except SlurmError:
        return False
    return running and bool(words) and all(word.rstrip("$-+") in IN_SERVICE for word in words)


def cancelled(job: str) -> bool:
    """Whether someone ended a job with scancel. While it leaves its nodes, only accounting says so."""
    return _sacct([job]).get(job, "").startswith("CANCELLED")


def cancel(job: str) -> None:
    """End a job, and wait until its processes are gone."""
    over = [JobState.OVER]
    try:
        commands.call("scancel", job)
    except SlurmError as error:
        if NO_SUCH_JOB not in str(error):
            raise
        over.append(JobState.UNKNOWN)  # it ended so long ago that Slurm has forgotten it
    until = time.monotonic() + LEAVING
    while any(one.state not in over for one in _with_tasks(job)):
        if time.monotonic() > until:
            raise SlurmError(
                f"job {job} has not left its nodes {LEAVING:.0f} s after it was cancelled; try again later"
            )
        time.sleep(0.5)


def _with_tasks(job: str) -> list[Job]:
    """A job, or the tasks of an array that are in the queue, or that accounting knows."""
    queued = _squeue([job])
    tasks = [one for number, one in queued.items() if number.startswith(f"{job}_")]
    if not tasks and job not in queued:
        ended = [_job(number, word) for number, word in _sacct([job]).items() if number.startswith(f"{job}_")]
        return ended or [_ask([job])[job]]
    return tasks or [queued[job]]


def _ask(numbers: list[str]) -> dict[str, Job]:
    jobs = _squeue(numbers) if numbers else {}
    if gone := [number for number in numbers if number not in jobs]:
        jobs.update((number, _job(number, word)) for number, word in _sacct(gone).items())
    return {number: jobs.get(number, Job(JobState.UNKNOWN, NO_ANSWER)) for number in numbers}


def _squeue(numbers: list[str]) -> dict[str, Job]:
    options = ["--noheader", "--array", "--states=all", f"--jobs={','.join(numbers)}", "--format=%i|%T|%r|%S"]
    try:
        text = commands.call("squeue", *options)
    except SlurmError:  # an aged-out number alone is an error to squeue; a silent controller is no answer either
        return {}
    jobs = {}
    for line in text.splitlines():
        number, word, reason, start, *_ = [*line.split("|"), "", "", ""]
        jobs[number.strip()] = _job(number.strip(), word, reason, "" if start == "N/A" else start)
    return jobs


def _sacct(numbers: list[str]) -> dict[str, str]:
    """The words for the states of jobs that left the queue."""
    options = ["--allocations", "--parsable2", "--noheader", "--format=JobID,State"]
    try:
        text = commands.call("sacct", *options, f"--jobs={','.join(numbers)}")
    except SlurmError:
        return {}
    words = {}
    for line in text.splitlines():
        number, bar, word = line.partition("|")
        if bar:
            words[number] = word
    return words


def _job(number: str, word: str, reason: str = "", start: str = "") -> Job:
    """A job from Slurm's words: its state, why it waits, and when it is expected to start."""
    state = meaning(word)
    waits_for_human = "" if state == JobState.LIVE else advice(number, reason)  # a hold stops no job that runs
    if state == JobState.OVER:
        plain = word.partition(" ")[0]
        if plain == "CANCELLED" or plain.startswith("CANCELLED+"):
            return Job(state, "cancelled with scancel", cancelled=True)
        means = f"{ENDED_WITHOUT_POLICY[plain]}, and it" if plain in ENDED_WITHOUT_POLICY else "and the job"
        return Job(state, f"Slurm says {plain}: {means} left no word of its own")
    if state == JobState.UNKNOWN:
        return Job(state, NO_ANSWER)
    if state == JobState.STUCK or waits_for_human:
        return Job(JobState.STUCK, f"{word} ({reason})" + (f": {waits_for_human}" if waits_for_human else ""))
    if state == JobState.WAITING:
        return Job(state, reason + (f", estimated start {start.replace('T', ' ')}" if start else ""))
    return Job(state)


def energy(jobs: Iterable[str]) -> float | None:
    """The joules of these jobs over all their restarts, where accounting counts them (AcctGatherEnergyType)."""
    options = ["--duplicates", "--allocations", "--parsable2", "--noheader", "--format=ConsumedEnergyRaw"]
    try:
        lines = commands.call("sacct", *options, f"--jobs={','.join(sorted(set(jobs)))}").split()
    except SlurmError:
        return None
    return sum(float(line) for line in lines if line.replace(".", "", 1).isdigit()) or None
