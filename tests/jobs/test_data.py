"""From recipe to batch: order, tokens, padding, and what is left out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjobs.data.batch import NOT_LEARNT, collate
from mmjobs.data.encode import Processor
from mmjobs.data.example import Answer, Example, Origin, Turn
from mmjobs.data.formats import shapes
from mmjobs.data.loader import batches
from mmjobs.data.mixture import mixture, questions
from mmjobs.data.order import micro_batches, position, repeated
from mmjobs.model import tokens
from mmlaunch.errors import BadInput
from mmlaunch.recipe.data import Source

TOKENIZER = tokens.byte_tokenizer()
PROCESSOR = Processor(TOKENIZER, image_side=16, image_tokens=4, longest=128, overlong="drop")


def text(prompt: str, *answers: str) -> Example:
    return Example((), (Turn("user", prompt),), tuple(map(Answer, answers)), Origin("here", 7))


@given(count=st.integers(1, 40), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_every_epoch_shows_every_example_once(count: int, seed: int, epoch: int) -> None:
    shown = [position(index, count, seed) for index in range(epoch * count, (epoch + 1) * count)]
    assert sorted(shown) == list(range(count))


@given(world=st.sampled_from([1, 2, 4]), micro=st.sampled_from([1, 2, 4]), start=st.integers(0, 50))
def test_global_batches_do_not_depend_on_ranks_or_micro_batches(world: int, micro: int, start: int) -> None:
    def step(ranks: int, size: int) -> list[list[int]]:
        parts = [list(micro_batches(start, 3, 16, rank, ranks, size, 13, seed=5)) for rank in range(ranks)]
        a_step = 16 // ranks // size
        return [
            [row for part in parts for batch in part[n * a_step : (n + 1) * a_step] for row in batch] for n in range(3)
        ]

    assert step(world, micro) == step(1, 16)


def test_order_is_shuffled_by_seed_and_epoch() -> None:
    orders = {tuple(position(epoch * 50 + n, 50, seed) for n in range(50)) for epoch in (0, 1) for seed in (0, 1)}
    assert len(orders) == 4 and tuple(range(50)) not in orders


@given(count=st.integers(1, 200), repeat=st.floats(0.01, 4))
def test_repeat_shows_whole_times_and_a_seeded_part(count: int, repeat: float) -> None:
    rows = repeated(count, repeat, "seed")
    assert len(rows) == pytest.approx(count * repeat, abs=0.51) and rows == repeated(count, repeat, "seed")
    times = [rows.count(row) for row in range(count)]
    assert max(times) - min(times) <= 1


@given(st.text())
@settings(max_examples=200)
def test_every_text_comes_back_from_its_bytes(words: str) -> None:
    ids = tokens.encode(TOKENIZER, words)
    assert ids == list(words.encode()) and tokens.decode(TOKENIZER, ids) == words


def test_special_tokens_cannot_be_written_by_a_user() -> None:
    written = "".join(tokens.SPECIAL)
    assert max(tokens.encode(TOKENIZER, written)) < 256
    assert sorted(tokens.id_of(TOKENIZER, word) for word in tokens.SPECIAL) == [256, 257, 258, 259]
    prompt = PROCESSOR.encode(text("<image>", "yes")).prompt
    assert tokens.id_of(TOKENIZER, tokens.IMAGE) not in prompt


def test_answers_are_learnt_exactly_once_with_their_end_and_byte_zero_is_no_padding() -> None:
    encoded = [PROCESSOR.encode(text("?", answer)) for answer in ("\0a\0", "long answer", "")]
    batch = collate(encoded, padding=tokens.id_of(TOKENIZER, tokens.PAD))
    end = tokens.id_of(TOKENIZER, tokens.END)
    for row, answer in enumerate((b"\0a\0", b"long answer", b"")):
        learnt = batch.targets[row] != NOT_LEARNT
        assert batch.ids[row][learnt].tolist() == [*answer, end] == batch.targets[row][learnt].tolist()
        assert int(batch.attention[row].sum()) == 1 + len("\n?\n") + len(answer) + 1
        assert torch.equal(batch.attention[row], (batch.ids[row] != 258).long())


def test_no_held_out_image_is_drawn_for_training() -> None:
    train, held = (mixture([source], PROCESSOR, 0) for source in _sources(train=500, skip=500, held=200))
    pictures = [{of[place].images[0].open().tobytes() for place in range(len(of))} for of in (train, held)]
    assert len(pictures[0]) == 500 and len(pictures[1]) == 200 and not pictures[0] & pictures[1]


def test_training_questions_of_the_evaluation_data_are_left_out_and_counted() -> None:
    train, held = _sources(train=100, skip=90, held=30)
    rest = mixture([train], PROCESSOR, 0, questions(mixture([held], PROCESSOR, 0)))
    assert len(rest) == 90 and rest.held_out == 10 and "10 also in the evaluation data" in str(rest)


def test_long_examples_are_dropped_or_cut_and_images_never() -> None:
    long = text("?", "abcdefgh")
    whole = len(PROCESSOR.encode(long).prompt) + 9
    short = Processor(TOKENIZER, 16, 4, longest=whole - 4, overlong="drop")
    assert PROCESSOR.fits(long) and not short.fits(long)
    cut = Processor(TOKENIZER, 16, 4, longest=whole - 4, overlong="cut")
    assert cut.fits(long) and bytes(cut.encode(long).answer) == b"abcde"
    with pytest.raises(BadInput, match="10 are longer than 12 tokens"):
        mixture([Source(format="shapes", limit=10)], Processor(TOKENIZER, 16, 4, 12, "cut"), 0)


def test_example_without_answer_is_named() -> None:
    with pytest.raises(BadInput, match="here:7"):
        PROCESSOR.encode(text("?"))


def test_workers_do_not_change_batches() -> None:
    examples = mixture([Source(format="shapes", limit=20)], PROCESSOR, 0)
    order = [[3, 1], [19, 0], [4, 4]]
    for one, other in zip(batches(examples, PROCESSOR, order, 0), batches(examples, PROCESSOR, order, 2), strict=True):
        assert (
            torch.equal(one.ids, other.ids) and torch.equal(one.pixels, other.pixels) and one.origins == other.origins
        )


def test_a_drawing_is_the_same_in_every_run() -> None:
    assert shapes.example(12) == shapes.example(12)
    assert {shapes.example(row).label for row in range(50)} == set(shapes.QUESTIONS)


def _sources(train: int, skip: int, held: int) -> tuple[Source, Source]:
    return Source(format="shapes", limit=train), Source(format="shapes", skip=skip, limit=held)
