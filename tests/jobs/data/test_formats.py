"""Every format, from real files to examples; what is wrong with a row or a file is told with its place."""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import json
import pickle
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmjobs.data.example import IMAGE, BadPicture, BadRow, Content, Example, Origin, Slot, Surplus, Turn
from mmjobs.data.formats.mdpo import messages_of
from mmjobs.data.formats.registry import FORMATS, format_of, parts
from mmjobs.data.images.image_file import BytesPicture, FilePicture
from mmjobs.data.readers.row import Row
from mmjobs.data.readers.turns import Message, prompt
from mmlaunch.errors import BadInput
from mmlaunch.recipe import data as data_section
from mmlaunch.recipe.data import FORMATS as RECIPE_FORMATS
from mmlaunch.recipe.data import Source

Write = Callable[..., Path]


def png(colour: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 2), colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows as a JSON list or as JSON lines, by the name of the file; text and bytes as they are."""

    def _write(rows: Any, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(rows, (str, bytes)):
            path.write_bytes(rows.encode() if isinstance(rows, str) else rows)
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            path.write_text(json.dumps(rows, indent=2))
        return path

    return _write


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hugging Face's library, with a cache of the test's own."""
    import datasets  # type: ignore[import-untyped]

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def read(path: Path, format: str, **more: Any) -> Sequence[Example]:
    if format in ("llava", "mdpo"):
        more.setdefault("images", str(path.parent))
    source = Source.model_validate({"path": str(path), "format": format, **more})
    return format_of(source).rows(source)


def wrong(path: Path, format: str, row: int = 0, **more: Any) -> str:
    """What is said about one row; it names the file and the row."""
    rows = read(path, format, **more)
    with pytest.raises(BadRow) as caught:
        rows[row]
    place = row + 1 if path.suffix in (".jsonl", ".txt") else row
    assert caught.value.origin == Origin(str(path), place) and str(caught.value).startswith(f"{path}:{place}: ")
    return caught.value.what


def user(*content: str | Slot) -> Turn:
    return Turn("user", content)


def talk(*values: Any, **more: Any) -> dict[str, Any]:
    """A row of LLaVA's: human and gpt in turn."""
    turns = [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]
    return {"conversations": turns, **more}


def texts(example: Example) -> list[str]:
    return [answer.text for answer in example.answers]


def names(example: Example) -> list[str]:
    return [Path(picture.path).name for picture in example.images if isinstance(picture, FilePicture)]


def test_every_name_of_the_schema_is_a_format() -> None:
    assert {*FORMATS, "auto"} == set(data_section.FORMATS)


# --- llava


def test_llava_reads_conversations_with_images(write: Write, tmp_path: Path) -> None:
    write(png(), "images/a.png")
    rows = [
        talk("<image>\nWhat?", "A square.", id="1", image="a.png"),
        talk("Hello", "Hi", "Look: <image>", "Red.", "Sure?", "Yes.", image="a.png"),
        talk("Both", "Two.", image="a.png, b.png"),
        talk("Compare <image> with <image>!", "Same.", image=["a.png", "b.png"]),
        talk("Only words", "Fine.", image=None),
    ]
    for name in ("rows.json", "rows.jsonl"):
        found = read(write(rows, name), "llava", images=str(tmp_path / "images"))
        one, later, several, marked, text = found
        assert one.prompt == (user(IMAGE, "What?"),) and texts(one) == ["A square."] and names(one) == ["a.png"]
        assert one.images[0].open().size == one.images[0].size() == (4, 2)
        assert later.prompt == (
            user("Hello"), Turn("assistant", ("Hi",), in_loss=True), user("Look: ", IMAGE),
            Turn("assistant", ("Red.",), in_loss=True), user("Sure?"),
        )  # fmt: skip
        assert several.prompt == (user(IMAGE, IMAGE, "Both"),) and names(several) == ["a.png", "b.png"]
        assert marked.prompt == (user("Compare ", IMAGE, " with ", IMAGE, "!"),)
        assert text.prompt == (user("Only words"),) and text.images == () and text.answers[0].score is None
        first = 1 if name == "rows.jsonl" else 0
        assert [example.origin.row for example in found] == list(range(first, first + 5))


def test_llava_reads_ranked_answers_and_scores(write: Write) -> None:
    path = write(
        [
            talk("Q", "old", "Q2", ["best", "second", "third"], scores=[3, 1.5, -2]),
            talk("Q", "a", score=0.25, label="yes"),
            talk("Q", ["x", "y"], label=3),
        ]
    )
    ranked, scored, plain = read(path, "llava", images="none")
    assert texts(ranked) == ["best", "second", "third"] and [a.score for a in ranked.answers] == [3, 1.5, -2]
    assert ranked.prompt[1] == Turn("assistant", ("old",), in_loss=False)
    assert scored.answers[0].score == 0.25 and scored.label == "yes" and plain.label == "3"
    assert [answer.score for answer in plain.answers] == [None, None]


