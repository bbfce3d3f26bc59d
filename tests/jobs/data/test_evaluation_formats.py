"""The formats of benchmarks and of what is said to them: real files to examples, and what is wrong with a row."""

from __future__ import annotations

import base64
import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmjobs.data.example import IMAGE, Answer, BadRow, Example, Turn
from mmjobs.data.formats.registry import FORMATS, parts, recognised
from mmjobs.data.images.image_file import BytesPicture
from mmjobs.data.readers import tsv
from mmlaunch.errors import BadInput
from mmlaunch.recipe.data import Source


def png(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 2), colour).save(stream, "PNG")
    return stream.getvalue()


RED, BLUE = (base64.b64encode(png(colour)).decode() for colour in ("red", "blue"))


def jsonl(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(folder: Path, *rows: dict[str, Any]) -> Path:
    """As pandas writes it."""
    path = folder / "rows.tsv"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(path: Path, name: str) -> Sequence[Example]:
    source = Source(path=str(path))
    assert recognised(source) == name
    return FORMATS[name].rows(source)


def wrong(path: Path, name: str, row: int = 0) -> str:
    with pytest.raises(BadRow) as caught:
        FORMATS[name].rows(Source(path=str(path)))[row]
    return caught.value.what


def text(example: Example) -> str:
    (turn,) = example.prompt
    return turn.text


# --- vlmevalkit


def test_vlmevalkit_reads_questions_with_options(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(png("blue"))
    options = {"hint": "Look\nup.", "A": "red", "B": 'the "blue"', "C": None}
    rows: list[dict[str, Any]] = [
        {
            "index": 5,
            "image": RED,
            "question": "What\tis\nit?",
            **options,
            "answer": "B",
            "category": "c",
            "split": "dev",
        },
        {"index": 1000005, "image": "5", "question": "Again?", "answer": "A"},
        {"index": 7, "image": f"['{RED}', '{BLUE}']", "question": "Both?", "answer": "['yes', 'y']"},
        {"index": 8, "image_path": "b.png", "question": "How many?", "answer": 4, "prediction": "Four."},
        {"index": 9, "question": "No image"},
    ]
    for path in (table(tmp_path, *rows), jsonl(tmp_path, *rows)):
        first, again, both, named, bare = read(path, "vlmevalkit")
        assert first.prompt[0].content[0] is IMAGE and text(first) == (
            'Hint: Look\nup.\nQuestion: What\tis\nit?\nOptions:\nA. red\nB. the "blue"\n'
            "Please select the correct answer from the options above."
        )
        assert first.truths == ("B",) and first.answers == () and first.images[0].read() == png("red")
        assert again.images[0].read() == png("red") and text(again) == "Again?"
        assert [image.read() for image in both.images] == [png("red"), png("blue")] and both.truths == ("yes", "y")
        assert named.images[0].read() == png("blue") and named.truths == ("4",) and named.answers == (Answer("Four."),)
        assert bare.images == () and bare.truths == ()
    (part,) = parts(Source(path=str(table(tmp_path, *rows)), skip=1))
    assert part.values(0)["index"] == "1000005" and part.values(2)["answer"] == "4", "rows stay reachable as they are"


def test_vlmevalkit_puts_numbered_images_in_their_places(tmp_path: Path) -> None:
    pictures = f"['{RED}', '{BLUE}']"
    path = table(
        tmp_path,
        {"index": 1, "image": pictures, "question": "Is <image 2> like <image 1>?"},
        {"index": 2, "image": pictures, "question": "Only <image 2>"},
        {"index": 3, "image": pictures, "question": "No <image 3>"},
    )
    both, one, none = read(path, "vlmevalkit")
    assert both.prompt[0].content == ("Is ", IMAGE, " like ", IMAGE, "?")
    assert [image.read() for image in both.images] == [png("blue"), png("red")]
    assert one.prompt[0].content == (IMAGE, "Only ", IMAGE)
    assert [image.read() for image in one.images] == [png("red"), png("blue")]
    assert none.prompt[0].content == (IMAGE, IMAGE, "No <image 3>")


def test_vlmevalkit_reads_sheets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model_MMStar.xlsx"
    with monkeypatch.context() as context:
        path.write_bytes(b"no zip")
        context.setitem(sys.modules, "openpyxl", None)
        with pytest.raises(BadInput, match="pip install openpyxl, or save the file as"):
            FORMATS["vlmevalkit"].rows(Source(path=str(path)))

    with pytest.raises(BadInput, match="cannot be read as a sheet of Excel"):
        FORMATS["vlmevalkit"].rows(Source(path=str(path)))
    book = openpyxl.Workbook()
    for row in (("index", "question", "answer", "prediction"), (0, "Q", "B", "B."), (1, "R", 3, None)):
        book.active.append(row)
    book.save(path)
    one, two = read(path, "vlmevalkit")
    assert (text(one), one.truths, one.answers) == ("Q", ("B",), (Answer("B."),))
    assert two.truths == ("3",) and two.answers == () and two.origin.row == 3


CELLS = st.text(st.sampled_from('ab "\t\n\r,é'), max_size=6)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=1, max_size=5))
def test_tables_are_read_as_pandas_writes_them(rows: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "drawn.tsv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerows([["a", "b"], *rows])
    found = tsv.opened(path)
    assert [list(found.row(place).values.values()) for place in range(len(found))] == [
        [cell or None for cell in row] for row in rows
    ]


def test_tables_name_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_bytes(b'\xef\xbb\xbfindex\tquestion\r\n1\t5" wide\r\n\r\n2\r\n3\t"two\nlines"\r\n')
    found = FORMATS["vlmevalkit"].rows(Source(path=str(path)))
    assert [text(found[0]), text(found[2]), found[2].origin.row] == ['5" wide', "two\nlines", 5]
    assert wrong(path, "vlmevalkit", 1) == "has 1 cells for 2 columns; tabs separate them"
    for content, what in ((b"index\tindex\n1\t2\n", "names a column twice"), (b"index\tquestion\n", "holds no rows")):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=what):
            FORMATS["vlmevalkit"].rows(Source(path=str(path)))


