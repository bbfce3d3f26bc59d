"""Log-probabilities made a few rows at a time: what all logits at once give, and never as much memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig

from mmjobs.model import log_probs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nearly_certain_tokens_have_a_gradient_in_half_precision(dtype: torch.dtype) -> None:
    """Frozen or trained, the head gives hidden states the same one: what is left of a probability near 1."""
    torch.manual_seed(0)
    weight, tokens = torch.randn(300, 64).to(dtype), torch.arange(20)
    hidden = (weight[:20] * 0.16).detach()
    wanted = hidden.double().requires_grad_()
    exact = (wanted @ weight.double().T).log_softmax(-1).gather(1, tokens[:, None]).sum()
    (truth,) = torch.autograd.grad(exact, wanted)
    assert (hidden.double() @ weight.double().T).softmax(-1).gather(1, tokens[:, None]).median() > 0.9
    for trained in (True, False):
        head = log_probs.Head(64, 300, bias=False, dtype=dtype)
        head.weight = torch.nn.Parameter(weight.clone(), requires_grad=trained)
        own = hidden.clone().requires_grad_()
        (found,) = torch.autograd.grad(head(own, tokens).values.sum(), own)
        assert (found.double() - truth).norm() < 0.03 * truth.norm()


@pytest.mark.parametrize("trained", [True, False])
def test_logits_in_pieces_are_logits(monkeypatch: pytest.MonkeyPatch, trained: bool) -> None:
    """Also under the largest scores, and with a gradient for each token of its own."""
    monkeypatch.setattr(log_probs, "_ROWS", 3)
    hidden = (100 * torch.randn(11, 8, dtype=torch.float64)).requires_grad_()
    head = log_probs.Head(8, 50, bias=False).double()
    head.weight.requires_grad_(trained)
    tokens, pull = torch.randint(50, (11,)), torch.randn(11, dtype=torch.float64)
    found = head(hidden, tokens, ("likeliest", "collision"))
    assert not len(head(hidden, tokens).collision)
    logits = (hidden @ head.weight.T).log_softmax(-1)
    torch.testing.assert_close(found.values, logits.gather(1, tokens[:, None])[:, 0])
    torch.testing.assert_close(found.collision, logits.exp().square().sum(1).log())
    assert torch.equal(found.likeliest, logits.argmax(1) == tokens)
    wanted = [hidden, head.weight] if trained else [hidden]
    ours = torch.autograd.grad((found.values * pull).sum(), wanted)
    theirs = torch.autograd.grad((logits.gather(1, tokens[:, None])[:, 0] * pull).sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_pieces_add_up_where_half_precision_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of fp32 under autocast: their gradient is the sum over all pieces, and fp32."""
    monkeypatch.setattr(log_probs, "_ROWS", 3)
    torch.manual_seed(0)
    hidden, tokens = torch.randn(600, 32, requires_grad=True), torch.randint(50, (600,))
    head = log_probs.Head(32, 50, bias=False)
    pull = torch.rand(600) + 0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(hidden, tokens).values
    ours = torch.autograd.grad((found * pull).sum(), [hidden, head.weight])
    logits = (hidden @ head.weight.T).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    theirs = torch.autograd.grad((logits * pull).sum(), [hidden, head.weight])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, logits, rtol=0.02, atol=0.02)
    for one, other in zip(ours, theirs, strict=True):
        apart = (one - other).norm() / other.norm()
        assert one.dtype == torch.float32 and 1e-4 < apart < 5e-3