def test_a_system_message_comes_first(write: Write) -> None:
    row = talk("Q", "A")
    row["conversations"].insert(0, {"from": "system", "value": "Be brief. <image>"})
    (found,) = read(write([row]), "llava", images="none")
    assert found.prompt == (Turn("system", ("Be brief. <image>",)), user("Q"))


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (talk("Q"), "does not end with an answer"),
        (talk("Q", ""), "empty answer"),
        (talk("Q", " \n"), "empty answer"),
        (talk("", "A"), "is empty"),
        (talk("Q", "A", "Q", ["a", ""]), "answer 2 of .* empty answer"),
        (talk("Q", []), "lists no answers"),
        (talk("Q", ["a", "b", "a"]), "answers 1 and answers 3 are the same"),
        (talk("Q", ["a"], "Q", "b"), "item 0 is text; items are of type"),
        (talk("Q", 7), "is a number; it has to be text"),
        (talk("Q", "half \ud83d"), "half a character"),
        (talk("Q", "A", score=float("nan")), "score is nan; it has to be a finite number"),
        (talk("Q", "A", score="3.5"), "score is text; it has to be a number"),
        (talk("Q", "A", score=True), "score is true or false"),
        (talk("Q", ["a", "b"], scores=[1]), "1 values for 2 answers"),
        (talk("Q", ["a", "b"], scores=[1, float("inf")]), r"scores\[1\] is inf"),
        (talk("Q", ["a", "b"], score=1), "one score for 2 answers"),
        (talk("Q", "A", video="a.mp4"), "video"),
        ({"conversations": "[{'from': 'human', 'value': 'Q'}]"}, "conversations is text; it has to be a list"),
        ({"conversations": []}, "conversations is empty"),
        ({"conversations": None}, "conversations is null"),
        ({"conversations": ["Q", "A"]}, r"conversations\[0\] is text"),
        ({"conversations": [{"from": "robot", "value": "Q"}]}, "unknown role 'robot'; roles are human, user, gpt"),
        ({"conversations": [{"from": "human"}]}, "has from; a message has from and value"),
        ({"conversations": [{"from": "gpt", "value": "A"}]}, "an answer and no question"),
        (talk("<image> <image>", "A", image="a.png"), "2 <image> in the text for 1 image;"),
        (talk("<image>", "A", image=["a.png", "b.png"]), "1 <image> in the text for 2 images;"),
        (talk("Q", "A", image={"x": 1}), "neither bytes nor a path"),
        (talk("Q", "A", image=5), "image 1 of the row is a number"),
        (talk("Q", "A", image=["a.png", " "]), "image 2 of the row has an empty path"),
        (talk("Q", "A", image="https://example.org/a.png"), "download it"),
        (talk("Q", "A", image="data:image/png;base64,?!"), "image 1 of the row: is not base64"),
    ],
)  # fmt: skip
def test_wrong_rows_of_llava_say_what_is_wrong(write: Write, row: dict[str, Any], what: str) -> None:
    path = write([talk("Fine?", "Yes."), row, talk("Fine?", "Yes.")])
    found = wrong(path, "llava", row=1)
    assert re.search(what, found), found
    assert texts(read(path, "llava")[2]) == ["Yes."]


def test_turns_that_do_not_alternate_are_named(write: Write) -> None:
    def said_by(*who: str) -> dict[str, Any]:
        return {"conversations": [{"from": one, "value": "words"} for one in who]}

    path = write(
        [
            said_by("human", "human", "gpt"), said_by("human", "gpt", "gpt"), said_by("gpt", "human", "gpt"),
            said_by("human", "system", "gpt"), talk("fine", "row"),
        ]
    )  # fmt: skip
    assert "conversations[1]: two user turns in a row" in wrong(path, "llava", 0)
    assert "conversations[2]: two assistant turns in a row" in wrong(path, "llava", 1)
    assert "begins with an answer" in wrong(path, "llava", 2)
    assert "a system message; it may only be the first" in wrong(path, "llava", 3)


def test_a_literal_image_tag_in_a_row_of_text_stays_text(write: Write) -> None:
    question = "In HTML, what is <image>? And <image >?\n"
    found = read(write([talk(question, "Answers may say <image>, too.")]), "llava")[0]
    assert found.prompt == (user(question),) and texts(found) == ["Answers may say <image>, too."]
    said = wrong(write([talk(question, "x", image=""), talk("q", "a")], "empty.json"), "llava", 0)
    assert "image is empty, and the text has <image>" in said


def test_answers_are_never_searched_for_images(write: Write) -> None:
    (found,) = read(write([talk("<image>", "You wrote <image>.", "Again", "<image>!", image="a.png")]), "llava")
    assert found.prompt == (user(IMAGE), Turn("assistant", ("You wrote <image>.",), in_loss=True), user("Again"))
    assert texts(found) == ["<image>!"]


