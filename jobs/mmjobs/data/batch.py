"""The batch: trees of a prompt and its answers, side by side in one row, or each answer in a padded row of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch

from mmjobs.data.chat import Tokens
from mmjobs.data.encode import Encoded
from mmjobs.data.example import BadRow, Origin
from mmjobs.data.images.preprocess import ImageInputs, Pixels

IGNORE_INDEX = -100
PLAIN, CORRUPTED, MISMATCHED = range(3)
"""Kinds of answers: with their own images, the chosen one with corrupted images, an answer to another prompt."""


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The same values on a device. A GPU fetches them by itself: the CPU does not wait for what it still computes."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Answers:
    """The A answers of a batch, in the order of its rows."""

    example: torch.Tensor  # [A], the number of its example
    place: torch.Tensor  # [A], 0 for the best
    kind: torch.Tensor  # [A], PLAIN, CORRUPTED or MISMATCHED
    score: torch.Tensor  # [A], NaN where the data have none
    last: torch.Tensor  # [A], where its last token stands in the flattened rows
    unpaired_label: torch.Tensor  # [A], for an example without a pair: -1 undesirable, 1 desirable; else 0

    def __len__(self) -> int:
        return len(self.example)


@dataclass(frozen=True)
class Batch:
    """B rows of at most T tokens. Masks never come from ids."""

    ids: torch.Tensor  # [B, T]
    attention: torch.Tensor | None  # [B, T], 1 up to each sequence's length; None: `trees` separates the sequences
    positions: (
        torch.Tensor | None
    )  # [B, T], from 0 in every tree of a packed row, and on from its prompt in each answer
    targets: torch.Tensor  # [B, T], the token itself where the loss mask is set, or IGNORE_INDEX
    before: torch.Tensor  # [B, T], where in the flattened rows the hidden state stands that predicts a token
    owners: torch.Tensor  # [B, T], the answer that a token belongs to; a prompt belongs to the first of its tree
    trees: tuple[tuple[int, ...], ...] | None
    """The lengths of the prompt and of the answers of each tree of a packed row."""
    answers: Answers
    image_inputs: ImageInputs
    """The images, in the order of the trees or rows, as arguments of the network."""
    origins: tuple[Origin, ...]
    skipped: tuple[BadRow, ...] = ()
    """Rows that turned out to be damaged: they are not in the batch, and weigh nothing."""
    reference: torch.Tensor | None = None  # [U], the reference's log-probability of each token in the loss
    token_values: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """What rollouts know of each token in the loss, by name: [U] each."""
    keys: tuple[bytes, ...] = ()
    """The keys of the examples, where the loader was asked for them."""
    host: Batch | None = None
    """The same batch in the memory of the CPU, once it is sent to a device: what decides about sizes is read there."""

    def __len__(self) -> int:
        return len(self.origins)

    @property
    def loss_mask(self) -> torch.Tensor:
        """[B, T], true for the U tokens in the loss; everything of shape [U] has them in this order."""
        return self.targets != IGNORE_INDEX

    @cached_property
    def loss_places(self) -> torch.Tensor:
        """[U], where in the flattened rows the tokens in the loss stand."""
        if self.host is not None:
            return sent(self.host.loss_places, self.ids.device)
        return self.loss_mask.flatten().nonzero()[:, 0]

    def in_loss(self, values: torch.Tensor) -> torch.Tensor:
        """The values of the tokens in the loss: [B, T] -> [U]."""
        return values.flatten()[self.loss_places]

    @property
    def tokens(self) -> int:
        """The number of tokens without padding."""
        return self.ids.numel() if self.attention is None else int(self.attention.sum())

    @property
    def squares(self) -> float:
        """Twice the number of pairs of tokens of which one attends to the other."""
        if self.attention is not None:
            return float(self.attention.sum(1).double().square().sum())
        trees = self.trees or ()
        return float(sum(p * p + sum(2 * p * answer + answer * answer for answer in answers) for p, *answers in trees))

    def to(self, device: torch.device) -> Batch:
        """The same batch on the device of the network."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        moved: dict[str, Any] = {
            name: sent(value, device) for name, value in values.items() if isinstance(value, torch.Tensor)
        }
        moved["answers"] = Answers(**{name: sent(value, device) for name, value in vars(self.answers).items()})
        moved["token_values"] = {name: sent(value, device) for name, value in self.token_values.items()}
        moved["image_inputs"] = {name: sent(value, device) for name, value in self.image_inputs.items()}
        return replace(self, **moved, host=self.host or self)


@dataclass(frozen=True)
class _Tree:
    """A prompt and answers of one example, with the images that the prompt shows."""

    prompt: Tokens
    answers: tuple[Tokens, ...]
    image_inputs: ImageInputs
    about: tuple[tuple[int, int, int, float, int], ...]
    """Example, place, kind, score and desirability of each answer."""


