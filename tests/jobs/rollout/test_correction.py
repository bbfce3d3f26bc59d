"""The correction of another engine: closed values, and what a weight does to the loss of a token."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mmjobs.data.batch import Batch, collate
from mmjobs.data.chat import Tokens
from mmjobs.data.encode import Processor
from mmjobs.data.formats import shapes
from mmjobs.model.build import build
from mmjobs.objectives.policy import ADVANTAGE, OLD, POLICY, VALID, WEIGHT, Policy
from mmjobs.rollout.correction import correct, measured, truncated
from mmjobs.rollout.rollout import Rollout
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.engine import Correction
from mmlaunch.recipe.reinforcement import Reinforcement

LOG_WEIGHTS = torch.tensor([-2.0, 0.0, 0.5, 2.0], dtype=torch.float64)


def rollout() -> Rollout:
    """One answer of four tokens, and room for two more."""
    old = torch.full((1, 6), torch.nan, dtype=torch.float64)
    old[0, :4] = torch.tensor([-3.0, -1.0, -0.5, -0.25], dtype=torch.float64)
    behaviour = torch.zeros(1, 6, dtype=torch.float64)
    behaviour[0, :4] = old[0, :4] - LOG_WEIGHTS
    return Rollout(
        step=0, prompts=torch.tensor([0]), ids=torch.ones(1, 6, dtype=torch.long), lengths=torch.tensor([4]),
        ended=torch.tensor([True]), behaviour=behaviour, scores=torch.ones(1, dtype=torch.float64), numbers={OLD: old},
    )  # fmt: skip


def test_weights_are_truncated_above() -> None:
    weights = truncated(LOG_WEIGHTS, 2.0)
    torch.testing.assert_close(weights, torch.tensor([0.1353, 1, 1.6487, 2], dtype=torch.float64), atol=1e-4, rtol=0)
    extreme = truncated(torch.tensor([-1e4, 1e4], dtype=torch.float64), 2.0)
    assert extreme.isfinite().all() and extreme[0] < 1e-8 and extreme[1] == 2


def test_tokens_of_a_rollout_are_weighed_and_its_difference_is_measured() -> None:
    made = rollout()
    shown = correct(made, Correction())
    assert made.numbers[WEIGHT][0, :4].tolist() == pytest.approx([math.exp(-2), 1, math.exp(0.5), 2])
    assert made.numbers[WEIGHT].isfinite().all()
    assert shown["generation_gap"] == pytest.approx(4.5 / 4) and shown["generation_gap_max"] == 2
    expected = sum(math.expm1(value) - value for value in LOG_WEIGHTS.tolist()) / 4
    assert shown["generation_kl"] == pytest.approx(expected) and shown["generation_outside"] == 0.5
    plain = rollout()
    assert correct(plain, Correction(kind="none")) == shown and WEIGHT not in plain.numbers
    assert set(correct(plain, None)) == {"generation_gap", "generation_gap_max"}


def test_the_divergence_is_that_of_the_engine_from_the_trainer() -> None:
    """Over many draws from b, the mean of the samples is KL(b || o)."""
    b, o = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.4, 0.3, 0.3]).double()
    draws = b.multinomial(400_000, replacement=True, generator=torch.Generator().manual_seed(0))
    shown = measured((o.log() - b.log())[draws], 2.0)
    assert shown["generation_kl"] == pytest.approx(float((b * (b.log() - o.log())).sum()), rel=0.02)


def test_a_weight_multiplies_the_loss_of_its_token(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny(objective={"method": "rloo", "rewards": "exact", "rollouts": 8, "kl": 0})
    settings = recipe.objective
    assert isinstance(settings, Reinforcement)
    torch.manual_seed(0)
    built = build(recipe.model)
    encoded = Processor(built.chat, built.pixels, 128).prompt(shapes.example(1))

    def batch(**values: list[float]) -> Batch:
        told = {name: torch.tensor(value).double() for name, value in values.items()}
        told |= {ADVANTAGE: torch.tensor([1.0, -2.0, 3.0]).double(), VALID: torch.ones(3).double()}
        answer = Tokens([70, 71, 72], [True] * 3)
        row = replace(encoded, answers=(answer,), scores=(None,), token_values=told)
        return collate([row], built.pixels, 0, packed=True)

    def loss(**values: list[float]) -> float:
        return float(Policy(settings)(built.network, batch(**values)).losses[POLICY].detach())

    assert loss() == loss(weight=[1.0, 1.0, 1.0]) == pytest.approx(-2.0)  # the first ratio is 1
    assert loss(weight=[0.5, 2.0, 0.0]) == pytest.approx(-(0.5 * 1 - 2 * 2 + 0 * 3))
