"""Preferences and rewards on real ranks: the same run on one and two, after a kill, and with any kind of reference."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmjobs.model.toys import models as toys
from mmjobs.objectives import preference
from mmlaunch.recipe import Recipe

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]
STEADY = {"lr": 3e-3, "eps": 1e-4}
FIRST = {"dpo": math.log(2), "mdpo": 3 * math.log(2), "mmpo": math.log(2), "plackett_luce": math.log(6)}


@pytest.mark.parametrize("method", list(FIRST))
def test_the_first_loss_is_known(job: Jobs, tiny: Recipes, method: str) -> None:
    run = job("run")
    recipe = tiny(objective=method, steps=1, batch={"global": 8, "tokens_per_gpu": 256}, data__max_tokens=120)
    assert run.run(recipe) == [0], run.log()
    (step,) = run.events("step")
    assert step["loss"] == pytest.approx(FIRST[method], abs=1e-6)
    assert set(recipe.objective.evaluation_metrics) == run.events("evaluated")[-1]["metrics"].keys()


@pytest.mark.parametrize("world", [1, 2])
def test_the_fill_is_the_share_of_rows_that_is_no_padding(job: Jobs, tiny: Recipes, tmp_path: Path, world: int) -> None:
    """Two pairs of 33 tokens fit into 70; one of 97 has a longer row of its own, and its rank's others are as many."""
    texts = [("?", "yes", "n" * 24)] * 7 + [("?", "y" * 60, "n" * 31)]
    rows = [json.dumps({"prompt": f"{n}{q}", "chosen": a, "rejected": b}) for n, (q, a, b) in enumerate(texts)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    run = job("run")
    recipe = tiny(
        objective="dpo", steps=1, data__eval=[], batch={"global": 8, "tokens_per_gpu": 70}, data__max_tokens=70,
        data__train={"path": str(tmp_path / "rows.jsonl"), "format": "trl", "images": "none"},
        resources__tasks_per_node=world,
    )  # fmt: skip
    assert run.run(recipe, world) == [0] * world, run.log()
    empty = 1 if world == 2 else 0  # five rows are filled, and both ranks have as many
    tokens = 7 * 33 + 97
    (step,) = run.events("step")
    assert step["fill"] == pytest.approx(tokens / (4 * 70 + 97 + empty * 70), abs=1e-4)


def test_mpo_begins_with_its_weights_and_moves_its_shift(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    assert run.run(tiny(objective="mpo", steps=4)) == [0], run.log()
    steps = run.events("step")
    assert steps[0]["loss"] == pytest.approx(0.8 * math.log(2) + 0.4 * math.log(2) + steps[0]["loss/sft"], abs=1e-6)
    assert steps[0]["shift"] == steps[1]["shift"] == 0  # the first rewards are all 0
    rewards = [(event["rewards/chosen"] + event["rewards/rejected"]) / 2 for event in steps]
    assert steps[3]["shift"] == pytest.approx(sum(rewards[:3]) / 3, abs=1e-6)
    state = json.loads((run.paths.checkpoint(4) / "state.json").read_text())
    assert state["learner"]["count"] == 2 * 8 * 4


@pytest.mark.parametrize(
    "method",
    [
        *(pytest.param(name, marks=pytest.mark.nightly) for name in ("mdpo", "aot", "kto")),
        "mpo",
        {"method": "reward", "centre": 0.01},
    ],
)
def test_two_ranks_and_packed_rows_are_one_rank(job: Jobs, tiny: Recipes, method: Any) -> None:
    one, two, packed = job("one"), job("two"), job("packed")
    changes: dict[str, Any] = {"objective": method, "optim": STEADY, "steps": 5, "evaluate__samples": 0}
    assert one.run(tiny(**changes)) == [0], one.log()
    assert two.run(tiny(**changes, resources__tasks_per_node=2, batch={"global": 8, "micro": 2}), 2) == [0, 0]
    assert packed.run(tiny(**changes, batch={"global": 8, "tokens_per_gpu": 200}, data__max_tokens=120)) == [0], (
        packed.log()
    )
    for other in (two, packed):
        for step, losses in one.losses().items():
            assert other.losses()[step] == pytest.approx(losses, abs=2e-6)
        for name, weight in one.weights(5).items():
            torch.testing.assert_close(other.weights(5)[name], weight, atol=2e-6, rtol=0)
        mine, its = (run.events("evaluated")[-1]["metrics"] for run in (one, other))
        assert its == pytest.approx(mine, abs=1e-5)


@pytest.mark.parametrize(
    ("method", "stage"), [("mpo", 0), pytest.param("mdpo", 3, marks=pytest.mark.nightly), ("reward", 2)]
)
def test_a_killed_run_goes_on_bit_for_bit(job: Jobs, tiny: Recipes, method: str, stage: int) -> None:
    """The shift of BCO, the spoiled images and the reward statistics are those of the unbroken run."""
    changes = {
        "objective": method, "deepspeed__stage": stage, "steps": 8, "checkpoint__every": "2 steps",
        "batch": {"global": 8, "tokens_per_gpu": 200}, "data__max_tokens": 120, "resources__tasks_per_node": 2,
        "model__dropout": 0.1,
    }  # fmt: skip
    whole, broken = job("whole"), job("broken")
    assert whole.run(tiny(**changes), 2) == [0, 0], whole.log()
    broken.start(tiny(**changes, data__workers=1), 2)
    broken.when(5, saved=4)
    broken.kill()
    assert broken.run(tiny(**changes), 2) == [0, 0], broken.log()
    for step, (loss,) in whole.losses().items():
        assert set(broken.losses()[step]) == {loss}
    for name, weight in whole.weights(8).items():
        assert torch.equal(broken.weights(8)[name], weight)
    states = [json.loads((run.paths.checkpoint(8) / "state.json").read_text()) for run in (whole, broken)]
    assert states[0]["learner"] == states[1]["learner"]
    assert not [event for event in broken.events("reference") if event["attempt"] == 2], "it was measured before"


def tell_what_is_read() -> None:
    """A rank prints the log-probabilities of each look at its batches."""
    patched: Any = preference  # in a rank's own process, which ends
    read = patched.answer_log_probs

    def printed(*arguments: Any) -> Any:
        computed = read(*arguments)
        print("read", arguments[0].training, computed.values.double().sum().item(), flush=True)
        return computed

    patched.answer_log_probs = printed


@pytest.mark.parametrize("stage", [0, 3])
def test_who_looks_ahead_sees_what_it_learns_from(job: Jobs, tiny: Recipes, stage: int) -> None:
    """The same dropout: otherwise ranks and partners would be those of another policy."""
    run = job("run")
    run.prepare = tell_what_is_read
    recipe = tiny(objective="aot", model__dropout=0.3, steps=2, batch={"global": 8, "micro": 4}, data__eval=[],
                  deepspeed__stage=stage)  # fmt: skip
    assert run.run(recipe) == [0], run.log()
    seen = [line.split()[2] for line in run.log().splitlines() if line.startswith("read True")]
    assert len(seen) == 8 and seen[0:2] == seen[2:4] and seen[4:6] == seen[6:8]


def test_another_number_of_ranks_goes_on_with_shift_and_reference(job: Jobs, tiny: Recipes) -> None:
    changes: dict[str, Any] = {"objective": "mpo", "deepspeed__stage": 1, "checkpoint__every": "3 steps"}
    changes["optim"] = {**STEADY, "schedule": "constant"}
    whole, moved = job("whole"), job("moved")
    assert whole.run(tiny(**changes, steps=6)) == [0], whole.log()
    assert moved.run(tiny(**changes, steps=3, resources__tasks_per_node=2), 2) == [0, 0], moved.log()
    assert moved.run(tiny(**changes, steps=6)) == [0], moved.log()
    ours, theirs = ({e["step"]: (e["loss"], e["shift"]) for e in run.events("step")} for run in (moved, whole))
    for step, numbers in theirs.items():
        assert ours[step] == pytest.approx(numbers, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("objective", ["dpo", "kto", "reward"])
def test_text_models_learn_preferences(job: Jobs, tiny: Recipes, tmp_path: Any, objective: str) -> None:
    rows = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "oh no"} for n in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = job("run")
    recipe = tiny(
        model={"pretrained": str(toys.gemma(tmp_path / "gemma"))}, objective=objective, steps=12, data__eval=[],
        data__train={"path": str(tmp_path / "rows.jsonl"), "format": "trl", "images": "none"}, optim__lr=0.01,
        batch={"global": 8, "tokens_per_gpu": 200}, data__max_tokens=60,
    )  # fmt: skip
    assert run.run(recipe) == [0], run.log()
    assert run.events("ready")[0]["attention"] == "packed rows, trees"
    assert run.events("step")[-1]["accuracy"] == 1


def test_single_answers_with_labels_are_learnt(job: Jobs, tiny: Recipes, tmp_path: Any) -> None:
    rows = [{"prompt": f"{n}?", "completion": "yes" if n % 2 else "oh no", "label": bool(n % 2)} for n in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = job("run")
    recipe = tiny(
        objective="kto", steps=20, data__eval=[], optim__lr=0.01,
        data__train={"path": str(tmp_path / "rows.jsonl"), "format": "trl", "images": "none"},
    )  # fmt: skip
    assert run.run(recipe) == [0], run.log()
    first, last = run.events("step")[0], run.events("step")[-1]
    assert first["loss"] == pytest.approx(0.5, abs=1e-6) and last["loss"] < 0.4
    assert last["rewards/chosen"] > 0 > last["rewards/rejected"]
