"""The loader: what is drawn for an example, and that no worker, epoch or neighbour changes it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tests.jobs.small import CHAT, PIXELS, PROCESSOR, mixed, text

from mmjobs.data.batch import Batch, collate
from mmjobs.data.encode import Encoded, Processor
from mmjobs.data.example import Example, Origin
from mmjobs.data.formats import shapes
from mmjobs.data.loader import Examples, batches
from mmjobs.data.mixture import mixture
from mmjobs.data.readers.rows import Part
from mmjobs.data.reference_store import ReferenceStore
from mmjobs.data.survey import survey
from mmlaunch.errors import BadInput
from mmlaunch.recipe.data import Source
from mmlaunch.recipe.requirements import Requirements

PAIRS = Processor(
    CHAT, PIXELS, 128, requirements=Requirements(least=2, most=2, prompts=False, corrupted=True, mismatched=True)
)
ROWS = 20
STEADY: dict[str, Any] = {"place_of": lambda index: index % ROWS, "fixed_pixels": True}


@pytest.fixture(scope="module")
def drawn() -> Callable[..., Examples]:
    """Drawings that are encoded again as JPEG of a random quality, and their corrupted images."""
    return partial(
        Examples, mixed(Source(format="shapes", limit=ROWS, augment="jpeg")), PAIRS, seed=3, corruption_seed=5
    )


def twins(augment: Literal["none", "jpeg"]) -> Examples:
    """The same drawing in rows of different numbers."""
    same = [replace(shapes.example(0), origin=Origin("here", row)) for row in range(8)]
    part = Part("here", same, augment=augment)
    return Examples(mixture(survey([part], PAIRS), 0), PAIRS, seed=3, corruption_seed=5, fixed_pixels=True)


def seen(examples: Examples, index: int) -> torch.Tensor:
    return _one(examples, index).image_inputs["pixel_values"]


def corrupted(examples: Examples, index: int) -> torch.Tensor:
    found = _one(examples, index).corrupted
    assert found is not None
    return found["pixel_values"]


def _one(examples: Examples, index: int) -> Encoded:
    found = examples[index]
    assert isinstance(found, Encoded)
    return found


def differ(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return any(not torch.equal(*both) for both in zip(one, other, strict=True))


def test_workers_do_not_change_batches(drawn: Callable[..., Examples]) -> None:
    examples, order = drawn(), [[3, 1], [19, 0], [4, 4]]
    workers = min(2, len(os.sched_getaffinity(0)))  # torch warns where there are more than cores
    for one, other in zip(batches(examples, order, 0), batches(examples, order, workers), strict=True):
        assert torch.equal(one.ids, other.ids) and one.origins == other.origins
        assert torch.equal(one.image_inputs["pixel_values"], other.image_inputs["pixel_values"])


def test_who_has_a_reference_sees_the_same_pixels_at_every_visit(drawn: Callable[..., Examples]) -> None:
    examples = drawn(**STEADY)
    for index in range(4):
        for look in (seen, corrupted):
            assert torch.equal(look(examples, index), look(examples, index + ROWS))


def test_who_has_none_sees_others_in_the_next_epoch(drawn: Callable[..., Examples]) -> None:
    examples = drawn(**{**STEADY, "fixed_pixels": False})
    first, second = ([seen(examples, index + epoch * ROWS) for index in range(8)] for epoch in range(2))
    assert differ(first, second)
    assert differ(first, [seen(replace(examples, seed=4), index) for index in range(8)])
    plain = [PROCESSOR.encode(shapes.example(row)).image_inputs["pixel_values"] for row in range(8)]
    assert differ(first, plain)
    unseeded = drawn(seed=None)
    assert not differ([seen(unseeded, index) for index in range(8)], plain), "held-out images are as they are"


@pytest.mark.parametrize("look", [seen, corrupted])
def test_each_row_has_a_draw_of_its_own(look: Any) -> None:
    """Although all of them have the same image."""
    examples = twins("jpeg")
    found = [look(examples, index) for index in range(8)]
    assert differ(found[:4], found[4:])
    assert not differ(found, [look(twins("jpeg"), index) for index in range(8)])


def test_the_corrupted_image_is_drawn_from_its_seed_and_its_row() -> None:
    """Not from where the row stands in the mixture or in the order of the run, nor from what else is drawn."""
    plain = twins("none")
    pieces = [corrupted(plain, index) for index in range(8)]
    assert differ(pieces, [corrupted(replace(plain, corruption_seed=6), index) for index in range(8)])
    turned = replace(plain, place_of=lambda index: 7 - index)
    moved = replace(plain, mixture=replace(plain.mixture, places=np.arange(7, -1, -1)))
    for other in (turned, moved):
        assert not differ(pieces, [corrupted(other, 7 - index) for index in range(8)])
    assert not differ(pieces, [corrupted(replace(plain, seed=None), index) for index in range(8)])
    assert all(not torch.equal(piece, seen(plain, index)) for index, piece in enumerate(pieces))


def test_a_row_without_image_has_no_corrupted_one() -> None:
    examples = Examples(mixture(survey([Part("here", [text("?", "a", "b")])], PAIRS), 0), PAIRS)
    assert _one(examples, 0).corrupted is None


def test_a_stranger_is_the_best_answer_of_the_next_place() -> None:
    """The last one's is that of the first."""
    rows = [text(f"{n}?", f"best of {n}", f"other of {n}", row=n) for n in range(3)]
    examples = Examples(mixture(survey([Part("here", rows)], PAIRS), 0), PAIRS)
    examples = replace(examples, place_of=lambda index: 2 - index)
    mismatched = [_one(examples, 2 - place).mismatched for place in range(3)]
    said = [bytes(found.ids[:-1]).decode() for found in mismatched if found is not None]
    assert said == ["best of 1", "best of 2", "best of 0"]
    assert all(found is not None and found.ids[-1] == 257 and all(found.loss_mask) for found in mismatched)