# --- the others


def test_lmms_eval_reads_what_was_said(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        {"doc_id": 0, "input": "Q", "target": "['cat', 'kitty']", "resps": [["A cat", "A dog", "A cat"]],
         "filtered_resps": ["cat"], "doc_hash": "h"},
        {"doc_id": 1, "arguments": [["R", {"until": []}]], "target": "D", "filtered_resps": ["D"]},
        {"doc_id": 2, "doc": {"question": "S"}, "target": 4, "filtered_resps": "four"},
        {"doc_id": 3, "input": "T", "target": "1", "resps": [[-3.0, False]], "filtered_resps": []},
        {"doc_id": 4, "target": "1", "filtered_resps": ["x"]},
    )  # fmt: skip
    rows = read(path, "lmms_eval")
    assert text(rows[0]) == "Q" and rows[0].truths == ("cat", "kitty")
    assert rows[0].answers == (Answer("A cat"), Answer("A dog"))
    assert (text(rows[1]), rows[1].answers, rows[1].truths) == ("R", (Answer("D"),), ("D",))
    assert (text(rows[2]), rows[2].answers, rows[2].truths) == ("S", (Answer("four"),), ("4",))
    assert wrong(path, "lmms_eval", 3).startswith("resps holds a number and no text")
    assert wrong(path, "lmms_eval", 4).startswith("has no prompt")


