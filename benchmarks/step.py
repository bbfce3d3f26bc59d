"""What the trainer adds to a step: its loop against a bare one with the same engine, on a tiny model.

    python -m benchmarks.step > benchmarks/results/DATE-step.md

The bare loop is forward, backward, step, the loss as a number at every tenth: once over batches that lie ready, once
with the same loader, whose worker shares the processor. The loops take turns in one process, hundred steps each, and
every number is a median.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

TURN, TURNS = 100, 6
RECIPES: dict[str, dict[str, Any]] = {
    "sft": {},
    "sft, a worker prepares": {"data__workers": 1},
    "dpo": {"objective": {"method": "dpo", "reference": "none"}},
    "dpo, a worker prepares": {"objective": {"method": "dpo", "reference": "none"}, "data__workers": 1},
}
SHAPE: dict[str, Any] = {
    "model__vision": {"random": {"width": 64, "layers": 2, "heads": 4, "image_size": 32, "patch": 8}},
    "model__language": {"random": {"width": 64, "layers": 2, "heads": 4, "max_positions": 128}},
    "batch__global": 16, "batch__micro": 16, "steps": 2 * TURN * TURNS, "stop_at": TURN * TURNS,
    "log__every": 10, "log__tensorboard": True,
    "data__train": {"format": "shapes", "limit": 5000}, "checkpoint__every": "100000 steps",
}  # fmt: skip


def bare(learner: Any, steps: Sequence[Callable[[Any], Any]]) -> list[float]:
    """The seconds of each step of a bare loop; each step begins with a function that gives its only micro-batch."""
    engine, objective, seconds = learner.engine, learner.objective, []
    for number, next_batches in enumerate(steps):
        began = time.perf_counter()
        (batch,) = next_batches(lambda: None)
        units = objective.units(batch)
        engine._engine.train()
        engine._engine.set_gradient_accumulation_boundary(True)
        output = engine._engine(objective, batch)
        loss = sum(total / units[name] for name, total in output.losses.items())
        engine._engine.backward(loss, scale_wrt_gas=False)
        engine._engine.step()
        if number % 10 == 0:
            float(loss)
        seconds.append(time.perf_counter() - began)
    return seconds


def one(ready: Any, check: Any) -> Any:
    """A batch that lies ready."""
    return ready


def watch(result: str) -> None:
    """In a rank: let the trainer and the bare loop take turns, and write down what each step took."""
    from mmjobs.train.trainer import Trainer

    plain = Trainer._step
    batches: list[Any] = []
    taken: dict[str, list[float]] = {
        name: [] for name in ("trainer", "waits for data", "learns", "bare", "bare with a loader")
    }
    last = [0.0]
    next_step: Any = None

    def step(trainer: Trainer) -> None:
        now = time.perf_counter()
        if last[0]:
            taken["trainer"].append(now - last[0])
        if len(batches) == TURN and trainer.state.step % TURN == 0:
            taken["bare"] += bare(trainer.learner, [partial(one, batch) for batch in batches])
            taken["bare with a loader"] += bare(trainer.learner, [next_step] * TURN)
            now = time.perf_counter()
        last[0] = now
        plain(trainer)

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*values: Any) -> Any:
            began = time.perf_counter()
            made = work(*values)
            taken[name].append(time.perf_counter() - began)
            if name == "waits for data" and len(batches) < TURN:
                batches.append(made)
            return made

        return run

    def timed_run(trainer: Trainer) -> dict[str, Any]:
        nonlocal next_step
        source: Any = trainer.source
        learner: Any = trainer.learner
        next_step = source.next_step
        source.next_step, learner.step = timed("waits for data", next_step), timed("learns", learner.step)
        done: dict[str, Any] = run(trainer)
        Path(result).write_text(json.dumps({name: statistics.median(values) for name, values in taken.items()}))
        return done

    run = Trainer.run
    changed: Any = Trainer
    changed._step, changed.run = step, timed_run


def main() -> None:
    from tests.jobs.conftest import Job, tiny_recipe

    from mmlaunch.run.paths import RunPaths

    print(f"# What the trainer adds to a step, {date.today()}\n")
    print(f"`python -m benchmarks.step`, Python {platform.python_version()}, {os.cpu_count()} cores, one rank\n")
    print("| | bare, batches ready, ms | bare, same loader | the trainer | ratio to each | waits | learns | all else |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        for number, (title, changes) in enumerate(RECIPES.items()):
            folder = Path(name) / str(number)
            job, result = Job(RunPaths(folder)), Path(name) / "result.json"
            folder.mkdir()
            job.prepare = partial(watch, str(result))
            assert job.run(tiny_recipe(**{**SHAPE, **changes})) == [0], job.log()
            medians = {key: 1000 * value for key, value in json.loads(result.read_text()).items()}
            rest = medians["trainer"] - medians["waits for data"] - medians["learns"]
            numbers = [medians["bare"], medians["bare with a loader"], medians["trainer"]]
            shown = [f"{value:.2f}" for value in numbers]
            shown += [", ".join(f"{medians['trainer'] / value:.2f}" for value in numbers[:2])]
            shown += [f"{value:.2f}" for value in (medians["waits for data"], medians["learns"], rest)]
            print(f"| {title} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