@given(words=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_words_around_images_survive_byte_for_byte(words: list[str]) -> None:
    """But for the newlines that separate the two: the chat template writes its own."""
    whole = "<image>".join(words)
    images = whole.count("<image>")
    row = Row(Origin("here", 1), {})
    if images or whole.strip():
        (turn,) = prompt(row, [Message("user", whole, "q")], images)
        assert _written(turn.content) == re.sub("\n?<image>\n?", "<image>", whole)
        assert sum(isinstance(part, Slot) for part in turn.content) == images
        assert all(isinstance(one, Slot) or isinstance(two, Slot) for one, two in pairwise(turn.content))


def _written(content: Content) -> str:
    return "".join(part if isinstance(part, str) else "<image>" for part in content)


def test_images_come_as_base64_and_names_may_hold_commas(write: Write, tmp_path: Path) -> None:
    bare = base64.b64encode(png()).decode()
    write(png(), "Berlin, 1999.png")
    path = write(
        [
            talk("Q", "A", image=bare),
            talk("Q", "A", image=[f"data:image/png;base64,{bare}", "a.png"]),
            talk("Q", "A", image="Berlin, 1999.png"),
            talk("Q", "A", image="['a.png', __import__('os')]"),
        ]
    )
    one, two, comma, code = read(path, "llava")
    assert one.images == (BytesPicture(png(), ""),) and one.images[0].size() == (4, 2)
    assert two.images == (BytesPicture(png(), ""), FilePicture.at("a.png", tmp_path))
    assert names(comma) == ["Berlin, 1999.png"] and comma.images[0].size() == (4, 2)
    assert names(code) == ["['a.png'", "__import__('os')]"], "text is never evaluated"


def test_images_stay_in_their_folder_when_the_source_names_one(write: Write, tmp_path: Path) -> None:
    outside = write(png(), "other/a.png")
    path = write([talk("Q", "A", image=str(outside)), talk("Q", "A", image="../other/a.png")], "rows/data.jsonl")
    for example in read(path, "llava", images=str(path.parent)):
        with pytest.raises(BadPicture, match="leaves the folder"):
            example.images[0].open()
    anywhere, climbing = read(path, "auto")
    assert anywhere.images[0].size() == (4, 2)
    with pytest.raises(BadPicture, match="leaves the folder"):
        climbing.images[0].size()
    assert "images: none" in wrong(path, "llava", images="none")


def test_reading_changes_nothing(write: Write) -> None:
    path = write([talk("Q", "one", "Q2", ["best", "worst"], scores=[2, 1])])
    rows = read(path, "llava")
    before = path.read_bytes(), copy.deepcopy(rows[0]), vars(rows).copy()
    for _ in range(3):
        assert rows[0] == before[1] and rows[-1] == before[1]
    assert path.read_bytes() == before[0] and vars(rows) == before[2]


# --- files of lines


def test_lines_are_read_where_they_stand(write: Write) -> None:
    made = [talk(f"Frage {n} ü \u2028 <b>", f"Antwort {n}" + "\n" * (n % 3)) for n in range(50)]
    text = "\ufeff" + "".join(
        ("\n" if n == 7 else "") + json.dumps(row, ensure_ascii=False) + "\r\n" for n, row in enumerate(made)
    )
    path = write(text.removesuffix("\r\n"))
    rows = read(path, "llava")
    assert len(rows) == 50 and [texts(row) for row in rows] == [[row["conversations"][1]["value"]] for row in made]
    assert [rows[n].origin.row for n in (0, 6, 7, 49)] == [1, 7, 9, 51], "lines are counted as editors do"
    assert rows[3:5] == [rows[3], rows[4]] and rows[-1] == rows[49]
    with pytest.raises(IndexError):
        rows[50]
    assert pickle.loads(pickle.dumps(rows))[3] == rows[3]


def test_a_broken_line_is_one_bad_row(write: Write) -> None:
    good = json.dumps(talk("Q", "A"))
    path = write(f'{good}\n{{"conversations": [\n[1, 2]\n{"[" * 100_000}\n{good}\n')
    assert "is not JSON" in wrong(path, "llava", 1) and "is a list; a row is an object" in wrong(path, "llava", 2)
    assert "is not JSON" in wrong(path, "llava", 3)
    assert texts(read(path, "llava")[4]) == ["A"]
    path = write(good.encode() + b"\n" + good.encode("utf-8").replace(b"Q", b"\xe9") + b"\n")
    assert "is not UTF-8" in wrong(path, "llava", 1)


def test_skip_and_limit_choose_rows(write: Write) -> None:
    for name in ("data.jsonl", "data.json"):
        path = write([talk(f"Q{n}", "A") for n in range(10)], name)
        first = 1 if name.endswith("l") else 0
        chosen = read(path, "llava", skip=3, limit=4)
        assert [row.origin.row for row in chosen] == [first + n for n in (3, 4, 5, 6)]
        assert len(read(path, "llava", skip=8, limit=9)) == 2 and len(read(path, "llava", limit=99)) == 10
        with pytest.raises(BadInput, match="skip: 10 leaves out all of its 10 rows"):
            read(path, "llava", skip=10)


def test_a_json_list_is_read_by_its_places(write: Write) -> None:
    made = [talk('Q ]}[{, "]" ü', f"A{n}") for n in range(9)]
    for text in (json.dumps(made), json.dumps(made, indent=3, ensure_ascii=False), " \n" + json.dumps(made) + "\n\n"):
        path = write(text, "rows.json")
        rows = read(path, "llava")
        assert [texts(row)[0] for row in rows] == [f"A{n}" for n in range(9)]
        assert rows[4].prompt[0].text == 'Q ]}[{, "]" ü' and str(rows[4].origin) == f"{path}:4"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is empty"), ("\n\n", "holds no rows"), ("[]", "holds no rows"), ('[{"a": 1}, ', "not a whole JSON list"),
        ('[{"a": 1} {"a": 2}]', ":1:11: .*comma"), ('[{"a": 1}', "not a whole JSON list"), ("[", "not a whole"),
        ('[{"conversations": []},\n {"conv', ":2:3: .*after 1 rows"), ("id,question\n1,What?\n", "is not JSON"),
        (png(), "not UTF-8"), ('{"data": [1, 2]}', "columns data, and none of conversations"), ("<html>", "not JSON"),
        ('{"conversations": []}'.encode("utf-16"), "not UTF-8"),
    ],
)  # fmt: skip
def test_files_that_are_no_rows_are_refused_as_a_whole(write: Write, text: str | bytes, what: str) -> None:
    for name in ("data.json", "data.jsonl"):
        path = write(text, name)
        with pytest.raises(BadInput, match=what) as caught:
            read(path, "llava")
        assert str(caught.value).startswith(str(path)) and not isinstance(caught.value, BadRow)


WRONG = {"id": 1, "caption": "a cat"}


