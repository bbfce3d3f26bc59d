"""What Slurm knows of many jobs at once: one squeue, and at most one sacct for those that left the queue."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mmlaunch.slurm import commands
from mmlaunch.slurm.commands import SlurmError
from mmlaunch.slurm.states import JobState, advice, meaning


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


def look(numbers: Iterable[str]) -> dict[str, Job]:
    """Every job of these numbers; one that nobody knows, or of which nobody could be asked, is UNKNOWN."""
    wanted = sorted(set(numbers))
    if not wanted:
        return {}
    found = _squeue(wanted)
    gone = [number for number in wanted if number not in found]
    if gone:
        found.update(_sacct(gone))
    return {number: found.get(number, Job(number, JobState.UNKNOWN)) for number in wanted}


def named(name: str, folder: str) -> str | None:
    """The number of the queued job of this name that writes its output below this folder, if there is one."""
    try:
        text = commands.call("squeue", "--noheader", f"--name={name}", "--Format=JobID:20,StdOut:2000")
    except SlurmError:
        return None
    numbers = [line.split()[0] for line in text.splitlines() if f"{folder}/" in line]
    return numbers[-1] if numbers else None


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
