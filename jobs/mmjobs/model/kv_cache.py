"""The key-value cache of generation: one copy for each prompt, which all its answers attend to, and one per answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch

_BLOCK = 64
"""Answers grow into room for so many more tokens at a time."""


class KVCache:
    """Keys and values of all layers, for P prompts with n answers each; every answer has as many tokens.

    The prompts stand side by side in one row when they are read. From then on a row holds one new token of each
    answer, the answers of a prompt side by side.
    """

    def __init__(self, prompts: Sequence[int], answers: int) -> None:
        """`prompts`: their lengths; `answers`: of each prompt."""
        self._lengths, self._answers = list(prompts), answers
        self._prompt: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # [P, G, T, E] each, by layer
        self._own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # [P, G, n, S, E] each, by layer
        self._padding: torch.Tensor | None = None  # [P, 1, 1, T], true behind the end of shorter prompts
        self.tokens = 0
        """How many tokens of each answer are in the cache of all layers."""

    def read_prompts(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Take the keys and values of the row of prompts: [1, G, T, E] each."""
        self._prompt[layer] = self._stacked(key), self._stacked(value)

    def _stacked(self, states: torch.Tensor) -> torch.Tensor:
        """[1, G, T, E] -> [P, G, longest, E], padded at the end."""
        longest = max(self._lengths)
        starts = [0, *accumulate(self._lengths)]
        stacked = states.new_zeros(len(self._lengths), states.shape[1], longest, states.shape[3])
        for number, (start, length) in enumerate(zip(starts, self._lengths, strict=False)):
            stacked[number, :, :length] = states[0, :, start : start + length]
        if self._padding is None and min(self._lengths) < longest:
            lengths = torch.tensor(self._lengths, device=states.device)[:, None]
            self._padding = (torch.arange(longest, device=states.device)[None] >= lengths)[:, None, None]
        return stacked

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """Attention of one new token of each answer: queries [1, H, P n, E], keys [1, G, P n, E] -> [1, P n, H, E]"""
        heads, width = query.shape[1], query.shape[3]
        keys, values = self._prompt[layer]
        prompts, groups, length, _ = keys.shape
        own_keys, own_values = self._append(layer, key, value)  # [P, G, n, S, E]
        answers, shared = own_keys.shape[2], heads // groups
        asks = query[0].view(groups, shared, prompts, answers, width).permute(2, 0, 3, 1, 4)  # [P, G, n, R, E]
        flat = asks.reshape(prompts, groups, answers * shared, width)
        to_prompt = flat @ keys.transpose(2, 3)  # [P, G, n R, T]
        if self._padding is not None:
            to_prompt = to_prompt.masked_fill(self._padding, -torch.inf)
        to_own = (asks @ own_keys.transpose(3, 4)).flatten(2, 3)  # [P, G, n R, S]
        scores = torch.cat([to_prompt, to_own], -1) * (scaling or 1 / math.sqrt(width))
        weights = (scores if scores.dtype == torch.float64 else scores.float()).softmax(-1).to(values.dtype)
        of_own = weights[..., length:].unflatten(2, (answers, shared)) @ own_values  # [P, G, n, R, E]
        output: torch.Tensor = weights[..., :length] @ values + of_own.flatten(2, 3)
        return output.view(prompts, groups, answers, shared, width).transpose(1, 2).reshape(1, -1, heads, width)

    def _append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        room = self._room(layer, key)
        shape = (key.shape[1], *room[0].shape[:1], *room[0].shape[2:3], key.shape[3])  # G, P, n, E
        for kept, new in zip(room, (key, value), strict=True):
            kept[:, :, :, self.tokens] = new[0].view(shape).transpose(0, 1)
        until = self.tokens + 1
        return room[0][:, :, :, :until], room[1][:, :, :, :until]

    def _room(self, layer: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Storage with room for another token."""
        kept = self._own.get(layer)
        if kept is None:
            prompts, groups, _, width = self._prompt[layer][0].shape
            empty = like.new_zeros(prompts, groups, self._answers, 0, width)
            kept = (empty, empty)
        if kept[0].shape[3] == self.tokens:
            more = kept[0].new_zeros(*kept[0].shape[:3], _BLOCK, kept[0].shape[4])
            kept = torch.cat([kept[0], more], 3), torch.cat([kept[1], more], 3)
            self._own[layer] = kept
        return kept

    def keep(self, prompts: torch.Tensor, answers: torch.Tensor) -> None:
        """Keep these prompts [P'], and of each as many answers [P', n']; the others are finished."""
        self._answers = answers.shape[1]
        for layer, (keys, values) in self._prompt.items():
            self._prompt[layer] = keys[prompts], values[prompts]
        for layer, (keys, values) in self._own.items():
            rows, columns = prompts[:, None], answers
            self._own[layer] = tuple(  # type: ignore[assignment]  # two, as before
                states.transpose(1, 2)[rows, columns].transpose(1, 2).contiguous() for states in (keys, values)
            )
        if self._padding is not None:
            self._padding = self._padding[prompts]