@pytest.mark.parametrize(
    ("format", "sign"),
    [
        ("llava", "conversations"), ("mdpo", "img_path, chosen"), ("rlaif_v", "question, chosen"),
        ("trl", "completion"),
        ("ultrafeedback", "score_chosen"), ("shp", "history"), ("prompts", "prompt"), ("auto", "formats?"),
    ],
)  # fmt: skip
def test_every_format_refuses_files_of_another(write: Write, tmp_path: Path, format: str, sign: str) -> None:
    path = write([WRONG])
    with pytest.raises(BadInput, match=f"id, caption.*{sign}"):
        read(path, format)
    for missing in (tmp_path / "nothing.jsonl", tmp_path / "nothing"):
        with pytest.raises(BadInput, match=f"{missing}: no such file"):
            read(missing, format)
    with pytest.raises(BadInput, match=r"remove split: train"):
        read(path, format, split="train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"folder without parquet files.*it is empty"):
        read(tmp_path / "empty", format)


# --- mdpo

VICUNA = "A chat between a curious user and an artificial intelligence assistant. "


@pytest.mark.parametrize(
    "question",
    [
        "Is this a cat?", "USERS are SAD: ANSWER?", "NAITS", " spaced ", "ends with :", "R", "a USER: b",
        "<image>\nWhat does ASSISTANT: mean?",
    ],
)  # fmt: skip
def test_questions_lose_no_letters_to_the_template(write: Write, question: str) -> None:
    rows = [
        {"img_path": "a.png", "prompt": text, "chosen": "Yes USER:", "rejected": "No"}
        for text in (
            f"{VICUNA}USER: {question} ASSISTANT:",
            f"USER: {question} ASSISTANT: ",
            f"USER: {question}\nASSISTANT:",
        )
    ]
    for found in read(write(rows), "mdpo"):
        *system, asked = found.prompt
        wanted = question.replace("\n", "") if "<image>" in question else f"<image>{question}"
        assert _written(asked.content) == wanted and asked.role == "user"
        assert texts(found) == ["Yes USER:", "No"] and names(found) == ["a.png"]
        assert [turn.text for turn in system] in ([], [VICUNA.strip()])


def test_texts_without_the_template_are_questions_as_they_are() -> None:
    row = Row(Origin("here", 1), {})
    assert messages_of(row, "USER: is a word \n", "prompt") == (Message("user", "USER: is a word \n", "prompt"),)
    several = messages_of(row, f"{VICUNA}USER: a ASSISTANT: b</s>USER: c ASSISTANT:", "prompt")
    assert [(one.role, one.content) for one in several] == [
        ("system", VICUNA.strip()), ("user", "a"), ("assistant", "b"), ("user", "c")
    ]  # fmt: skip
    with pytest.raises(BadRow, match="no USER: before it"):
        messages_of(row, "What? ASSISTANT:", "prompt")


def test_wrong_rows_of_mdpo(write: Write) -> None:
    good = {"img_path": "a.png", "prompt": "USER: Q ASSISTANT:", "chosen": "a", "rejected": "b"}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"rejected": "a"}, "chosen and rejected are the same"), ({"chosen": " "}, "chosen is an empty answer"),
        ({"rejected": None}, "rejected is null"), ({"prompt": ["Q"]}, "prompt is a list; it has to be text"),
        ({"prompt": "<image><image> Q"}, "2 <image> in the text for 1 image"),
    ]  # fmt: skip
    path = write([good, *({**good, **change} for change, _ in changes)])
    for row, (_, what) in enumerate(changes, 1):
        assert what in wrong(path, "mdpo", row)
    for column in good:
        path = write([good, {name: value for name, value in good.items() if name != column}])
        others = ", ".join(name for name in good if name != column)
        assert wrong(path, "mdpo", 1) == f"no column {column}; it has {others}"
    text = write([{**good, "img_path": None}, {key: good[key] for key in ("prompt", "chosen", "rejected")}])
    assert [example.images for example in read(text, "mdpo", images="none")] == [(), ()]


# --- internvl


@pytest.fixture
def mmpr(write: Write) -> Path:
    """A meta file with three sets: fine-tuning, preferences and text alone."""
    write(png(), "images/one/a.png")
    write([talk("<image>\nQ", "A", image="a.png"), talk("Q", "A")], "rows/sft.jsonl")
    write(
        [
            {"image": "a.png", "question": "Q1", "chosen": "c", "rejected": "r"},
            {"image": ["a.png", "b.png"], "question": "<image> or <image>?", "chosen": "c", "rejected": "r"},
            {"question": "Who wrote <image>?", "chosen": "c", "rejected": "r", "image": ""},
        ],
        "rows/pairs.jsonl",
    )
    write([talk("Q", "A")], "text.jsonl")
    meta = {
        "sft": {
            "root": "images/one",
            "annotation": "rows/sft.jsonl",
            "repeat_time": 0.5,
            "data_augment": True,
            "length": 2,
        },
        "pairs": {"root": "images/one", "annotation": "rows/pairs.jsonl", "repeat_time": 3, "max_dynamic_patch": 6},
        "text": {"root": "", "annotation": "text.jsonl"},
    }
    return write(meta, "meta.json")


def test_internvl_reads_the_sets_of_a_meta_file(mmpr: Path) -> None:
    for format in ("internvl", "auto"):
        rows = read(mmpr, format)
        assert len(rows) == 6 and rows[0].images[0].size() == (4, 2)
        assert rows[0].prompt == (user(IMAGE, "Q"),) and rows[2].prompt == (user(IMAGE, "Q1"),)
        assert rows[3].prompt == (user(IMAGE, " or ", IMAGE, "?"),) and names(rows[3]) == ["a.png", "b.png"]
        assert rows[4].prompt == (user("Who wrote <image>?"),) and texts(rows[4]) == ["c", "r"]
        assert str(rows[-1].origin) == f"{mmpr.parent / 'text.jsonl'}:1" and rows[1:3] == [rows[1], rows[2]]
        with pytest.raises(IndexError):
            rows[6]
    assert len(read(mmpr.parent, "auto")) == 6