def test_llava_answers_tells_questions_from_answers(tmp_path: Path) -> None:
    question = {"question_id": 1, "image": "a.png", "text": "What?", "category": "conv"}
    answer = {"question_id": 1, "prompt": "What?", "text": "A cat.", "answers": ["cat", {"answer": "c"}]}
    asked, answered = read(jsonl(tmp_path, question, answer), "llava_answers")
    assert asked.prompt == (Turn("user", (IMAGE, "What?")),) and asked.answers == ()
    assert answered.answers == (Answer("A cat."),) and answered.truths == ("cat", "c") and text(answered) == "What?"


def test_rewardbench_reads_texts_and_lists(tmp_path: Path) -> None:
    pair = {"prompt": "Q", "chosen": "good", "rejected": "bad", "subset": "chat", "id": 3}
    several = {"prompt": "Q", "chosen": ["a", "b"], "rejected": ["c"], "subset": "Ties"}
    path = jsonl(tmp_path, pair, several, {**pair, "chosen": ["x"], "rejected": ["y"]}, {**several, "rejected": ["a"]})
    one, ties, two = read(path, "rewardbench")[0:3]
    assert one.answers == (Answer("good"), Answer("bad")) and two.answers == (Answer("x"), Answer("y"))
    assert ties.answers == (Answer("a", 1.0), Answer("b", 1.0), Answer("c", 0.0)), "right answers are not ranked"
    assert "the same answer twice" in wrong(path, "rewardbench", 3)


def test_mt_bench_keeps_the_turns_that_follow(tmp_path: Path) -> None:
    row = {"question_id": 81, "category": "math", "turns": ["One?", "Two?"], "reference": ["1", "2"]}
    path = jsonl(tmp_path, row, {**row, "turns": []}, {**row, "turns": ["One?", " "]})
    first = read(path, "mt_bench")[0]
    assert text(first) == "One?" and first.followups == ("Two?",) and first.truths == ("1",)
    assert wrong(path, "mt_bench", 1).startswith("turns is empty")
    assert wrong(path, "mt_bench", 2) == "turns[1] is empty; it needs some text"


def said(**more: Any) -> dict[str, Any]:
    """A row as `predict` writes it, with a row of the data around it."""
    own = {
        "index": 0,
        "source": "d",
        "predictions": ["a", "b", "a"],
        "finish": ["eos"] * 3,
        "tokens": {},
        "error": None,
    }
    own |= {"log_probs": [0.0] * 3, "images": ["/x/a.png"], "prompt": "Q", "truths": ["t", "u"]}
    return {"id": "7", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], **own, **more}


def test_predictions_are_answers_best_first(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "See <image>"}, {"role": "assistant", "content": "Yes"}]
    talk.append({"role": "user", "content": "R"})
    path = jsonl(
        tmp_path, said(), said(scores=[0.5, None, 2.0]), said(prompt=talk), said(error="its image is damaged"),
        said(scores=[1]), said(predictions=[""], finish=["eos"]),
    )  # fmt: skip
    rows = read(path, "predictions")
    assert rows[0].prompt == (Turn("user", (IMAGE, "Q")),) and rows[0].truths == ("t", "u")
    assert rows[0].answers == (Answer("a"), Answer("b")), "the same text is one answer"
    assert rows[1].answers == (Answer("a", 2.0), Answer("b"))
    assert rows[2].prompt[0] == Turn("user", ("See ", IMAGE)) and len(rows[2].prompt) == 3
    assert wrong(path, "predictions", 3) == "was not answered: its image is damaged"
    assert wrong(path, "predictions", 4).startswith("scores has 1 values for 3 predictions")
    assert rows[5].answers == (Answer(""),), "a model may say nothing"
    assert parts(Source(path=str(path)))[0].values(1)["id"] == "7"


