"""The reference: measured once and shared, asked again with adapters off, kept as a copy, or following slowly."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from tests.jobs.small import PROCESSOR, mixed

from mmjobs.data.batch import collate
from mmjobs.data.encode import Processor
from mmjobs.data.formats import shapes
from mmjobs.data.loader import Examples
from mmjobs.model.build import build
from mmjobs.model.toys import models as toys
from mmjobs.objectives.adapter_off import adapter_off
from mmjobs.objectives.forward import answer_token_log_probs
from mmjobs.train import precompute_reference
from mmjobs.train.reference_cache import scope_of
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.data import Source
from mmlaunch.recipe.requirements import Requirements

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]


def test_the_reference_is_measured_once_and_shared(job: Jobs, tiny: Recipes) -> None:
    first, second, third = job("first"), job("second"), job("third")
    assert first.run(tiny(objective="dpo", steps=7)) == [0], first.log()
    assert second.run(tiny(objective="mpo", steps=7)) == [0], second.log()
    assert "knows 57 examples" in second.log() and {event["new"] for event in second.events("reference")} == {0}
    (part, *_) = first.paths.reference.glob("*/*.safetensors")
    (same, *_) = second.paths.reference.glob(f"*/{part.name}")
    spoilt = bytearray(part.read_bytes())
    spoilt[-3] ^= 1
    same.unlink()
    same.write_bytes(bytes(spoilt))
    (marker,) = second.paths.reference.glob("*/complete-*.json")
    assert second.run(tiny(objective="mpo", steps=8)) == [0], second.log()
    assert marker.exists() and not same.exists(), "what is damaged is not looked at again and again"
    assert "not believed, and measured again" in second.log() and any(
        event["new"] for event in second.events("reference")
    )
    assert third.run(tiny(objective="dpo", steps=3, seed=5)) == [0], third.log()
    assert third.events("reference")[0]["new"] == 24, "another seed, other weights; three steps of eight see no more"


def a_file_for_each_batch() -> None:
    precompute_reference.FLUSH_SECONDS = 0.0


def test_later_attempts_read_only_the_files_that_they_need(job: Jobs, tiny: Recipes) -> None:
    """A run beside this one has computed more than this one needs."""
    first, second = job("first"), job("second")
    first.prepare = a_file_for_each_batch
    assert first.run(tiny(objective="dpo", steps=7)) == [0], first.log()
    assert second.run(tiny(objective="dpo", steps=1)) == [0], second.log()
    assert "knows 57 examples" in second.log() and {event["new"] for event in second.events("reference")} == {0}
    assert second.run(tiny(objective="dpo", steps=1)) == [0], second.log()
    known = int(second.log().split("knows ")[-1].split()[0])
    assert 15 <= known < 57, "eight examples of training and seven of evaluation, and what else is in their files"
    assert second.losses()[1] == [first.losses()[1][0]]


@pytest.mark.parametrize("dora", [False, True])
def test_what_has_learnt_nothing_is_rewarded_for_nothing(job: Jobs, tiny: Recipes, dora: bool) -> None:
    """In half precision too, where DoRA rounds although its adapters add nothing."""
    run = job("run")
    lora = {**LORA, "model__lora": {"rank": 2, "alpha": 4, "dora": dora}}
    assert run.run(tiny(objective="dpo", **lora, precision="bf16", steps=1, data__eval=[])) == [0], run.log()
    (step,) = run.events("step")
    assert step["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert step["rewards/chosen"] == step["rewards/rejected"] == step["kl"] == 0


def test_who_would_say_something_else_is_asked_again(job: Jobs, tiny: Recipes, tmp_path: Path) -> None:
    """The weights are the same each time; what is computed with them is not."""
    folder = toys.clip(tmp_path / "clip")
    other, same = (Path(shutil.copytree(folder, tmp_path / name)) for name in ("other clip", "same clip"))
    colours = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps({**colours, "image_mean": [0.1, 0.2, 0.3]}))
    plain = {"objective": "dpo", "steps": 1, "data__eval": [], "model__vision": {"path": str(folder)}}
    plain |= {"model__weights": "fp32", "model__train": {"vision": "frozen"}}
    language = {"random": {"width": 16, "layers": 1, "heads": 4, "max_positions": 128}}
    ways: dict[str, dict[str, Any]] = {
        "first": {}, "same": {}, "heads": {"model__language": language}, "precision": {"precision": "bf16"},
        "colours": {"model__vision": {"path": str(other)}}, "elsewhere": {"model__vision": {"path": str(same)}},
    }  # fmt: skip
    new = {}
    for name, changes in ways.items():
        run = job(name)
        assert run.run(tiny(**{**plain, **changes})) == [0], run.log()
        new[name] = sum(event["new"] for event in run.events("reference")[-1:])
    assert new == {"first": 8, "same": 0, "heads": 8, "precision": 8, "colours": 8, "elsewhere": 0}


def test_what_is_complete_is_complete_for_these_examples_looked_at_in_this_way() -> None:
    """A marker that stood for more would hide what was never measured."""
    source, whole = Source(format="shapes", limit=4), [0, 1, 2, 3]
    plain = Examples(mixed(source), PROCESSOR, seed=1, corruption_seed=2)
    sources: list[dict[str, Any]] = [{"augment": "jpeg"}, {"max_tiles": 1}, {"skip": 1}]
    processors: list[dict[str, Any]] = [
        {"longest": 127},
        {"overlong": "cut"},
        {"requirements": Requirements(corrupted=True)},
    ]
    others = [
        replace(plain, seed=5), replace(plain, corruption_seed=5),
        *(replace(plain, mixture=mixed(source.model_copy(update=change))) for change in sources),
        *(replace(plain, processor=replace(PROCESSOR, **change)) for change in processors),
    ]  # fmt: skip
    scopes = [scope_of([one, plain], [whole, [0]]) for one in (plain, *others)]
    scopes += [scope_of([plain, one], [whole, [0]]) for one in others]
    scopes += [scope_of([plain, plain], [places, [0]]) for places in ([0, 1, 2], [0])]
    assert len(set(scopes)) == len(scopes) == 1 + 8 + 8 + 2
    assert scope_of([replace(plain), plain], [list(whole), [0]]) == scopes[0]


def test_pieces_hold_what_is_new_in_them(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    run.prepare = flush_each
    assert run.run(tiny(objective="dpo", steps=7, batch={"global": 8, "micro": 4})) == [0], run.log()
    pieces = [_keys(path) for path in run.paths.reference.glob("*/*.safetensors")]
    assert len(pieces) > 5 and sum(map(len, pieces)) == len(set.union(*pieces)) == 57


def flush_each() -> None:
    precompute_reference.FLUSH_SECONDS = 0.0


@pytest.mark.parametrize(("objective", "looked_at"), [("dpo", 6), ("kto", 15)])
def test_a_row_is_measured_once_and_beside_each_stranger(
    job: Jobs, tiny: Recipes, objective: str, looked_at: int
) -> None:
    """One that is shown twice has two neighbours, of which only KTO reads anything."""
    run = job("run")
    source = {"format": "shapes", "limit": 6, "repeat": 2.5}
    recipe = tiny(objective=objective, data__train=source, data__eval=[], steps=3, batch={"global": 5})
    assert run.run(recipe) == [0], run.log()
    assert [event["total"] for event in run.events("reference")][-1] == looked_at


@pytest.mark.nightly  # half a minute
def test_a_reference_that_is_cut_short_goes_on(job: Jobs, tiny: Recipes) -> None:
    whole, broken = job("whole"), job("broken")
    whole.paths.root.rename(whole.paths.root.parent.parent / f"{whole.paths.root.parent.name}-whole")
    recipe = tiny(objective="dpo", batch={"global": 3000, "micro": 10}, steps=1, data__train=MANY, data__eval=[])
    broken.prepare = tell_each
    broken.start(recipe, 1)
    while not broken.events("reference"):
        assert broken.ranks[0].is_alive(), broken.log()
    os.kill(broken.ranks[0].pid, signal.SIGUSR2)
    assert broken.wait() == [90], broken.log()
    kept = {key for path in broken.paths.reference.glob("*/*.safetensors") for key in _keys(path)}
    assert 0 < len(kept) < 3000
    assert broken.run(recipe) == [0], broken.log()
    files = list(broken.paths.reference.glob("*/2-*.safetensors"))
    new = {key for path in files for key in _keys(path)}
    assert new and not new & kept, "what was measured is not measured again"


MANY = {"format": "shapes", "limit": 3000}


def tell_each() -> None:
    """The ledger hears of each batch: a machine may be through in the seconds after which it otherwise would."""
    precompute_reference.REPORT_SECONDS = 0.0


def _keys(path: Any) -> set[bytes]:
    return {bytes(key) for key in safetensors.torch.load_file(path)["keys"].numpy()}


LORA = {"model__train": {"vision": "frozen", "projector": "frozen", "language": "lora"},
        "model__lora": {"rank": 2, "alpha": 4}}  # fmt: skip


@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.nightly)])
def test_every_kind_of_reference_says_the_same(job: Jobs, tiny: Recipes, stage: int) -> None:
    found = {}
    for kind in ("precomputed", "adapter off", "copy"):
        run = job(kind.replace(" ", "-"))
        objective = {"method": "mdpo", "reference": kind}
        more = {"resources__tasks_per_node": 2, "deepspeed__stage": stage}
        recipe = tiny(objective=objective, **LORA, optim={"lr": 0.05}, steps=4, **more)
        assert run.run(recipe, 2) == [0, 0], run.log()
        found[kind] = [loss for (loss,) in run.losses().values()]
    assert found["precomputed"][0] != found["precomputed"][3]
    for kind in ("adapter off", "copy"):
        assert found[kind] == pytest.approx(found["precomputed"], abs=1e-5)


def test_a_changed_example_is_told(job: Jobs, tiny: Recipes, tmp_path: Any) -> None:
    rows = [{"images": [f"{n}.png"], "prompt": "What?", "chosen": "red", "rejected": "blue"} for n in range(8)]
    for n in range(8):
        Image.new("RGB", (20, 20), (30 * n, 0, 0)).save(tmp_path / f"{n}.png")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"data__train": {"path": str(tmp_path / "rows.jsonl"), "format": "trl", "images": str(tmp_path)}}
    run = job("run")
    assert run.run(tiny(objective="dpo", steps=2, data__eval=[], **changes)) == [0], run.log()
    Image.new("RGB", (20, 20), (0, 255, 0)).save(tmp_path / "3.png")
    assert run.run(tiny(objective="dpo", steps=4, data__eval=[], **changes)) == [94]
    assert "its text or its images have changed since" in run.log()


def test_a_reference_that_follows_is_resumed_where_it_stood(job: Jobs, tiny: Recipes) -> None:
    objective = {"method": "dpo", "reference": "copy", "reference_sync": {"every": 2, "mix": 0.25}}
    changes = {"objective": objective, "steps": 8, "checkpoint__every": "3 steps", "evaluate__samples": 0}
    whole, broken, still = job("whole"), job("broken"), job("still")
    assert whole.run(tiny(**changes)) == [0], whole.log()
    broken.start(tiny(**changes), 1)
    broken.when(5, saved=3)
    broken.kill()
    assert broken.run(tiny(**changes)) == [0], broken.log()
    for step, (loss,) in whole.losses().items():
        assert set(broken.losses()[step]) == {loss}
    changes["objective"] = {"method": "dpo", "reference": "copy"}
    assert still.run(tiny(**changes)) == [0], still.log()
    assert [still.losses()[step] == whole.losses()[step] for step in (1, 2, 3)] == [True, True, False]


def test_a_reference_follows_by_its_share(job: Jobs, tiny: Recipes) -> None:
    """TR-DPO, eq. 5: every third step a quarter of the way."""
    run = job("run")
    objective = {"method": "dpo", "reference": "copy", "reference_sync": {"every": 3, "mix": 0.25}}
    recipe = tiny(objective=objective, steps=6, checkpoint={"every": "1 steps", "keep": 9}, data__eval=[])
    assert run.run(recipe) == [0], run.log()

    def copied(step: int) -> dict[str, torch.Tensor]:
        return safetensors.torch.load_file(run.paths.checkpoint(step) / "reference" / "reference.safetensors")

    for before, after in ((2, 3), (5, 6)):
        stood, leads = copied(before), run.weights(after)
        for name, value in copied(after).items():
            torch.testing.assert_close(value, stood[name] + 0.25 * (leads[name] - stood[name]))
        assert any(not torch.equal(value, stood[name]) for name, value in copied(after).items())
    assert all(torch.equal(value, copied(5)[name]) for name, value in copied(3).items())


def test_a_copy_drops_nothing(job: Jobs, tiny: Recipes) -> None:
    """The policy does, as it learns; held-out examples are measured by what has hardly moved."""
    run = job("run")
    recipe = tiny(objective={"method": "dpo", "reference": "copy"}, model__dropout=0.5, steps=1, optim__lr=1e-12)
    assert run.run(recipe) == [0], run.log()
    (step,), (held,) = run.events("step"), [event["metrics"] for event in run.events("evaluated")]
    assert held["eval/loss"] == pytest.approx(math.log(2), abs=1e-6) and held["eval/kl"] == pytest.approx(0, abs=1e-9)
    assert step["kl"] > 1e-4


def test_adapters_are_off_and_nothing_is_dropped(tiny: Recipes) -> None:
    """Whoever is asked as it learns goes on learning, and says what the model without adapters would."""
    recipe = tiny(objective="dpo", **LORA, model__dropout=0.5)
    networks: list[Any] = []
    for model in (recipe.model, recipe.model.model_copy(update={"train": tiny().model.train, "lora": None})):
        torch.manual_seed(1)
        built = build(model)
        networks.append(built.network)
    network, plain = networks[0], networks[1].eval()
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    processor = Processor(built.chat, built.pixels, built.positions, requirements=recipe.objective.requirements)
    batch = collate([processor.encode(shapes.example(row)) for row in range(3)], built.pixels, 258, packed=True)
    with torch.no_grad():
        wanted, changed = answer_token_log_probs(plain, batch), answer_token_log_probs(network.eval(), batch)
    assert (changed - wanted).abs().max() > 1e-3
    for learning in (True, False):
        network.train(learning)
        found = adapter_off(network, batch)
        assert network.training is learning and not found.requires_grad
        torch.testing.assert_close(found, wanted)
    assert not torch.equal(answer_token_log_probs(network, batch), found), "adapters are on again"


def test_a_copy_has_a_stage_of_its_own(job: Jobs, tiny: Recipes) -> None:
    found = []
    for stage, own in ((3, 0), (0, 3)):
        run = job(f"run-{stage}")
        objective = {"method": "dpo", "reference": "copy", "reference_stage": own}
        recipe = tiny(objective=objective, steps=3, deepspeed__stage=stage, resources__tasks_per_node=2)
        assert run.run(recipe, 2) == [0, 0], run.log()
        found.append([loss for (loss,) in run.losses().values()])
    assert found[0] == pytest.approx(found[1], abs=1e-5) and found[0][0] == pytest.approx(math.log(2), abs=1e-6)