def test_the_settings_of_sets_meet_those_of_the_recipe(mmpr: Path) -> None:
    made = parts(Source(path=str(mmpr), format="auto"))
    assert [(part.name, len(part.rows), part.repeat, part.augment, part.max_tiles) for part in made] == [
        ("sft", 2, 0.5, "jpeg", None), ("pairs", 3, 3, "none", 6), ("text", 1, 1, "none", None)
    ]  # fmt: skip
    made = parts(Source(path=str(mmpr), format="internvl", repeat=0.5, augment="jpeg", max_tiles=4, skip=1, limit=3))
    assert [(part.name, len(part.rows), part.repeat, part.augment, part.max_tiles) for part in made] == [
        ("sft", 1, 0.25, "jpeg", 4), ("pairs", 2, 1.5, "jpeg", 4)
    ]  # fmt: skip
    (shapes,) = parts(Source(format="shapes", limit=3, repeat=2))
    assert (shapes.name, len(shapes.rows), shapes.repeat, shapes.max_tiles) == ("shapes", 3, 2, None)


def test_paths_of_a_meta_file_start_at_it_or_at_the_current_folder(
    mmpr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere" / "meta.json"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(mmpr.read_bytes())
    with pytest.raises(BadInput, match=r"sft: no such file: .*elsewhere/rows/sft.jsonl or rows/sft.jsonl"):
        read(elsewhere, "internvl")
    monkeypatch.chdir(tmp_path)
    rows = read(elsewhere, "internvl")
    assert len(rows) == 6 and rows[0].images[0].size() == (4, 2)


@pytest.mark.parametrize(
    ("meta", "what"),
    [
        ([], "is a list and not a meta file"), ({}, "not a meta file"), ({"a": "b"}, "not a meta"), ("{", "not JSON"),
        ({"a": {"root": ""}}, "a has no annotation, but root"), ({"a": {"annotation": "no.jsonl"}}, "no such file"),
        ({"a": {"annotation": "t.jsonl", "repeat_time": "2"}}, "repeat_time is '2'"),
        ({"a": {"annotation": "t.jsonl", "repeat_time": -1}}, "repeat_time is -1"),
        ({"a": {"annotation": "t.jsonl", "repeat_time": float("nan")}}, "repeat_time is nan"),
        ({"a": {"annotation": "t.jsonl", "data_augment": "yes"}}, "data_augment is 'yes'"),
        ({"a": {"annotation": "t.jsonl", "max_dynamic_patch": 0}}, "max_dynamic_patch is 0"),
        ({"a": {"annotation": "w.jsonl"}}, "columns id, caption"),
    ],
)  # fmt: skip
def test_wrong_meta_files(write: Write, meta: Any, what: str) -> None:
    write([talk("Q", "A")], "t.jsonl")
    write([WRONG], "w.jsonl")
    path = write(meta, "meta.json")
    with pytest.raises(BadInput, match=what):
        read(path, "internvl")


def test_wrong_rows_of_internvl(write: Write, mmpr: Path) -> None:
    path = write([{"question": "Q", "chosen": "c"}, {"question": "Q", "chosen": "c", "rejected": "c"}], "text.jsonl")
    rows = read(mmpr, "internvl")
    with pytest.raises(BadRow, match=rf"{path}:1: no column rejected; it has question, chosen"):
        rows[5]
    with pytest.raises(BadRow, match=rf"{path}:2: chosen and rejected are the same"):
        rows[6]


# --- tables


def rlaif(count: int) -> list[dict[str, Any]]:
    return [
        {"question": f"Q{n}", "chosen": f"c{n}", "rejected": f"r{n}", "image": {"bytes": png(), "path": f"{n}.png"}}
        for n in range(count)
    ]


def test_rlaif_v_reads_parquet_and_saved_folders(tmp_path: Path, datasets: Any) -> None:
    plain = datasets.Dataset.from_list(rlaif(7))
    typed = plain.cast_column("image", datasets.Image())
    plain.to_parquet(tmp_path / "plain.parquet")
    typed.to_parquet(tmp_path / "typed.parquet")
    typed.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": typed}).save_to_disk(tmp_path / "dict")
    for name in ("plain.parquet", "typed.parquet", "saved", "dict"):
        for format in ("rlaif_v", "auto"):
            rows = read(tmp_path / name, format, skip=2, limit=3)
            assert [row.origin for row in rows] == [Origin(str(tmp_path / name), n) for n in (2, 3, 4)]
            assert rows[0].prompt == (user(IMAGE, "Q2"),) and texts(rows[0]) == ["c2", "r2"]
            assert rows[0].images == (BytesPicture(png(), ""),) and rows[0].images[0].open().size == (4, 2)
    assert pickle.loads(pickle.dumps(rows))[1] == rows[1]


def test_splits_are_chosen_by_name(tmp_path: Path, datasets: Any) -> None:
    both = {"train": datasets.Dataset.from_list(rlaif(4)), "test": datasets.Dataset.from_list(rlaif(2))}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "dict")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for name, part in both.items():
        for shard in range(2):
            file = tmp_path / "hub" / "data" / f"{name}-{shard:05}-of-00002.parquet"
            part.shard(2, shard, contiguous=True).to_parquet(file)
            file = tmp_path / "folders" / name / f"{shard:04}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            part.shard(2, shard, contiguous=True).to_parquet(file)
    for folder in ("dict", "hub", "folders"):
        path = tmp_path / folder
        assert [len(read(path, "rlaif_v", split=name)) for name in both] == [4, 2]
        assert [texts(row)[0] for row in read(path, "rlaif_v", split="train")] == ["c0", "c1", "c2", "c3"]
        with pytest.raises(BadInput, match=r"has no split val; it has test, train"):
            read(path, "rlaif_v", split="val")
        with pytest.raises(BadInput, match=r"has the splits test, train; choose one"):
            read(path, "rlaif_v")
    file = tmp_path / "hub" / "data" / "train-00000-of-00002.parquet"
    assert len(read(file, "rlaif_v")) == len(read(file, "rlaif_v", split="train")) == 2
    with pytest.raises(BadInput, match=r"remove split: test"):
        read(file, "rlaif_v", split="test")


