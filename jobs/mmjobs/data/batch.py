"""The batch: several sequences side by side, padded on the right, their true lengths kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmjobs.data.encode import Encoded
from mmjobs.data.example import BadRow, Origin
from mmjobs.data.pixels import Pixels, Seen

NOT_LEARNT = -100


@dataclass(frozen=True)
class Batch:
    """B sequences of at most T tokens. Masks come from lengths: every token id may be a real one."""

    ids: torch.Tensor  # [B, T]
    attention: torch.Tensor  # [B, T], 1 up to each sequence's length
    targets: torch.Tensor  # [B, T], the token to predict *at* each position from those before it, or NOT_LEARNT
    seen: Seen
    """The images, in the order of the sequences, as arguments of the network."""
    origins: tuple[Origin, ...]
    skipped: tuple[BadRow, ...] = ()
    """Rows that turned out to be damaged: they are not in the batch, and weigh nothing."""

    def __len__(self) -> int:
        return len(self.origins)


def collate(found: Sequence[Encoded | BadRow], pixels: Pixels, padding: int) -> Batch:
    """One batch of these prompts with their first answers; `padding` fills what no mask ever shows."""
    encoded = [one for one in found if isinstance(one, Encoded)]
    rows = [(one.prompt, one.answers[0]) for one in encoded]
    longest = max((len(prompt) + len(answer) for prompt, answer in rows), default=0)
    ids = torch.full((len(rows), longest), padding)
    attention = torch.zeros(len(rows), longest, dtype=torch.long)
    targets = torch.full((len(rows), longest), NOT_LEARNT)
    for row, (prompt, answer) in enumerate(rows):
        tokens = torch.tensor(prompt.ids + answer.ids)
        ids[row, : len(tokens)] = tokens
        attention[row, : len(tokens)] = 1
        targets[row, : len(tokens)] = tokens.where(torch.tensor(prompt.learnt + answer.learnt), NOT_LEARNT)
    return Batch(
        ids=ids,
        attention=attention,
        targets=targets,
        seen=pixels.join([one.seen for one in encoded], ids),
        origins=tuple(one.origin for one in encoded),
        skipped=tuple(one for one in found if isinstance(one, BadRow)),
    )
