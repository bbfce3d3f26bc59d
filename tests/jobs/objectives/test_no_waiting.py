"""A micro-batch does not wait for its device: nothing in it needs to know a number that a GPU still computes."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from tests.jobs.objectives.test_terms import encoded, example
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmjobs.data.batch import Answers, Batch, collate
from mmjobs.data.encode import Processor
from mmjobs.model.build import build
from mmjobs.objectives import objective_of
from mmjobs.objectives.objective import NeedsGlobalBatch, ObjectiveOutput
from mmjobs.objectives.policy import ADVANTAGE, OLD, REFERENCE, VALID, Policy
from mmjobs.objectives.value import RETURN, VALUE, Value
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.requirements import Requirements

WAIT = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "unique_dim", "is_nonzero", "equal"}
"""Operations whose result, or its size, the CPU has to know: on a GPU they wait until all before them is computed."""
INDEX = {"index", "index_put", "_unsafe_index", "index_put_", "_index_put_impl_"}
"""They wait where an index is a mask."""


class Device(TorchDispatchMode):
    """A pretended GPU: it knows which tensors would be in its memory, and notes operations that would wait for it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self._inside: dict[int, torch.Tensor] = {}  # by their storage, which stays alive as long as this does
        self.waits: list[str] = []

    def put(self, value: torch.Tensor) -> torch.Tensor:
        self._inside[value.untyped_storage()._cdata] = value
        return value

    def has(self, value: object) -> bool:
        return isinstance(value, torch.Tensor) and value.untyped_storage()._cdata in self._inside

    def send(self, batch: Batch) -> Batch:
        """What `Batch.to` does for a real one."""

        def copied(value: Any) -> Any:
            return self.put(value.clone()) if isinstance(value, torch.Tensor) else value

        own = {one.name: copied(getattr(batch, one.name)) for one in fields(batch)}
        own["answers"] = Answers(**{name: copied(value) for name, value in vars(batch.answers).items()})
        for name in ("token_values", "image_inputs"):
            own[name] = {key: copied(value) for key, value in own[name].items()}
        return replace(batch, **own | {"host": batch})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs))
        if any(self.has(leaf) for leaf in leaves):
            name = func.overloadpacket.__name__
            indices = [leaf for leaf in leaves[1:] if isinstance(leaf, torch.Tensor)]
            masked = name in INDEX and any(one.dtype == torch.bool for one in indices)
            if name in WAIT or masked:
                frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
                self.waits.append(f"{name} in {frames[-2].filename}:{frames[-2].lineno} {frames[-2].line}")
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    self.put(leaf)
        return result


def test_the_pretended_device_notes_what_waits() -> None:
    device = Device()
    inside, outside = device.put(torch.arange(4.0)), torch.arange(4.0)
    with device:
        assert float(outside.sum()) == 6 and not device.waits
        _ = (inside * 2)[torch.tensor([1, 2])]
        assert not device.waits
        _ = inside[inside > 1]
        _ = float((inside + outside).sum())
    assert [wait.split()[0] for wait in device.waits] == ["index", "_local_scalar_dense"]


OBJECTIVES = {
    "sft": "sft", "dpo": "dpo", "mdpo": "mdpo", "mpo": "mpo", "mmpo": "mmpo", "orpo": "orpo", "kto": "kto",
    "simpo with ld_alpha": {"terms": {"simpo": 1}, "ld_alpha": 0.5}, "wpo": {"method": "dpo", "wpo": True},
    "ranked rewards": {"method": "reward", "centre": 0.01}, "rewards": {"method": "reward", "soft_labels": 0.5},
}  # fmt: skip


def without_waiting(objective: Any, network: Any, batch: Batch) -> ObjectiveOutput:
    """What it computes forward and backward on the pretended device; nothing of ours waits there."""
    device = Device()
    for parameter in network.parameters():
        device.put(parameter.data)
    sent = device.send(batch)
    with device:
        output: ObjectiveOutput = objective(network, sent)
        torch.autograd.backward(torch.stack(list(output.losses.values())).sum())
    own = [wait for wait in device.waits if "/transformers/" not in wait]
    assert not own, "\n".join(own)
    return output


def share(objective: Any, network: Any, batch: Batch) -> None:
    """Once a step, before its micro-batches: this may wait."""
    if isinstance(objective, NeedsGlobalBatch) and objective.needs_global_batch:
        with torch.no_grad():
            objective.set_global_batch([[objective.statistics(network, batch)]], 0)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_micro_batch_waits_for_its_device(tiny: Callable[..., Recipe], name: str, packed: bool) -> None:
    recipe = tiny(objective=OBJECTIVES[name])
    built = build(recipe.model, scoring_head=recipe.objective.has_scoring_head)
    processor = Processor(built.chat, built.pixels, built.positions, requirements=recipe.objective.requirements)
    answers = ["red", "a blue one"][: 1 if name == "sft" else 2]
    found = [encoded(processor, example(number, answers, image=number != 1), number) for number in range(3)]
    batch = collate(found, built.pixels, built.chat.tokenizer.pad_token_id, packed=packed)
    objective = objective_of(recipe.objective, None, 1.0)
    share(objective, built.network, batch)
    here = objective(built.network, batch)
    share(objective, built.network, batch)
    there = without_waiting(objective, built.network, batch)
    for unit, loss in here.losses.items():
        assert torch.equal(there.losses[unit], loss)


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_learning_from_rollouts_does_not_wait_either(tiny: Callable[..., Recipe], method: str) -> None:
    settings = {"method": method, "rewards": "exact", "sampling": {"answers": 2, "max_new_tokens": 6}, "rollouts": 8}
    recipe = tiny(objective=settings, data__eval=[])
    reinforcement: Any = recipe.objective
    built = build(recipe.model, scoring_head=method == "ppo")  # of PPO the critic
    processor = Processor(built.chat, built.pixels, built.positions, requirements=Requirements())
    found = [replace(encoded(processor, example(n, ["red", "a blue one"], True), n), reference=None) for n in range(2)]
    batch = collate(found, built.pixels, built.chat.tokenizer.pad_token_id, packed=True)
    names = [RETURN, VALUE, VALID] if method == "ppo" else [OLD, REFERENCE, ADVANTAGE, VALID]
    values = {name: torch.rand(len(batch.loss_places)) for name in names}
    batch = replace(batch, token_values=values | {VALID: torch.ones(len(batch.loss_places))})
    without_waiting(Value(0.2) if method == "ppo" else Policy(reinforcement), built.network, batch)
