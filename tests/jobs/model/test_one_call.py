"""One call of the variable-length kernel for a row of trees; without a GPU, what torch says of the kernel stands in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from mmjobs.model import trees
from mmjobs.model.build import build
from mmlaunch.recipe import Recipe

ROWS: list[list[trees.Tree]] = [[(5, 3)], [(4, 2, 3)], [(3, 1, 4, 2), (6, 5, 1), (2,)], [(7, 2, 1, 3), (1, 1, 1)]]
HEADS = [(4, 4), (4, 2), (6, 1)]


def kernel(
    query: torch.Tensor,  # [queries, H, E]
    key: torch.Tensor,  # [keys, G, E]
    value: torch.Tensor,
    query_ends: torch.Tensor,
    key_ends: torch.Tensor,
    most_queries: int,
    most_keys: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Each segment on its own; (-1, 0) is causal, with the last query beside the last key."""
    assert window_size == (-1, 0) and query_ends.dtype == key_ends.dtype == torch.int32
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert query_ends[-1] == len(query) and key_ends[-1] == len(key) == len(value)
    counts = query_ends.diff().tolist(), key_ends.diff().tolist()
    assert (most_queries, most_keys) == (max(counts[0]), max(counts[1]))
    found = []
    for q, k, v in zip(query.split(counts[0]), key.split(counts[1]), value.split(counts[1]), strict=True):
        sees = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        q, k, v = (one.transpose(0, 1) for one in (q, k, v))
        one = scaled_dot_product_attention(q, k, v, sees, scale=scale, enable_gqa=enable_gqa)
        found.append(one.transpose(0, 1))
    return torch.cat(found)


def kernel_of_2_11(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *tables: Any,
    scale: float | None,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """Without groups of heads."""
    assert query.shape[1] == key.shape[1]
    return kernel(query, key, value, *tables, scale=scale, window_size=window_size)


def kernel_of_2_10(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *tables: Any, is_causal: bool
) -> torch.Tensor:
    """Without a scale of the caller's."""
    assert is_causal
    return kernel_of_2_11(query, key, value, *tables, scale=None, window_size=(-1, 0))


class Shared(nn.Module):
    """What an attention says of itself: so many query heads share a key."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


def states(row: list[trees.Tree], heads: tuple[int, int], dtype: torch.dtype, device: str = "cpu") -> Any:
    torch.manual_seed(len(row))
    length = sum(map(sum, row))
    return [torch.randn(1, n, length, 16, dtype=dtype, device=device).requires_grad_() for n in (*heads, heads[1])]


def told(row: list[trees.Tree], given: list[torch.Tensor], scale: float | None, wholly: bool) -> list[torch.Tensor]:
    """What comes out, and the gradients that go in: from `attention`, or with a mask over the whole row."""
    query, key, value = given
    if wholly:
        mask = trees.mask(row, query.device)
        found = scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=True).transpose(1, 2)
    else:
        found, _ = trees.attention(Shared(query.shape[1] // key.shape[1]), query, key, value, None, row, scaling=scale)
    pull = torch.linspace(-1, 1, found.numel(), device=query.device).view_as(found).to(found)
    return [found, *torch.autograd.grad(found, given, pull)]


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("row", ROWS)
def test_it_is_told_of_each_answer_and_its_prompt(
    monkeypatch: pytest.MonkeyPatch, row: list[trees.Tree], heads: tuple[int, int]
) -> None:
    """As with a mask over the row, and as piece by piece."""
    given = states(row, heads, torch.float64)
    whole = told(row, given, 0.3, wholly=True)
    pieces = told(row, given, 0.3, wholly=False)
    monkeypatch.setattr(trees, "_flashes", lambda query: True)
    ways = [pieces]
    for version in (kernel, kernel_of_2_11, kernel_of_2_10):
        monkeypatch.setattr(trees, "varlen_attn", version)
        ways.append(told(row, given, 0.3, wholly=False))
    for found in ways:
        for one, other in zip(found, whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("row", [*ROWS, [(600, 150, 140, 30), (570, 9, 200)]])
def test_the_kernel_says_what_a_mask_says(
    monkeypatch: pytest.MonkeyPatch, row: list[trees.Tree], heads: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(trees, "_piece_by_piece", None)  # nothing but the kernel
    given = states(row, heads, dtype, "cuda")
    exact = told(row, [one.detach().float().requires_grad_() for one in given], None, wholly=True)
    for one, other in zip(told(row, given, None, wholly=False), exact, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("train", ["full", "lora"])
@pytest.mark.parametrize("weights", ["auto", "fp32"])
def test_autocast_asks_in_half_precision(
    monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Recipe], weights: str, train: str
) -> None:
    """Where weights are fp32, rotary positions make fp32 of queries and keys: the kernel would never be used."""
    lora = {"model__lora": {"rank": 2, "alpha": 4}} if train == "lora" else {}
    recipe = tiny(precision="bf16", model__weights=weights, model__train={"language": train}, **lora)
    network = build(recipe.model, recipe.precision).network
    asked: list[torch.dtype] = []

    def looks(query: torch.Tensor) -> bool:
        asked.append(query.dtype)
        return False

    monkeypatch.setattr(trees, "_flashes", looks)
    row = [(3, 4, 5)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(
            input_ids=torch.arange(12)[None], position_ids=torch.tensor([[0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 7]]),
            use_cache=False, **trees.arguments(network, row, torch.device("cpu")),
        )  # fmt: skip
    assert asked == [torch.bfloat16]