def test_wrong_tables(tmp_path: Path, write: Write, datasets: Any) -> None:
    datasets.Dataset.from_list(rlaif(3)).to_parquet(tmp_path / "good.parquet")
    write((tmp_path / "good.parquet").read_bytes()[:200], "cut.parquet")
    write(b"", "empty.parquet")
    write("[1, 2]", "text.parquet")
    for name in ("cut", "empty", "text"):
        with pytest.raises(BadInput, match=rf"{name}.parquet: cannot be read as a table"):
            read(tmp_path / f"{name}.parquet", "rlaif_v")
    write("{}", "broken/state.json")
    with pytest.raises(BadInput, match="broken: cannot be read as a table"):
        read(tmp_path / "broken", "auto")
    write("hello", "words/readme.md")
    with pytest.raises(BadInput, match=r"words: is a folder without parquet files.*it holds readme.md"):
        read(tmp_path / "words", "trl")
    datasets.Dataset.from_list([WRONG]).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(BadInput, match=r"columns id, caption, and none of question"):
        read(tmp_path / "other.parquet", "rlaif_v")
    rows = rlaif(4)
    rows[1]["chosen"], rows[2]["image"], rows[3]["image"] = None, {"bytes": b"", "path": None}, None
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    assert wrong(tmp_path / "rows.parquet", "rlaif_v", 1) == "chosen is null; it needs a value"
    found = read(tmp_path / "rows.parquet", "rlaif_v")
    assert found[3].images == ()
    with pytest.raises(BadPicture, match=r"image 1 of the row: is empty"):
        found[2].images[0].open()


# --- trl


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def items(*parts: str | None) -> list[dict[str, Any]]:
    """Typed items; None is the place of an image, with the empty text that tables give it."""
    return [{"type": "image", "text": None} if part is None else {"type": "text", "text": part} for part in parts]


def test_trl_reads_pairs_with_and_without_prompt(write: Write) -> None:
    asked, yes, no = message("user", "Q"), message("assistant", "yes"), message("assistant", "no")
    rows: list[dict[str, Any]] = [
        {"prompt": "Q", "chosen": "yes", "rejected": "no"},
        {"prompt": [asked], "chosen": [yes], "rejected": [no]},
        {"chosen": [asked, yes], "rejected": [asked, no]},
        {"prompt": "Q", "chosen": [yes], "rejected": [no]},
        {"prompt": [asked], "chosen": [asked, yes], "rejected": [asked, no], "images": []},
    ]
    for found in read(write(rows), "trl"):
        assert found.prompt == (user("Q"),) and texts(found) == ["yes", "no"] and found.images == ()
    longer = [message("system", "S"), asked, message("assistant", "I think <image>"), asked]
    scored = {"chosen": [*longer, yes], "rejected": [*longer, no], "score_chosen": 8, "score_rejected": 2.5}
    (found,) = read(write([scored]), "trl")
    assert [turn.role for turn in found.prompt] == ["system", "user", "assistant", "user"]
    assert not any(turn.in_loss for turn in found.prompt) and [answer.score for answer in found.answers] == [8, 2.5]


def test_trl_reads_completions_and_messages(write: Write) -> None:
    asked, answer = message("user", "Q"), message("assistant", "A")
    rows = [
        {"prompt": "Q", "completion": "A", "label": True},
        {"prompt": [asked, answer, asked], "completion": [answer]},
        {"messages": [asked, answer, asked, answer]},
    ]
    plain, several, messages = read(write(rows), "trl")
    assert plain.prompt == (user("Q"),) and texts(plain) == ["A"] and plain.label == "true"
    assert several.prompt == messages.prompt == (user("Q"), Turn("assistant", ("A",), in_loss=True), user("Q"))


def test_the_order_of_items_decides_where_images_are(tmp_path: Path, write: Write, datasets: Any) -> None:
    content = items("Look at <image>: ", None, " and ", None, "!")
    row = {
        "images": [{"bytes": png("red"), "path": None}, {"bytes": png("blue"), "path": None}],
        "prompt": [message("user", content)],
        "chosen": [message("assistant", items("yes <image>"))],
        "rejected": [message("assistant", items("no"))],
    }
    table = datasets.Dataset.from_list([row])
    typed = table.cast_column("images", datasets.List(datasets.Image()))
    typed.to_parquet(tmp_path / "typed.parquet")
    typed.save_to_disk(tmp_path / "saved")
    for name in ("typed.parquet", "saved"):
        (found,) = read(tmp_path / name, "trl")
        assert found.prompt == (user("Look at <image>: ", IMAGE, " and ", IMAGE, "!"),)
        assert found.images == (BytesPicture(png("red"), ""), BytesPicture(png("blue"), ""))
        assert texts(found) == ["yes <image>", "no"]
    inline = [{"type": "image", "path": "a.png"}, {"type": "text", "text": "Q"}, {"type": "image", "image": "b.png"}]
    path = write([{"messages": [message("user", inline), message("assistant", "A")]}])
    (found,) = read(path, "trl")
    assert found.prompt == (user(IMAGE, "Q", IMAGE),) and names(found) == ["a.png", "b.png"]


