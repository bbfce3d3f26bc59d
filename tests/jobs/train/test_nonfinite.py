"""A step whose loss or gradient is no number changes nothing at any stage, and half precision finds its scale."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmlaunch.recipe import Recipe
from mmlaunch.restart import policy

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]

ONE_BAD_STEP = """
import json, math, sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from tests.jobs.conftest import tiny_recipe as tiny

from mmjobs.data.batch import collate
from mmjobs.data.encode import Processor
from mmjobs.data.formats.shapes import example
from mmjobs.model.build import build
from mmjobs.objectives.sft import Sft
from mmjobs.engine.engine import Engine
from mmjobs.rank.position import Position
from mmjobs.rank.ranks import Ranks
from mmlaunch.submit.plan import deepspeed
from deepspeed.accelerator import get_accelerator

get_accelerator().is_fp16_supported = lambda: True  # it means fast instructions, which not every CPU has
folder, stage, precision = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
resources = {"nodes": 1, "gpus_per_node": int(precision == "fp16")}  # a rule of recipes: fp16 is slow without
recipe = tiny(deepspeed__stage=stage, precision=precision, optim__lr=1e-2, resources=resources)
sft = Sft()


def broken(network, batch):
    output = sft(network, batch)
    return replace(output, losses={"tokens": output.loss * float("nan")})


def train(objectives):
    torch.manual_seed(0)
    built = build(recipe.model, precision)
    place = Ranks(0, 1, None), Position()
    engine = Engine(built.network, recipe.optim, 20, precision, deepspeed(recipe, 8, 1), *place)
    processor = Processor(built.chat, built.pixels, built.positions)
    batch = collate([processor.encode(example(row)) for row in range(8)], built.pixels, 258)
    steps = []
    for objective in objectives:
        (output,) = engine.accumulate([batch], objective, objective_units := sft.units(batch))
        update = engine.step(0)
        steps.append((float(output.example_losses.sum()) / objective_units["tokens"], update.norm, update.rescaled))
    return steps


dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
count = 12 if precision == "fp16" else 3
print(json.dumps([train([sft] * count), train([sft, broken, *[sft] * (count - 1)])]))
"""


def spoil() -> None:
    """The losses of the training steps in $SPOIL are no numbers, or they raise in those of $RAISE."""
    from mmjobs.objectives.preference import Preference
    from mmjobs.objectives.sft import Sft

    steps = itertools.count(1)
    spoilt, raising = (os.environ.get(name, "").split(",") for name in ("SPOIL", "RAISE"))

    def spoiling(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, network: Any, batch: Any) -> Any:
            measured = plain(self, network, batch)
            if not network.training:
                return measured
            step = str(next(steps))
            if step in raising and os.environ["RANK"] == "1":
                raise ValueError("this rank does not want to")
            if step not in spoilt:
                return measured
            if os.environ.get("GRADIENT") == "finite":  # a constant has no gradient
                unknown = float("nan") if os.environ["RANK"] == "1" else 0.0
                losses = {unit: loss + unknown for unit, loss in measured.losses.items()}
                measured = dataclasses.replace(measured, example_losses=measured.example_losses + unknown)
            else:
                losses = {unit: loss * float("nan") for unit, loss in measured.losses.items()}
            return dataclasses.replace(measured, losses=losses)

        return call

    for kind in (Sft, Preference):
        kind.__call__ = spoiling(kind.__call__)  # type: ignore[method-assign]  # in a rank's own process, which ends


@pytest.mark.parametrize("stage", [0, 3])
def test_bad_steps_neither_lose_a_save_nor_the_result(job: Jobs, tiny: Recipes, stage: int) -> None:
    run = job("run")
    run.prepare = spoil
    recipe = tiny(deepspeed__stage=stage, steps=6, checkpoint__every="2 steps", checkpoint__keep=9)
    assert run.run(recipe, 2, SPOIL="2,6") == [0, 0], run.log()
    assert run.saved() == [2, 4, 6]
    assert [event["step"] for event in run.events("warning")] == [2, 6]
    assert run.events("step")[-1]["left_out"] == 2
    one, other = run.weights(4), run.weights(6)
    assert all(tensor.isfinite().all() for tensor in other.values())
    assert any(not torch.equal(one[name], other[name]) for name in one), "step 5 was a good one"


def test_a_loss_that_one_rank_knows_to_be_bad_ends_all(job: Jobs, tiny: Recipes) -> None:
    """Its gradient is finite and the weights have changed: nothing is saved after it, and each rank keeps its batch."""
    run = job("run")
    run.prepare = spoil
    recipe = tiny(steps=6, checkpoint__every="1 steps", checkpoint__keep=9, optim__bad_steps=5, data__workers=1)
    assert run.run(recipe, 2, SPOIL="3", GRADIENT="finite") == [1, 1], run.log()
    assert run.saved() == [1, 2]
    records = [json.loads(run.paths.attempt(1).rank_error(rank).read_text()) for rank in (0, 1)]
    assert {record["type"] for record in records} == {"NotFinite"} and records[0]["sample"].startswith("shapes:")
    assert records[0]["message"].startswith("the loss of step 3 is nan; samples: shapes:")
    kept = sorted(path.name for path in run.paths.attempt(1).not_finite.iterdir())
    assert kept == ["rank-0.pt", "rank-1.pt"]
    (batch,) = torch.load(run.paths.attempt(1).not_finite / "rank-1.pt")
    assert batch["ids"].shape == batch["targets"].shape and len(batch["samples"]) == 4


def test_a_bad_step_teaches_the_objective_nothing(job: Jobs, tiny: Recipes) -> None:
    """The shift of BCO is the mean over the steps that were taken."""
    run = job("run")
    run.prepare = spoil
    assert run.run(tiny(objective="mpo", steps=5), SPOIL="3") == [0], run.log()
    taken = [event for event in run.events("step") if event["step"] in (1, 2, 4, 5)]
    state = json.loads((run.paths.checkpoint(5) / "state.json").read_text())["learner"]
    assert state["count"] == 4 * 2 * 8
    rewards = sum(8 * (event["rewards/chosen"] + event["rewards/rejected"]) for event in taken)
    assert state["rewards"] == pytest.approx(rewards, abs=1e-4) and abs(rewards) > 1e-3


def test_a_rank_that_raises_names_its_samples(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    run.prepare = spoil
    assert 1 in run.run(tiny(steps=6), 2, RAISE="3")
    record = json.loads(run.paths.attempt(1).rank_error(1).read_text())
    assert (record["type"], record["step"]) == ("ValueError", 3)
    assert record["sample"].startswith("shapes:") and record["sample"].endswith("(or 3 more)")
    evidence = policy.classify(1, run.paths.attempt(1), run.events()).evidence
    assert "this rank does not want to" in evidence and record["sample"] in evidence


def trained(folder: Path, stage: int, precision: str) -> list[list[tuple[float, float, bool]]]:
    """(loss, norm, rescaled) of the steps of a training, and of another whose second step is broken."""
    command = [sys.executable, "-c", ONE_BAD_STEP, str(folder), str(stage), precision]
    root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "LOCAL_RANK": "0", "PYTHONPATH": root}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found: list[list[tuple[float, float, bool]]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("stage", "precision"),
    [(0, "fp32"), (1, "bf16"), *(pytest.param(*way, marks=pytest.mark.nightly) for way in ((2, "fp32"), (3, "bf16")))],
)
def test_a_broken_step_changes_nothing(tmp_path: Path, stage: int, precision: str) -> None:
    whole, broken = trained(tmp_path, stage, precision)
    assert broken[1][1] == float("inf") or broken[1][1] != broken[1][1]
    assert [broken[0], *broken[2:]] == whole
    assert whole[-1][0] < whole[0][0]


@pytest.mark.nightly  # half a minute each
@pytest.mark.parametrize("stage", [1, 3])
def test_half_precision_finds_its_scale(tmp_path: Path, stage: int) -> None:
    (whole, _), (precise, _) = trained(tmp_path, stage, "fp16"), trained(tmp_path, 0, "fp32")
    taken = [step for step in whole if not step[2]]
    assert len(taken) >= 4 and all(norm < float("inf") for _, norm, _ in taken)
    assert [loss for loss, _, _ in taken][:3] == pytest.approx([loss for loss, _, _ in precise], rel=5e-3)
