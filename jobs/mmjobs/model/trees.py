"""Attention over trees: a prompt that is computed once, and the answers that branch off from it, side by side in a row.

Each token sees its prompt and what stands before it in its own answer: exactly what it would see in a sequence of its
own. A mask over the whole row would be right as well, and would compute what it then hides: for a row of n trees, n
times the work. On CUDA one call of the variable-length kernel does all, with the prompt's keys once for each answer;
elsewhere there are two calls of SDPA for each pair of answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmjobs.model import mmca
from mmlaunch.errors import BadInput

NAME = "trees"
Tree = tuple[int, ...]
"""The length of a prompt, and those of the answers that stand behind it."""
_FAMILIES = ("gemma", "llama", "mistral", "qwen2")


def use(network: Any) -> None:
    """For families whose attention is plainly causal; others have windows and caps of their own."""
    text = network.get_decoder().config
    if plain(text) and text._attn_implementation == "sdpa":
        text._attn_implementation = NAME


def kind(network: Any) -> str | None:
    """How this network sees trees: `trees`, `mask`, or None where each answer needs a row of its own."""
    named = network.get_decoder().config._attn_implementation
    return {NAME: "trees", mmca.NAME: "mask"}.get(named)


def arguments(network: Any, trees: Sequence[Tree] | None, device: torch.device) -> dict[str, Any]:
    """What a network wants to know of a row of trees; nothing where rows are padded, or positions alone have to do."""
    how = kind(network) if trees is not None else None
    if trees is None or how is None:
        return {}
    _check_window(network, trees)
    if how == "mask":
        return {"attention_mask": mask(trees, device)[None, None]}
    # A mask that is there is taken as it is: transformers would make one of its own, which nobody looks at.
    return {"attention_mask": torch.empty(1, 1, 0, 0, device=device), "trees": tuple(trees)}


def mask(trees: Sequence[Tree], device: torch.device | None = None) -> torch.Tensor:
    """[T, T], true where a token of the row (down) sees another (across)."""
    length = sum(map(sum, trees))
    seen = torch.zeros(length, length, dtype=torch.bool, device=device)
    at = 0
    for prompt, *answers in trees:
        branch = at + prompt
        seen[at:branch, at:branch] = True
        for answer in answers:
            seen[branch : branch + answer, at : at + prompt] = True
            seen[branch : branch + answer, branch : branch + answer] = True
            branch += answer
        at = branch
    return seen.tril()


def attention(
    module: nn.Module,
    query: torch.Tensor,  # [1, H, T, E]
    key: torch.Tensor,  # [1, G, T, E], G heads that H / G query heads share
    value: torch.Tensor,  # [1, G, T, E]
    attention_mask: torch.Tensor | None,
    trees: Sequence[Tree] | None = None,  # their lengths add up to T
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """[1, T, H, E]"""
    if trees is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    query, key, value = map(_as_multiplied, (query, key, value))
    if _flashes(query) and not options.get("dropout"):
        return _in_one_call(query, key, value, trees, options.get("scaling")), None
    return _piece_by_piece(module, query, key, value, trees, options), None


def _piece_by_piece(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    trees: Sequence[Tree],
    options: dict[str, Any],
) -> torch.Tensor:
    """The prompt with its first answer as one causal sequence, and every other answer behind the prompt."""
    asks, _, _ = segments(trees)
    pieces = zip(*(torch.split(states, asks, 2) for states in (query, key, value)), strict=True)  # one gradient for all
    found = []
    for prompt, *answers in trees:
        q, k, v = next(pieces)
        found.append(sdpa_attention_forward(module, q, k, v, None, **options)[0])
        trunk = k[:, :, :prompt], v[:, :, :prompt]
        for answer in answers[1:]:
            q, *own = next(pieces)
            keys, values = (torch.cat(both, 2) for both in zip(trunk, own, strict=True))
            sees = torch.ones(answer, prompt + answer, dtype=torch.bool, device=query.device).tril(prompt)
            found.append(sdpa_attention_forward(module, q, keys, values, sees[None, None], **options)[0])
    return torch.cat(found, 1)


def _in_one_call(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, trees: Sequence[Tree], scaling: float | None
) -> torch.Tensor:
    """Queries `[prompt + first] [second] ...`, keys `[prompt + first] [prompt + second] ...`, causal at their ends."""
    index, *tables = _tables(tuple(trees), query.device)
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # [T, heads, E]
    found = varlen_attn(
        q.contiguous(), k.index_select(0, index), v.index_select(0, index), *tables,
        scale=scaling, window_size=(-1, 0), enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    assert isinstance(found, torch.Tensor)
    return found[None]


def _as_multiplied(states: torch.Tensor) -> torch.Tensor:
    """What autocast makes of them, here and once: rotary positions are fp32, and no kernel of half precision is meant
    for that."""
    device = states.device.type
    if states.dtype != torch.float32 or not torch.is_autocast_enabled(device):
        return states
    return states.to(torch.get_autocast_dtype(device))


def _flashes(query: torch.Tensor) -> bool:
    """Whether the variable-length kernel takes it: half precision, heads of a size it has, on Ampere and later."""
    half, width = query.dtype in (torch.float16, torch.bfloat16), query.shape[-1]
    sized = width % 8 == 0 and width <= 256
    return query.is_cuda and half and sized and torch.cuda.get_device_capability(query.device) >= (8, 0)


@lru_cache(maxsize=2)
def _tables(trees: tuple[Tree, ...], device: torch.device) -> tuple[Any, ...]:
    """What the kernel wants to know of a row, once for all layers: where keys stand, ends of queries and keys, most."""
    asks, sees, places = segments(trees)
    ends = [torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device) for lengths in (asks, sees)]
    return torch.tensor(places, device=device), *ends, max(asks), max(sees)


def segments(trees: Sequence[Tree]) -> tuple[list[int], list[int], list[int]]:
    """The lengths of the queries and of the keys of each answer, and where in the row the keys stand."""
    asks, sees = [], []
    places: list[int] = []
    at = 0
    for prompt, *answers in trees:
        trunk = range(at, at + prompt)
        own = range(at, at + prompt + sum(answers[:1]))
        asks.append(len(own))
        sees.append(len(own))
        places += own
        for answer in answers[1:]:
            own = range(own.stop, own.stop + answer)
            asks.append(answer)
            sees.append(prompt + answer)
            places += [*trunk, *own]
        at = own.stop
    return asks, sees, places


def plain(config: Any) -> bool:
    """Whether every layer sees all that stands before; as far back as its window reaches, if it has one."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return config.model_type in _FAMILIES and kinds == {"full_attention"}


def _check_window(network: Any, trees: Sequence[Tree]) -> None:
    config = network.get_decoder().config
    window = getattr(config, "sliding_window", None) if config.model_type == "mistral" else None
    longest = max(prompt + max(answers, default=0) for prompt, *answers in trees)
    if window is not None and longest > window:
        what = f"{longest} tokens are more than this model's window of attention"
        raise BadInput(f"data.max_tokens: {what}; write at most {window}")


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
