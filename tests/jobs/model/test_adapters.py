"""Adapters: they add nothing at first, merge exactly, and stand alone as peft reads them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import Linear

from mmjobs.model import adapters, parts, weights
from mmjobs.model.build import BuiltModel, build, skeleton
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.model import Model
from mmlaunch.recipe.parts import part_of

LORA = {"rank": 4, "alpha": 8}
KINDS = [{}, {"rslora": True}, {"dora": True}]
TRAIN = {"vision": "lora", "projector": "full", "language": "lora"}


def ids() -> torch.Tensor:
    return torch.tensor([[256, *[259] * 4, 65, 66, 67]])


def logits(built: Any) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        out: torch.Tensor = built(input_ids=ids(), pixel_values=torch.randn(1, 3, 16, 16)).logits
    return out


def adapted(recipe: Recipe) -> BuiltModel:
    """A model whose adapters have learnt something."""
    torch.manual_seed(0)
    built = build(recipe.model)
    built.network.eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in built.network.named_parameters():
            if parts.ADAPTER in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return built


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes_at_first_and_a_merge_changes_nothing(
    tiny: Callable[..., Recipe], kind: dict[str, Any]
) -> None:
    recipe = tiny(model__lora={**LORA, **kind}, model__train=TRAIN)
    torch.manual_seed(0)
    plain = skeleton(recipe.model, "fp32", empty=False).network.eval()
    torch.manual_seed(0)
    fresh = build(recipe.model).network.eval()
    torch.testing.assert_close(logits(fresh), logits(plain), atol=1e-6, rtol=1e-6)
    built = adapted(recipe)
    expected = logits(built.network)
    assert (expected - logits(plain)).abs().max() > 1e-2
    state = weights.merged(
        {name: value.clone() for name, value in built.network.state_dict().items()}, recipe.model.lora
    )
    adapters.merge(built.network)
    assert not any(parts.ADAPTER in name for name in built.network.state_dict())
    torch.testing.assert_close(logits(built.network), expected, atol=1e-5, rtol=1e-5)
    plain.load_state_dict(state)
    torch.testing.assert_close(logits(plain), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_alone_is_pefts(tiny: Callable[..., Recipe], tmp_path: Path, kind: dict[str, Any]) -> None:
    recipe = tiny(model__lora={**LORA, **kind}, model__train=TRAIN)
    built = adapted(recipe)
    expected = logits(built.network)
    assert recipe.model.lora is not None
    adapters.save(built.network, recipe.model.lora, tmp_path / "adapter", "base")
    adapters.detach(built.network)
    assert (logits(built.network) - expected).abs().max() > 1e-2
    again = peft.PeftModel.from_pretrained(built.network, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(again), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_never_read_without_the_adapter_beside_them(
    tiny: Callable[..., Recipe], tmp_path: Path, kind: dict[str, Any]
) -> None:
    """An export without --merge-lora is a start like any other: what its adapter has learnt is not lost."""
    recipe = tiny(model__lora={**LORA, **kind}, model__train=TRAIN)
    built = adapted(recipe)
    expected = logits(built.network)
    assert recipe.model.lora is not None
    adapters.save(built.network, recipe.model.lora, tmp_path / adapters.FOLDER, "base")
    adapters.detach(built.network)
    built.network.save_pretrained(tmp_path)
    built.processor.save_pretrained(tmp_path)
    start = tiny(model__init_from=str(tmp_path)).model
    torch.testing.assert_close(logits(build(start).network.eval()), expected, atol=1e-5, rtol=1e-5)
    whole = Model.model_validate({"pretrained": str(tmp_path)})
    torch.testing.assert_close(logits(build(whole).network.eval()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [None, 1])
def test_adapters_stand_only_where_something_runs(tiny: Callable[..., Recipe], layers: int | None) -> None:
    """`feature_layer` leaves the layers behind it unused, and `vision_layers` asks for the last of those before."""
    vision = {"random": {"width": 16, "layers": 4, "heads": 2, "image_size": 16, "patch": 8}, "feature_layer": -2}
    recipe = tiny(model__vision=vision, model__lora=LORA, model__train={**TRAIN, "vision_layers": layers})
    network = build(recipe.model).network
    found = {
        name.split("layers.")[1][0] for name, _ in network.named_parameters() if "vision" in name and "lora" in name
    }
    assert found == ({"0", "1", "2"} if layers is None else {"2"})


def test_targets_are_chosen_by_their_names(tiny: Callable[..., Recipe]) -> None:
    model = tiny(model__lora={**LORA, "targets": r"language.*\.(q|v)_proj$"}, model__train=TRAIN).model
    names = [name for name, parameter in build(model).network.named_parameters() if parts.ADAPTER in name]
    assert {name.split(".")[-4] for name in names} == {"q_proj", "v_proj"}
    assert {part_of(name) for name in names} == {"language"}
    with pytest.raises(BadInput, match=r"fits none of the linear layers; .*down_proj"):
        build(tiny(model__lora={**LORA, "targets": "nothing"}, model__train=TRAIN).model)


def test_only_what_the_recipe_trains_has_a_gradient(tiny: Callable[..., Recipe]) -> None:
    built = build(tiny(model__lora=LORA, model__train={**TRAIN, "vision": "frozen"}).model)
    for name, parameter in built.network.named_parameters():
        part = part_of(name)
        assert parameter.requires_grad == (part == "projector" or (part == "language" and parts.ADAPTER in name)), name


def test_an_adapted_layer_says_what_that_of_peft_says(tiny: Callable[..., Recipe]) -> None:
    """Forward and back; under autocast it is no further from the truth, for it rounds once less."""
    built = adapted(tiny(model__lora={**LORA, "rslora": True}, model__train=TRAIN))
    layers: list[Any] = [module for module in built.network.modules() if isinstance(module, Linear)]
    assert layers and all(type(layer) is not Linear for layer in layers)
    for layer in layers[:6]:
        theirs = partial(Linear.forward, layer)
        given = torch.randn(40, 3, layer.in_features)
        exact, same = said(layer, layer.forward, given, False), said(layer, theirs, given, False)
        ours, other = said(layer, layer.forward, given, True), said(layer, theirs, given, True)
        for truth, peer in zip(exact, same, strict=True):
            torch.testing.assert_close(truth, peer, atol=1e-4, rtol=1e-5)
        for truth, one, peer in zip(exact, ours, other, strict=True):
            assert 0 < (one - truth).norm() <= 1.2 * (peer - truth).norm()


def said(layer: Any, forward: Callable[..., Any], given: torch.Tensor, half: bool) -> list[torch.Tensor]:
    """What comes out, and the gradients of what goes in and of both matrices."""
    layer.zero_grad()
    own = given.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        found = forward(own).float()
    torch.autograd.backward(found.square().sum())
    matrices = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    return [found.detach(), *(value.grad.clone() for value in (own, *matrices) if value.grad is not None)]
