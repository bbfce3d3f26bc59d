"""From the score of an answer to its reward: each rule by its table, their order, running statistics, the KL weight."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import examples

from mmjobs.rollout.shaping import KlCoefficient, RunningStatistics, overlong_penalty, shaped
from mmlaunch.recipe.reinforcement import Kl, Overlong, Shaping

NAN = math.nan


def rewards_of(
    scores: list[float],
    lengths: list[int] | None = None,
    ended: list[bool] | None = None,
    statistics: RunningStatistics | None = None,
    **changes: Any,
) -> tuple[list[float], int]:
    """With a greatest length of 100."""
    rewards, clipped = shaped(
        torch.tensor(scores, dtype=torch.float64),
        torch.tensor(lengths or [1] * len(scores), dtype=torch.float64),
        torch.tensor(ended or [True] * len(scores)),
        100,
        Shaping.model_validate(changes),
        statistics or RunningStatistics(),
    )
    return rewards.tolist(), clipped


def test_soft_penalty_of_long_answers() -> None:
    lengths = torch.tensor([0.0, 79, 80, 85, 90, 100, 110], dtype=torch.float64)
    expected = [0, 0, 0, -0.25, -0.5, -1, -1]
    assert overlong_penalty(lengths, 100, Overlong(margin=20)).tolist() == expected
    assert overlong_penalty(lengths, 100, Overlong(margin=20, weight=3)).tolist() == [3 * one for one in expected]


def test_answers_without_an_end() -> None:
    scores, ended = [0.5, 0.5, NAN, 2.0], [True, False, False, False]
    kept, _ = rewards_of(scores, ended=ended)
    replaced, _ = rewards_of(scores, ended=ended, no_end="replace")
    other, _ = rewards_of(scores, ended=ended, no_end="replace", no_end_reward=-3)
    subtracted, _ = rewards_of(scores, ended=ended, no_end="subtract", no_end_reward=1.5)
    for rewards, expected in (
        (kept, scores), (replaced, [0.5, -1, NAN, -1]), (other, [0.5, -3, NAN, -3]), (subtracted, [0.5, -1, NAN, 0.5]),
    ):  # fmt: skip
        assert rewards == pytest.approx(expected, nan_ok=True), "a missing score stays missing"


def test_running_statistics_of_a_stream() -> None:
    statistics, seen = RunningStatistics(), []
    for score in (1.0, 3.0, 5.0):
        statistics.add(torch.tensor([score]))
        seen.append((statistics.mean, statistics.std))
    assert seen == [(1, 1), (2, pytest.approx(math.sqrt(2))), (3, pytest.approx(2))]


batches = st.lists(st.lists(st.one_of(st.floats(-100, 100), st.just(NAN)), max_size=6), min_size=1, max_size=6)


@settings(max_examples=examples(50), deadline=None)
@given(batches)
def test_merged_batches_are_one_batch(parts: list[list[float]]) -> None:
    merged, whole = RunningStatistics(), RunningStatistics()
    for part in parts:
        merged.add(torch.tensor(part, dtype=torch.float64))
    whole.add(torch.tensor([score for part in parts for score in part], dtype=torch.float64))
    exists = [score for part in parts for score in part if not math.isnan(score)]
    assert merged.count == whole.count == len(exists)
    assert merged.mean == pytest.approx(whole.mean, abs=1e-9)
    assert merged.squares == pytest.approx(whole.squares, abs=1e-6)
    if len(exists) > 1 and max(exists) - min(exists) > 1e-3:
        assert merged.std == pytest.approx(float(torch.tensor(exists, dtype=torch.float64).std()), rel=1e-6)


@pytest.mark.parametrize(("score", "count"), [(0.35, 7), (0.1, 3), (1e5 + 0.1, 9)])
def test_equal_scores_are_not_magnified(score: float, count: int) -> None:
    """Their mean is not exactly the score, and a spread of 1e-17 would be divided by."""
    statistics = RunningStatistics()
    for _ in range(3):
        rewards, _ = rewards_of([score] * count, statistics=statistics, normalise=True)
        assert rewards == pytest.approx([0.0] * count, abs=1e-8)


def test_the_order_is_penalty_end_normalisation_clip() -> None:
    statistics = RunningStatistics()
    changes: Any = {
        "overlong": {"margin": 20},
        "no_end": "subtract",
        "no_end_reward": 0.5,
        "normalise": True,
        "clip": 1.1,
    }
    rewards, clipped = rewards_of([1, 3, 6.5, NAN], [1, 1, 100, 90], [True, True, False, True], statistics, **changes)
    assert (statistics.count, statistics.mean, statistics.std) == (3, 3.0, 2.0)  # of 1, 3, and 6.5 - 1 - 0.5
    assert rewards == pytest.approx([-1, 0, 1, NAN], nan_ok=True) and clipped == 0
    rewards, clipped = rewards_of([9.0], statistics=statistics, **changes)
    assert rewards == [1.1] and clipped == 1


def test_raw_scores_are_clipped() -> None:
    rewards, clipped = rewards_of([100, 0, -100, NAN, 10], clip=10)
    assert rewards == pytest.approx([10, 0, -10, NAN, 10], nan_ok=True) and clipped == 2


@pytest.mark.parametrize(
    ("kl", "expected"), [(0, 0.198976), (6, 0.2), (12, 0.201024), (1e9, 0.201024), (5.4, 0.199488), (-3, 0.198976)]
)
def test_the_kl_weight_follows_its_target(kl: float, expected: float) -> None:
    """arXiv 1909.08593, 2.2; the target is a sum over an answer, not a mean over its tokens."""
    coefficient = KlCoefficient(Kl.model_validate({"weight": 0.2, "target_per_sequence": 6}))
    coefficient.update(kl, 256)
    assert coefficient.value == pytest.approx(expected, abs=1e-12)
    again = KlCoefficient(Kl.model_validate({"weight": 0.2, "target_per_sequence": 6}))
    again.restore(coefficient.state())
    assert again.value == coefficient.value


def test_a_fixed_kl_weight_stays() -> None:
    coefficient = KlCoefficient(Kl.model_validate(0.2))
    coefficient.update(100.0, 256)
    assert coefficient.value == 0.2
