"""From recipe to batch: order, tokens, padding, and what is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import examples
from tests.jobs.small import CHAT, PIXELS, PROCESSOR, TOKENIZER, mixed, text

from mmjobs.data.batch import IGNORE_INDEX, collate
from mmjobs.data.encode import Processor
from mmjobs.data.example import BadRow, Turn
from mmjobs.data.formats import shapes
from mmjobs.data.mixture import mixture
from mmjobs.data.readers.rows import Part
from mmjobs.data.sampler import equal_batches, in_order, position, repeated
from mmjobs.data.survey import survey
from mmjobs.model import tokens
from mmlaunch.errors import BadInput
from mmlaunch.recipe.data import Source
from mmlaunch.recipe.requirements import Requirements


@given(count=st.integers(1, 40), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_every_epoch_shows_every_example_once(count: int, seed: int, epoch: int) -> None:
    shown = [position(index, count, seed) for index in range(epoch * count, (epoch + 1) * count)]
    assert sorted(shown) == list(range(count))


@given(world=st.sampled_from([1, 2, 4]), micro=st.sampled_from([1, 2, 4]), start=st.integers(0, 50))
def test_global_batches_do_not_depend_on_ranks_or_micro_batches(world: int, micro: int, start: int) -> None:
    def step(ranks: int, size: int) -> list[list[int]]:
        shares = [list(in_order(equal_batches(16, rank, ranks, size), start, 3, 16)) for rank in range(ranks)]
        a_step = 16 // ranks // size
        return [
            [row for share in shares for batch in share[n * a_step : (n + 1) * a_step] for row in batch]
            for n in range(3)
        ]

    assert step(world, micro) == step(1, 16)


def test_order_is_shuffled_by_seed_and_epoch() -> None:
    orders = {tuple(position(epoch * 50 + n, 50, seed) for n in range(50)) for epoch in (0, 1) for seed in (0, 1)}
    assert len(orders) == 4 and tuple(range(50)) not in orders


@given(count=st.integers(1, 200), repeat=st.floats(0.01, 4))
def test_repeat_shows_whole_times_and_a_seeded_part(count: int, repeat: float) -> None:
    rows = repeated(count, repeat, "seed").tolist()
    assert len(rows) == pytest.approx(count * repeat, abs=0.51)
    assert rows == repeated(count, repeat, "seed").tolist()
    times = [rows.count(row) for row in range(count)]
    assert max(times) - min(times) <= 1


@given(st.text(), st.text())
@settings(max_examples=examples(200))
def test_every_text_comes_back_from_its_bytes(question: str, answer: str) -> None:
    tree = CHAT.tree([Turn("user", (question,))], [answer])
    end = TOKENIZER.eos_token
    assert tree.prompt.ids == [256, *f"{question}\n".encode()]
    assert tree.answers[0].ids == [*answer.removesuffix(end).encode(), 257] and all(tree.answers[0].loss_mask)
    assert not any(tree.prompt.loss_mask)


def test_special_tokens_cannot_be_written_by_a_user() -> None:
    written = "".join(tokens.SPECIAL)
    assert max(CHAT.prompt([Turn("user", (written,))])[1:]) < 256
    assert sorted(tokens.id_of(TOKENIZER, word) for word in tokens.SPECIAL) == [256, 257, 258, 259]
    encoded = PROCESSOR.encode(text("<image></s>", "<image>yes</s>"))
    assert encoded.prompt.ids == [256, *b"<image></s>\n"] and encoded.answers[0].ids == [*b"<image>yes", 257]


@pytest.mark.parametrize("answer", ["yes</s>no", "</s>yes", "a </s> b</s>", "yes</s>\n</s>no</s>"])
def test_an_answer_that_goes_on_behind_its_end_is_refused(answer: str) -> None:
    """The served model stops at this token; as letters it would only learn to spell it."""
    for example in (text("x", answer), text("x", "fine", answer)):
        with pytest.raises(BadRow, match="here:7: an answer has </s> in its midst, which ends the answers"):
            PROCESSOR.encode(example)
    earlier = (Turn("user", ("x",)), Turn("assistant", (answer,), True), Turn("user", ("y",)))
    with pytest.raises(BadRow, match="in its midst"):
        PROCESSOR.encode(replace(text("x", "fine"), prompt=earlier))


def test_end_tokens_behind_an_answer_are_written_once() -> None:
    for answer in ("yes", "yes</s>", "yes</s></s>", "yes</s>\n", "yes</s> </s>\n"):
        assert PROCESSOR.encode(text("x", answer)).answers[0].ids == [*b"yes", 257]


def test_answers_are_learnt_exactly_once_with_their_end_and_byte_zero_is_no_padding() -> None:
    encoded = [PROCESSOR.encode(text("?", answer)) for answer in ("\0a\0", "long answer", "")]
    batch = collate(encoded, PIXELS, padding=tokens.id_of(TOKENIZER, tokens.PAD))
    end = tokens.id_of(TOKENIZER, tokens.END)
    for row, answer in enumerate((b"\0a\0", b"long answer", b"")):
        learnt = batch.targets[row] != IGNORE_INDEX
        assert batch.ids[row][learnt].tolist() == [*answer, end] == batch.targets[row][learnt].tolist()
        assert batch.attention is not None
        assert int(batch.attention[row].sum()) == 1 + len("?\n") + len(answer) + 1
        assert torch.equal(batch.attention[row], (batch.ids[row] != 258).long())


def test_no_held_out_image_is_drawn_for_training() -> None:
    train, held = (mixed(source) for source in _sources(train=500, skip=500, held=200))
    pictures = [{of[place].images[0].open().tobytes() for place in range(len(of))} for of in (train, held)]
    assert len(pictures[0]) == 500 and len(pictures[1]) == 200 and not pictures[0] & pictures[1]


def test_training_questions_of_the_evaluation_data_are_left_out_and_counted() -> None:
    train, held = _sources(train=100, skip=90, held=30)
    rest = mixed(train, held_out=mixed(held).survey.questions)
    assert len(rest) == 90 and rest.survey.count("held out") == 10 and "10 also in the evaluation data" in str(rest)


def test_rows_beyond_what_a_format_takes_are_counted_and_no_error(tmp_path: Path) -> None:
    path = tmp_path / "posts.json"
    liked = {"human_ref_A": "A", "human_ref_B": "B", "score_A": 2, "score_B": 1}
    path.write_text(json.dumps([{"history": "busy", **liked}] * 8 + [{"history": "calm", **liked}]))
    posts = mixed(Source(path=str(path), format="shp"))
    assert len(posts) == 6 and posts.survey.count("surplus") == 3 and "3 more than the format takes" in str(posts)


def test_long_examples_are_dropped_or_cut_and_images_never() -> None:
    long = text("?", "abcdefgh")
    tree = PROCESSOR.tree(long)
    whole = len(tree.prompt) + 9
    short = Processor(CHAT, PIXELS, longest=whole - 4)
    assert PROCESSOR.fits(tree) and not short.fits(tree)
    cut = Processor(CHAT, PIXELS, longest=whole - 4, overlong="cut")
    assert cut.fits(tree) and bytes(cut.encode(long).answers[0].ids) == b"abcde"
    with pytest.raises(BadInput, match=r"10 are too long .*more than 12"):
        mixed(Source(format="shapes", limit=10), processor=Processor(CHAT, PIXELS, 12, "cut"))


def test_two_answers_that_are_the_same_tokens_are_no_pair() -> None:
    """The end token that some data carry behind an answer is no difference: the template writes it."""
    end = TOKENIZER.eos_token
    rows = [text("?", "red", f"red{end}"), text("?", "red", "blue"), text("?", "red", f"red{end}", "blue")]
    pairs = replace(PROCESSOR, requirements=Requirements(least=2, most=2, prompts=False))
    read = survey([Part("here", rows)], pairs)
    assert [row.row for row in read.usable] == [1]
    assert {(row.why, row.reason) for row in read.left_out} == {
        ("same answers", "its answers are the same tokens: no pair")
    }
    ranked = replace(pairs, requirements=Requirements(least=2, prompts=False))
    assert [row.row for row in survey([Part("here", rows)], ranked).usable] == [1, 2], "two of three differ"


def test_an_end_token_inside_an_answer_is_not_learnt_as_letters() -> None:
    """The served model stops there. In a question it is a word like any other."""
    end = TOKENIZER.eos_token
    rows = [text("?", f"red{end} and blue"), text(f"What is {end}?", "red"), text("?", f"red{end}")]
    read = survey([Part("here", rows)], PROCESSOR)
    assert [row.row for row in read.usable] == [1, 2]
    assert [row.reason for row in read.left_out] == [
        f"an answer has {end} in its midst, which ends the answers of this model; "
        "remove it, and what follows if that is another answer"
    ]
    plain = PROCESSOR.encode(text("?", "red")).answers[0].ids
    assert PROCESSOR.encode(rows[2]).answers[0].ids == plain, "one end token, not two"
    with pytest.raises(BadRow, match="in its midst"):
        PROCESSOR.encode(rows[0])


def test_a_pair_that_is_cut_to_the_same_answer_is_left_out() -> None:
    """It would teach nothing, and count as wrong; where one answer is enough, it is one."""
    rows = [text("?", "abcdefg", "abcdxyz"), text("?", "abcdefg", "xyz"), text("?", "abcd", "abcde", "abcdf")]
    room = len(PROCESSOR.tree(rows[0]).prompt) + 4
    pairs = Processor(CHAT, PIXELS, room, "cut", Requirements(least=2, most=2, prompts=False))
    found = survey([Part("here", rows)], pairs)
    assert [row.row for row in found.usable] == [1]
    assert {row.reason for row in found.left_out} == {"its answers are the same in the 4 tokens that they are cut to"}
    assert {row.why for row in found.left_out} == {"overlong"}
    assert len(survey([Part("here", rows)], replace(pairs, requirements=Requirements())).usable) == 3
    assert len(survey([Part("here", rows)], replace(pairs, longest=room + 4)).usable) == 3
    ranked = replace(pairs, requirements=Requirements(least=2, prompts=False))
    three = text("?", "abcdefg", "abcdxyz", "x")
    assert len(survey([Part("here", [three])], ranked).usable) == 1, "one of its pairs is left"
    unpaired_label = replace(text("?", "abcdefg"), label="true")
    assert (
        len(
            survey(
                [Part("here", [unpaired_label])], replace(ranked, requirements=Requirements(least=2, labelled=True))
            ).usable
        )
        == 1
    )


def test_example_without_answer_is_named() -> None:
    part = Part("here", [text("?", "!"), text("?")])
    with pytest.raises(BadInput, match="here:7: has no answer"):
        mixture(survey([part], PROCESSOR), 0)
    assert len(mixture(survey([part], PROCESSOR), 0, tolerant=True)) == 1


def test_a_drawing_is_the_same_in_every_run() -> None:
    assert shapes.example(12) == shapes.example(12)
    assert {shapes.example(row).label for row in range(50)} == set(shapes.QUESTIONS)


def _sources(train: int, skip: int, held: int) -> tuple[Source, Source]:
    return Source(format="shapes", limit=train), Source(format="shapes", skip=skip, limit=held)
