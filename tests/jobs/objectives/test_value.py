"""The critic's loss against its formula, in fp64."""

from __future__ import annotations

import pytest
import torch
from tests.jobs.tabular import Rows, Table, batch_of

from mmjobs.objectives.policy import VALID
from mmjobs.objectives.value import RETURN, VALUE, Value


def measured(clip: float | None, new: Rows, old: Rows, returns: Rows, valid: Rows) -> tuple[float, list[float], float]:
    """The loss, its gradient in the new values, and the share of those that the clip decides."""
    batch, objective = batch_of({VALUE: old, RETURN: returns, VALID: valid}), Value(clip)
    network = Table(batch, 1).set(torch.tensor([[one] for row in new for one in row], dtype=torch.float64))
    output = objective(network, batch)
    loss = output.losses["tokens"] / objective.units(batch)["tokens"]
    loss.backward()
    clipped, count = output.metrics["clipped"]
    return float(loss.detach()), network.grad()[:, 0].tolist(), float(clipped / count)


@pytest.mark.parametrize(
    ("value", "loss", "slope", "clipped"), [(0, 0.5, -1, 0), (0.1, 0.405, -0.9, 0), (0.3, 0.32, 0, 1), (1, 0.32, 0, 1)]
)
def test_the_clip_takes_the_larger_error(value: float, loss: float, slope: float, clipped: float) -> None:
    computed = measured(0.2, [[value]], [[0.0]], [[1.0]], [[1.0]])
    assert (computed[0], computed[1][0], computed[2]) == pytest.approx((loss, slope, clipped))
    plain = measured(None, [[value]], [[0.0]], [[1.0]], [[1.0]])
    assert (plain[0], plain[1][0], plain[2]) == pytest.approx(((1 - value) ** 2 / 2, value - 1, 0))


def test_far_from_both_the_error_pulls_back() -> None:
    """A value that ran away from the return is not held by the clip."""
    assert measured(0.2, [[-1.0]], [[0.0]], [[1.0]], [[1.0]]) == (2.0, [-2.0], 0.0)


def test_the_mean_is_over_valid_tokens() -> None:
    loss, slopes, _ = measured(None, [[0, 2], [5]], [[0, 0], [0]], [[1, 0], [9]], [[1, 1], [0]])
    assert loss == pytest.approx((1 + 4) / 4) and slopes == pytest.approx([-0.5, 1, 0])
