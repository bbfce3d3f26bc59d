"""The survey is made once: later attempts and other runs find it; what is damaged or of other data is not used."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmjobs.data import survey_rows
from mmjobs.data.formats.registry import parts
from mmjobs.data.mixture import mixture
from mmjobs.data.readers import saved
from mmjobs.data.readers.rows import Part
from mmjobs.data.sampler import position
from mmjobs.data.survey_rows import LeftOut, Survey, Usable, flat, joined
from mmjobs.train import survey_cache
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.data import Source

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]
NUMBERS = st.integers(0, 1 << 30)
USABLE = st.builds(
    Usable,
    part=st.integers(0, 3),
    row=NUMBERS,
    prompt=NUMBERS,
    answers=st.lists(st.integers(0, 9999), max_size=4).map(tuple),
    images=st.lists(st.tuples(st.integers(1, 9999), st.integers(1, 9999)), max_size=3).map(tuple),
    question=st.binary(min_size=12, max_size=12),
    content=st.binary(min_size=12, max_size=12),
    scores=st.lists(st.none() | st.floats(allow_nan=False), max_size=4).map(tuple),
    answer_space=NUMBERS,
    first_answer=NUMBERS,
)
LEFT_OUT = st.builds(
    LeftOut,
    part=st.integers(0, 3),
    row=NUMBERS,
    why=st.sampled_from(["bad", "overlong", "held out", "surplus", "same answers"]),
    origin=st.text(),
    reason=st.text(),
)


def block_of_five() -> None:
    survey_cache.BLOCK = 5


def known(run: Any) -> int:
    """How many of the two surveys of an attempt were known before it."""
    return int(run.log().count(" rows are known from "))


def surveys(run: Any) -> list[Path]:
    return sorted((run.paths.root / "data").glob("survey-*.safetensors"))


@given(blocks=st.lists(st.lists(USABLE | LEFT_OUT, max_size=5), max_size=4))
def test_rows_are_the_same_from_a_file(blocks: list[list[Usable | LeftOut]], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("survey") / "rows.safetensors"
    survey_rows.write(path, joined([flat(block) for block in blocks]))
    usable, left_out = survey_rows.read(path)
    rows = [row for block in blocks for row in block]
    assert usable[:] == [row for row in rows if isinstance(row, Usable)]
    assert left_out[:] == [row for row in rows if isinstance(row, LeftOut)]
    assert len(usable) + len(left_out) == len(rows) and len(left_out.numbers("bad")) == sum(
        isinstance(row, LeftOut) and row.why == "bad" for row in rows
    )


def test_another_attempt_and_another_run_read_no_row_again(job: Jobs, tiny: Recipes) -> None:
    first, other = job("first"), job("other")
    first.prepare = other.prepare = block_of_five
    assert first.run(tiny(steps=1, resources__tasks_per_node=2), 2) == [0, 0], first.log()
    assert known(first) == 0 and len(surveys(first)) == 2 and not list(first.paths.root.glob("data/.survey*"))
    assert first.run(tiny(steps=2), 1) == [0] and known(first) == 2
    assert other.run(tiny(steps=2), 1) == [0] and known(other) == 2
    assert [path.stat().st_ino for path in surveys(other)] == [path.stat().st_ino for path in surveys(first)]
    assert [e["loss"] for e in other.events("step")] == [e["loss"] for e in first.events("step")]
    for path in surveys(first):  # a bit is flipped, and the end is torn off
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.unlink()
        path.write_bytes(content if path == surveys(other)[0] else content[:-20])
    for path in surveys(other):
        path.unlink()
    assert first.run(tiny(steps=3), 1) == [0] and known(first) == 0, "made anew"
    assert first.run(tiny(steps=4, data__max_tokens=100), 1) == [0] and known(first) == 0, "another limit"


def rows(path: Path, *answers: str) -> dict[str, Any]:
    lines = [{"prompt": f"question {number}", "completion": answer} for number, answer in enumerate(answers)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"path": str(path), "format": "trl"}


def test_bad_rows_are_read_again_once_they_may_be_good(job: Jobs, tiny: Recipes, tmp_path: Path) -> None:
    source = rows(tmp_path / "rows.jsonl", *(f"answer {number}" for number in range(8)), " ")
    run, other = job("run"), job("other")
    strict, tolerant = tiny(steps=1, data__train=source), tiny(steps=1, data__train=source, data__on_bad="skip")
    assert run.run(strict) == [94] and "empty answer" in run.log() and len(surveys(run)) == 1, "that of the evaluation"
    assert run.run(tolerant) == [0] and known(run) == 1 and len(surveys(run)) == 2
    assert json.loads(run.paths.skipped.read_text())["why"] == "bad"
    assert run.run(tiny(steps=2, data__train=source, data__on_bad="skip")) == [0] and known(run) == 2
    assert other.run(tolerant) == [0] and known(other) == 1, "another run looks for itself"
    rows(tmp_path / "rows.jsonl", *(f"answer {number}" for number in range(9)))
    fresh = job("fresh")
    assert fresh.run(strict) == [0] and known(fresh) == 1, "the file has changed"


def pictures(folder: Path, side: int, count: int = 12) -> dict[str, Any]:
    """Rows that each name an image, and the images."""
    folder.mkdir(exist_ok=True)
    lines = []
    for number in range(count):
        talk = [("human", f"<image>\nquestion {number}"), ("gpt", f"answer {number}")]
        lines.append({"image": f"{number}.png", "conversations": [{"from": who, "value": text} for who, text in talk]})
        if side:
            Image.new("RGB", (side, side)).save(folder / f"{number}.png")
    if not (folder / "rows.json").exists():
        (folder / "rows.json").write_text(json.dumps(lines))
    return {"path": str(folder / "rows.json"), "format": "llava", "images": str(folder)}


def test_images_that_are_put_back_or_replaced_are_seen(job: Jobs, tiny: Recipes, tmp_path: Path) -> None:
    folder, run = tmp_path / "data", job("run")
    recipe = tiny(steps=1, data__train=pictures(folder, side=0), data__on_bad="skip")
    assert run.run(recipe) == [94] and "no example is left" in run.log()
    pictures(folder, side=24)
    assert run.run(recipe) == [0], run.log()
    other, another = job("other"), job("another")
    assert other.run(recipe) == [0] and known(other) == 2
    pictures(folder, side=40)
    assert another.run(recipe) == [0] and known(another) == 1, "images have other sizes now"


def test_tables_of_any_depth_are_part_of_the_key(tmp_path: Path) -> None:
    deep = tmp_path / "default" / "train" / "0000.parquet"
    saved.write([{"prompt": "a", "completion": "b"}], deep)
    source = Source(path=str(tmp_path), format="trl")
    assert list(survey_cache._files([source], parts(source))) == [deep]


@given(ranks=st.lists(st.sampled_from("abc"), min_size=1, max_size=9), count=st.integers(0, 40))
def test_each_node_reads_a_stretch_of_streamed_blocks(ranks: list[str], count: int) -> None:
    shares = [survey_cache.share_of_node(ranks, rank, count) for rank in range(len(ranks))]
    assert sorted(number for share in shares for number in share) == list(range(count))
    for node in set(ranks):
        blocks = sorted(number for name, share in zip(ranks, shares, strict=True) if name == node for number in share)
        assert not blocks or blocks == list(range(blocks[0], blocks[-1] + 1))


def end_in_the_third_block() -> None:
    block_of_five()
    before = survey_cache.Blocks.__getitem__

    def ending(self: survey_cache.Blocks, number: int) -> int:
        if number == 2:
            os._exit(9)
        return before(self, number)

    survey_cache.Blocks.__getitem__ = ending  # type: ignore[method-assign]  # the end of a real rank, at a chosen place


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.nightly)])
def test_a_rank_that_is_killed_loses_its_block_alone(job: Jobs, tiny: Recipes, workers: int) -> None:
    run = job("run")
    run.prepare = end_in_the_third_block
    assert run.run(tiny(steps=1, data__workers=workers))[0] not in (0, None)
    (folder,) = run.paths.root.glob("data/.survey*")
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert "2.safetensors" not in kept and {"0.safetensors", "1.safetensors"} <= kept.keys()
    run.prepare = block_of_five
    whole = job("whole")
    assert run.run(tiny(steps=1)) == [0] and whole.run(tiny(steps=1)) == [0]
    assert [e["loss"] for e in run.events("step")] == [e["loss"] for e in whole.events("step")]


def private() -> int:
    """The bytes that this process has of its own."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Private_Dirty")))


def test_a_rank_has_less_than_64_bytes_of_its_own_for_each_row(tmp_path: Path) -> None:
    """The file is mapped, and ranks of a node share it: what each has of its own is the order of the rows."""
    count = 500_000
    row = Usable(0, 0, 60, (8, 9), ((64, 64),), b"q" * 12, b"c" * 12, (1.0, 0.5), 60, 8)
    survey_rows.write(tmp_path / "rows", joined([flat([row] * 1000)] * (count // 1000)))
    before = private()
    mixed = mixture(Survey((Part("here", []),), *survey_rows.read(tmp_path / "rows", check=False)), 0)
    assert mixed.digest and mixed.lengths().sum() == 77 * count
    assert mixed.tokens(position(count + 3, count, 0)) == 77
    assert (private() - before) / count < 64
