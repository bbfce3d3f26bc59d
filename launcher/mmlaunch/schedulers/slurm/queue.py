"""What Slurm knows of many jobs at once: one squeue, and at most one sacct for those that left the queue."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from mmlaunch.schedulers.slurm import commands
from mmlaunch.schedulers.slurm.commands import SlurmError
from mmlaunch.schedulers.slurm.states import JobState, advice, meaning

FLOOR = 10.0
"""Seconds between two questions: screens refresh oftener, and a controller suffers from every one (squeue(1))."""


@dataclass(frozen=True)
class Job:
    """One job, as Slurm sees it."""

    number: str
    state: JobState
    word: str = ""  # Slurm's own
    reason: str = ""
    start: str = ""  # the estimated start of a pending job

    @property
    def advice(self) -> str:
        """What only a human can do, if that is what it waits for."""
        return advice(self.number, self.reason)


class Queue:
    """Slurm's newest answers. It is asked again after a while, at once only for a job that is new here."""

    def __init__(self, floor: float = FLOOR) -> None:
        self._floor, self._asked = floor, float("-inf")
        self._jobs: dict[str, Job] = {}

    def look(self, numbers: Iterable[str]) -> dict[str, Job]:
        """Every job of these numbers; one that nobody knows, or of which nobody could be asked, is UNKNOWN."""
        wanted = sorted(set(numbers))
        if not self._jobs.keys() >= set(wanted) or time.monotonic() - self._asked >= self._floor:
            self._jobs, self._asked = _ask(wanted), time.monotonic()
        return {number: self._jobs[number] for number in wanted}


look = Queue().look
"""For everyone in this process."""


def named(name: str, folder: str) -> str | None:
    """The number of the queued job of this name that writes its output below this folder, if there is one."""
    try:
        text = commands.call("squeue", "--noheader", f"--name={name}", "--Format=JobID:20,StdOut:2000")
    except SlurmError:
        return None
    numbers = [line.split()[0] for line in text.splitlines() if f"{folder}/" in line]
    return numbers[-1] if numbers else None


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


def cancelled(job: str) -> bool:
    """Whether someone ended a job with scancel. While it leaves its nodes, only accounting says so."""
    return _sacct([job]).get(job, Job(job, JobState.UNKNOWN)).word.startswith("CANCELLED")


def _ask(numbers: list[str]) -> dict[str, Job]:
    found = _squeue(numbers) if numbers else {}
    if gone := [number for number in numbers if number not in found]:
        found.update(_sacct(gone))
    return {number: found.get(number, Job(number, JobState.UNKNOWN)) for number in numbers}


def _squeue(numbers: list[str]) -> dict[str, Job]:
    try:
        text = commands.call(
            "squeue", "--noheader", "--states=all", f"--jobs={','.join(numbers)}", "--format=%i|%T|%r|%S"
        )
    except SlurmError:  # an aged-out number alone is an error to squeue; a silent controller is no answer either
        return {}
    jobs = {}
    for line in text.splitlines():
        number, word, reason, start, *_ = [*line.split("|"), "", "", ""]
        jobs[number.strip()] = Job(number.strip(), meaning(word), word, reason, "" if start == "N/A" else start)
    return jobs


def _sacct(numbers: list[str]) -> dict[str, Job]:
    options = ["--allocations", "--parsable2", "--noheader", "--format=JobID,State"]
    try:
        text = commands.call("sacct", *options, f"--jobs={','.join(numbers)}")
    except SlurmError:
        return {}
    pairs = [line.split("|") for line in text.splitlines() if line.count("|") == 1]
    return {number: Job(number, meaning(word), word) for number, word in pairs}