def test_trl_with_images_and_plain_text(write: Write) -> None:
    rows = [
        {"prompt": "Q", "image": "a.png", "completion": "A"},
        {"prompt": "See <image>.", "images": ["a.png"], "completion": "A"},
        {"messages": [message("user", items("Not <image>")), message("assistant", "A")], "images": ["a.png"]},
    ]
    first, marked, typed = read(write(rows), "trl")
    assert first.prompt == (user(IMAGE, "Q"),) and marked.prompt == (user("See ", IMAGE, "."),)
    assert typed.prompt == (user(IMAGE, "Not <image>"),), "typed text is never searched"


TOLD = [message("user", "Q"), message("assistant", "A")]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"prompt": "Q", "chosen": "a"}, "no column rejected; it has prompt, chosen"),
        ({"chosen": "a", "rejected": "b"}, "there is no prompt; add the column prompt"),
        ({"prompt": "Q", "completion": None}, "has no answer: one of chosen and rejected.*; it has prompt"),
        ({"prompt": "Q", "completion": ""}, "completion is an empty answer"),
        ({"completion": "A"}, "no column prompt; it has completion"),
        ({"messages": [message("user", "Q")]}, "messages does not end with an answer; its last message is the user's"),
        ({"messages": [message("assistant", "A")]}, "nothing that it answers"),
        ({"messages": [message("tool", "Q")]}, "unknown role 'tool'"),
        ({"messages": [message("user", None), message("assistant", "A")]}, "null; it has to be text"),
        ({"messages": [message("user", [{"type": "audio"}]), message("assistant", "A")]}, "of type 'audio'"),
        ({"messages": [message("user", items(None)), message("assistant", "A")]}, "1 item of type image for 0 images"),
        ({"messages": [message("user", "Q"), message("assistant", items(None))]}, "answer with an image"),
        ({"prompt": [message("assistant", "A")], "completion": "A"}, "has to end with the user"),
        (
            {"chosen": TOLD, "rejected": [message("user", "P"), message("assistant", "B")]},
            "part at message 0, before their last answers",
        ),
        (
            {"chosen": TOLD, "rejected": [message("assistant", "B")]},
            "part at message 0",
        ),
        (
            {"prompt": "P", "completion": TOLD},
            "does not begin with prompt",
        ),
        ({"prompt": "Q", "chosen": "a", "rejected": "b", "score_chosen": 1}, "score_rejected is null; it has"),
    ],
)  # fmt: skip
def test_wrong_rows_of_trl(write: Write, row: dict[str, Any], what: str) -> None:
    found = wrong(write([{"messages": []}, row]), "trl", 1)
    assert re.search(what, found), found


# --- ultrafeedback, shp, prompts


def test_ultrafeedback_has_scores(write: Write) -> None:
    pair = {"prompt": "Q", "chosen": [message("user", "Q"), message("assistant", "a <image>")]}
    pair["rejected"] = [message("user", "Q"), message("assistant", "b")]
    rows = [
        {**pair, "score_chosen": 8.5, "score_rejected": 6, "messages": pair["chosen"]},
        {**pair, "chosen_rating": 4, "rejected_rating": 3.0, "score_chosen": None, "score_rejected": None},
        {"prompt": "Q", "chosen": "a <image>", "rejected": "b", "score_chosen": 1, "score_rejected": 0},
        pair,
        {**pair, "score_chosen": float("nan"), "score_rejected": 1},
        {**pair, "score_chosen": 2, "score_rejected": 9.5},
    ]
    path = write(rows)
    for format in ("ultrafeedback", "auto"):
        found = read(path, format)
        assert [[answer.score for answer in found[row].answers] for row in range(3)] == [[8.5, 6], [4, 3], [1, 0]]
        assert {found[row].prompt for row in range(3)} == {(user("Q"),)}
        assert {tuple(texts(found[row])) for row in range(3)} == {("a <image>", "b")}
    assert "no scores: score_chosen" in wrong(path, "ultrafeedback", 3)
    assert "score_chosen is nan" in wrong(path, "ultrafeedback", 4)
    assert "chosen has the score 2 and rejected 9.5; the best comes first" in wrong(path, "ultrafeedback", 5)


def post(history: str, a: float, b: float, **more: Any) -> dict[str, Any]:
    return {"history": history, "human_ref_A": "A", "human_ref_B": "B", "score_A": a, "score_B": b, **more}


def test_shp_puts_the_liked_answer_first(write: Write) -> None:
    path = write([post("P", 3, 40, labels=0), post("P", 9, 2, labels=1), post("P", 5, 5, labels=1), post("P", 5, 5)])
    rows = read(path, "shp")
    assert [texts(rows[row]) for row in range(3)] == [["B", "A"], ["A", "B"], ["A", "B"]]
    assert [answer.score for answer in rows[0].answers] == [40, 3] and rows[0].prompt == (user("P"),)
    assert "both answers have the score 5" in wrong(path, "shp", 3)
    path = write([post("P", 1, 2), post("P", float("nan"), 2), {**post("P", 1, 2), "human_ref_B": "A"}])
    assert "score_A is nan" in wrong(path, "shp", 1)
    assert "human_ref_B and human_ref_A are the same" in wrong(path, "shp", 2)


