"""Attention over trees: a prompt that is computed once, and its answers as branches, side by side in a row.

Each token attends to its prompt and to what stands before it in its own answer, exactly as in a sequence of its own. A
mask over the whole row would be right too, but would compute what it then hides: for a row of n trees, n times the
work. On CUDA one call of the variable-length kernel does it, with the prompt's keys once for each answer; elsewhere
there are two calls of SDPA for each pair of answers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmjobs.data.batch import sent
from mmjobs.model import mmca
from mmjobs.model.kv_cache import KVCache
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
    """How this network attends to trees: `trees`, `mask`, or None where each answer needs a row of its own."""
    named = network.get_decoder().config._attn_implementation
    return {NAME: "trees", mmca.NAME: "mask"}.get(named)


def arguments(network: Any, trees: Sequence[Tree] | None, device: torch.device) -> dict[str, Any]:
    """The arguments that describe a row of trees to a network; none where rows are padded, or positions are enough."""
    how = kind(network) if trees is not None else None
    if trees is None or how is None:
        return {}
    _check_window(network, trees)
    if how == "mask":
        return {"attention_mask": mask(trees, device)[None, None]}
    # A mask that exists is used as it is: otherwise transformers would make one, which nobody reads.
    return {"attention_mask": torch.empty(1, 1, 0, 0, device=device), "trees": tuple(trees)}


def next_token(kv_cache: KVCache, device: torch.device) -> dict[str, Any]:
    """The arguments that describe a row with a new token of each answer."""
    return {"attention_mask": torch.empty(1, 1, 0, 0, device=device), "kv_cache": kv_cache}


def mask(trees: Sequence[Tree], device: torch.device | None = None) -> torch.Tensor:
    """[T, T], true where a token of the row (down) attends to another (across)."""
    length = sum(map(sum, trees))
    attends = torch.zeros(length, length, dtype=torch.bool, device=device)
    at = 0
    for prompt, *answers in trees:
        branch = at + prompt
        attends[at:branch, at:branch] = True
        for answer in answers:
            attends[branch : branch + answer, at : at + prompt] = True
            attends[branch : branch + answer, branch : branch + answer] = True
            branch += answer
        at = branch
    return attends.tril()


def attention(
    module: nn.Module,
    query: torch.Tensor,  # [1, H, T, E]
    key: torch.Tensor,  # [1, G, T, E], G heads that H / G query heads share
    value: torch.Tensor,  # [1, G, T, E]
    attention_mask: torch.Tensor | None,
    trees: Sequence[Tree] | None = None,  # their lengths add up to T
    kv_cache: KVCache | None = None,  # in generation: of the prompts, which are the trees, or of what follows them
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """[1, T, H, E]"""
    if trees is None and kv_cache is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    query, key, value = map(_as_multiplied, (query, key, value))
    if kv_cache is not None:
        layer: Any = module.layer_idx
        if trees is None:
            return kv_cache.attend(layer, query, key, value, options.get("scaling")), None
        kv_cache.read_prompts(layer, key, value)
    assert trees is not None
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
    queries, _, _ = segments(trees)
    pieces = zip(
        *(torch.split(states, queries, 2) for states in (query, key, value)), strict=True
    )  # one gradient for all
    outputs = []
    for prompt, *answers in trees:
        q, k, v = next(pieces)
        outputs.append(sdpa_attention_forward(module, q, k, v, None, **options)[0])
        trunk = k[:, :, :prompt], v[:, :, :prompt]
        for answer in answers[1:]:
            q, *own = next(pieces)
            keys, values = (torch.cat(both, 2) for both in zip(trunk, own, strict=True))
            sees = torch.ones(answer, prompt + answer, dtype=torch.bool, device=query.device).tril(prompt)
            outputs.append(sdpa_attention_forward(module, q, keys, values, sees[None, None], **options)[0])
    return torch.cat(outputs, 1)


def _in_one_call(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, trees: Sequence[Tree], scaling: float | None
) -> torch.Tensor:
    """Queries `[prompt + first] [second] ...`, keys `[prompt + first] [prompt + second] ...`, causal at their ends."""
    index, *tables = _tables(tuple(trees), query.device)
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # [T, heads, E]
    return _causal_segments(q, k.index_select(0, index), v.index_select(0, index), tables, scaling)[None]


def _causal_segments(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tables: Sequence[Any], scaling: float | None
) -> torch.Tensor:
    """torch's kernel, in the words of each version: 2.10 knew neither a scale nor groups of heads, 2.11 no groups."""
    words = _words(varlen_attn)
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in words else {"is_causal": True}
    if "scale" in words:
        options["scale"] = scaling
    elif scaling is not None:
        q = q * (scaling * q.shape[-1] ** 0.5)  # the kernel divides by the root
    if (groups := q.shape[1] // k.shape[1]) > 1 and "enable_gqa" in words:
        options["enable_gqa"] = True
    elif groups > 1:
        k, v = (states.repeat_interleave(groups, 1) for states in (k, v))
    output = varlen_attn(q.contiguous(), k, v, *tables, **options)
    assert isinstance(output, torch.Tensor)
    return output


@cache
def _words(function: Callable[..., Any]) -> frozenset[str]:
    """The names of its arguments."""
    return frozenset(inspect.signature(function).parameters)


def _as_multiplied(states: torch.Tensor) -> torch.Tensor:
    """Cast once as autocast would: rotary positions are fp32, and kernels of half precision do not take that."""
    device = states.device.type
    if states.dtype != torch.float32 or not torch.is_autocast_enabled(device):
        return states
    return states.to(torch.get_autocast_dtype(device))


def _flashes(query: torch.Tensor) -> bool:
    """Whether the variable-length kernel can be used: half precision, a supported head size, Ampere or later."""
    half, width = query.dtype in (torch.float16, torch.bfloat16), query.shape[-1]
    sized = width % 8 == 0 and width <= 256
    return query.is_cuda and half and sized and torch.cuda.get_device_capability(query.device) >= (8, 0)


@lru_cache(maxsize=2)
def _tables(trees: tuple[Tree, ...], device: torch.device) -> tuple[Any, ...]:
    """The segment tables of a row, once for all layers: places of keys, ends of queries and keys, the longest."""
    asks, sees, places = segments(trees)
    ends = [torch.tensor([0, *accumulate(lengths)], dtype=torch.int32) for lengths in (asks, sees)]
    return *(sent(values, device) for values in (torch.tensor(places), *ends)), max(asks), max(sees)


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
    """Whether every layer attends to all earlier tokens, as far back as its window reaches if it has one."""
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
