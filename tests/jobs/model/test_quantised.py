"""Quantised layers: what they multiply with, what is saved of them, and that all of the stack takes them (QLoRA)."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from tests.jobs.conftest import Job
from torch import nn

from mmjobs.metrics.mfu import ModelFlops
from mmjobs.model import adapters, parts
from mmjobs.model.build import build
from mmjobs.model.quantised import QuantisedLinear
from mmjobs.model.restore import opened, restore
from mmjobs.tasks.export import export
from mmlaunch.estimate.memory import bytes_of_frozen, estimate
from mmlaunch.recipe import Recipe

Jobs = Callable[[str], Job]
Recipes = Callable[..., Recipe]
QLORA: dict[str, Any] = {
    "model__train": {"vision": "lora", "projector": "frozen", "language": "lora"},
    "model__lora": {"rank": 2, "quantise": "nf4"},
}
PLAIN = QLORA | {"model__lora": {"rank": 2}}


def layers(network: nn.Module) -> dict[str, QuantisedLinear]:
    return {path: one for path, one in network.named_modules() if isinstance(one, QuantisedLinear)}


def test_a_layer_is_that_of_bitsandbytes() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(96, 80)
    ours = QuantisedLinear.of(plain)
    theirs = bitsandbytes.nn.Linear4bit(96, 80, compute_dtype=torch.float32, quant_type="nf4")
    theirs.load_state_dict(plain.state_dict())
    theirs = theirs.to("cpu")
    x = torch.randn(7, 96, requires_grad=True)
    assert torch.equal(ours(x), theirs(x))
    matrix = ours.dense()
    torch.testing.assert_close(ours(x), x @ matrix.T + plain.bias, atol=1e-5, rtol=1e-5)
    assert (
        0 < (matrix - plain.weight).abs().max() < plain.weight.abs().max() * 0.25
    )  # half of the widest gap, and a scale
    ours(x).sum().backward()
    torch.testing.assert_close(x.grad, matrix.sum(0).expand(7, -1), atol=1e-4, rtol=1e-4)


def test_half_precision_changes_no_bit_of_it() -> None:
    layer = QuantisedLinear.of(nn.Linear(64, 64))
    before = layer.dense()
    assert torch.equal(layer.to(torch.bfloat16).dense(), before)
    x = torch.randn(3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_it_takes_half_a_byte_for_each_number() -> None:
    layer = QuantisedLinear.of(nn.Linear(1024, 1024, bias=False))
    size = sum(parameter.nbytes for parameter in layer.parameters())
    assert size / 1024**2 == pytest.approx(0.5 + 1 / 64 + 4 / 64 / 256, rel=1e-3)


def test_the_layers_of_parts_with_adapters_are_quantised_and_counted_as_before(tiny: Recipes) -> None:
    built, plain = (build(tiny(**changes).model) for changes in (QLORA, PLAIN))
    named = layers(built.network)
    assert {path.split(".")[1] for path in named} == {"vision_tower", "language_model"}
    assert all(path.endswith("base_layer") for path in named)
    assert parts.counts(built.network) == parts.counts(plain.network)
    assert ModelFlops.of(built.network, 1.0) == ModelFlops.of(plain.network, 1.0)


def test_the_estimate_has_their_numbers_and_bytes(tiny: Recipes) -> None:
    recipe = tiny(**QLORA)
    network = build(recipe.model).network
    made = estimate(recipe)
    table = {part.name: {"trainable": part.trained, "frozen": part.total - part.trained} for part in made.counts.parts}
    assert table == parts.counts(network)
    frozen = sum(parameter.nbytes for parameter in network.parameters() if not parameter.requires_grad)
    assert bytes_of_frozen(recipe, made.counts.frozen, made.counts) == pytest.approx(frozen, rel=0.01)
    dense = estimate(tiny(**PLAIN))
    assert made.memory(False).parameters < dense.memory(False).parameters
    assert made.saved.frozen == pytest.approx(frozen, rel=0.01)


def test_merged_and_detached_it_is_dense_again(tiny: Recipes) -> None:
    torch.manual_seed(0)
    built = build(tiny(**QLORA).model)
    with torch.no_grad():
        for name, parameter in built.network.named_parameters():
            if parts.ADAPTER in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    ids = torch.tensor([[256, *[259] * 4, 65, 66, 67]])
    pixels = torch.randn(1, 3, 16, 16)
    network: Any = built.network.eval()
    with torch.no_grad():
        before = network(input_ids=ids, pixel_values=pixels).logits
        adapters.merge(network)
        after = network(input_ids=ids, pixel_values=pixels).logits
    assert not layers(network)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("world", "stage", "precision"),
    [(1, 0, "fp32"), *(pytest.param(*one, marks=pytest.mark.nightly) for one in ((2, 1, "bf16"), (2, 2, "fp32")))],
)
def test_a_run_learns_resumes_and_is_exported(
    job: Jobs, tiny: Recipes, tmp_path: Path, world: int, stage: int, precision: str
) -> None:
    changes = QLORA | {
        "steps": 6, "checkpoint__every": "3 steps", "deepspeed__stage": stage, "precision": precision,
        "optim__lr": 1e-2, "optim__schedule": "constant",
    }  # fmt: skip
    whole, broken = job("whole"), job("broken")
    assert whole.run(tiny(**changes), world) == [0] * world, whole.log()
    assert broken.run(tiny(**changes | {"steps": 3}), world) == [0] * world, broken.log()
    assert broken.run(tiny(**changes), world) == [0] * world, broken.log()
    losses = {step: values[-1] for step, values in whole.losses().items()}
    assert {step: values[-1] for step, values in broken.losses().items()} == losses
    assert losses[6] < losses[1]
    checkpoint = whole.paths.checkpoint(6)

    network: Any = restore(tiny(**changes), checkpoint).network.eval()
    assert layers(network)
    ids, pixels = torch.tensor([[256, *[259] * 4, 65, 66, 67]]), torch.randn(1, 3, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        trained_logits = network(input_ids=ids, pixel_values=pixels).logits
    for merge in (True, False):
        folder = tmp_path / f"export-{merge}"
        export(whole.paths.root, folder, merge=merge)
        start = job(f"start-{merge}")
        assert start.run(tiny(model__init_from=str(folder), steps=1)) == [0], start.log()
        if merge:
            served: Any = opened(str(folder)).network
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                logits = served(input_ids=ids, pixel_values=pixels).logits
            tolerance = 0.2 if precision == "bf16" else 1e-4  # merged weights are rounded to the run's type
            torch.testing.assert_close(logits, trained_logits, atol=tolerance, rtol=0.0)
    following = job("following")
    assert following.run(tiny(model__init_from=str(checkpoint), steps=1)) == [0], following.log()
    shutil.rmtree(whole.paths.frozen)
    assert whole.run(tiny(**changes | {"steps": 7}), world) == [0] * world, whole.log()  # made again from the source


def test_a_run_goes_on_without_its_base(job: Jobs, tiny: Recipes) -> None:
    """The quantised weights are kept in the run as they are."""
    base = job("base")
    assert base.run(tiny(steps=1)) == [0], base.log()
    source = base.paths.checkpoint(1)
    changes = QLORA | {"model__init_from": str(source), "checkpoint__every": "2 steps", "optim__schedule": "constant"}
    whole, broken = job("whole"), job("broken")
    assert whole.run(tiny(**changes | {"steps": 4})) == [0], whole.log()
    assert broken.run(tiny(**changes | {"steps": 2})) == [0], broken.log()
    shutil.rmtree(base.paths.root)
    assert broken.run(tiny(**changes | {"steps": 4})) == [0], broken.log()
    assert "goes on from its own checkpoint" in broken.log()
    assert broken.losses()[4][-1] == whole.losses()[4][-1]


def test_without_bitsandbytes_it_says_what_to_install(tiny: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Exception, match=r"pip install 'mmlaunch\[qlora\]'"):
        build(tiny(**QLORA).model)
