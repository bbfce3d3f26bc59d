"""The update of a rollout in fp64: its gradients do not depend on how answers are laid out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from mmjobs.data.batch import collate
from mmjobs.data.chat import Tokens
from mmjobs.data.encode import Encoded, Processor
from mmjobs.data.example import Example, Origin, Turn
from mmjobs.data.formats import shapes
from mmjobs.model.build import BuiltModel, build
from mmjobs.objectives.forward import answer_log_probs
from mmjobs.objectives.objective import Objective
from mmjobs.objectives.policy import ADVANTAGE, OLD, REFERENCE, VALID, Policy
from mmjobs.objectives.value import RETURN, VALUE, Value
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.reinforcement import Grpo

Tiny = Callable[..., Recipe]
LENGTHS = [(5, 1, 3), (2, 2, 7), (1, 1, 1), (4, 6, 2)]


def model(tiny: Tiny, scoring_head: bool = False) -> tuple[BuiltModel, Processor]:
    torch.manual_seed(0)
    built = build(tiny().model, "fp32", scoring_head)
    for part in list(built.network.modules()):  # LLaMA's own norm computes in fp32, whatever it is given
        for name, norm in part.named_children():
            if isinstance(norm, LlamaRMSNorm):
                setattr(part, name, nn.RMSNorm(len(norm.weight), eps=norm.variance_epsilon))
    built.network.double().eval()
    return built, Processor(built.chat, built.pixels, built.positions)


def groups_of(processor: Processor) -> list[Encoded]:
    """Three answers to each of four prompts, two without an image, with everything that a rollout knows of them."""
    torch.manual_seed(1)
    texts = [Example((), (Turn("user", (words,)),), (), Origin("text", 1)) for words in ("Hi", "Where is it?")]
    groups = []
    for example, lengths in zip([shapes.example(1), *texts, shapes.example(2)], LENGTHS, strict=True):
        count = sum(lengths)
        likely, others, better, worth = torch.randn(4, count, dtype=torch.float64)
        valid = torch.cat([torch.full((length,), float(length != 6)) for length in lengths]).double()
        values = {
            OLD: likely / 5 - 5, REFERENCE: others / 5 - 5, ADVANTAGE: better * valid, VALID: valid,
            RETURN: worth * valid, VALUE: others * valid,
        }  # fmt: skip
        answers = tuple(Tokens(torch.randint(97, 122, (n,)).tolist(), [True] * n) for n in lengths)
        prompt = processor.prompt(example)
        groups.append(replace(prompt, answers=answers, scores=(None,) * 3, token_values=values))
    return groups


def gradient(
    built: BuiltModel, objective: Objective, groups: Sequence[Encoded], micro: int, packed: bool
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The loss and the metrics of all groups, `micro` at a time, and the gradient of the loss."""
    network, padding = built.network, built.chat.tokenizer.pad_token_id
    network.zero_grad()
    batches = [
        collate(groups[at : at + micro], built.pixels, padding, packed, blank=True)
        for at in range(0, len(groups), micro)
    ]
    units = sum(sum(objective.units(batch).values()) for batch in batches)
    outputs = [objective(network, batch) for batch in batches]
    total = torch.stack([output.loss for output in outputs]).sum() / units
    total.backward()
    sums = {"loss": float(total.detach())}
    for name in objective.metrics:
        sums[name] = sum(float(one.metrics[name][0]) for one in outputs) / sum(
            float(one.metrics[name][1]) for one in outputs
        )
    gradients = {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}
    return sums, gradients


OBJECTIVES: dict[str, dict[str, Any]] = {
    "ppo": {"kl": {"weight": 0.1, "place": "loss"}, "entropy": 0.1},
    "gspo by answer": {"loss": "gspo", "aggregate": "sequence", "kl": 0.1},
    "cispo by room": {"loss": "cispo", "aggregate": "constant"},
    "value": {},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_do_not_depend_on_the_layout(tiny: Tiny, name: str) -> None:
    """One, two or four groups at a time; answers as branches of their prompt, or each in a padded row of its own."""
    built, processor = model(tiny, scoring_head=name == "value")
    sampling = {"answers": 3, "max_new_tokens": 8, "temperature": 0.9}
    data = {"method": "grpo", "rewards": ["exact"], "sampling": sampling, "rollouts": 12, **OBJECTIVES[name]}
    objective = Value(0.2) if name == "value" else Policy(Grpo.model_validate(data))
    groups = groups_of(processor)
    measured, expected = gradient(built, objective, groups, 4, packed=True)
    assert measured["loss"] and all(bool(value.isfinite().all()) for value in expected.values())
    assert sum(bool(value.any()) for value in expected.values()) > 10
    for micro, packed in ((1, True), (2, True), (1, False), (4, False)):
        again, gradients = gradient(built, objective, groups, micro, packed)
        assert again == pytest.approx(measured, abs=1e-10)
        assert gradients.keys() >= expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(gradients[key], value, rtol=1e-8, atol=1e-12)


def test_a_policy_that_is_its_reference_and_its_past_is_not_pulled(tiny: Tiny) -> None:
    """Ratios are exactly 1, and the divergence is exactly 0 with its gradient."""
    built, processor = model(tiny)
    reference = copy.deepcopy(built.network)
    kl = {"weight": 1.0, "place": "loss"}
    data = {"method": "grpo", "rewards": ["exact"], "sampling": {"answers": 3, "max_new_tokens": 8}, "rollouts": 12}
    for form in ("k1", "k2", "k3"):
        policy = Policy(Grpo.model_validate({**data, "kl": {**kl, "form": form}}))
        batch = collate(groups_of(processor), built.pixels, 0, packed=True, blank=True)
        with torch.no_grad():
            old, likely = (answer_log_probs(network, batch).values for network in (built.network, reference))
        values = {OLD: old, REFERENCE: likely, ADVANTAGE: torch.zeros_like(old), VALID: torch.ones_like(old)}
        output = policy(built.network, replace(batch, token_values=values))
        assert float(output.metrics["kl"][0]) == 0 and float(output.loss.detach()) == 0
        total, count = output.metrics["ratio"]
        assert total == count and policy.gap == 0
        built.network.zero_grad()
        output.loss.backward()
        gradients = [value.grad for value in built.network.parameters() if value.grad is not None]
        if form != "k1":  # which pulls at each token, and on average at none
            assert gradients and all(not gradient.any() for gradient in gradients)