def test_scored_predictions_are_those_that_were_scored(tmp_path: Path) -> None:
    scored = {"scored": ["b", "a"], "scores": [1.0, None], "kinds": ["right", "timeout"], "kind": "answers"}
    failed = said(error={"reason": "image", "detail": "a.png: no such file"})
    bare = {
        key: value for key, value in said(**scored).items() if key not in ("predictions", "conversations", "finish")
    }
    path = jsonl(tmp_path, said(**scored), bare, failed)
    for row in read(path, "predictions")[0:2]:
        assert row.answers == (Answer("b", 1.0), Answer("a"))
    assert wrong(path, "predictions", 2) == "was not answered: image: a.png: no such file"
    exact = said(prompt="Look:\n<image>\n\nWhat?")
    assert read(jsonl(tmp_path, exact), "predictions")[0].prompt[0].content == ("Look:\n", IMAGE, "\n\nWhat?")
    path.write_text(json.dumps({key: value for key, value in failed.items() if key != "finish"}))
    assert recognised(Source(path=str(path))) == "predictions", "also where every row has failed"


def test_predictions_find_the_images_that_stood_in_their_rows(tmp_path: Path) -> None:
    name = BytesPicture(png("red"), "red").identity
    path = jsonl(tmp_path, said(images=[name], image=f"['{BLUE}', '{RED}']"), said(images=[name], input_images=[RED]))
    for row in read(path, "predictions"):
        assert [image.read() for image in row.images] == [png("red")]


def test_prompts_know_what_is_right(tmp_path: Path) -> None:
    ten = [{"answer": word, "answer_id": number} for number, word in enumerate(["yes"] * 9 + ["no"])]
    given: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"answer": 4}, ("4",)),
        ({"answers": ten}, ("yes",) * 9 + ("no",)),
        ({"ground_truth": "x"}, ("x",)),
        ({"answer": True}, ("true",)),
        ({"answer": None, "answers": ["a", None]}, ("a",)),
        ({"ground_truth": {"target": 24, "numbers": [1, 2]}}, ('{"target": 24, "numbers": [1, 2]}',)),
    ]
    rows = read(jsonl(tmp_path, *({"prompt": "Q", **columns} for columns, _ in given)), "prompts")
    assert [row.truths for row in rows] == [truths for _, truths in given]
    broken = jsonl(tmp_path, {"prompt": "Q", "answer": "\ud83d"})
    assert wrong(broken, "prompts").startswith("answer holds half a character")


def test_no_format_takes_the_rows_of_another(tmp_path: Path) -> None:
    """Each row has more columns than it needs, as real files do."""
    more = {"id": 1, "category": "c", "split": "test", "source": "s", "metadata": {}, "answer": "x", "image": "a.png"}
    pair = {"chosen": "a", "rejected": "b"}
    talk = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    rows: dict[str, dict[str, Any]] = {
        "llava": {"conversations": talk}, "mdpo": {"img_path": "a.png", "prompt": "Q", **pair},
        "rlaif_v": {"question": "Q", "idx": 1, **pair}, "trl": {"prompt": "Q", **pair}, "prompts": {"prompt": "Q"},
        "ultrafeedback": {"prompt": "Q", **pair, "score_chosen": 2, "score_rejected": 1},
        "shp": {"history": "Q", "human_ref_A": "a", "human_ref_B": "b", "score_A": 2, "score_B": 1, "labels": 1},
        "vlmevalkit": {"index": 1, "question": "Q", "A": "a", "prediction": "p"},
        "lmms_eval": {"doc_id": 1, "doc": {}, "target": "t", "resps": [["r"]], "filtered_resps": ["r"], "input": "Q"},
        "llava_answers": {"question_id": 1, "prompt": "Q", "text": "t", "answer_id": "i", "model_id": "m"},
        "rewardbench": {"prompt": "Q", **pair, "subset": "s", "chosen_model": "m", "rejected_model": "n"},
        "mt_bench": {"question_id": 1, "turns": ["Q"]}, "predictions": said(question="Q", doc_id=1, subset="s", **pair),
    }  # fmt: skip
    assert set(rows) == set(FORMATS) - {"shapes", "internvl"}
    for name, row in rows.items():
        read(jsonl(tmp_path, {**more, **row}), name)