def test_the_spread_is_that_of_the_first_gaps() -> None:
    """Of 1, 3 and 5 it is the root of 8/3; a row with one answer or without scores has none."""

    def scored(row: int, *scores: float | None) -> Example:
        answers = text("", *(f"{n}" for n in range(len(scores)))).answers
        return replace(
            text(f"{row}?", row=row),
            answers=tuple(replace(answer, score=score) for answer, score in zip(answers, scores, strict=True)),
        )

    rows = [scored(0, 3.0, 2.0, -9.0), scored(1, 1.0, -2.0), scored(2, 9.0, 4.0), scored(3, 1.0), scored(4, None, 1.0)]
    wide = Processor(CHAT, PIXELS, 128, requirements=Requirements(prompts=False))
    spread = [mixture(survey([Part("here", rows[start:])], wide), 0).std for start in (0, 2, 3)]
    assert spread == pytest.approx([(8 / 3) ** 0.5, 1, 1])


KEYED = PAIRS.encode(shapes.example(0), corrupt=lambda image: image.rotate(90), mismatched="else")


def _turned(seen: dict[str, Any]) -> dict[str, Any]:
    pixels = seen["pixel_values"].clone()
    pixels.view(-1)[-1] += 1
    return {**seen, "pixel_values": pixels}


@pytest.mark.parametrize("part", ["prompt", "answers", "border", "mismatched", "image_inputs", "corrupted", "type"])
def test_an_example_is_known_by_all_that_its_reference_saw(part: str) -> None:
    first, second = KEYED.answers
    one = first[:-1], type(first)([*first.ids[-1:], *second.ids], [True] * (len(second) + 1))
    other: dict[str, Any] = {
        "prompt": {"prompt": KEYED.prompt[:-1]}, "answers": {"answers": (first, second[:-1])},
        "border": {"answers": one}, "mismatched": {"mismatched": first},
        "image_inputs": {"image_inputs": _turned(KEYED.image_inputs)},
        "corrupted": {"corrupted": _turned(KEYED.corrupted or {})},
        "type": {"image_inputs": {name: value.view(torch.int8) for name, value in KEYED.image_inputs.items()}},
    }  # fmt: skip
    assert replace(KEYED).key == KEYED.key != replace(KEYED, **other[part]).key


def test_learnt_tokens_are_counted_as_a_batch_has_them() -> None:
    """Those of the answers, of the stranger, and of the best answer again."""
    batch = collate([KEYED], PIXELS, 258, packed=True)
    assert KEYED.loss_tokens == tuple(batch.owners[batch.loss_mask].bincount().tolist())
    assert len(KEYED.loss_tokens) == 4


def test_what_the_reference_says_is_handed_on_and_missed() -> None:
    rows = [text(f"{n}?", "yes", "oh no", row=n) for n in range(2)]
    plain = Processor(CHAT, PIXELS, 128, requirements=Requirements(least=2, most=2, prompts=False))
    examples = Examples(mixture(survey([Part("here", rows)], plain), 0), plain)
    store = ReferenceStore()
    store.add({_one(examples, 0).key: torch.arange(10.0), _one(examples, 1).key: torch.arange(9.0)})
    known = replace(examples, reference=store)
    found = _one(known, 0).reference
    assert found is not None and torch.equal(found, torch.arange(10.0))
    with pytest.raises(BadInput, match="here:1: its text or its images have changed since the reference"):
        known[1]
    with pytest.raises(BadInput, match="here:0: its text or its images have changed since the reference"):
        replace(examples, reference=ReferenceStore())[0]


def test_batches_tell_keys_where_somebody_asks(drawn: Callable[..., Examples]) -> None:
    def first(examples: Examples) -> Batch:
        return next(batches(examples, [[0, 1]], 0))

    assert first(drawn()).keys == ()
    examples = drawn(keyed=True)
    assert first(examples).keys == tuple(_one(examples, index).key for index in (0, 1))


HELPER = """
import multiprocessing, time
from mmjobs.data.parent import end_with_parent

def work():
    {wait}
    end_with_parent()
    time.sleep(60)

helper = multiprocessing.get_context("fork").Process(target=work)
helper.start()
print(helper.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("wait", ["pass", "time.sleep(1)"])
def test_a_worker_ends_with_its_rank(wait: str) -> None:
    """Also when the rank is killed while the worker starts."""
    rank = subprocess.Popen([sys.executable, "-c", HELPER.format(wait=wait)], stdout=subprocess.PIPE, text=True)
    assert rank.stdout is not None
    worker = Path("/proc", rank.stdout.readline().strip())
    assert worker.exists()
    rank.kill()
    rank.wait()
    rank.stdout.close()
    until = time.monotonic() + 10
    while worker.exists() and "zombie" not in (worker / "status").read_text():
        assert time.monotonic() < until, "it lives on"
        time.sleep(0.05)