def test_shp_uses_five_pairs_of_each_post(write: Write, tmp_path: Path, datasets: Any) -> None:
    def kept(path: Path, **more: int) -> list[int]:
        found = []
        rows = read(path, "shp", **more)
        for place in range(len(rows)):
            with contextlib.suppress(Surplus):
                found.append(rows[place].origin.row)
        return found

    made = [post("busy" if n % 3 else f"P{n}", n, n + 1) for n in range(30)]
    datasets.Dataset.from_list(made).to_parquet(tmp_path / "data.parquet")
    for path in (write(made, "data.json"), tmp_path / "data.parquet"):
        assert kept(path) == [n for n in range(30) if n % 3 == 0 or n <= 7]
        assert kept(path, skip=6, limit=10) == [6, 7, 8, 9, 10, 11, 12, 13, 15]
        assert "its post has 5 pairs before it" in wrong(path, "shp", 8)


def test_a_broken_row_of_shp_stays_to_be_named(write: Write) -> None:
    path = write(f"{json.dumps(post('P', 1, 2))}\n{{broken\n{json.dumps(post('P', 1, 2))}\n")
    assert len(read(path, "shp")) == 3 and "is not JSON" in wrong(path, "shp", 1)


def test_prompts_are_lines_or_rows(write: Write) -> None:
    path = write("What is <image>?\n\n  two  \r\n{not json}\nlast", "prompts.txt")
    for format in ("prompts", "auto"):
        rows = read(path, format)
        assert [row.prompt[0].text for row in rows] == ["What is <image>?", "  two  ", "{not json}", "last"]
        assert [row.origin.row for row in rows] == [1, 3, 4, 5] and all(row.answers == () for row in rows)
    made = [
        {"prompt": "Q"},
        {"prompt": [message("user", "Q"), message("assistant", "A"), message("user", "R")]},
        {"prompt": "Q", "image": "a.png"},
        {"prompt": " "},
        {"question": "Q"},
    ]
    path = write(made)
    either: tuple[str, ...] = ("prompts", "auto")
    for format in either:
        plain, talked, seen = read(path, format)[0:3]
        assert plain.prompt == (user("Q"),) and len(talked.prompt) == 3 and plain.answers == ()
        assert seen.prompt == (user(IMAGE, "Q"),) and names(seen) == ["a.png"]
    assert wrong(path, "prompts", 3) == "prompt is empty; it needs some text"
    assert wrong(path, "prompts", 4) == "no column prompt; it has question"
    with pytest.raises(BadInput, match=r"is not text in UTF-8"):
        read(write(png(), "image.txt"), "prompts")


# --- auto


def test_auto_tells_formats_by_their_columns(write: Write) -> None:
    pair = {"chosen": "a", "rejected": "b"}
    rows: dict[str, dict[str, Any]] = {
        "llava": talk("Q", "A"), "mdpo": {"img_path": None, "prompt": "Q", **pair},
        "rlaif_v": {"question": "Q", **pair},
        "shp": post("P", 1, 2), "trl": {"prompt": "Q", "completion": "A"}, "prompts": {"prompt": "Q"},
        "ultrafeedback": {"prompt": "Q", **pair, "score_chosen": 2, "score_rejected": 1},
    }  # fmt: skip
    for format, row in rows.items():
        path = write([row, row])
        more = {"images": "none"} if format in ("llava", "mdpo") else {}
        assert list(read(path, "auto")) == list(read(path, format, **more))
    broken = write(f"broken\n{json.dumps(talk('Q', 'A'))}\n")
    assert texts(read(broken, "auto")[1]) == ["A"] and "is not JSON" in wrong(broken, "auto", 0)


def test_auto_says_what_it_saw_and_what_there_is(write: Write) -> None:
    for rows, seen in (([WRONG], "the columns id, caption"), ("a,b\n1,2\n", "its first row is not JSON")):
        with pytest.raises(BadInput, match=f"its format cannot be recognised.*{seen}") as caught:
            read(write(rows), "auto")
        for format in set(data_section.FORMATS) - {"auto", "shapes"}:
            assert f"{format} (" in str(caught.value)


@pytest.mark.parametrize("name", [name for name, kind in RECIPE_FORMATS.items() if kind.example])
def test_the_example_of_each_format_is_a_row_of_it(write: Write, name: str) -> None:
    """The one that docs/data.md and `mmlaunch data --formats` show."""
    text = RECIPE_FORMATS[name].example
    write(json.dumps([talk("Q", "A")]), "rows.jsonl")
    path = write(text, "meta.json" if name == "internvl" else "rows.jsonl")
    if name == "internvl":
        write(f"{json.dumps(talk('Q', 'A'))}\n", "rows.jsonl")
    (example,) = read(path, name)
    assert example.prompt and bool(example.answers) == RECIPE_FORMATS[name].answers
    assert text in (Path(__file__).resolve().parents[3] / "docs" / "data.md").read_text()


def test_a_path_that_leads_nowhere_says_what_to_write(write: Write, tmp_path: Path) -> None:
    for name in ("trl", "rlaif_v"):
        (row,) = read(write(RECIPE_FORMATS[name].example.replace("a.jpg", "train/b.jpg"), "rows.jsonl"), name)
        with pytest.raises(BadPicture) as caught:
            row.images[0].open()
        assert "train/b.jpg: no such file; train/b.jpg was looked for in" in str(caught.value)
        assert "write images: with the folder that paths begin in" in str(caught.value)
