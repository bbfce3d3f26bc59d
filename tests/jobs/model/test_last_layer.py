"""What follows the last attention is computed for the tokens that are read; what is said of them stays the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mmjobs.data.batch import collate
from mmjobs.data.encode import Processor
from mmjobs.data.formats import shapes
from mmjobs.model.build import build
from mmjobs.objectives.forward import hidden_states
from mmlaunch.recipe import Recipe


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("train", ["full", "lora"])
def test_only_what_is_read_passes_the_last_mlp(tiny: Callable[..., Recipe], packed: bool, train: str) -> None:
    lora = {"model__lora": {"rank": 2, "alpha": 4}} if train == "lora" else {}
    recipe = tiny(objective="dpo", model__train={"vision": "frozen", "language": train}, **lora)
    torch.manual_seed(0)
    built = build(recipe.model)
    network: Any = built.network.double().eval()
    processor = Processor(built.chat, built.pixels, built.positions, requirements=recipe.objective.requirements)
    batch = collate([processor.encode(shapes.example(n)) for n in range(3)], built.pixels, 258, packed=packed)
    read = batch.before[batch.loss_mask]
    assert 0 < len(read) < batch.tokens
    passed: list[int] = []
    last = network.get_decoder().layers[-1]
    last.mlp.register_forward_hook(lambda module, given, found: passed.append(given[0].shape[:-1].numel()))
    few = hidden_states(network, batch, read)
    everything = hidden_states(network, batch, torch.arange(batch.ids.numel()))
    assert passed == [len(read), batch.ids.numel()]
    torch.testing.assert_close(few, everything[read], rtol=1e-9, atol=1e-9)
