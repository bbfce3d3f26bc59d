"""Heads: read at the last real token, whatever stands behind it."""

from __future__ import annotations

import torch

from mmjobs.model.heads import ScoreHead, last


def test_padding_and_neighbours_do_not_matter() -> None:
    torch.manual_seed(0)
    hidden, lengths = torch.randn(3, 7, 8), torch.tensor([2, 7, 4])
    head = ScoreHead(8)
    scores = head(last(hidden, lengths))
    for row, length in enumerate(lengths.tolist()):
        alone = head(last(hidden[row : row + 1, :length], lengths[row : row + 1]))
        torch.testing.assert_close(scores[row : row + 1], alone)
    spoilt = hidden.clone()
    spoilt[0, 2:] = float("nan")
    assert torch.equal(head(last(spoilt, lengths)), scores)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(head(last(hidden[order], lengths[order])), scores[order])


def test_there_is_no_bias_and_a_critic_begins_at_zero() -> None:
    assert [name for name, _ in ScoreHead(8).named_parameters()] == ["linear.weight"]
    assert not ScoreHead(8, zero=True)(torch.randn(5, 8)).any()
