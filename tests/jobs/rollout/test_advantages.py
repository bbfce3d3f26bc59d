"""Advantages against values worked out by hand (PPO, GRPO, Dr. GRPO, RLOO, REINFORCE++, ReMax), and what they ignore.

Defects of public code that are looked for here: masked slots that leak into the estimate, answers of one token, a batch
of two, a group whose scores are equal or nearly so, and scores that are missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import examples

from mmjobs.rollout.advantages import dr_grpo, explained_variance, gae, grpo, remax, reward_to_go, rloo, whiten

REWARDS, VALUES = [-0.1, 0.2, 1.0], [0.5, 0.4, 0.3]
NAN = math.nan
DTYPES = [torch.float32, torch.float64]
finite = st.floats(-10, 10, allow_nan=False)
scores_of_groups = st.integers(2, 6).flatmap(lambda n: st.lists(st.lists(finite, min_size=n, max_size=n), min_size=1))


def table(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def everything(values: torch.Tensor) -> torch.Tensor:
    return torch.ones(values.shape, dtype=torch.bool)


@pytest.mark.parametrize(
    ("gamma", "lam", "last", "expected", "returns"),
    [
        (1, 1, None, [0.6, 0.8, 0.7], [1.1, 1.2, 1.0]),
        (1, 0.95, None, [0.52675, 0.765, 0.7], [1.02675, 1.165, 1.0]),
        (0.99, 0.95, None, [0.506406675, 0.75535, 0.7], [1.006406675, 1.15535, 1.0]),
        (1, 0, None, [-0.2, 0.1, 0.7], [0.3, 0.5, 1.0]),
        (1, 0.95, 0.7, [1.1585, 1.43, 1.4], [1.6585, 1.83, 1.7]),  # cut at its greatest length
    ],
)
def test_generalised_advantages(
    gamma: float, lam: float, last: float | None, expected: list[float], returns: list[float]
) -> None:
    rewards, values = table(REWARDS), table(VALUES)
    bootstrap = None if last is None else torch.tensor([last], dtype=torch.float64)
    computed = gae(rewards, values, everything(rewards), gamma, lam, bootstrap)
    torch.testing.assert_close(computed, table(expected), rtol=0, atol=1e-12)
    torch.testing.assert_close(computed + values, table(returns), rtol=0, atol=1e-12)


@pytest.mark.parametrize("filling", [0.0, 1e6, -1e6, NAN, math.inf])
def test_what_stands_outside_the_mask_is_never_read(filling: float) -> None:
    """Behind an answer, and between its turns: a value in a masked slot would be carried to the tokens before it."""
    mask = torch.tensor([[True, True, True, False], [True, False, False, True], [True, True, False, False]])
    rewards, values = (
        table([*REWARDS, 9], [0.0, 9, 9, 1.0], [0.0, 1.0, 0, 0]),
        table([*VALUES, 9], [0.2] * 4, [0.0] * 4),
    )
    rewards, values = rewards.where(mask, filling), values.where(mask, filling)
    expected = table([0.52675, 0.765, 0.7, 0], [0.95 * 0.8, 0, 0, 0.8], [0.95, 1.0, 0, 0])
    torch.testing.assert_close(gae(rewards, values, mask, 1.0, 0.95), expected, rtol=0, atol=1e-12)
    white = whiten(rewards, mask)
    assert white.isfinite().all() and not white[~mask].any()
    assert float(white[mask].mean()) == pytest.approx(0, abs=1e-12)
    assert explained_variance(values, rewards, mask) == explained_variance(
        values.where(mask, 0), rewards.where(mask, 0), mask
    )


@settings(max_examples=examples(50), deadline=None)
@given(
    st.lists(st.tuples(finite, finite), min_size=1, max_size=8),
    st.floats(0, 1),
    st.floats(0, 1),
    st.one_of(st.none(), finite),
)
def test_generalised_advantages_are_the_weighted_sum_of_all_n_step_estimates(
    answer: list[tuple[float, float]], gamma: float, lam: float, last: float | None
) -> None:
    """arXiv 1506.02438, eq. 16, term by term instead of backwards."""
    rewards, values = ([pair[number] for pair in answer] for number in (0, 1))
    behind = [*values[1:], 0.0 if last is None else last]
    errors = [r + gamma * v - own for r, own, v in zip(rewards, values, behind, strict=True)]
    expected = [
        sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, len(answer))) for t in range(len(answer))
    ]  # fmt: skip
    bootstrap = None if last is None else torch.tensor([last], dtype=torch.float64)
    computed = gae(table(rewards), table(values), everything(table(rewards)), gamma, lam, bootstrap)
    torch.testing.assert_close(computed, table(expected), rtol=1e-9, atol=1e-9)


def test_an_answer_of_one_token_and_no_answer_at_all() -> None:
    one = gae(table([1.0]), table([0.25]), torch.ones(1, 1, dtype=torch.bool), 1.0, 0.95)
    assert one.tolist() == [[0.75]]
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert not gae(table([1.0] * 3, [NAN] * 3), table([0.0] * 3, [NAN] * 3), nothing, 1.0, 0.95).any()
    assert not whiten(table([1.0] * 3, [NAN] * 3), nothing).any()


def test_the_score_stands_on_the_token_that_ends_an_answer() -> None:
    """In the slot behind it, it would count 0.95 times as much for every token."""
    rewards = table([0.0, 0.0, 1.0])
    computed = gae(rewards, torch.zeros_like(rewards), everything(rewards), 1.0, 0.95)
    torch.testing.assert_close(computed, table([0.9025, 0.95, 1.0]))


def test_reward_to_go() -> None:
    rewards = table([-0.1, 0.2, 1.0])
    torch.testing.assert_close(reward_to_go(rewards, everything(rewards), 1.0), table([1.1, 1.2, 1.0]))
    torch.testing.assert_close(reward_to_go(rewards, everything(rewards), 0.5), table([0.25, 0.7, 1.0]))


def test_whitening_is_by_the_population() -> None:
    values = table([1, 2, 3, 4])
    white = [-1.341641, -0.447214, 0.447214, 1.341641]
    torch.testing.assert_close(whiten(values, everything(values)), table(white), rtol=0, atol=1e-6)
    spread_alone = [1.158359, 2.052786, 2.947214, 3.841641]
    computed = whiten(values, everything(values), shift_mean=False)
    torch.testing.assert_close(computed, table(spread_alone), rtol=0, atol=1e-6)
    rows, mask = table([1, 2, 99], [3, 4, NAN]), torch.tensor([[True, True, False]] * 2)
    torch.testing.assert_close(whiten(rows, mask)[mask], table(white)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_whitening_of_equal_numbers(dtype: torch.dtype) -> None:
    """One token, or many of the same value: nothing is better than expected, and nothing is divided by 0."""
    for values in (torch.full((1, 1), 5.0, dtype=dtype), torch.full((3, 7), 0.35, dtype=dtype)):
        assert torch.equal(whiten(values, everything(values)), torch.zeros_like(values))
        torch.testing.assert_close(whiten(values, everything(values), shift_mean=False), values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_group_estimators(dtype: torch.dtype) -> None:
    one, two = torch.tensor([[1.0, 0, 0, 0]], dtype=dtype), torch.tensor([[1.0, 1, 0, 0]], dtype=dtype)
    for estimator, scores, expected in [
        (grpo, one, [1.499997, -0.499999, -0.499999, -0.499999]),
        (grpo, two, [0.866024, 0.866024, -0.866024, -0.866024]),
        (dr_grpo, one, [0.75, -0.25, -0.25, -0.25]),
        (rloo, one, [1.0, -1 / 3, -1 / 3, -1 / 3]),
        (rloo, two, [2 / 3, 2 / 3, -2 / 3, -2 / 3]),
    ]:
        computed = estimator(scores)
        assert computed.dtype == dtype
        torch.testing.assert_close(computed, torch.tensor([expected], dtype=dtype), rtol=0, atol=2e-6)
    against = remax(torch.tensor([[1.0, 0.0], [0.5, 0.25]], dtype=dtype), torch.tensor([0.5, 0.25], dtype=dtype))
    assert against.tolist() == [[0.5, -0.5], [0.25, 0.0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("estimator", [grpo, dr_grpo, rloo])
@pytest.mark.parametrize(("score", "count"), [(0.35, 7), (0.1, 3), (1e6 + 0.1, 5), (0.0, 4), (-1 / 3, 8)])
def test_a_group_that_agrees_says_exactly_nothing(
    estimator: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype, score: float, count: int
) -> None:
    """In floating point their mean is not always the score, and a spread of 1e-8 would be divided by."""
    assert torch.equal(estimator(torch.full((1, count), score, dtype=dtype)), torch.zeros(1, count, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_group_that_nearly_agrees_is_not_magnified(dtype: torch.dtype) -> None:
    computed = grpo(torch.tensor([[1.0, 1.00001]], dtype=dtype))
    torch.testing.assert_close(computed, torch.tensor([[-0.6196, 0.6196]], dtype=dtype), rtol=0, atol=5e-4)


def test_a_missing_score_leaves_its_group() -> None:
    scores = table([1, NAN, 0, 0], [0.4, NAN, NAN, NAN], [NAN] * 4, [0.3, 0.3, NAN, 0.3])
    for estimator in (grpo, dr_grpo, rloo):
        computed, without = estimator(scores), estimator(table([1, 0, 0]))[0]
        assert torch.equal(computed.isnan(), scores.isnan())
        torch.testing.assert_close(computed[0, [0, 2, 3]], without)
        assert float(computed[1, 0]) == 0 and not computed[3].nan_to_num(0).any()


@settings(max_examples=examples(50), deadline=None)
@given(scores_of_groups)
def test_baselines_of_groups(groups: list[list[float]]) -> None:
    """Advantages of a group sum to 0, follow the order of the scores, and do not depend on the other groups."""
    scores = table(*groups)
    count = scores.shape[1]
    for estimator in (grpo, dr_grpo, rloo):
        computed = estimator(scores)
        torch.testing.assert_close(computed.sum(1), torch.zeros(len(groups), dtype=torch.float64), rtol=0, atol=1e-8)
        assert (computed.gather(1, scores.argsort(1)).diff(dim=1) >= -1e-9).all()
        for number, group in enumerate(groups):
            torch.testing.assert_close(estimator(table(group))[0], computed[number])
    others = [[(sum(group) - own) / (count - 1) for own in group] for group in groups]
    torch.testing.assert_close(rloo(scores), scores - table(*others), rtol=1e-9, atol=1e-9)


def test_explained_variance() -> None:
    returns = table([1, 2, 3, 4])
    assert explained_variance(returns, returns, everything(returns)) == 1
    assert explained_variance(torch.zeros_like(returns), returns, everything(returns)) == 0
    assert explained_variance(-returns, returns, everything(returns)) == pytest.approx(-3)
    assert explained_variance(returns / 2, returns, everything(returns)) == pytest.approx(0.75)
    values = table([0.3, 1.1, -77.7, 0.36])
    assert explained_variance(values, (0.35 - values) + values, everything(values)) == 0, "equal but for rounding"
