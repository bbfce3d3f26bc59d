"""Comparison: what is said of two trained runs, against each sequence computed by itself, and closed forms."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from tests.jobs.formulas import log_probs
from tests.runs import mmlaunch

from mmjobs.data.encode import Encoded, Processor
from mmjobs.data.formats.shapes import example
from mmjobs.model import adapters, heads
from mmjobs.model.build import BuiltModel, skeleton
from mmjobs.tasks.compare import _result, compare
from mmjobs.tasks.statistics import around_mean, bootstrap, difference, sign_test, wilson
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.data import Source
from mmlaunch.run import manifest

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]
FIRST, ROWS = 1000, 40
PAIRS: dict[str, Any] = {"format": "shapes", "skip": FIRST, "limit": ROWS}
LORA = {"model__train": {"vision": "frozen", "language": "lora"}, "model__lora": {"rank": 2, "alpha": 4}}


def trained(job: Jobs, name: str, recipe: Recipe) -> Any:
    run = job(name)
    assert run.run(recipe) == [0], run.log()
    return run


def by_hand(run: Any, recipe: Recipe, rows: Sequence[int]) -> list[float]:
    """The margins of these drawings: each answer behind its prompt in a sequence of its own, nothing shared."""
    built = skeleton(recipe.model, "fp32", empty=True)
    network: Any = built.network
    scored = recipe.objective.method == "reward"
    if scored:
        heads.add_score(network)
    adapters.add(network, recipe.model)
    state = run.weights(run.saved()[-1])
    network.load_state_dict({name: value.float() for name, value in state.items()})
    processor = Processor(built.chat, built.pixels, 128)
    judge = _score if scored else _log_probability
    margins = []
    with torch.no_grad():
        for row in rows:
            one = processor.encode(example(row))
            first, second = (judge(network.eval(), built, one, one.answers[place].ids) for place in (0, 1))
            margins.append(first - second)
    return margins


def _log_probability(network: Any, built: BuiltModel, one: Encoded, answer: list[int]) -> float:
    return float(log_probs(network, built.pixels, one.prompt.ids, answer, one.image_inputs).sum())


def _score(network: Any, built: BuiltModel, one: Encoded, answer: list[int]) -> float:
    ids = torch.tensor([one.prompt.ids + answer])
    seen = built.pixels.join([one.image_inputs], ids)
    out = network.model(input_ids=ids, attention_mask=torch.ones_like(ids), **seen, use_cache=False)
    return float(network.score.weight[0].double() @ out.last_hidden_state[0, -1].double())


@pytest.mark.parametrize("size", [1, 16])
def test_both_kinds_of_run_are_judged_as_by_hand(job: Jobs, tiny: Recipes, size: int) -> None:
    recipes = [tiny(objective="dpo", model__dropout=0.3), tiny(objective="reward", **LORA, steps=3)]
    runs = [trained(job, name, recipe) for name, recipe in zip(("dpo", "rm"), recipes, strict=True)]
    found = compare((runs[0].paths.root, runs[1].paths.root), [Source(**PAIRS)], size)
    assert (found["pairs"], found["left"], found["reasons"]) == (ROWS, {}, [])
    right = []
    for run, recipe, side in zip(runs, recipes, (found["a"], found["b"]), strict=True):
        margins = torch.tensor(by_hand(run, recipe, range(FIRST, FIRST + ROWS)), dtype=torch.float64)
        assert margins.abs().min() > 1e-6  # or rounding decides who is right
        right.append((margins > 0).double())
        assert (side["right"], side["ties"]) == (right[-1].sum(), 0)
        assert side["accuracy"] == right[-1].mean()
        assert side["accuracy_interval"] == wilson(side["right"], ROWS)
        assert side["margin"] == pytest.approx(float(margins.mean()), abs=1e-5)
        assert side["margin_interval"] == pytest.approx(around_mean(margins), abs=1e-5)
    assert [found[side]["judges_by"] for side in "ab"] == ["log-probability", "score"]
    assert [found[side]["step"] for side in "ab"] == [6, 3]
    between = found["difference"]
    assert between["accuracy"] == pytest.approx(float((right[1] - right[0]).mean()))
    assert between["only_a"] == int(((right[0] == 1) & (right[1] == 0)).sum())
    assert between["only_b"] == int(((right[1] == 1) & (right[0] == 0)).sum())


def test_a_run_in_half_precision_is_judged_in_its_own(job: Jobs, tiny: Recipes) -> None:
    recipe = tiny(objective="dpo", precision="bf16", **LORA)
    run = trained(job, "half", recipe)
    found = compare((run.paths.root, run.paths.root), [Source(**PAIRS)], 8)
    margins = by_hand(run, recipe, range(FIRST, FIRST + ROWS))
    assert found["a"]["margin"] == pytest.approx(sum(margins) / ROWS, abs=0.1)
    assert found["a"]["right"] == pytest.approx(sum(margin > 0 for margin in margins), abs=2)


def test_a_run_is_never_better_than_itself(job: Jobs, tiny: Recipes) -> None:
    run = trained(job, "run", tiny(steps=1))
    found = compare((run.paths.root, run.paths.root), [Source(**PAIRS)], 8)
    assert found["a"] == found["b"]
    assert found["difference"] == {
        "accuracy": 0, "interval": (0, 0), "only_a": 0, "only_b": 0, "p": 1, "beyond_chance": False,
    }  # fmt: skip


def test_a_tie_is_half_right() -> None:
    found = _result([{}, {}], [[0.0, 2.0, -1.0, 0.0], [1.0, 0.0, -1.0, 0.0]], {})
    assert (found["a"]["right"], found["a"]["ties"], found["a"]["accuracy"]) == (2.0, 2, 0.5)
    assert (found["b"]["right"], found["b"]["ties"], found["b"]["accuracy"]) == (2.0, 2, 0.5)
    assert (found["a"]["margin"], found["b"]["margin"], found["pairs"]) == (0.25, 0.0, 4)
    assert (found["difference"]["only_a"], found["difference"]["only_b"]) == (1, 1)


def test_a_set_that_is_shown_never_is_not_judged(job: Jobs, tiny: Recipes, tmp_path: Path) -> None:
    """And one that is shown twice, once."""
    sets = {}
    for name, count, repeat in (("twice", 5, 2), ("never", 7, 0)):
        rows = [{"question": f"{name} {n}?", "chosen": "yes", "rejected": "oh no"} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        sets[name] = {"root": "", "annotation": f"{name}.jsonl", "repeat_time": repeat}
    (tmp_path / "meta.json").write_text(json.dumps(sets))
    run = trained(job, "run", tiny(objective="dpo", steps=1))
    source = Source(path=str(tmp_path / "meta.json"), format="internvl")
    found = compare((run.paths.root, run.paths.root), [source], 8)
    assert (found["pairs"], found["left"]) == (5, {})


def test_weights_that_are_no_numbers_judge_nothing(job: Jobs, tiny: Recipes) -> None:
    run = trained(job, "run", tiny(objective="dpo", steps=1))
    folder = run.paths.checkpoint(1)
    state = run.weights(1)
    name = next(name for name in state if "language_model" in name and "q_proj" in name)
    state[name][0, 0] = float("nan")
    safetensors.torch.save_file(state, folder / "model" / "model.safetensors")
    (folder / manifest.NAME).unlink()
    manifest.seal(Path(folder.replace(manifest.staging(folder.parent, 1))), folder, 1, 1)
    what = f"run, step 1: {ROWS} of {ROWS} margins are no finite numbers, the first of .*:{FIRST}"
    with pytest.raises(BadInput, match=what):
        compare((run.paths.root, run.paths.root), [Source(**PAIRS)], 8)


def test_both_judge_the_same_rows(job: Jobs, tiny: Recipes, tmp_path: Path) -> None:
    """What one of them cannot take is left out for both, and says so; what neither can take is counted once."""
    texts = [("What?", "Yes", "No"), ("What?", "Yes", "y" * 80), ("What?", "Yes", "y" * 200), ("What?", "Same", "Same")]
    rows = [json.dumps({"prompt": prompt, "chosen": first, "rejected": second}) for prompt, first, second in texts]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    wide, narrow = trained(job, "wide", tiny(steps=1)), trained(job, "narrow", tiny(steps=1, data__max_tokens=70))
    source = Source(path=str(tmp_path / "pairs.jsonl"))
    found = compare((wide.paths.root, narrow.paths.root), [source], 8)
    assert (found["pairs"], found["left"]) == (1, {"overlong": 2, "bad": 1})
    reasons = {one["row"].rpartition(":")[2]: one["reason"] for one in found["reasons"]}
    assert "more than 128" in reasons["3"] and "alone" not in reasons["3"] + reasons["4"]
    assert reasons["2"].endswith("more than 70 (for B alone)")
    assert found["a"]["margin_interval"] is None  # one margin tells nothing of the spread
    assert compare((wide.paths.root, wide.paths.root), [source], 8)["pairs"] == 2
    for line in (2, 3):
        (tmp_path / "none.jsonl").write_text(rows[line])
        with pytest.raises(BadInput, match=r"no pair is left to compare \(.*none.jsonl:1: .*; give rows with two"):
            compare((wide.paths.root, narrow.paths.root), [Source(path=str(tmp_path / "none.jsonl"))], 8)


def test_an_image_that_breaks_off_is_left_out(job: Jobs, tiny: Recipes, tmp_path: Path) -> None:
    """Only whoever decodes it can know: its header is whole."""
    for name in ("whole", "half"):
        Image.frombytes("RGB", (40, 30), random.Random(name).randbytes(3600)).save(tmp_path / f"{name}.jpg")
    half = (tmp_path / "half.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(half[: len(half) // 2])
    rows = [{"img_path": f"{name}.jpg", "prompt": "?", "chosen": "Yes", "rejected": "No"} for name in ("half", "whole")]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    run = trained(job, "run", tiny(steps=1))
    source = Source(path=str(tmp_path / "pairs.json"), format="mdpo", images=str(tmp_path))
    found = compare((run.paths.root, run.paths.root), [source], 1)
    assert (found["pairs"], found["left"]) == (1, {"bad": 1}) and "half.jpg" in found["reasons"][0]["reason"]


@pytest.mark.nightly  # the command itself is run by a test of the launcher
def test_the_command_says_who_is_better(job: Jobs, tiny: Recipes, tmp_path: Path) -> None:
    """Longer answers are the better ones here: a run that has learnt nothing finds them less likely."""
    for name, start, count in (("train", 0, 64), ("test", 64, 60)):
        rows = [{"prompt": f"Is it {n}?", "chosen": "It is so.", "rejected": "No"} for n in range(start, start + count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {
        f"data__{key}": {"path": str(tmp_path / f"{name}.jsonl")}
        for key, name in (("train", "train"), ("eval", "test"))
    }
    poor = trained(job, "poor", tiny(steps=1, **data))
    good = trained(job, "good", tiny(objective="reward", steps=12, optim__lr=1e-2, **data))
    done = mmlaunch("compare", poor.paths.root, good.paths.root)
    assert done.returncode == 0 and "\r" not in done.stderr, done.stderr  # progress is for terminals
    titles, first, second, *_, conclusion = done.stdout.splitlines()
    assert titles.split()[:2] == ["run", "step"] and "\x1b" not in done.stdout
    assert first.split()[:5] == ["A", "poor", "1", "log-probability", "0/60"]
    assert second.split()[:5] == ["B", "good", "12", "score", "60/60"]
    assert "100.0 % (94.0 % to 100.0 %)" in second and "different scales" in done.stdout
    assert "B - A       +100.0 points of accuracy (+100.0 to +100.0) over 60 pairs" in done.stdout
    assert conclusion == "the difference is beyond chance: B is right more often"
    found = json.loads(mmlaunch("compare", good.paths.root, poor.paths.root, "--json", "--limit", "50").stdout)
    assert found["pairs"] == 50 and found["difference"]["only_a"] == 50 and found["difference"]["beyond_chance"]


def test_the_interval_of_a_share() -> None:
    """Wilson's bounds are where the share is 1.96 standard errors away, each with its own standard error."""
    for right, count in ((0, 10), (7.5, 10), (81, 100), (263, 263)):
        low, high = wilson(right, count)
        assert 0 <= low <= right / count <= high <= 1
        for bound in {low, high} - {0, 1}:
            spread = math.sqrt(bound * (1 - bound) / count)
            assert abs(right / count - bound) == pytest.approx(1.959964 * spread, rel=1e-6)
    assert wilson(0, 10)[1] == pytest.approx(0.27753, abs=1e-5)  # z^2 / (n + z^2)


