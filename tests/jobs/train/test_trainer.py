"""The trainer: the same numbers whatever the ranks, parts that stay as they were, and a model that learns."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmjobs.engine.lr_schedule import lr_factor
from mmjobs.rank.ranks import Ranks
from mmjobs.train.source import DatasetSource
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.optim import Optim
from mmlaunch.restart import policy

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]


def test_one_rank_two_ranks_and_accumulation_are_the_same_run(job: Jobs, tiny: Recipes) -> None:
    # eps keeps gradients that are zero but for rounding from being blown up to whole steps
    settings = {"lr": 3e-3, "eps": 1e-4, "weight_decay": 0.1, "clip": 0.5}
    one, two, piecewise = job("one"), job("two"), job("piecewise")
    assert one.run(tiny(optim=settings)) == [0], one.log()
    assert two.run(tiny(optim=settings, resources__tasks_per_node=2), 2) == [0, 0], two.log()
    assert piecewise.run(tiny(optim=settings, batch__micro=2, data__workers=2)) == [0], piecewise.log()
    for other in (two, piecewise):
        for step, losses in one.losses().items():
            assert other.losses()[step] == pytest.approx(losses, abs=1e-6)
        for name, weight in one.weights(6).items():
            torch.testing.assert_close(other.weights(6)[name], weight, atol=1e-6, rtol=0)
        mine, others = (run.events("evaluated")[-1]["metrics"] for run in (one, other))
        assert others == pytest.approx(mine, abs=1e-6)


def test_four_micro_batches_are_the_same_on_one_two_and_four_ranks(job: Jobs, tiny: Recipes, tmp_path: Path) -> None:
    """Answers from one letter to sixty: a mean of means would weigh the letters of short ones more."""
    said = ["y" * length for length in (1, 60, 2, 40, 3, 25, 1, 55, 7, 1)]
    rows = [
        {"conversations": [{"from": "human", "value": f"{n}?"}, {"from": "gpt", "value": text}]}
        for n, text in enumerate(said)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    changes = {
        "data__train": {"path": str(tmp_path / "rows.json"), "format": "llava", "images": "none"}, "data__eval": [],
        "optim": {"lr": 3e-3, "eps": 1e-4}, "batch": {"global": 4, "micro": 1}, "steps": 20,
    }  # fmt: skip
    found = {}
    for world in (1, 2, 4):
        run = job(f"world-{world}")
        assert run.run(tiny(**changes, resources__tasks_per_node=world), world) == [0] * world, run.log()
        found[world] = run
    for other in (found[2], found[4]):
        assert len(other.losses()) == 20
        for step, losses in found[1].losses().items():
            assert other.losses()[step] == pytest.approx(losses, abs=1e-6)
        for name, weight in found[1].weights(20).items():
            torch.testing.assert_close(other.weights(20)[name], weight, atol=1e-6, rtol=0)


def test_a_worker_that_dies_ends_the_attempt_and_is_named(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    run.start(tiny(steps=100_000, data__workers=1), 1)
    run.when(5)
    worker = max(run.children(0))
    os.kill(worker, signal.SIGKILL)
    assert run.wait() == [1]
    record = json.loads(run.paths.attempt(1).rank_error(0).read_text())
    assert f"worker (pid {worker}) is killed by signal" in record["message"]
    assert policy.classify(1, run.paths.attempt(1), run.events()).cause == "crash"


def test_a_signal_that_reaches_workers_too_saves(job: Jobs, tiny: Recipes) -> None:
    """As a scheduler without cgroups sends it: to all processes of a rank, before and during the save."""
    run = job("run")
    run.start(tiny(steps=100_000, data__workers=2), 1)
    run.when(5)
    for process in (*run.children(0), run.ranks[0].pid or 0, *run.children(0)):
        os.kill(process, signal.SIGTERM)
    workers = run.children(0)
    assert run.wait() == [90], run.log()
    assert run.saved() == [run.events("signal")[-1]["step"]]
    assert len(workers) == 2 and not any(Path(f"/proc/{worker}").exists() for worker in workers)


@pytest.mark.nightly  # a quarter of a minute; `make quickstart` shows it as well
def test_quickstart_sized_model_learns(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    recipe = tiny(
        model={"vision": {"random": {}}, "language": {"random": {}}, "train": {"vision": "full"}},
        data__train={"format": "shapes", "limit": 2000}, data__eval={"format": "shapes", "skip": 5000, "limit": 60},
        batch__global=32, steps=60, optim={"lr": 3e-3, "warmup": "10 steps"}, evaluate__samples=1,
        log={"every": 20, "tensorboard": True},
    )  # fmt: skip
    assert run.run(recipe) == [0], run.log()
    metrics = run.events("evaluated")[-1]["metrics"]
    assert metrics["eval/loss"] < 0.2 and metrics["eval/token_accuracy"] > 0.88
    ready = run.events("ready")[0]["parameters"]
    assert ready["projector"] == {"trainable": 18624, "frozen": 0}
    assert [event["step"] for event in run.events("step")] == [1, 20, 40, 60]
    sample = run.events("evaluated")[-1]["samples"][0]
    assert sample["question"].endswith("?") and sample["truth"] and sample["answer"]
    assert list(run.paths.tensorboard.glob("events.out.tfevents.*"))


def test_frozen_parts_stay_and_bf16_trains_the_rest(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    recipe = tiny(
        precision="bf16", steps=3, model__projector="linear", model__train={"vision": "frozen", "language": "frozen"},
        checkpoint__every="1 steps", checkpoint__keep=9, optim__weight_decay=0.1,
    )  # fmt: skip
    assert run.run(recipe) == [0], run.log()
    first, last = run.weights(1), run.weights(3)
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    assert changed == {name for name in first if "multi_modal_projector" in name}
    assert last["lm_head.weight"].dtype == torch.bfloat16
    assert last["model.multi_modal_projector.linear.weight"].dtype == torch.float32


def test_schedule_rises_and_ends_where_the_recipe_says() -> None:
    for shape, end in (("cosine", 0.1), ("linear", 0.1), ("constant", 1.0)):
        optim = Optim.model_validate({"lr": 1, "schedule": shape, "warmup": "4 steps", "final_lr": 0.1} | {"lr": 0.5})
        factors = [lr_factor(optim, step, 20) for step in range(21)]
        assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
        assert factors[20] == pytest.approx(end) and min(factors[4:]) >= end - 1e-9
    assert lr_factor(optim, 0, 1) == 1.0


def count_collectives() -> None:
    """A rank writes how often it had called each collective of its own at the beginning of each step."""
    calls = {"sums": 0, "highest": 0, "gather": 0}
    plain: dict[str, Any] = {name: getattr(Ranks, name) for name in (*calls, "add")}

    def counting(name: str, counted: str) -> Any:
        def call(self: Ranks, *values: Any) -> Any:
            calls[counted] += 1
            return plain[name](self, *values)

        return call

    for name, counted in (("add", "sums"), ("highest", "highest"), ("gather", "gather")):
        setattr(Ranks, name, counting(name, counted))
    next_step = DatasetSource.next_step

    def reported(self: DatasetSource, check: Callable[[], None]) -> Any:
        print("collectives", json.dumps(calls), flush=True)
        return next_step(self, check)

    DatasetSource.next_step = reported  # type: ignore[method-assign]  # in a rank's own process, which ends


def test_ranks_talk_once_about_the_boundary_and_once_about_the_units(job: Jobs, tiny: Recipes) -> None:
    """Metrics are reduced for the steps that are logged, and for no others."""
    run = job("run")
    run.prepare = count_collectives
    changes: dict[str, Any] = {"log": {"every": 4, "tensorboard": False}, "batch": {"global": 8, "micro": 2}}
    assert run.run(tiny(steps=9, data__eval=[], **changes), 2) == [0, 0], run.log()
    counts = [json.loads(line.partition(" ")[2]) for line in run.log().splitlines() if line.startswith("collectives")]
    steps = [
        {name: after[name] - before[name] for name in after} for before, after in itertools.pairwise(counts)
    ]  # from the beginning of a step to that of the next: steps 1 to 8
    logged = {"sums": 3, "highest": 1, "gather": 0}  # the units; the metrics and the throughput
    assert steps == [logged if number in (1, 4, 8) else {**logged, "sums": 1} for number in range(1, 9)]
