"""The policy's loss against its formulas in fp64: values, gradients, aggregation, and the force of the KL penalty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import examples
from tests.jobs.tabular import Rows, Table, batch_of

from mmjobs.objectives.policy import ADVANTAGE, OLD, REFERENCE, VALID, Policy
from mmlaunch.recipe.reinforcement import Grpo

Words = Sequence[Sequence[int]]
P, R = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
TRUE_KL, TRUE_FORCE = 0.274887, [0.320702, -0.082466, -0.238236]
LIKELY = 0.05
"""The probability of each token, from which its old one follows by the ratio."""


def settings_of(**changes: Any) -> Grpo:
    data = {"method": "grpo", "rewards": ["exact"], "sampling": {"answers": 4, "max_new_tokens": 8}, **changes}
    return Grpo.model_validate(data)


class Measured:
    """The loss of answers as it is minimised, and its gradient in the log-probability of each token."""

    def __init__(self, ratios: Rows, advantages: Rows, valid: Rows | None = None, **changes: Any) -> None:
        self.policy = Policy(settings_of(**changes))
        old = [[math.log(LIKELY / ratio) for ratio in row] for row in ratios]
        flags = valid or [[1.0] * len(row) for row in ratios]
        batch = batch_of({OLD: old, ADVANTAGE: advantages, VALID: flags})
        scores = torch.tensor([math.log(LIKELY), math.log(1 - LIKELY)], dtype=torch.float64)
        network = Table(batch, 2).set(scores)
        self.output = self.policy(network, batch)
        self.total, self.units = self.output.losses["policy"], self.policy.units(batch)["policy"]
        self.loss = float(self.total.detach()) / self.units
        (self.total / self.units).backward()
        self.slopes = (
            network.grad()[:, 0] / (1 - LIKELY)
        ).tolist()  # of the first score, to that of the log-probability

    def metric(self, name: str) -> float:
        total, count = self.output.metrics[name]
        return float(total / count)


CLIPPED = [0.5, 1.2, 1.5, 4.0]


@pytest.mark.parametrize(
    ("advantage", "changes", "losses", "kept"),
    [
        (1, {}, [-0.5, -1.2, -1.2, -1.2], [1, 1, 0, 0]),
        (-1, {}, [0.8, 1.2, 1.5, 4], [0, 1, 1, 1]),
        (-1, {"dual_clip": 3}, [0.8, 1.2, 1.5, 3], [0, 1, 1, 0]),
        (1, {"dual_clip": 3}, [-0.5, -1.2, -1.2, -1.2], [1, 1, 0, 0]),
        (1, {"clip_high": 0.28}, [-0.5, -1.2, -1.28, -1.28], [1, 1, 0, 0]),
        (-1, {"clip_high": 0.28}, [0.8, 1.2, 1.5, 4], [0, 1, 1, 1]),
        (-2, {"dual_clip": 3}, [1.6, 2.4, 3, 6], [0, 1, 1, 0]),
        (0, {}, [0, 0, 0, 0], [1, 1, 1, 1]),
    ],
)
def test_ppo(advantage: float, changes: dict[str, Any], losses: list[float], kept: list[int]) -> None:
    """Where the clipped branch is the smaller objective nothing pulls; elsewhere the ratio times the advantage does."""
    for ratio, loss, pulls in zip(CLIPPED, losses, kept, strict=True):
        if ratio == 1.2:
            ratio -= 1e-12  # at the bound itself both branches are equal
        one = Measured([[ratio]], [[advantage]], **changes)
        assert one.loss == pytest.approx(loss, abs=1e-9)
        assert one.slopes == pytest.approx([-advantage * ratio * pulls], abs=1e-9)


def test_clip_fractions_count_what_the_clip_decides() -> None:
    ratios, advantages = [[0.5, 0.5, 4, 4, 1.1, 0.5]], [[1.0, -1, 1, -1, 1, 0]]
    one = Measured(ratios, advantages)
    assert (one.metric("clipped_low"), one.metric("clipped_high")) == (1 / 6, 1 / 6)
    assert one.metric("ratio") == pytest.approx(10.6 / 6)
    cispo = Measured(ratios, advantages, loss="cispo")  # without a lower bound; the upper one holds for both signs
    assert (cispo.metric("clipped_low"), cispo.metric("clipped_high")) == (0, 2 / 6)


def test_gspo() -> None:
    ratios = [[math.exp(one) for one in (0.1, -0.3, 0.5)]]
    one = Measured(ratios, [[2.0] * 3], loss="gspo", aggregate="sequence")
    assert one.metric("ratio") == pytest.approx(1.105171, abs=1e-6)
    assert one.loss == pytest.approx(-2 * 1.105171, abs=1e-6)
    assert one.slopes == pytest.approx([-2 * math.exp(0.1) / 3] * 3)
    clipped = Measured(ratios, [[2.0] * 3], loss="gspo", aggregate="sequence", clip=0.05)
    assert clipped.loss == pytest.approx(-2.1) and clipped.slopes == [0, 0, 0]
    assert clipped.metric("clipped_high") == 1
    worse = Measured(ratios, [[-2.0] * 3], loss="gspo", aggregate="sequence", clip=0.05)
    assert worse.slopes == pytest.approx([2 * math.exp(0.1) / 3] * 3)


def test_gspo_means_are_of_valid_tokens_of_one_answer() -> None:
    ratios = [[math.exp(0.2), math.exp(0.4)], [math.exp(-0.1)], [math.exp(5.0)]]
    one = Measured(ratios, [[1.0, 1.0], [1.0], [0.0]], [[1, 1], [1], [0]], loss="gspo", aggregate="sequence", clip=0.5)
    assert one.loss == pytest.approx(-(math.exp(0.3) + math.exp(-0.1)) / 2)
    assert one.slopes == pytest.approx([-math.exp(0.3) / 4] * 2 + [-math.exp(-0.1) / 2, 0])


def test_cispo() -> None:
    """The ratio weighs, and has no gradient itself: each token keeps its own pull."""
    for ratio, advantage, weight in ((0.5, 1.0, 0.5), (1.1, -2.0, 1.1), (4.0, 1.0, 1.28), (4.0, -1.0, 1.28)):
        one = Measured([[ratio]], [[advantage]], loss="cispo", clip_high=0.28)
        assert one.loss == pytest.approx(-weight * advantage * math.log(LIKELY))
        assert one.slopes == pytest.approx([-weight * advantage])


@pytest.mark.parametrize(("how", "loss"), [("token", 1.0), ("sequence", 1.0), ("constant", 0.375)])
def test_aggregation(how: str, loss: float) -> None:
    one = Measured([[1, 1], [1, 1, 1, 1]], [[-1, -1], [0, 0, 0, -4]], aggregate=how)
    assert one.loss == pytest.approx(loss)
    per_token = {"token": [1 / 6] * 6, "sequence": [1 / 4] * 2 + [1 / 8] * 4, "constant": [1 / 16] * 6}[how]
    advantages = [-1, -1, 0, 0, 0, -4]
    assert one.slopes == pytest.approx([-own * a for own, a in zip(per_token, advantages, strict=True)])


ratios_of_answers = st.lists(
    st.lists(st.tuples(st.floats(0.3, 3), st.floats(-3, 3)), min_size=1, max_size=4), min_size=2, max_size=5
)


@settings(max_examples=examples(25), deadline=None)
@given(ratios_of_answers, st.sampled_from(["token", "sequence", "constant"]), st.sampled_from(["ppo", "gspo", "cispo"]))
def test_sums_and_units_do_not_depend_on_micro_batches(answers: Any, how: str, loss: str) -> None:
    """The loss of all answers is the sums of any of their parts, by the units of all of them."""
    ratios, advantages = ([[pair[n] for pair in answer] for answer in answers] for n in (0, 1))
    whole = Measured(ratios, advantages, aggregate=how, loss=loss)
    parts = [Measured([r], [a], aggregate=how, loss=loss) for r, a in zip(ratios, advantages, strict=True)]
    units = sum(part.units for part in parts)
    assert units == pytest.approx(whole.units)
    assert sum(part.loss * part.units for part in parts) / units == pytest.approx(whole.loss, abs=1e-9)
    slopes = [slope * part.units / units for part in parts for slope in part.slopes]
    assert slopes == pytest.approx(whole.slopes, abs=1e-9)


@pytest.mark.parametrize("how", ["token", "sequence", "constant"])
@pytest.mark.parametrize("loss", ["ppo", "gspo", "cispo"])
def test_answers_without_a_score_count_for_nothing(how: str, loss: str) -> None:
    """Whatever their ratios are: 1e8, or nothing at all."""
    one = Measured([[1.1, 0.9], [1e8, 1e-9, 4]], [[1, 1], [0, 0, 0]], [[1, 1], [0, 0, 0]], aggregate=how, loss=loss)
    other = Measured([[1.1, 0.9]], [[1, 1]], aggregate=how, loss=loss)
    assert one.loss == pytest.approx(other.loss) and one.units == other.units
    assert one.slopes == pytest.approx([*other.slopes, 0, 0, 0])
    nothing = Measured([[1.1]], [[0]], [[0]], aggregate=how, loss=loss)
    assert nothing.loss == 0 and nothing.slopes == [0] and nothing.units < 1e-6


def of_words(scores: torch.Tensor, values: Mapping[str, torch.Tensor], weights: torch.Tensor, **changes: Any) -> Any:
    """The expected loss, and its expected gradient in the scores, of answers of one word that are drawn by `weights`.

    `values`: of each word.
    """
    loss, force = 0.0, torch.zeros_like(scores)
    policy = Policy(settings_of(**changes))
    for word, weight in enumerate(weights.tolist()):
        named = {name: [[float(table[word])]] for name, table in values.items()}
        batch = batch_of({VALID: [[1.0]], **named}, words=[[word]])
        network = Table(batch, len(scores)).set(scores)
        total = policy(network, batch).losses["policy"]
        total.backward()
        loss, force = loss + weight * float(total.detach()), force + weight * network.grad()[0]
    return loss, force


def kl_and_force(scores: torch.Tensor, reference: torch.Tensor, temperature: float = 1.0) -> tuple[float, torch.Tensor]:
    own = scores.clone().requires_grad_()
    likely = (own / temperature).log_softmax(0)
    divergence = (likely.exp() * (likely - reference.log())).sum()
    return float(divergence.detach()), torch.autograd.grad(divergence, own)[0]


NOTHING = torch.zeros(3, dtype=torch.float64)
ADMITTED = [{"form": "k1"}, {"form": "k2"}, {"form": "k3"}, {"form": "k1", "weighted": True}]


@pytest.mark.parametrize("form", ADMITTED)
@pytest.mark.parametrize("behaviour", [P, torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)])
def test_each_form_in_the_loss_pulls_as_the_divergence_does(form: dict[str, Any], behaviour: torch.Tensor) -> None:
    """By enumeration, also where an older policy drew the words."""
    changes = {"kl": {"weight": 0.5, "place": "loss", **form}}
    values = {OLD: behaviour.log(), REFERENCE: R.log(), ADVANTAGE: NOTHING}
    loss, force = of_words(P.log(), values, behaviour, **changes)
    true, exact = kl_and_force(P.log(), R)
    assert true == pytest.approx(TRUE_KL, abs=1e-6) and exact.tolist() == pytest.approx(TRUE_FORCE, abs=1e-6)
    torch.testing.assert_close(force, exact / 2, rtol=0, atol=1e-12)
    assert loss == pytest.approx((0.293856 if form["form"] == "k2" else TRUE_KL) / 2, abs=1e-6)


def test_the_penalty_in_the_reward_pulls_as_the_divergence_does() -> None:
    """k1 of the policy that answered, through the gradient of the likelihood of its answers."""
    values = {OLD: P.log(), REFERENCE: R.log(), ADVANTAGE: -0.5 * (P.log() - R.log())}
    _, force = of_words(P.log(), values, P, kl={"weight": 0.5, "place": "reward"})
    torch.testing.assert_close(force, kl_and_force(P.log(), R)[1] / 2, rtol=0, atol=1e-12)


distributions = st.lists(st.floats(-2, 2), min_size=3, max_size=3).map(lambda x: torch.tensor(x, dtype=torch.float64))


@settings(max_examples=examples(20), deadline=None)
@given(
    distributions, distributions, distributions, st.sampled_from(["k1", "k2", "k3"]), st.sampled_from([0.7, 1.0, 2.0])
)
def test_a_step_lowers_the_divergence(
    scores: torch.Tensor, others: torch.Tensor, olds: torch.Tensor, form: str, temperature: float
) -> None:
    """Its sign, and the temperature that all log-probabilities share."""
    reference, behaviour = others.softmax(0), olds.softmax(0)
    values = {OLD: behaviour.log(), REFERENCE: reference.log(), ADVANTAGE: NOTHING}
    kl = {"weight": 1.0, "place": "loss", "form": form}
    sampling = {"answers": 4, "max_new_tokens": 8, "temperature": temperature}
    _, force = of_words(scores, values, behaviour, kl=kl, sampling=sampling)
    before, exact = kl_and_force(scores, reference, temperature)
    torch.testing.assert_close(force, exact, rtol=1e-9, atol=1e-9)
    after, _ = kl_and_force(scores - 0.05 * force, reference, temperature)
    assert after < before or before < 1e-9


def test_entropy_is_made_larger() -> None:
    scores = P.log()
    _, force = of_words(scores, {OLD: P.log(), ADVANTAGE: NOTHING}, P, entropy=0.3)
    own = scores.clone().requires_grad_()
    entropy = -(own.softmax(0) * own.log_softmax(0)).sum()
    torch.testing.assert_close(force, -0.3 * torch.autograd.grad(entropy, own)[0])


def test_one_step_for_each_rollout_needs_no_old_log_probabilities() -> None:
    """The policy is the one that answered: every ratio is exactly 1, with the gradient of the score function."""
    loss, force = of_words(P.log(), {ADVANTAGE: torch.tensor([1.0, -1.0, 2.0])}, P)
    assert loss == pytest.approx(-(0.5 - 0.3 + 0.4))
    pulls = P * torch.tensor([1.0, -1.0, 2.0])
    torch.testing.assert_close(force, P * pulls.sum() - pulls)


def test_better_words_become_likelier() -> None:
    values = {OLD: P.log(), ADVANTAGE: torch.tensor([1.0, -1.0, 0.0])}
    for loss in ("ppo", "gspo", "cispo"):
        _, force = of_words(P.log(), values, P, loss=loss)
        after = (P.log() - 0.1 * force).softmax(0)
        assert after[0] > P[0] and after[1] < P[1]
