"""Terms by themselves: closed forms, and numbers of any size."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import examples
from tests.jobs import formulas
from tests.jobs.small import PIXELS

from mmjobs.data.batch import collate
from mmjobs.data.chat import Tokens
from mmjobs.data.encode import Encoded
from mmjobs.data.example import Origin
from mmjobs.objectives.global_batch import for_micro_batches
from mmjobs.objectives.policy_vs_reference import Completion, CompletionSums, PolicyVsReference, divergence
from mmjobs.objectives.reward import Reward
from mmjobs.objectives.terms import TERMS
from mmjobs.objectives.terms.others import ranked
from mmjobs.objectives.terms.pairs import soft_labels
from mmlaunch.recipe.objective import Reward as RewardSettings
from mmlaunch.recipe.preference import Preference as Settings
from mmlaunch.recipe.terms import SHIPPED, Aot, Margin, Term, Terms


def test_the_schema_and_the_terms_name_the_same() -> None:
    assert TERMS.keys() | {"sft"} == set(SHIPPED)


def test_the_best_margin_of_mmpo_is_gamma_times_the_gap_of_the_scores() -> None:
    """Also for gaps of thousands, whose label is 1; a tie pushes nothing."""
    gaps = torch.tensor([0.0, 0.5, 2.0, -1.0, 4000.0], dtype=torch.float64)
    delta = (1.1 * gaps / 0.3).requires_grad_()
    zero = torch.zeros(5, dtype=torch.float64)
    side = partial(Completion, zero, zero, zero, zero)
    one = torch.ones(5, dtype=torch.float64)
    pairs = PolicyVsReference(
        0.3, side(delta, one, gaps), side(0 * one, one, 0 * gaps), side(0 * one, one, gaps),
        log_ratios=one[:, None], exists=one[:, None] > 0, unpaired_label=one, mismatched=one, paired=one > 0,
    )  # fmt: skip
    loss = TERMS["margin"].loss(pairs, Margin(gamma=1.1))
    (slope,) = torch.autograd.grad(loss.sum(), delta)
    assert loss.isfinite().all() and slope.abs().max() < 1e-12
    assert torch.equal(
        soft_labels(pairs, Margin(gamma=1.1, scores="divided by their spread")), torch.sigmoid(1.1 * gaps)
    )


@pytest.mark.parametrize(("kind", "alpha"), [("forward_kl", 0.5), ("js", 0.5), ("alpha", 0.3), ("alpha", 2.0)])
def test_a_divergence_is_its_slope_as_far_as_numbers_go(kind: str, alpha: float) -> None:
    ratio = torch.tensor([-70.0, -5.0, 0.0, 0.1, 30.0], dtype=torch.float64)
    torch.testing.assert_close(divergence(ratio, kind, alpha), formulas.SLOPES[kind](ratio.exp(), alpha))
    assert torch.equal(divergence(ratio, "alpha", 1.0), ratio), "its limit is the reverse KL"


def test_odds_of_a_certain_answer_are_finite() -> None:
    """ORPO divides by the chance that it is not said; one in a million is not yet nothing."""
    found = []
    for mean in (0.0, math.log1p(-1e-6)):
        chosen = torch.tensor([mean], requires_grad=True)
        loss = TERMS["orpo"].loss(of_means(chosen, torch.tensor([-1.0])), Term())
        (slope,) = torch.autograd.grad(loss.sum(), chosen)
        assert loss.isfinite().all() and slope.isfinite().all()
        found.append(loss.item())
    odds = math.log(1e6) - math.log(math.exp(-1) / (1 - math.exp(-1)))
    assert found[1] == pytest.approx(math.log1p(math.exp(-odds)), rel=0.05) and found[0] < found[1]


def of_means(chosen: torch.Tensor, rejected: torch.Tensor) -> PolicyVsReference:
    none = torch.zeros_like(chosen).detach()
    better, worse = (Completion(mean, mean, none, none, none, none + 1, none) for mean in (chosen, rejected))
    return PolicyVsReference(0.1, better, worse, worse, none[:, None], none[:, None] == 0, none, none, none == 0)


def test_a_small_ratio_of_a_long_answer_keeps_its_digits() -> None:
    """Two sums of thousands are 1e-3 apart in fp32 before anything was learnt; each token's difference is not."""
    count = 3000
    answers = (Tokens([65] * count, [True] * count), Tokens([66], [True]))
    pair = Encoded(Tokens([256], [False]), answers, (None, None), {}, Origin("here", 0))
    batch = collate([pair], PIXELS, 258, packed=True)
    generator = torch.Generator().manual_seed(0)
    policy = -5 * torch.rand(count + 1, generator=generator)
    reference = policy + 1e-5 * torch.rand(count + 1, generator=generator)
    sums = CompletionSums(batch, policy, reference, Settings.model_validate("dpo"))
    exact = (policy.double() - reference.double())[:count].sum()
    assert float(sums.completion(sums.index.chosen).log_ratio) == pytest.approx(float(exact), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1000.0])
