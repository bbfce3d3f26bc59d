"""Heads: a number for each answer, read at its last real token, whatever stands behind it or beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmjobs.data.batch import collate
from mmjobs.data.encode import Processor
from mmjobs.data.formats.shapes import example
from mmjobs.model.build import build
from mmjobs.model.heads import ScoreHead, score_of
from mmjobs.model.toys import models as toys
from mmjobs.objectives.forward import hidden_states
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.model import Model


@pytest.mark.parametrize("attention", ["plain", "mmca"])
def test_padding_packing_and_neighbours_do_not_matter(tiny: Callable[..., Recipe], attention: str) -> None:
    torch.manual_seed(0)
    recipe = tiny(objective="reward", model__attention=attention)
    built = build(recipe.model, scoring_head=True)
    built.network.eval()
    processor = Processor(built.chat, built.pixels, built.positions, requirements=recipe.objective.requirements)
    encoded = [processor.encode(example(row)) for row in range(4)]

    def scores(rows: list[int], padding: int, packed: bool) -> torch.Tensor:
        batch = collate([encoded[row] for row in rows], built.pixels, padding, packed)
        with torch.no_grad():
            return score_of(built.network, hidden_states(built.network, batch, batch.answers.last)).view(-1, 3)

    alone = torch.cat([scores([row], 258, packed=False) for row in range(4)])
    assert alone.std() > 0
    for padding, packed in ((258, False), (0, False), (0, True)):  # 0 is a real token
        torch.testing.assert_close(scores([0, 1, 2, 3], padding, packed), alone, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(scores([2, 0, 3], padding, packed), alone[[2, 0, 3]], atol=1e-6, rtol=1e-5)


def test_rewards_keep_their_digits_in_half_precision() -> None:
    head = ScoreHead(64, 1.0).to(torch.bfloat16)
    assert [name for name, _ in head.named_parameters()] == ["weight"], "a bias would cancel, and drift"
    hidden = torch.randn(5, 64).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(hidden)
    torch.testing.assert_close(found, hidden.float() @ head.weight.float()[0])
    assert found.dtype == torch.float32


def test_words_that_are_read_as_well_are_learnt(tmp_path: Path) -> None:
    """A reward model makes no words; where their matrix is that of its input, it still learns."""
    gemma = str(toys.gemma(tmp_path / "gemma"))
    tied: Any = build(Model.model_validate({"pretrained": gemma}), scoring_head=True).network
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    assert tied.get_input_embeddings().weight.requires_grad
    llama = str(toys.in_turns(tmp_path / "llama", "llama"))
    untied: Any = build(Model.model_validate({"pretrained": llama}), scoring_head=True).network
    assert untied.get_output_embeddings().weight is not untied.get_input_embeddings().weight
    assert not untied.get_output_embeddings().weight.requires_grad
    assert untied.get_input_embeddings().weight.requires_grad