class Biased(nn.Module):
    """A network with nothing but a head, which adds a constant."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.head, self.config = nn.Linear(8, 50, bias=bias), LlamaConfig()

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, hidden: torch.Tensor) -> Any:
        return self.head(hidden)


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_with_a_bias_keeps_its_own_way(bias: bool) -> None:
    network = Biased(bias)
    log_probs.use(network)
    assert isinstance(network.head, log_probs.Head) is not bias
    hidden, tokens = torch.randn(5, 8), torch.randint(50, (5,))
    found = log_probs.log_probs(network, hidden, tokens, ("likeliest", "collision"))
    spread = network(hidden).log_softmax(-1)
    torch.testing.assert_close(found.values, spread.gather(1, tokens[:, None])[:, 0])
    torch.testing.assert_close(found.collision, spread.exp().square().sum(1).log())
    assert torch.equal(found.likeliest, spread.argmax(1) == tokens)


@pytest.mark.parametrize("trained", [True, False])
def test_no_tensor_is_as_large_as_all_logits(monkeypatch: pytest.MonkeyPatch, trained: bool) -> None:
    """Neither on the way forward nor on the way back, nor kept in between."""

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            for one in found if isinstance(found, (tuple, list)) else [found]:
                if isinstance(one, torch.Tensor):
                    self.size = max(self.size, one.numel())
            return found

    tokens, width, vocabulary, piece = 200, 8, 1000, 10
    monkeypatch.setattr(log_probs, "_ROWS", piece)
    head = log_probs.Head(width, vocabulary, bias=False).requires_grad_(trained)
    hidden = torch.randn(tokens, width, requires_grad=True)
    make_largest: Any = Largest  # its base class has no types
    with make_largest() as largest:
        torch.autograd.backward(head(hidden, torch.randint(vocabulary, (tokens,))).values.sum())
    assert largest.size == max(piece * vocabulary, width * vocabulary) < tokens * vocabulary


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropy_is_learnt_in_pieces(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, trained: bool, temperature: float
) -> None:
    """Value and gradient of it beside those of the log-probabilities, at the sampling temperature."""
    monkeypatch.setattr(log_probs, "_ROWS", 3)
    torch.manual_seed(0)
    network = Biased(bias=False)
    log_probs.use(network)
    network.head.to(dtype).requires_grad_(trained)
    hidden, tokens = torch.randn(11, 8, dtype=dtype, requires_grad=True), torch.randint(50, (11,))
    pull, push = torch.randn(2, 11, dtype=dtype)
    ours = log_probs.log_probs(network, hidden, tokens, ("learnt entropy",), temperature)
    every = (hidden.double() @ network.head.weight.double().T / temperature).log_softmax(-1)
    values, entropy = every.gather(1, tokens[:, None])[:, 0], -(every.exp() * every).sum(-1)
    close: Any = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(ours.values.double(), values, **close)
    torch.testing.assert_close(ours.entropy.double(), entropy, **close)
    measured = log_probs.log_probs(network, hidden, tokens, ("entropy",), temperature).entropy
    assert torch.equal(measured, ours.entropy) and not measured.requires_grad
    wanted = [hidden, network.head.weight] if trained else [hidden]
    own = torch.autograd.grad((ours.values * pull + ours.entropy * push).sum(), wanted, retain_graph=True)
    exact = torch.autograd.grad((values * pull.double() + entropy * push.double()).sum(), wanted, retain_graph=True)
    alone = torch.autograd.grad(ours.entropy.sum(), wanted)
    exact_alone = torch.autograd.grad(entropy.sum(), wanted)
    for one, other in zip([*own, *alone], [*exact, *exact_alone], strict=True):
        torch.testing.assert_close(one.double(), other.double(), **close)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropy_of_a_head_with_a_bias(temperature: float) -> None:
    network = Biased(bias=True).double()
    hidden, tokens = torch.randn(5, 8, dtype=torch.float64, requires_grad=True), torch.randint(50, (5,))
    ours = log_probs.log_probs(network, hidden, tokens, ("learnt entropy",), temperature).entropy
    every = (network(hidden) / temperature).log_softmax(-1)
    entropy = -(every.exp() * every).sum(-1)
    torch.testing.assert_close(ours, entropy)
    one, other = (torch.autograd.grad(value.sum(), [hidden, network.head.weight]) for value in (ours, entropy))
    torch.testing.assert_close(one, other)
