"""The page: what it shows first, its pictures, and that nothing of the data becomes markup."""

from __future__ import annotations

import base64
import html
import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmlaunch.results import pictures
from mmlaunch.results.page import page
from mmlaunch.results.samples import Samples, state_of
from mmlaunch.results.summary import Evaluation

Record = dict[str, Any]


def record(index: int, verdict: str = "right", **more: Any) -> Record:
    score = {"right": 1.0, "wrong": 0.0, "unparsed": 0.0}.get(verdict)
    return {"index": index, "id": f"q{index}", "source": "a", "images": [], "predictions": ["12"], "finish": ["eos"],
            "truths": ["12"], "prompt": "How many?", "scores": [score], "kinds": [verdict], "extracted": ["12"],
            "metric": "relaxed", **more}  # fmt: skip


def made(records: list[Record], most: int = 20, **more: Any) -> str:
    evaluation, samples = Evaluation(), Samples(most)
    for one in records:
        samples.add(one, evaluation.add(one))
    return page("run", evaluation, samples, **more)


class Elements(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "a picture's <name> & more.jpg"
    Image.new("RGB", (1200, 300), (200, 30, 30)).save(path)
    return str(path)


def test_the_bad_ones_come_first_and_of_each_a_few() -> None:
    records = [record(n) for n in range(30)] + [record(30 + n, "wrong") for n in range(30)]
    records += [record(60, "unparsed"), record(61, scores=[], error={"reason": "image", "detail": "size 0"})]
    text = Elements(made(records[::-1], most=3)).text
    assert re.findall(r"q\d+", text) == ["q61", "q60", "q30", "q31", "q32", "q0", "q1", "q2"]
    assert "8 of 62 rows" in text and "image: size 0" in text
    assert made(records[::-1], most=3) == made(records, most=3)


@pytest.mark.parametrize(
    ("more", "score", "state"),
    [
        ({}, 1.0, "right"), ({"scores": [0.0]}, 0.0, "wrong"), ({"scores": [0.6]}, 0.6, "partly right"),
        ({"scores": [4.0]}, 4.0, "scored"), ({"kinds": ["timeout"]}, 0.0, "unparsed"), ({"scores": []}, 0.0, "failed"),
        ({"better": "lower", "scores": [0.0]}, 0.0, "right"), ({"better": "lower", "scores": [1.0]}, 1.0, "wrong"),
        ({"kind": "pair", "scores": [1, 1]}, 0.5, "tie"), ({"kind": "versus", "scores": [1, 2]}, 0.0, "lost"),
        ({"kind": "versus", "scores": [1]}, None, "failed"), ({"kind": "pair", "scores": [1, None]}, 0.0, "failed"),
    ],
)  # fmt: skip
def test_the_state_of_a_record(more: Record, score: float | None, state: str) -> None:
    assert state_of(record(0, **more), score) == state


def test_nothing_of_the_data_becomes_markup(image: str) -> None:
    evil = "</style><script>alert(1)</script><img src=x onerror='alert(2)'>\"'&lt;"
    fields = dict.fromkeys(("id", "source", "prompt", "metric", "subset"), evil)
    lists = {name: [evil, evil] for name in ("predictions", "truths", "extracted", "kinds", "finish")}
    images = [image, f"/no/{evil}.png", "javascript:alert(3)", f"relative/{evil}"]
    records: list[Record] = [
        {**fields, **lists, "images": images, "scores": [0.5, 1.0], "index": evil},
        {**fields, "images": images, "error": {"reason": evil, "detail": evil}},
        {**fields, "kind": "pair", "scores": [1, 2], "chosen": evil, "rejected": evil},
        {**fields, "kind": "versus", "scores": [1, 2], "predictions": [evil, evil]},
        {**record(5), "source": "other"},
    ]
    parsed = Elements(made(records))
    assert not {tag for tag, _ in parsed.tags} & {"script", "iframe", "object", "link"}
    assert not [attrs for _, attrs in parsed.tags if any(name.startswith("on") for name in attrs)]
    assert all((attrs["src"] or "").startswith("data:image/") for tag, attrs in parsed.tags if tag == "img")
    links = [attrs["href"] or "" for tag, attrs in parsed.tags if tag == "a"]
    assert links and all(link.startswith(("file:///", "./")) for link in links), links
    style = re.search(r"<style>(.*?)</style>", made(records), re.DOTALL)
    assert style is not None and "alert" not in style.group(1)
    assert parsed.text.count("alert(1)") > 10


def test_a_conversation_is_shown_as_one() -> None:
    """A line for each message with its role, and the answers to each turn; not Python's lists."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>\nHow many?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "And cats?"},
    ]
    turns = [["12"], ["One <b>cat</b>."], ["None.", "Three."]]
    text = Elements(made([record(0, prompt=messages, turn_predictions=turns)])).text
    assert "questionsystem: Be brief.\nuser: <image>\nHow many?\nassistant: Two.\nuser: And cats?truth" in text
    assert "turn 2One <b>cat</b>.turn 3, answer 1None.turn 3, answer 2Three." in text
    assert made([record(0, prompt=["odd", {}], turn_predictions="odd")]), "anybody may have written it"


def test_pictures_are_small_and_inside(image: str, tmp_path: Path) -> None:
    drawing = tmp_path / "drawing.png"
    Image.new("RGBA", (500, 500), (0, 0, 255, 80)).save(drawing)
    broken = tmp_path / "broken.png"
    broken.write_bytes(drawing.read_bytes()[:60])
    parsed = Elements(made([record(0, images=[image, str(drawing), str(broken), str(tmp_path / "none.png")])]))
    shown = [attrs["src"] or "" for tag, attrs in parsed.tags if tag == "img"]
    kinds, sizes = [], []
    for source in shown:
        kind, content = re.fullmatch(r"data:(image/\w+);base64,(.*)", source, re.DOTALL).groups()  # type: ignore[union-attr]  # it must match
        kinds.append(kind)
        sizes.append(Image.open(io.BytesIO(base64.b64decode(content))).size)
    assert kinds == ["image/jpeg", "image/png"] and sizes == [(360, 90), (360, 360)]
    assert "broken.png" in parsed.text and "none.png" in parsed.text


def test_without_pillow_small_files_are_inside_and_others_linked(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = tmp_path / "large.png"
    large.write_bytes(Path(image).read_bytes() + bytes(60_000))
    monkeypatch.setitem(sys.modules, "PIL", None)
    pictures.source_of.cache_clear()
    parsed = Elements(made([record(0, images=[image, str(large), str(tmp_path / "none.png")])]))
    pictures.source_of.cache_clear()
    shown = [attrs["src"] or "" for tag, attrs in parsed.tags if tag == "img"]
    assert [base64.b64decode(source.partition(",")[2]) for source in shown] == [Path(image).read_bytes()]
    links = [attrs["href"] for tag, attrs in parsed.tags if tag == "a"]
    assert links == [Path(image).as_uri(), large.as_uri(), (tmp_path / "none.png").as_uri()]


def test_every_source_and_state_can_be_chosen() -> None:
    text = made([record(0), record(1, "wrong", source="b <c>"), record(2, "unparsed")])
    parsed = Elements(text)
    choices = [attrs["id"] for tag, attrs in parsed.tags if tag == "input"]
    assert choices == ["s", "s0", "s1", "k", "k0", "k1", "k2"]
    assert [attrs["for"] for tag, attrs in parsed.tags if tag == "label"] == choices
    articles = [str(attrs["class"]).split() for tag, attrs in parsed.tags if tag == "article"]
    assert articles == [["s0", "k0", "bare"], ["s1", "k1", "bare"], ["s0", "k2", "bare"]]
    for place in (0, 1):
        assert f"#s{place}:checked ~ main article:not(.s{place}) {{ display: none; }}" in text


def test_long_texts_are_folded_and_cut() -> None:
    text = made([record(0, predictions=["word " * 5_000], finish=["length"])])
    assert "<details>" in text and "(25,000 characters)" in text and len(text) < 20_000
    assert "cut at its greatest length" in html.unescape(text)
    assert "(empty)" in made([record(0, predictions=[""])])
