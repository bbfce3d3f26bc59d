"""From scores to advantages: the whole order for a small rollout, worked out by hand, under every estimator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from mmjobs.model.generate import Generated
from mmjobs.objectives.policy import ADVANTAGE, OLD, REFERENCE, VALID
from mmjobs.objectives.value import RETURN, VALUE
from mmjobs.rollout.learning import BASELINE, LAST, learn
from mmjobs.rollout.rollout import Group, Rollout, of_groups
from mmjobs.rollout.shaping import KlCoefficient, RunningStatistics
from mmlaunch.recipe.reinforcement import Grpo, Ppo, Reinforcement, Rloo

NAN = math.nan
METHODS: dict[str, type[Reinforcement]] = {"ppo": Ppo, "grpo": Grpo, "rloo": Rloo}
PAD = 0


def settings_of(method: str, answers: int = 2, **more: Any) -> Reinforcement:
    sampling = {"answers": answers, "max_new_tokens": 4}
    data = {"method": method, "rewards": ["exact"], "sampling": sampling, "rollouts": 8 * answers, **more}
    return METHODS[method].model_validate(data)


def rollout_of(
    scores: list[float],
    lengths: list[int],
    answers: int = 2,
    ended: list[bool] | None = None,
    outside: float = NAN,
    numbers: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> Rollout:
    """Answers of tokens 7, which end with the padding token; outside of them stands something that nobody may read."""
    each = [Generated([7] * (length - 1) + [PAD], [-1.0] * length, True) for length in lengths]
    groups = [Group(at // answers, tuple(each[at : at + answers])) for at in range(0, len(each), answers)]
    rollout = of_groups(0, groups, 4)
    rollout.scores = torch.tensor(scores, dtype=torch.float64)
    if ended is not None:
        rollout.ended = torch.tensor(ended)
    for name, rows in (numbers or {}).items():
        table = torch.full(rollout.ids.shape, outside, dtype=torch.float64)
        for row, values in enumerate(rows):
            table[row, : len(values)] = torch.tensor(list(values), dtype=torch.float64)
        rollout.numbers[name] = table
    return rollout


def learnt(rollout: Rollout, settings: Reinforcement, statistics: RunningStatistics | None = None) -> dict[str, float]:
    return learn(rollout, settings, statistics or RunningStatistics(), KlCoefficient(settings.kl))


def values(rollout: Rollout, name: str) -> list[list[float]]:
    """Those of each answer, without what stands outside of it; there it must be 0."""
    table = rollout.numbers[name]
    assert not table[~rollout.mask].any(), "nothing but 0 outside of the answers"
    return [table[row, :length].tolist() for row, length in enumerate(rollout.lengths.tolist())]


def nearly(rows: list[list[float]]) -> Any:
    return [pytest.approx(row, abs=1e-9) for row in rows]


@pytest.mark.parametrize("outside", [NAN, 1e6])
@pytest.mark.parametrize("whiten", [False, True])
def test_ppo(outside: float, whiten: bool) -> None:
    """The table of GAE as one answer of three tokens and one of one; k1 is 0.5, -1, 0 and 0.2, with a weight of 0.2.

    Rewards of the first: -0.1, 0.2, 1.0. Of the second: 0.6 - 0.04 = 0.56, with a value of 0.16.
    """
    rollout = rollout_of(
        [1.0, 0.6], [3, 1], outside=outside,
        numbers={OLD: [[-1, -3, -2], [-0.5]], REFERENCE: [[-1.5, -2, -2], [-0.7]], VALUE: [[0.5, 0.4, 0.3], [0.16]]},
    )  # fmt: skip
    measured = learnt(rollout, settings_of("ppo", kl=0.2, whiten=whiten))
    plain = [0.52675, 0.765, 0.7, 0.4]
    mean = sum(plain) / 4
    spread = math.sqrt(sum((one - mean) ** 2 for one in plain) / 4 + 1e-8)
    expected = [(one - mean) / spread for one in plain] if whiten else plain
    assert values(rollout, ADVANTAGE) == nearly([expected[:3], expected[3:]])
    assert values(rollout, RETURN) == nearly([[1.02675, 1.165, 1.0], [0.56]]), "from what was not whitened"
    assert values(rollout, VALID) == [[1, 1, 1], [1]]
    assert measured["kl_sequence"] == pytest.approx((-0.5 + 0.2) / 2)
    assert measured["kl_token"] == pytest.approx(-0.3 / 4)
    assert measured["reward"] == pytest.approx(0.8) and measured["length"] == 2


def test_two_lambdas_and_the_value_behind_a_truncated_answer() -> None:
    numbers = {VALUE: [[0.5, 0.4, 0.3]] * 2, LAST: [[0.7] * 3] * 2}
    settings = settings_of("ppo", kl=0, whiten=False, bootstrap_truncated=True, value_lam=1.0)
    rollout = rollout_of([1.0, 1.0], [3, 3], ended=[True, False], numbers=numbers)
    learnt(rollout, settings)
    ended = [0.95**2 * 0.7 + 0.95 * -0.1 - 0.1, 0.95 * 0.7 - 0.1, 0.7]
    cut = [0.95**2 * 1.4 + 0.95 * -0.1 - 0.1, 0.95 * 1.4 - 0.1, 1.4]
    assert values(rollout, ADVANTAGE) == nearly([ended, cut])
    assert values(rollout, RETURN) == nearly([[1.0] * 3, [1.7] * 3])
    without = rollout_of([1.0, 1.0], [3, 3], ended=[True, False], numbers=numbers)
    learnt(without, settings_of("ppo", kl=0, whiten=False))
    assert values(without, ADVANTAGE) == nearly([ended, ended])


def test_rewards_are_whitened_before_the_advantages() -> None:
    settings = settings_of("ppo", kl=0.1, whiten=False, whiten_rewards=True, lam=1.0)
    numbers = {OLD: [[-1.0, -1.0], [-1.0]], REFERENCE: [[-2.0, -1.0], [-1.0]], VALUE: [[0.25, 0.5], [0.0]]}
    rollout = rollout_of([1.0, 3.0], [2, 1], numbers=numbers)
    learnt(rollout, settings)
    plain = [-0.1, 1.0, 3.0]
    mean = 3.9 / 3
    spread = math.sqrt(sum((one - mean) ** 2 for one in plain) / 3 + 1e-8)
    first, second, third = ((one - mean) / spread + mean for one in plain)
    assert values(rollout, ADVANTAGE) == nearly([[first + second - 0.25, second - 0.5], [third]])


def test_the_score_is_on_the_end_even_where_its_token_is_the_padding() -> None:
    """The mask comes from lengths; neither from ids nor from log-probabilities that are exactly 0."""
    certain = {OLD: [[0.0, 0, 0, 0], [0.0]], REFERENCE: [[0.0, 0, 0, 0], [0.0]], VALUE: [[0.0, 0, 0, 0], [0.0]]}
    rollout = rollout_of([1.0, 2.0], [4, 1], numbers=certain)
    assert rollout.ids[0, 3] == rollout.ids[1, 0] == PAD
    learnt(rollout, settings_of("ppo", whiten=False, lam=0.5))
    assert values(rollout, ADVANTAGE) == nearly([[0.125, 0.25, 0.5, 1.0], [2.0]])
    assert values(rollout, VALID) == [[1] * 4, [1]]


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [
        ("grpo", [1.499997, -0.499999, -0.499999, -0.499999]),
        ("dr_grpo", [0.75, -0.25, -0.25, -0.25]),
        ("rloo", [1, -1 / 3, -1 / 3, -1 / 3]),
    ],
)
def test_estimators_of_groups(advantage: str, expected: list[float]) -> None:
    rollout = rollout_of([1, 0, 0, 0, 0.35, 0.35, 0.35, 0.35], [2, 1, 3, 1, 1, 1, 1, 1], answers=4)
    measured = learnt(rollout, settings_of("grpo", 4, advantage=advantage))
    rows = values(rollout, ADVANTAGE)
    assert [row[0] for row in rows[:4]] == pytest.approx(expected, abs=1e-6)
    assert all(len(set(row)) == 1 for row in rows), "all tokens of an answer have the same"
    assert rows[4:] == [[0.0]] * 4 and measured["flat_groups"] == 0.5


def test_scores_are_clipped_before_they_are_compared() -> None:
    """OpenRLHF clips the advantages instead: 10, -10, -10, -10."""
    rollout = rollout_of([100, 0, 0, 0], [1] * 4, answers=4)
    measured = learnt(rollout, settings_of("rloo", 4, kl=0, shaping={"clip": 10}))
    assert values(rollout, ADVANTAGE) == nearly([[10], [-10 / 3], [-10 / 3], [-10 / 3]])
    assert measured["reward_clipped"] == 0.25 and measured["reward"] == 25 and measured["reward_shaped"] == 2.5


def test_the_penalty_of_an_answer_is_inside_the_baseline() -> None:
    """RLOO: the advantages of a group sum to 0 with the KL penalty in them."""
    numbers = {OLD: [[-1.0, -1.0], [-2.0], [-1.0]], REFERENCE: [[-1.5, -2.5], [-1.0], [-1.0]]}  # 2, -1 and 0
    rollout = rollout_of([1.0, 0.0, 0.5], [2, 1, 1], answers=3, numbers=numbers)
    learnt(rollout, settings_of("rloo", 3, kl=0.1))
    rewards = [0.8, 0.1, 0.5]
    expected = [own - (sum(rewards) - own) / 2 for own in rewards]
    assert values(rollout, ADVANTAGE) == nearly([[expected[0]] * 2, [expected[1]], [expected[2]]])
    assert sum(expected) == pytest.approx(0)


def test_reinforce_plus_plus() -> None:
    """The penalty stays with its token and what comes before it; then all tokens of all prompts are whitened."""
    numbers = {OLD: [[-1.0, -1.0], [-2.0]], REFERENCE: [[-1.5, -2.5], [-1.0]]}
    rollout = rollout_of([1.0, 0.0], [2, 1], numbers=numbers)
    learnt(rollout, settings_of("grpo", 2, advantage="reinforce++", kl=0.1))
    plain = [0.5 - 0.05 - 0.15, 0.5 - 0.15, -0.5 + 0.1]
    mean = sum(plain) / 3
    spread = math.sqrt(sum((one - mean) ** 2 for one in plain) / 3 + 1e-8)
    white = [(one - mean) / spread for one in plain]
    assert values(rollout, ADVANTAGE) == nearly([white[:2], white[2:]])


def test_remax_compares_scores_of_the_same_scale() -> None:
    rollout = rollout_of([1.0, 3.0, 5.0, 5.0], [1, 2, 1, 1], numbers={BASELINE: [[3.0], [3.0], [11.0], [11.0]]})
    statistics = RunningStatistics()
    learnt(rollout, settings_of("grpo", 2, advantage="remax", shaping={"normalise": True, "clip": 2}), statistics)
    mean, std = 3.5, math.sqrt((2.5**2 + 0.5**2 + 2 * 1.5**2) / 3)
    assert [statistics.mean, statistics.std] == pytest.approx([mean, std])
    first, second, third = ((one - mean) / std for one in (1.0, 3.0, 5.0))
    greedy = (3.0 - mean) / std
    assert values(rollout, ADVANTAGE) == nearly([[first - greedy], [second - greedy] * 2, [third - 2], [third - 2]])


def test_without_the_likeliest_answer_there_is_nothing_to_compare_with() -> None:
    rollout = rollout_of([1.0, 3.0, 5.0, NAN], [1, 2, 1, 1], numbers={BASELINE: [[NAN], [NAN], [4.0], [4.0]]})
    measured = learnt(rollout, settings_of("grpo", 2, advantage="remax"))
    assert values(rollout, ADVANTAGE) == [[0.0], [0.0, 0.0], [1.0], [0.0]]
    assert values(rollout, VALID) == [[0], [0, 0], [1], [0]] and measured["reward_missing"] == 0.75


@pytest.mark.parametrize("method", ["ppo", "grpo", "rloo"])
@pytest.mark.parametrize(("outside", "missing"), [(NAN, NAN), (1e6, NAN), (0.0, math.inf), (0.0, -math.inf)])
def test_an_answer_without_a_score_is_left_out(method: str, outside: float, missing: float) -> None:
    """Its tokens are not learnt from, and the others are what they would be without it."""
    numbers = {
        OLD: [[-1.0, -1], [-2.0], [-1.0], [-5.0, -6]], REFERENCE: [[-1.5, -1], [-2.5], [-1.0], [-1.0, -1]],
        VALUE: [[0.1, 0.2], [0.3], [0.4], [0.9, 0.9]],
    }  # fmt: skip
    more: dict[str, Any] = {"kl": 0.1, "shaping": {"normalise": True, "no_end": "replace"}}
    four = rollout_of([1.0, 0.5, 0.0, missing], [2, 1, 1, 2], 4, [True, True, True, False], outside, numbers=numbers)
    three = rollout_of([1.0, 0.5, 0.0], [2, 1, 1], 3, numbers={name: rows[:3] for name, rows in numbers.items()})
    measured, without = learnt(four, settings_of(method, 4, **more)), learnt(three, settings_of(method, 3, **more))
    names = [ADVANTAGE, VALID, *([RETURN] if method == "ppo" else [])]
    for name in names:
        assert values(four, name) == nearly([*values(three, name), [0.0, 0.0]])
    assert measured["reward_missing"] == 0.25
    same = ("kl_sequence", "kl_token", "reward", "reward_std", "reward_shaped", "advantage", "advantage_std")
    assert [measured[name] for name in same] == pytest.approx([without[name] for name in same])


@pytest.mark.parametrize("method", ["ppo", "grpo", "rloo"])
def test_a_rollout_without_any_score_says_nothing(method: str) -> None:
    numbers = {OLD: [[-1.0], [-2.0]], REFERENCE: [[-1.5], [-1.0]], VALUE: [[0.1], [0.2]]}
    rollout = rollout_of([NAN, NAN], [1, 1], numbers=numbers)
    kl = {"weight": 0.1, "target_per_sequence": 6}
    settings = settings_of(method, kl=kl, shaping={"normalise": True, "clip": 1})
    coefficient = KlCoefficient(settings.kl)
    measured = learn(rollout, settings, RunningStatistics(), coefficient)
    assert coefficient.value == 0.1
    assert values(rollout, ADVANTAGE) == values(rollout, VALID) == [[0.0], [0.0]]
    assert all(math.isfinite(value) for value in measured.values())


def test_the_weight_follows_the_kl_of_whole_answers() -> None:
    """Once for each rollout, after its penalty: 4 tokens of 3 are 12, twice the target."""
    numbers = {OLD: [[-1.0] * 4] * 4, REFERENCE: [[-4.0] * 4] * 4}
    settings = settings_of("rloo", 2, kl={"weight": 0.2, "target_per_sequence": 6, "horizon": 100})
    coefficient, rollout = KlCoefficient(settings.kl), rollout_of([0.0] * 4, [4] * 4, numbers=numbers)
    measured = learn(rollout, settings, RunningStatistics(), coefficient)
    assert measured["kl_sequence"] == 12 and measured["kl_token"] == 3 and measured["kl_weight"] == 0.2
    assert coefficient.value == pytest.approx(0.2 * (1 + 0.2 * 4 / 100))


def test_a_model_that_is_its_reference_has_no_divergence() -> None:
    rollout = rollout_of([1.0, 0.0], [2, 1], numbers={OLD: [[-1.3, -0.2], [-7.1]], REFERENCE: [[-1.3, -0.2], [-7.1]]})
    measured = learnt(rollout, settings_of("rloo", kl=0.1))
    assert measured["kl_sequence"] == measured["kl_token"] == 0