def test_ranked_loss_is_finite_and_its_gradient_too(dtype: torch.dtype, scale: float) -> None:
    """Equal scores cost ln K!, the right order nothing, the wrong one what it is apart; answers that lack, nothing."""
    scores = scale * torch.tensor([[1, -1, 0, 0], [-1, 1, 0, 0], [1, 0, -1, 0], [0, 0, 0, 0]], dtype=dtype)
    scores.requires_grad_()
    there = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    loss = ranked(scores, there)
    assert loss.isfinite().all() and loss[3].item() == pytest.approx(math.log(24), abs=1e-3)
    if scale == 1000:
        assert loss.tolist()[:3] == pytest.approx([0, 2000, 0], abs=1e-3)
    if scale == 0:
        assert loss.tolist()[:3] == pytest.approx([math.log(2), math.log(2), math.log(6)], abs=1e-3)
    torch.autograd.backward(loss.sum())
    assert scores.grad is not None and scores.grad.isfinite().all() and not scores.grad[~there].any()


def test_what_all_scores_have_in_common_costs_no_digits() -> None:
    scores = torch.tensor([[0.5, 0.25, -0.125], [1.0, 2.0, 0.0]])
    there = torch.tensor([[True, True, True], [True, True, False]])
    small, large = scores.clone().requires_grad_(), (scores + 65536).requires_grad_()
    ours = [torch.autograd.grad(ranked(one, there).sum(), one)[0] for one in (small, large)]
    torch.testing.assert_close(*ours, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ranked(small, there), ranked(large, there), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["forward_kl", "alpha"])
@pytest.mark.parametrize("term", ["ipo", "sigmoid", "hinge"])
def test_what_has_left_its_reference_far_behind_is_finite(kind: str, term: str) -> None:
    """A divergence grows with the exponential, and ipo squares it."""
    ratio = torch.tensor([-500.0, -50.0, 0.0, 50.0], requires_grad=True)
    one, score = torch.ones(4), divergence(ratio, kind, 0.3)
    chosen, rejected = (Completion(one, one, ratio, one, value, one, one) for value in (score, 0 * one))
    pairs = PolicyVsReference(
        0.3, chosen, rejected, rejected, log_ratios=one[:, None], exists=one[:, None] > 0, unpaired_label=one,
        mismatched=one, paired=one > 0,
    )  # fmt: skip
    found = TERMS[term].loss(pairs, getattr(Terms.model_validate({term: {}}), term))
    assert found.isfinite().all() and torch.autograd.grad(found.sum(), ratio)[0].isfinite().all()