def test_the_interval_of_a_mean() -> None:
    low, high = around_mean(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)) or (0, 0)
    assert (low + high) / 2 == 2.5 and high - low == pytest.approx(2 * 1.959964 * math.sqrt(5 / 3 / 4), rel=1e-6)


def test_the_bootstrap_is_that_of_drawing_pairs() -> None:
    dice = random.Random(0)
    values = torch.tensor([dice.choice([-1, 0, 0, 0.5, 1, 1]) for _ in range(400)], dtype=torch.float64)
    low, high = bootstrap(values)
    drawn = values[torch.randint(400, (10_000, 400), generator=torch.Generator().manual_seed(1))].mean(1)
    assert (low, high) == pytest.approx(drawn.quantile(torch.tensor([0.025, 0.975]).double()).tolist(), abs=0.005)
    half = 1.96 * float(values.std()) / 20
    assert (low, high) == pytest.approx((float(values.mean()) - half, float(values.mean()) + half), abs=0.005)
    assert bootstrap(values) == (low, high)
    assert bootstrap(torch.zeros(5, dtype=torch.float64)) == (0, 0)


def test_the_sign_test_is_a_fair_coin() -> None:
    assert sign_test(0, 0) == 1 and sign_test(4, 4) == 1
    assert sign_test(0, 5) == pytest.approx(2 / 2**5) and sign_test(9, 1) == pytest.approx(2 * 11 / 2**10)
    assert sign_test(5000, 5300) == pytest.approx(math.erfc(299 / math.sqrt(10300) / math.sqrt(2)), rel=0.01)


def test_few_pairs_are_never_beyond_chance() -> None:
    """Five pairs that all say the same: every resample looks like them, and a coin does as much once in 16."""
    few = difference(torch.ones(5, dtype=torch.float64))
    assert few["interval"] == (1, 1) and few["p"] == 1 / 16 and not few["beyond_chance"]
    assert difference(torch.ones(6, dtype=torch.float64))["beyond_chance"]
    assert difference(-torch.ones(6, dtype=torch.float64))["accuracy"] == -1