def collate(
    found: Sequence[Encoded | BadRow],
    pixels: Pixels,
    padding: int,
    packed: bool = False,
    blank: bool = False,
    keyed: bool = False,
) -> Batch:
    """One batch of these examples: a row for each answer, or all trees `packed` in one.

    `padding` fills what no mask ever shows. Without any image there is a `blank` one that nothing is learnt from, and
    without any example one token: all ranks call the same layers in the same order, or some would wait for ever.
    """
    encoded = [one for one in found if isinstance(one, Encoded)]
    trees = [tree for number, one in enumerate(encoded) for tree in _trees(number, one)]
    if not packed:  # each answer repeats the prompt and its images
        trees = [
            _Tree(tree.prompt, (answer,), tree.image_inputs, (about,))
            for tree in trees
            for answer, about in zip(tree.answers, tree.about, strict=True)
        ]
    if blank and not any(tree.image_inputs for tree in trees):
        tokens, image_inputs = pixels.blank()
        trees.append(_Tree(Tokens(tokens, [False] * len(tokens)), (), image_inputs, ()))
    trees = trees or [_Tree(Tokens([0], [False]), (), {}, ())]
    rows = [_Row(tree) for tree in trees]
    about = [one for tree in trees for one in tree.about]
    columns = list(zip(*about, strict=True)) or [()] * 5
    starts = (
        [0, *accumulate(len(row.ids) for row in rows)][:-1]
        if packed
        else [number * max(len(row.ids) for row in rows) for number in range(len(rows))]
    )
    owners = [0, *accumulate(len(tree.about) for tree in trees)]
    make = _side_by_side if packed else _padded
    lines = make(rows, starts, owners, padding)
    reference = [one.reference for one in encoded if one.reference is not None]
    return Batch(
        **lines,
        trees=tuple((len(tree.prompt), *map(len, tree.answers)) for tree in trees) if packed else None,
        answers=Answers(
            example=torch.tensor(columns[0], dtype=torch.long),
            place=torch.tensor(columns[1], dtype=torch.long),
            kind=torch.tensor(columns[2], dtype=torch.long),
            score=torch.tensor(columns[3], dtype=torch.float64),
            last=torch.tensor(
                [start + last for start, row in zip(starts, rows, strict=True) for last in row.last], dtype=torch.long
            ),
            unpaired_label=torch.tensor(columns[4], dtype=torch.long),
        ),
        image_inputs=pixels.join([tree.image_inputs for tree in trees], lines["ids"]),
        origins=tuple(one.origin for one in encoded),
        skipped=tuple(one for one in found if isinstance(one, BadRow)),
        reference=torch.cat(reference) if reference else None,
        token_values={
            name: torch.cat([one.token_values[name] for one in encoded])
            for name in (encoded[0].token_values if encoded else ())
        },
        keys=tuple(one.key for one in encoded) if keyed else (),
    )


def _trees(number: int, one: Encoded) -> list[_Tree]:
    """The tree of an example, and a second one with corrupted images where the objective needs it."""
    nothing = float("nan")
    about = [(number, k, PLAIN, nothing if s is None else s, one.unpaired_label) for k, s in enumerate(one.scores)]
    answers = one.answers
    if one.mismatched is not None:
        answers = (*answers, one.mismatched)
        about.append((number, 0, MISMATCHED, nothing, 0))
    trees = [_Tree(one.prompt, answers, one.image_inputs, tuple(about))]
    if one.corrupted is not None:
        trees.append(_Tree(one.prompt, one.answers[:1], one.corrupted, ((number, 0, CORRUPTED, nothing, 0),)))
    return trees


class _Row:
    """A tree laid out: [T] each, places counted from its own first token."""

    def __init__(self, tree: _Tree) -> None:
        length = len(tree.prompt)
        answers = tree.answers
        starts = [length, *accumulate((len(answer) for answer in answers), initial=length)][1:]
        self.ids = torch.tensor([*tree.prompt.ids, *(token for answer in answers for token in answer.ids)])
        mask = torch.tensor([*tree.prompt.loss_mask, *(flag for answer in answers for flag in answer.loss_mask)])
        mask[0] = False  # nothing predicts the first one
        self.targets = self.ids.where(mask, IGNORE_INDEX)
        self.positions, self.before = torch.arange(len(self.ids)), torch.arange(len(self.ids)) - 1
        self.owners = torch.zeros(len(self.ids), dtype=torch.long)
        self.last = []
        for number, (start, answer) in enumerate(zip(starts, answers, strict=False)):
            own = slice(start, start + len(answer))
            self.positions[own] = torch.arange(length, length + len(answer))
            self.before[start : start + 1] = length - 1
            self.owners[own] = number
            self.last.append(start + len(answer) - 1 if len(answer) else length - 1)
        self.before[0] = 0


def _side_by_side(rows: Sequence[_Row], starts: Sequence[int], owners: Sequence[int], padding: int) -> dict[str, Any]:
    return {
        "ids": torch.cat([row.ids for row in rows])[None],
        "attention": None,
        "positions": torch.cat([row.positions for row in rows])[None],
        "targets": torch.cat([row.targets for row in rows])[None],
        "before": torch.cat([row.before + start for row, start in zip(rows, starts, strict=True)])[None],
        "owners": torch.cat([row.owners + first for row, first in zip(rows, owners, strict=False)])[None],
    }


def _padded(rows: Sequence[_Row], starts: Sequence[int], owners: Sequence[int], padding: int) -> dict[str, Any]:
    shape = len(rows), max(len(row.ids) for row in rows)
    ids, targets = torch.full(shape, padding), torch.full(shape, IGNORE_INDEX)
    attention, before = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for number, row in enumerate(rows):
        own = number, slice(0, len(row.ids))
        ids[own], targets[own], attention[own] = row.ids, row.targets, 1
        before[own] = row.before + starts[number]
    first = torch.tensor(owners[: len(rows)])[:, None].expand(shape)
    return {
        "ids": ids, "attention": attention, "positions": None, "targets": targets, "before": before, "owners": first,
    }  # fmt: skip
