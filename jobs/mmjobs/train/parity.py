"""The proof: before a model learns, its own forward says the same of a few examples as what it will be trained with.

Examples share rows and prompts here, and the head scores a few tokens: exact for the families that were looked at. One
that caps its scores, carries a state from token to token or counts its positions otherwise would be trained on numbers
that are nearly right, and nobody would see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from mmjobs.data.batch import Batch, collate
from mmjobs.data.encode import Encoded
from mmjobs.data.example import BadRow
from mmjobs.data.loader import Examples
from mmjobs.engine.engine import Engine
from mmjobs.objectives.forward import answer_token_log_probs, hidden_states
from mmlaunch.errors import BadInput

_AMONG, _FEW = 32, 2
"""So many short ones of the first rows are looked at, with images and without."""
_EXACT, _ROUNDED = 1e-3, 0.3
"""How far numbers may be apart on average: in fp32, and where half precision rounds every layer."""


def prove(engine: Engine, training: Examples, precision: str, scored: bool) -> None:
    """Refuse a model that would be trained on other numbers than its own; all ranks together, on the same examples.

    Of a `scored` one it is what its head reads, the last state of an answer; of others, log-probabilities.
    """
    if not (found := _short(training)):
        return
    ours, theirs = (_last, _own_last) if scored else (answer_token_log_probs, _own_values)
    mine = engine.look_at(_batch(training, found, training.packed), ours)
    own = torch.cat([engine.look_at(_batch(training, [one]), theirs) for one in _apart(found)])
    apart = float((mine - own).abs().mean())
    if not apart <= (_EXACT if precision == "fp32" else _ROUNDED):
        kind = type(engine.network).__name__
        read = f"the last states of {len(own)} answers" if scored else f"log-probabilities of {len(own)} tokens"
        what = f"{read} are {apart:.2g} apart from what {kind} itself makes of them"
        right = "remove batch.tokens_per_gpu, or choose another model" if training.packed else "choose another model"
        raise BadInput(f"model: {what}: this kind of model is not trained exactly here; {right}")


def _short(training: Examples) -> list[Encoded]:
    """Of the first rows, as they are learnt from."""
    indices = range(min(_AMONG, len(training.mixture)))
    places = sorted(indices, key=lambda index: training.tokens(training.place_of(index)))
    seen: list[Encoded] = []
    blind: list[Encoded] = []
    for index in places:
        images = training.mixture[training.place_of(index)].images
        some = seen if images else blind
        if len(some) < _FEW:
            one = _encoded(training, index)
            some += [one] if one else []
    return [*seen, *blind]


def _encoded(training: Examples, index: int) -> Encoded | None:
    try:
        one = training[index]
    except BadRow:
        return None
    if isinstance(one, BadRow):
        return None
    return replace(one, corrupted=None, mismatched=None, reference=None)


def _apart(found: Sequence[Encoded]) -> Iterator[Encoded]:
    """Each answer behind a prompt of its own."""
    for one in found:
        for place, answer in enumerate(one.answers):
            yield replace(one, answers=(answer,), scores=one.scores[place : place + 1])


def _batch(training: Examples, found: Sequence[Encoded], packed: bool = False) -> Batch:
    processor = training.processor
    return collate(found, processor.pixels, processor.chat.tokenizer.pad_token_id, packed)


def _last(network: nn.Module, batch: Batch) -> torch.Tensor:
    """[A, D]"""
    return hidden_states(network, batch, batch.answers.last)


def _own_last(network: nn.Module, batch: Batch) -> torch.Tensor:
    """Of one sequence, from all states that its model makes: [1, D]"""
    made = network.get_submodule("model")(
        input_ids=batch.ids, attention_mask=batch.attention, **batch.image_inputs, use_cache=False
    )
    states: torch.Tensor = made.last_hidden_state.flatten(0, 1)[batch.answers.last]
    return states


def _own_values(network: nn.Module, batch: Batch) -> torch.Tensor:
    """Of one sequence, from all scores that its model makes: [U]"""
    made = network(input_ids=batch.ids, attention_mask=batch.attention, **batch.image_inputs, use_cache=False)
    scores = made.logits.flatten(0, 1)[batch.before[batch.loss_mask]]  # [U, V]
    exact = scores if scores.dtype == torch.float64 else scores.float()
    values: torch.Tensor = exact.log_softmax(-1).gather(-1, batch.targets[batch.loss_mask][:, None])[:, 0]
    return values
