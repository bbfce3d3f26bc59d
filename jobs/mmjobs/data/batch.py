"""The batch: several sequences side by side, padded on the right, their true lengths kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mmjobs.data.chat import Tokens
from mmjobs.data.encode import Encoded
from mmjobs.data.example import BadRow, Origin
from mmjobs.data.pixels import Pixels, Seen

NOT_LEARNT = -100
_NOTHING = Tokens([0], [False])


@dataclass(frozen=True)
class Batch:
    """B rows of at most T tokens, a sequence each or several side by side. Masks never come from ids."""

    ids: torch.Tensor  # [B, T]
    attention: torch.Tensor | None  # [B, T], 1 up to each sequence's length; None: positions tell sequences apart
    positions: torch.Tensor | None  # [B, T], from 0 in every sequence of a packed row
    targets: torch.Tensor  # [B, T], the token to predict *at* each position from those before it, or NOT_LEARNT
    owners: torch.Tensor  # [B, T], which of the origins each token belongs to
    lengths: tuple[int, ...] | None  # of the sequences of a packed row
    seen: Seen
    """The images, in the order of the sequences, as arguments of the network."""
    origins: tuple[Origin, ...]
    skipped: tuple[BadRow, ...] = ()
    """Rows that turned out to be damaged: they are not in the batch, and weigh nothing."""

    def __len__(self) -> int:
        return len(self.origins)

    def to(self, device: torch.device) -> Batch:
        """The same batch where the network is."""
        return replace(
            self,
            ids=self.ids.to(device),
            attention=None if self.attention is None else self.attention.to(device),
            positions=None if self.positions is None else self.positions.to(device),
            targets=self.targets.to(device),
            owners=self.owners.to(device),
            seen={name: value.to(device) for name, value in self.seen.items()},
        )


def collate(
    found: Sequence[Encoded | BadRow], pixels: Pixels, padding: int, packed: bool = False, blank: bool = False
) -> Batch:
    """One batch of these prompts with their first answers: a row each, or all `packed` in one.

    `padding` fills what no mask ever shows. Without any image there is a `blank` one that nothing is learnt from, and
    without any example one token: all ranks call the same layers in the same order, or some would wait for ever.
    """
    encoded = [one for one in found if isinstance(one, Encoded)]
    sequences = [_sequence(one.prompt, one.answers[0]) for one in encoded]
    images = [one.seen for one in encoded]
    if blank and not any(images):
        tokens, seen = pixels.blank()
        sequences.append(_sequence(Tokens(tokens, [False] * len(tokens)), _NOTHING[:0]))
        images.append(seen)
    make = _packed if packed else _padded
    sequences = sequences or [_sequence(_NOTHING, _NOTHING[:0])]
    ids, attention, positions, targets, owners = make(sequences, padding)
    return Batch(
        ids=ids,
        attention=attention,
        positions=positions,
        targets=targets,
        owners=owners,
        lengths=tuple(len(ids) for ids, _ in sequences) if packed else None,
        seen=pixels.join(images, ids),
        origins=tuple(one.origin for one in encoded),
        skipped=tuple(one for one in found if isinstance(one, BadRow)),
    )


Pair = tuple[torch.Tensor, torch.Tensor]
Rows = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor, torch.Tensor]


def _sequence(prompt: Tokens, answer: Tokens) -> Pair:
    """Its tokens, and which of them are to be predicted: [T] each. Nothing predicts the first one."""
    ids = torch.tensor(prompt.ids + answer.ids)
    learnt = torch.tensor(prompt.learnt + answer.learnt)
    learnt[0] = False
    return ids, ids.where(learnt, NOT_LEARNT)


def _padded(sequences: Sequence[Pair], padding: int) -> Rows:
    shape = len(sequences), max(len(ids) for ids, _ in sequences)
    ids, targets = torch.full(shape, padding), torch.full(shape, NOT_LEARNT)
    attention = torch.zeros(shape, dtype=torch.long)
    for row, (own, wanted) in enumerate(sequences):
        ids[row, : len(own)], targets[row, : len(own)] = own, wanted
        attention[row, : len(own)] = 1
    return ids, attention, None, targets, torch.arange(shape[0])[:, None].expand(shape)


def _packed(sequences: Sequence[Pair], padding: int) -> Rows:
    ids = torch.cat([own for own, _ in sequences])[None]  # [1, T]
    targets = torch.cat([wanted for _, wanted in sequences])[None]
    positions = torch.cat([torch.arange(len(own)) for own, _ in sequences])[None]
    lengths = torch.tensor([len(own) for own, _ in sequences])
    return ids, None, positions, targets, torch.arange(len(sequences)).repeat_interleave(lengths)[None]
