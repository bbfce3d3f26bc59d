"""Attention over trees: who sees whom, which models it is for, and when one kernel does it all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmjobs.model import trees
from mmjobs.model.build import build
from mmjobs.model.toys import models as toys
from mmlaunch.errors import BadInput
from mmlaunch.recipe.model import Model


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=4))
def test_segments_and_mask_say_the_same(shape: list[list[int]]) -> None:
    found = [(prompt + 1, *answers) for prompt, *answers in shape]
    seen = trees.mask(found)
    asks, sees, places = trees.segments(found)
    row, at = 0, 0
    for queries, keys in zip(asks, sees, strict=True):
        for query in range(queries):  # causal at the end
            expected = torch.zeros(len(seen), dtype=torch.bool)
            expected[places[at : at + keys - queries + query + 1]] = True
            assert torch.equal(seen[row], expected)
            row += 1
        at += keys
    assert row == len(seen) and at == len(places)


def loaded(folder: Path, kind: str, **shape: Any) -> Any:
    """A toy checkpoint of a family, as a run would have it."""
    return build(Model.model_validate({"pretrained": str(toys.in_turns(folder, kind, **shape))})).network


@pytest.mark.parametrize(
    ("kind", "shape", "how"),
    [
        ("llama", {}, "trees"), ("mistral", {"sliding_window": 16}, "trees"), ("qwen2", {}, "trees"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, None),
        ("gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8}, None), ("granite", {}, None), ("phi3", {}, None),
    ],
)  # fmt: skip
def test_trees_are_for_plain_attention(tmp_path: Path, kind: str, shape: dict[str, Any], how: str | None) -> None:
    network = loaded(tmp_path, kind, **shape)
    assert trees.kind(network) == how
    told = trees.arguments(network, [(3, 2, 2)], torch.device("cpu"))
    assert told.keys() == ({"attention_mask", "trees"} if how else set())


def test_a_window_that_reaches_less_far_is_told(tmp_path: Path) -> None:
    """What an answer sees is its prompt and itself; the other answers of the row do not count."""
    mistral = loaded(tmp_path / "mistral", "mistral", sliding_window=16)
    unused = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}  # from the third layer on
    others = loaded(tmp_path / "llama", "llama"), loaded(tmp_path / "qwen2", "qwen2", **unused)
    cpu = torch.device("cpu")
    fitting: list[list[tuple[int, ...]]] = [[(10, 6, 6)], [(16,), (2, 14)], [(10, 3, 6)]]
    too_long: list[list[tuple[int, ...]]] = [[(10, 7, 1)], [(3, 3), (10, 1, 7)], [(17,)]]
    for row in fitting:
        trees.arguments(mistral, row, cpu)
    for row in too_long:
        assert all(trees.arguments(network, row, cpu) for network in others)
        with pytest.raises(
            BadInput, match="17 tokens are more than this model's window of attention; write at most 16"
        ):
            trees.arguments(mistral, row, cpu)


@pytest.mark.parametrize(
    ("dtype", "width", "device", "capability", "taken"),
    [
        (torch.bfloat16, 64, "cuda", (8, 0), True), (torch.float16, 256, "cuda", (9, 0), True),
        (torch.bfloat16, 8, "cuda", (10, 0), True), (torch.float32, 64, "cuda", (9, 0), False),
        (torch.float64, 64, "cuda", (9, 0), False), (torch.bfloat16, 60, "cuda", (9, 0), False),
        (torch.bfloat16, 264, "cuda", (9, 0), False), (torch.bfloat16, 64, "cuda", (7, 5), False),
        (torch.bfloat16, 64, "cpu", (9, 0), False),
    ],
)  # fmt: skip
def test_the_kernel_is_asked_for_what_it_has(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, width: int, device: str, capability: Any, taken: bool
) -> None:
    query: Any = SimpleNamespace(dtype=dtype, shape=(1, 2, 3, width), device=device, is_cuda=device == "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert trees._flashes(query) is taken


def test_dropout_is_left_to_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel knows none."""
    monkeypatch.setattr(trees, "_flashes", lambda query: True)
    monkeypatch.setattr(trees, "_in_one_call", lambda *_: "the kernel")
    monkeypatch.setattr(trees, "_piece_by_piece", lambda *_: "pieces")
    q, k, v = torch.randn(3, 1, 2, 5, 8)
    for dropout, wanted in ((0.0, "the kernel"), (0.1, "pieces")):
        assert trees.attention(torch.nn.Module(), q, k, v, None, [(2, 1, 2)], dropout=dropout)[0] == wanted