def test_every_rank_is_told_of_all_others_and_of_its_own() -> None:
    """Three micro-batches of two ranks: who meets whom, and the reference point of all."""
    policy, known = [3.0, 1.0, 2.0, 5.0], [10.0, 40.0, 20.0, 30.0]
    chosen, rejected = [1.0, 4.0, 2.0, 3.0], [0.5, -1.0, 7.0, 2.0]
    mismatched, cuts = [[-3.0, 2.0], [10.0], []], [(0, 2), (2, 3), (3, 4)]
    batches = [
        {
            "policy": torch.tensor(policy[a:b]), "reference": torch.tensor(known[a:b]),
            "chosen": torch.tensor(chosen[a:b]), "rejected": torch.tensor(rejected[a:b]),
            "mismatched": torch.tensor(mismatched[number]),
        }
        for number, (a, b) in enumerate(cuts)
    ]  # fmt: skip
    everyone = [batches[:2], batches[2:]]
    paired = [30.0, 10.0, 20.0, 40.0]
    above, below = [-1.0, 7.0, 0.5, 2.0], [2.0, 1.0, 4.0, 3.0]  # of rank: the rejected for each chosen, and back
    for rank, mine in ((0, cuts[:2]), (1, cuts[2:])):
        for found, (a, b) in zip(for_micro_batches(everyone, rank, Aot(pairs="paired")), mine, strict=True):
            assert found["paired"].tolist() == paired[a:b] and found["point"] == 3.0
        for found, (a, b) in zip(for_micro_batches(everyone, rank, Aot(pairs="unpaired")), mine, strict=True):
            assert (found["rejected"].tolist(), found["chosen"].tolist()) == (above[a:b], below[a:b])
        assert [found.keys() for found in for_micro_batches(everyone, rank, None)] == [{"point"}] * len(mine)
    nobody = [[{**batches[0], "mismatched": torch.tensor([])}]]
    assert for_micro_batches(nobody, 0, None)[0]["point"] == 0
    assert for_micro_batches([[{**batches[0], "mismatched": torch.tensor([-1.0])}]], 0, None)[0]["point"] == 0


@given(
    values=st.lists(st.floats(-4, 4), min_size=2, max_size=5),
    scores=st.lists(st.integers(0, 2), min_size=5, max_size=5),
)
@settings(max_examples=examples(50))
def test_equal_scores_are_ties_in_ranked_losses(values: list[float], scores: list[int]) -> None:
    """-log of e^r / (e^r + those of lower scores), for each answer: equals may change places, and never compete."""
    given_scores = sorted(scores[: len(values)], reverse=True)
    rewards = torch.tensor([values], dtype=torch.float64, requires_grad=True)
    data, there = torch.tensor([given_scores], dtype=torch.float64), torch.ones(1, len(values), dtype=torch.bool)
    loss = ranked(rewards, there, data)
    by_hand = 0.0
    for value, score in zip(values, given_scores, strict=True):
        lower = [one for one, other in zip(values, given_scores, strict=True) if other < score]
        by_hand += math.log(math.exp(value) + sum(map(math.exp, lower))) - value
    assert loss.item() == pytest.approx(by_hand, abs=1e-9)
    (gradient,) = torch.autograd.grad(loss.sum(), rewards)
    if len(set(given_scores)) == 1:
        assert loss.item() == pytest.approx(0, abs=1e-12) and not gradient.any()
    assert torch.equal(ranked(rewards, there, torch.full_like(data, math.nan)), ranked(rewards, there))


def test_equal_scores_are_no_pair_of_a_reward_model() -> None:
    table, there = torch.tensor([[3.0, -1.0], [0.5, 2.0]], requires_grad=True), torch.ones(2, 2, dtype=torch.bool)
    data = torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    for options in ({}, {"margin": True}):
        loss = Reward(RewardSettings.model_validate(options))._loss(table, data, there)
        (gradient,) = torch.autograd.grad(loss.sum(), table)
        assert loss[0].item() == 0 and not gradient[0].any() and loss[1].item() > 0 and gradient[1].any()
