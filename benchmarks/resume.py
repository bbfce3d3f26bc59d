"""What a kill costs: runs whose ranks are killed at random moments against unbroken ones, for each ZeRO stage.

    python -m benchmarks.resume [--kills 10] > benchmarks/results/DATE-resume.md

Two ranks on this machine's CPU train a toy model with dropout, save every fifth step beside the training and evaluate
every seventh. One of them gets SIGKILL, now and then while everything still starts; the other one is then ended, as the
launcher does, and both are started again.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from tests.jobs.conftest import Job, tiny_recipe

from mmlaunch.recipe import Recipe
from mmlaunch.run.paths import RunPaths

STAGES = (0, 1, 2, 3)
RUN: dict[str, Any] = {
    "model__dropout": 0.1, "batch__micro": 2, "checkpoint__every": "5 steps", "evaluate__every": "7 steps",
}  # fmt: skip
LONGEST = 1.0
"""Seconds after the first step of an attempt within which it is struck."""
EARLY = 0.2
"""The share of strikes that fall before the first step."""
HEAD = """\
| ZeRO stage | kills | of these before a step | steps done twice: median, most | s to the first step: median, most \
| losses compared | differ | weights at the end |
|---|---|---|---|---|---|---|---|"""


def stepped(job: Job) -> list[dict[str, Any]]:
    return [event for event in job.events("step") if event["attempt"] == job.attempt]


def first_step(job: Job, started: float) -> float:
    """The seconds from the start of an attempt to the end of its first step."""
    while not stepped(job):
        assert any(rank.is_alive() for rank in job.ranks), job.log()
        time.sleep(0.02)
    return float(stepped(job)[0]["time"] - started)


def strike(job: Job, chance: random.Random) -> None:
    """Kill one rank; the other one is ended as soon as that is seen."""
    pid = chance.choice(job.ranks).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    job.wait()


def broken(job: Job, recipe: Recipe, kills: int, chance: random.Random) -> tuple[int, list[int], list[float]]:
    """Kill a run again and again and let it end; how many kills were early, the steps done twice, the seconds."""
    early, reached = 0, 0
    twice: list[int] = []
    seconds: list[float] = []
    for number in range(kills + 1):
        started = time.time()
        job.start(recipe, 2)
        if number < kills and chance.random() < EARLY:
            early += 1
            time.sleep(chance.uniform(0, statistics.median(seconds) if seconds else 2.0))
            strike(job, chance)
            reached = max([reached, *(event["step"] for event in stepped(job))])
            continue
        seconds.append(first_step(job, started))
        if reached:
            twice.append(max(0, reached - stepped(job)[0]["step"] + 1))
        if number < kills:
            time.sleep(chance.uniform(0, LONGEST))
            strike(job, chance)
            reached = stepped(job)[-1]["step"]
    assert job.wait(300) == [0, 0], job.log()
    return early, twice, seconds


def compare(whole: Job, other: Job, steps: int) -> tuple[int, int, bool]:
    """How many losses were compared, how many of them differ in any bit, and whether the weights are equal."""
    expected, found = whole.losses(), other.losses()
    assert found.keys() == expected.keys()
    differ = [loss != expected[step][0] for step, losses in found.items() for loss in losses]
    one, two = whole.weights(steps), other.weights(steps)
    return len(differ), sum(differ), all(torch.equal(one[name], two[name]) for name in one)


def measure(folder: Path, stage: int, kills: int) -> str:
    """One line of the table."""
    steps = 40 + 50 * kills
    recipe = tiny_recipe(deepspeed__stage=stage, steps=steps, **RUN)
    jobs = []
    for name in ("whole", "broken"):
        (folder / f"{name}-{stage}").mkdir()
        jobs.append(Job(RunPaths(folder / f"{name}-{stage}")))
    whole, other = jobs
    whole.start(recipe, 2)
    assert whole.wait(300) == [0, 0], whole.log()
    early, twice, seconds = broken(other, recipe, kills, random.Random(stage))
    compared, differ, equal = compare(whole, other, steps)
    shown = [f"{statistics.median(values):.{digits}f}, {max(values):.{digits}f}" for values, digits in
             ((twice or [0], 0), (seconds, 1))]  # fmt: skip
    same = "equal in every bit" if equal else "DIFFER"
    return f"| {stage} | {kills} | {early} | {shown[0]} | {shown[1]} | {compared} | {differ} | {same} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10)
    kills = parser.parse_args().kills
    print(f"# Killed and resumed, {date.today()}\n")
    where = f"Python {platform.python_version()}, {os.cpu_count()} cores, 2 ranks"
    print(f"`python -m benchmarks.resume --kills {kills}`, {where}\n\n{HEAD}")
    with tempfile.TemporaryDirectory() as folder:
        for stage in STAGES:
            print(measure(Path(folder), stage, kills), flush=True)
    print("\nSeconds are from the start of the processes; imports that every rank does are loaded already, 5 s each.")


if __name__ == "__main__":
    main()
