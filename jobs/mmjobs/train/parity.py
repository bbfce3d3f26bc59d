"""The parity check: before training, the model's own forward agrees with the forward that it is trained with.

In training, examples share rows and prompts, and the head scores a few tokens: exact for the families that were tested.
A model that caps its scores, carries a state from token to token or counts its positions in another way would be
trained on numbers that are nearly right, and nobody would see it.
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

_ROWS, _CHECKED = 32, 2
"""Of the first rows, the shortest examples are checked: so many with images, and so many without."""
_EXACT, _ROUNDED = 1e-3, 0.3
"""The largest mean difference: in fp32, and where half precision rounds every layer."""


def check_parity(engine: Engine, training: Examples, precision: str, scoring_head: bool) -> None:
    """Refuse a model whose training forward differs from its own; all ranks together, on the same examples.

    With a `scoring_head` the last state of each answer is compared, which the head reads; otherwise log-probabilities.
    """
    if not (examples := _short_examples(training)):
        return
    ours, own = (_last_states, _own_last_states) if scoring_head else (answer_token_log_probs, _own_log_probs)
    trained = engine.compute(_collate(training, examples, training.packed), ours)
    expected = torch.cat([engine.compute(_collate(training, [one]), own) for one in _single_answers(examples)])
    difference = float((trained - expected).abs().mean())
    if not difference <= (_EXACT if precision == "fp32" else _ROUNDED):
        kind = type(engine.network).__name__
        compared = f"the last states of {len(expected)} answers"
        compared = compared if scoring_head else f"log-probabilities of {len(expected)} tokens"
        what = f"{compared} are {difference:.2g} apart from what {kind} itself makes of them"
        right = "remove batch.tokens_per_gpu, or choose another model" if training.packed else "choose another model"
        raise BadInput(f"model: {what}: this kind of model is not trained exactly here; {right}")


def _short_examples(training: Examples) -> list[Encoded]:
    """The shortest of the first rows, as they are trained on: some with images, then some without."""
    indices = range(min(_ROWS, len(training.mixture)))
    shortest_first = sorted(indices, key=lambda index: training.tokens(training.place_of(index)))
    with_images: list[Encoded] = []
    text_only: list[Encoded] = []
    for index in shortest_first:
        group = with_images if training.mixture[training.place_of(index)].images else text_only
        if len(group) < _CHECKED and (encoded := _encoded(training, index)) is not None:
            group.append(encoded)
    return [*with_images, *text_only]


def _encoded(training: Examples, index: int) -> Encoded | None:
    """An example with its own answers and images only; None where the row turns out to be damaged."""
    try:
        encoded = training[index]
    except BadRow:
        return None
    if isinstance(encoded, BadRow):
        return None
    return replace(encoded, corrupted=None, mismatched=None, reference=None)


def _single_answers(examples: Sequence[Encoded]) -> Iterator[Encoded]:
    """Each answer with a prompt of its own."""
    for one in examples:
        for place, answer in enumerate(one.answers):
            yield replace(one, answers=(answer,), scores=one.scores[place : place + 1])


def _collate(training: Examples, examples: Sequence[Encoded], packed: bool = False) -> Batch:
    processor = training.processor
    return collate(examples, processor.pixels, processor.chat.tokenizer.pad_token_id, packed)


def _last_states(network: nn.Module, batch: Batch) -> torch.Tensor:
    """[A, D]"""
    return hidden_states(network, batch, batch.answers.last)


def _own_last_states(network: nn.Module, batch: Batch) -> torch.Tensor:
    """Of one sequence, from all states of the model's own forward: [1, D]"""
    output = network.get_submodule("model")(
        input_ids=batch.ids, attention_mask=batch.attention, **batch.image_inputs, use_cache=False
    )
    states: torch.Tensor = output.last_hidden_state.flatten(0, 1)[batch.answers.last]
    return states


def _own_log_probs(network: nn.Module, batch: Batch) -> torch.Tensor:
    """Of one sequence, from all scores of the model's own forward: [U]"""
    output = network(input_ids=batch.ids, attention_mask=batch.attention, **batch.image_inputs, use_cache=False)
    scores = output.logits.flatten(0, 1)[batch.in_loss(batch.before)]  # [U, V]
    exact = scores if scores.dtype == torch.float64 else scores.float()
    tokens = batch.in_loss(batch.targets)[:, None]
    values: torch.Tensor = exact.log_softmax(-1).gather(-1, tokens)[:, 0]
    return values
