"""MMCA: what each token may see, against a loop that says it one query at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import examples

from mmjobs.data.images.preprocess import Squares
from mmjobs.model.build import BuiltModel, build
from mmjobs.model.mmca import attention
from mmlaunch.recipe import Recipe

IMAGE = 259


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, images: list[bool]) -> torch.Tensor:
    """[T, E] each, one head, causal."""
    rows = []
    for place in range(len(q)):
        out = torch.zeros_like(v[0])
        text = [n for n in range(place + 1) if not images[n]]
        seen = [place] if images[place] else [n for n in range(place + 1) if images[n]]
        for keys in (text, seen):
            if keys:
                out = out + torch.softmax(k[keys] @ q[place] / q.shape[1] ** 0.5, 0) @ v[keys]
        rows.append(out)
    return torch.stack(rows)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(0, 99))
@settings(max_examples=examples(40))
def test_each_modality_has_a_softmax_of_its_own(images: list[bool], seed: int) -> None:
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, len(images), 4, dtype=torch.float64)
    module = torch.nn.Module().eval()
    ours, _ = attention(module, q[None, None], k[None, None], v[None, None], None, images=torch.tensor([images]))
    torch.testing.assert_close(ours[0, :, 0], by_hand(q, k, v, images), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_heads_share_keys_as_they_do_elsewhere(heads: tuple[int, int]) -> None:
    """The first query heads the first key, and a scaling that the model names."""
    torch.manual_seed(0)
    images = [False, False, True, True, False, False]
    q, k, v = (torch.randn(1, count, 6, 4, dtype=torch.float64) for count in (*heads, heads[1]))
    ours, _ = attention(torch.nn.Module().eval(), q, k, v, None, scaling=0.3, images=torch.tensor([images]))
    for head in range(heads[0]):
        own = head * heads[1] // heads[0]
        wanted = by_hand(q[0, head] * 0.3 * 4**0.5, k[0, own], v[0, own], images)
        torch.testing.assert_close(ours[0, :, head], wanted)


def test_dropout_is_for_training_and_leaves_the_mean() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 6, 4).abs()
    images, module = torch.tensor([[False, True, True, False, False, False]]), torch.nn.Module()

    def seen(dropout: float) -> torch.Tensor:
        return attention(module, q, k, v, None, dropout=dropout, images=images)[0]

    module.eval()
    plain = seen(0.0)
    assert torch.equal(seen(0.5), plain)
    module.train()
    drawn = torch.stack([seen(0.5) for _ in range(2000)])
    assert drawn.std(0).max() > 0.1
    torch.testing.assert_close(drawn.mean(0), plain, rtol=0.1, atol=0.05)


def test_half_precision_is_normalised_with_all_digits() -> None:
    """A thousand keys that are all alike: in half precision their sum would stop growing."""
    torch.manual_seed(0)
    length = 1024
    q, k, v = torch.randn(3, 1, 1, length, 8).to(torch.bfloat16)
    images = torch.rand(1, length) < 0.5
    ours, _ = attention(torch.nn.Module().eval(), q, k, v, None, images=images)
    exact, _ = attention(torch.nn.Module().eval(), q.double(), k.double(), v.double(), None, images=images)
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - exact).norm() < 0.006 * exact.norm()


@pytest.fixture
def twins(tiny: Callable[..., Recipe]) -> tuple[BuiltModel, BuiltModel]:
    """The same weights with plain attention and with MMCA."""
    built = []
    for kind in ("plain", "mmca"):
        torch.manual_seed(0)
        built.append(
            build(tiny(model__attention=kind, model__language={"random": {"width": 16, "layers": 2, "heads": 2}}).model)
        )
    for one in built:
        one.network.eval()
    built[1].network.load_state_dict(built[0].network.state_dict())
    return built[0], built[1]


def hidden(built: BuiltModel, ids: list[list[int]], **more: Any) -> torch.Tensor:
    rows = torch.tensor(ids)
    assert isinstance(built.pixels, Squares)
    count = int((rows == IMAGE).sum()) // built.pixels.features
    torch.manual_seed(5)
    pixels = {"pixel_values": torch.randn(count, 3, 16, 16)} if count else {}
    network: Any = built.network
    with torch.no_grad():
        states: torch.Tensor = network.model(input_ids=rows, **{**pixels, **more}).last_hidden_state
    return states


def test_pure_text_is_plain_attention_and_images_are_not(twins: tuple[BuiltModel, BuiltModel]) -> None:
    plain, mmca = twins
    text = [[256, 65, 66, 67, 68]]
    torch.testing.assert_close(hidden(plain, text), hidden(mmca, text), atol=1e-5, rtol=1e-5)
    mixed = [[256, 65, *[IMAGE] * 4, 66, 67]]
    assert (hidden(plain, mixed) - hidden(mmca, mixed)).abs().max() > 1e-3


@pytest.mark.parametrize("changed", [7, 12])  # a text token, a whole later image
def test_the_future_changes_nothing(twins: tuple[BuiltModel, BuiltModel], changed: int) -> None:
    ids = [256, 65, *[IMAGE] * 4, 66, 67, 68, 69, 70, 71, *[IMAGE] * 4, 72]
    other = list(ids)
    if ids[changed] == IMAGE:
        other[changed : changed + 4] = [80, 81, 82, 83]
    else:
        other[changed] = 90
    before, after = hidden(twins[1], [ids]), hidden(twins[1], [other])
    torch.testing.assert_close(before[:, :changed], after[:, :changed], atol=1e-6, rtol=1e-6)
    assert (before[:, changed:] - after[:, changed:]).abs().max() > 1e-4


def test_cached_decoding_is_full_recomputation(twins: tuple[BuiltModel, BuiltModel]) -> None:
    network: Any = twins[1].network
    prompt = torch.tensor([[256, 65, *[IMAGE] * 4, 66, 67]])
    pixels = torch.randn(1, 3, 16, 16)
    kept = network.generate(
        input_ids=prompt, pixel_values=pixels, attention_mask=torch.ones_like(prompt), max_new_tokens=6,
        do_sample=False, eos_token_id=None, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    with torch.no_grad():
        logits = network(input_ids=kept.sequences, pixel_values=pixels).logits
    torch.testing.assert_close(torch.stack(kept.logits, 1), logits[:, prompt.shape[1] - 1 : -1], atol=1e-5, rtol=1e-4)


def test_padding_is_nobodys_business(twins: tuple[BuiltModel, BuiltModel]) -> None:
    alone = [256, 65, *[IMAGE] * 4, 66]
    ids = [[*alone, 0, 0], [256, 66, *[IMAGE] * 4, 67, 68, 69]]
    mask = torch.tensor([[1] * 7 + [0, 0], [1] * 9])
    torch.manual_seed(5)
    pixels = torch.randn(2, 3, 16, 16)
    together = hidden(twins[1], ids, pixel_values=pixels, attention_mask=mask)
    single = hidden(twins[1], [alone], pixel_values=pixels[:1])
    torch.testing.assert_close(together[:1, :7], single, atol=1e-5, rtol=1e-5)
