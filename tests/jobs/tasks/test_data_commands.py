"""`convert`, `split` and `decontaminate` as programs: what they write, refuse, leave out and report."""

from __future__ import annotations

import base64
import importlib
import io
import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmjobs.data.example import Example
from mmjobs.data.formats.registry import FORMATS
from mmjobs.data.images.image_file import BytesPicture
from mmjobs.data.images.likeness import Near, fingerprint
from mmjobs.data.overlap import words
from mmjobs.data.readers.rows import Rows
from mmjobs.tasks.split import Groups, shared
from mmlaunch.recipe.data import Source

Run = Callable[..., Any]


def picture(seed: int, side: int = 64, kind: str = "PNG", quality: int = 90) -> bytes:
    """A scene that is its own for each seed: smooth hills of grey."""
    dice = random.Random(seed)
    small = Image.new("L", (6, 6))
    small.putdata([dice.randrange(256) for _ in range(36)])
    stream = io.BytesIO()
    small.resize((side, side), Image.Resampling.BICUBIC).convert("RGB").save(stream, kind, quality=quality)
    return stream.getvalue()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A program in the folder of the test: the object that it prints, whose `code` is its exit code."""
    monkeypatch.chdir(tmp_path)

    def _run(task: str, *arguments: str) -> Any:
        monkeypatch.setattr(sys, "argv", [task, *arguments])
        code = importlib.import_module(f"mmjobs.tasks.{task}").main()
        return json.loads(capsys.readouterr().out) | {"code": code}

    return _run


def lines(path: str, rows: Sequence[dict[str, Any]]) -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def loaded(path: str) -> list[Any]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def read(path: str, name: str) -> Sequence[Example]:
    return FORMATS[name].rows(Source(path=path))


def matters(example: Example) -> Any:
    pictures = [picture.read() for picture in example.images]
    return example.prompt, example.answers, example.truths, example.label, pictures


PAIR = {"chosen": "A cat.", "rejected": "A dog."}


# --- convert


def test_rows_go_from_format_to_format_and_back(run: Run) -> None:
    Path("a.png").write_bytes(picture(1))
    first = lines("a.jsonl", [{"idx": 3, "image": "a.png", "question": "What?", **PAIR}, {"question": "Hi", **PAIR}])
    before = list(read(first, "rlaif_v"))
    path = first
    for name in ("trl", "llava", "internvl", "mdpo", "rewardbench", "rlaif_v"):
        out = f"{name}.json" if name == "internvl" else f"{name}.jsonl"
        made = run("convert", "--to", name, path, out)
        assert made["code"] == 0 and made["rows"] == 2 and made["dropped"] == made["left_out"] == {}
        assert made["images"]["short"] == 1 and made["images"]["full"] == made["images"]["made"] == 0
        after = list(read(out, name))
        assert list(map(matters, after)) == list(map(matters, before))
        path = out
    assert loaded("rlaif_v.jsonl")[0]["image"] == "a.png"
    assert json.loads(Path("internvl.json").read_text())["internvl"]["length"] == 2


BASES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "pairs": ("rlaif_v", [{"image": "a.png", "question": "What?", **PAIR}, {"question": "Hi\n", **PAIR}]),
    "talks": ("llava", [{"conversations": [
        {"from": "human", "value": "Look: <image>"}, {"from": "gpt", "value": "Yes"}, {"from": "human", "value": "So?"},
        {"from": "gpt", "value": "No"}], "image": "a.png"}]),
    "questions": ("prompts", [{"prompt": "See <image>!", "image": "a.png", "answers": ["cat"]}, {"prompt": "Who?"}]),
    "answered": ("llava_answers", [{"question_id": 5, "image": "a.png", "prompt": "Q", "text": "A", "answers": ["x"]}]),
}  # fmt: skip
PAIRS = {"pairs": 42, "talks": 6, "questions": 20, "answered": 6}
"""So many ways there are from one format that holds these rows to another."""


@pytest.mark.parametrize("base", BASES)
def test_what_goes_to_another_format_comes_back_the_same(run: Run, base: str) -> None:
    """From each format that holds some rows to each other one and back; the others refuse them."""
    Path("a.png").write_bytes(picture(1))
    name, rows = BASES[base]
    first = list(map(matters, read(lines("a.jsonl", rows), name)))
    ways = 0
    for one, kind in FORMATS.items():
        start = f"{one}.tsv" if kind.holds.columns else f"{one}.json"
        if kind.row_of is None or run("convert", "--from", name, "--to", one, "a.jsonl", start)["code"]:
            continue
        for other, another in FORMATS.items():
            if other == one or another.row_of is None:
                continue
            there, back = f"{one}-{other}.json", f"{one}-{other}-{start}"
            if run("convert", "--from", one, "--to", other, start, there)["code"]:
                continue
            made = run("convert", "--from", other, "--to", one, there, back)
            assert made["code"] == 0 and list(map(matters, read(back, one))) == first
            ways += 1
    assert ways == PAIRS[base]


def test_images_get_the_paths_that_the_new_file_needs(run: Run) -> None:
    for folder in ("in", "out"):
        Path(folder).mkdir()
    Path("in/a.png").write_bytes(picture(1))
    lines("in/a.jsonl", [{"image": "a.png", "question": "What?", **PAIR}])
    assert run("convert", "--to", "trl", "in/a.jsonl", "out/b.jsonl")["images"]["full"] == 1
    assert loaded("out/b.jsonl")[0]["images"] == [str(Path("in/a.png").absolute())]
    assert run("convert", "--to", "trl", "in/a.jsonl", "c.jsonl")["images"]["short"] == 1
    assert loaded("c.jsonl")[0]["images"] == ["in/a.png"]
    run("convert", "--to", "trl", "--absolute", "in/a.jsonl", "d.jsonl")
    assert loaded("d.jsonl")[0]["images"] == [str(Path("in/a.png").absolute())]
    held = base64.b64encode(picture(2)).decode()
    lines("e.jsonl", [{"image": held, "question": q, **PAIR} for q in ("What?", "Who?")])
    assert run("convert", "--to", "trl", "e.jsonl", "f.jsonl")["images"]["made"] == 1, "the same image is one file"
    (name,) = {row["images"][0] for row in loaded("f.jsonl")}
    assert name.startswith("f-images/") and Path(name).read_bytes() == picture(2)
    run("convert", "--to", "vlmevalkit", "--drop", "answers", "e.jsonl", "g.tsv")
    one, two = read("g.tsv", "vlmevalkit")
    assert one.images[0].read() == two.images[0].read() == picture(2)


def test_what_a_format_cannot_hold_is_refused_or_dropped(run: Run) -> None:
    talk = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": ["a", "b", "c"]}]
    short = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "a"}]
    lines("a.jsonl", [{"conversations": talk, "label": "x"}, {"conversations": short}])
    refused = run("convert", "--to", "rlaif_v", "a.jsonl", "b.jsonl")
    assert refused["code"] == 2 and not Path("b.jsonl").exists()
    assert refused["error"].startswith("a.jsonl:1: has 3 answers, which no row of rlaif_v holds; --drop answers ")
    refused = run("convert", "--to", "rlaif_v", "--drop", "answers", "--drop", "label", "a.jsonl", "b.jsonl")
    assert refused["error"].startswith(
        "a.jsonl:2: has 1 answer where 2 are needed, which no row of rlaif_v holds; --drop rows"
    )
    drops = [word for part in ("answers", "label", "rows") for word in ("--drop", part)]
    made = run("convert", "--to", "rlaif_v", *drops, "a.jsonl", "b.jsonl")
    assert made["rows"] == 1 and made["dropped"] == {"answers": 1, "label": 1}
    assert made["left_out"] == {"does not fit": 1} and made["reasons"][0]["row"] == "a.jsonl:2"


def test_predictions_go_back_to_the_table_that_was_asked(run: Run) -> None:
    """VLMEvalKit scores a prediction by the index, the question and the options beside it."""
    held = base64.b64encode(picture(1)).decode()
    Path("t.tsv").write_text(
        f"index\timage\tquestion\thint\tA\tB\tanswer\tsplit\n7\t{held}\tWhat?\tLook.\tcat\tdog\tA\tdev\n"
        f"9\t{held}\tWho?\t\t\t\tme\tdev\n"
    )
    asked = read("t.tsv", "vlmevalkit")
    assert isinstance(asked, Rows)
    predicted = [
        {**asked.values(place), "input_index": asked.values(place)["index"], "index": place, "source": "t",
         "prompt": "<image>" + example.prompt[0].text, "images": [example.images[0].identity],
         "truths": list(example.truths), "predictions": [f"Answer {place}"], "error": None}
        for place, example in enumerate(asked)
    ]  # fmt: skip
    lines("p.jsonl", predicted)
    assert run("convert", "--to", "vlmevalkit", "p.jsonl", "out.tsv")["from"] == "predictions"
    back = read("out.tsv", "vlmevalkit")
    assert isinstance(back, Rows)
    for place in range(2):
        kept = dict(back.values(place))
        assert kept.pop("prediction") == f"Answer {place}" and kept.pop("image_path") == f"{kept['index']}.jpg"
        assert kept.pop("category") is None and kept == dict(asked.values(place))
        assert back[place].prompt == asked[place].prompt and back[place].truths == asked[place].truths
    assert "C" not in Path("out.tsv").read_text().splitlines()[0].split("\t")
    plain = lines("plain.jsonl", [{"question_id": 1, "text": "Q"}])
    run("convert", "--to", "vlmevalkit", plain, "plain.tsv")
    assert Path("plain.tsv").read_text().splitlines()[0].split("\t") == list(FORMATS["vlmevalkit"].holds.columns)
    late = [{"index": n, "question": "Q"} for n in range(30)] + [{"index": 31, "question": "Q", "A": "a"}]
    assert "has the columns A" in run("convert", "--to", "vlmevalkit", lines("late.jsonl", late), "late.tsv")["error"]


def test_what_is_right_becomes_the_answer_to_learn(run: Run) -> None:
    lines("a.jsonl", [{"prompt": "Q", "answers": ["cat", "kitty"]}, {"prompt": "R", "answer": 4}])
    assert "has no answers where 1 is needed" in run("convert", "--to", "llava", "a.jsonl", "b.jsonl")["error"]
    assert run("convert", "--to", "llava", "--truths-as-answers", "a.jsonl", "b.jsonl")["dropped"] == {}
    assert [row["conversations"][1]["value"] for row in loaded("b.jsonl")] == ["cat", "4"]


def test_broken_rows_and_images_are_named_or_counted(run: Run) -> None:
    Path("a.jsonl").write_text('{"prompt": "Q"}\nbroken\n{"prompt": "R", "image": "gone.png"}\n')
    refused = run("convert", "--to", "mt_bench", "a.jsonl", "b.jsonl")
    assert refused["code"] == 2 and refused["error"].startswith("a.jsonl:2: is not JSON")
    made = run("convert", "--to", "mt_bench", "--on-bad", "skip", "a.jsonl", "b.jsonl")
    assert made["rows"] == 1 and made["left_out"] == {"bad": 2}
    assert [one["row"] for one in made["reasons"]] == ["a.jsonl:2", "a.jsonl:3"]
    assert "gone.png: no such file" in made["reasons"][1]["reason"]


def test_nothing_is_overwritten_unless_it_is_said(run: Run) -> None:
    lines("a.jsonl", [{"prompt": "Q"}])
    Path("b.jsonl").write_text("mine")
    refused = run("convert", "--to", "mt_bench", "a.jsonl", "b.jsonl")
    assert refused["code"] == 2 and "--overwrite" in refused["error"] and Path("b.jsonl").read_text() == "mine"
    assert run("convert", "--to", "mt_bench", "--overwrite", "a.jsonl", "b.jsonl")["rows"] == 1
    assert "is the file that is read" in run("convert", "--to", "prompts", "--overwrite", "a.jsonl", "a.jsonl")["error"]
    for arguments, what in (
        (("--to", "shp", "a.jsonl", "c.jsonl"), "rows of the format shp are not written; one of internvl, llava"),
        (("--to", "trl", "--from", "nope", "a.jsonl", "c.jsonl"), "no file is in the format nope"),
        (("--to", "trl", "--from", "shapes", "a.jsonl", "c.jsonl"), "no file is in the format shapes"),
        (("--to", "trl", "a\nb", "c.jsonl"), "is no path that can be read"),
        (("--to", "trl", "a.jsonl", "c.tsv"), "its name has to end with .jsonl or .json"),
        (("--to", "trl", "a.jsonl", "no/c.jsonl"), "there is no folder"),
        (("--to", "trl", "gone.jsonl", "c.jsonl"), "no such file"),
    ):
        refused = run("convert", *arguments)
        assert refused["code"] == 2 and what in refused["error"]


def test_the_programs_need_no_torch(tmp_path: Path) -> None:
    tasks = ", ".join(f"mmjobs.tasks.{name}" for name in ("convert", "split", "decontaminate"))
    code = f"import sys; sys.modules['torch'] = None\nimport {tasks}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


# --- split


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=40), st.integers(0, 3))
def test_no_two_parts_share_anything(rows: list[tuple[int, int]], seed: int) -> None:
    groups = Groups()
    for image, question in rows:
        groups.add([b"i%d" % image, b"q%d" % question])
    sizes = groups.sizes()
    parts = shared(sizes, {"train": 9, "test": 1}, seed)
    assert sum(sizes.values()) == len(rows) and parts == shared(sizes, {"train": 9, "test": 1}, seed)
    where = [parts[groups.root(row)] for row in range(len(rows))]
    for this, one in enumerate(rows):
        for other, another in enumerate(rows):
            if where[this] != where[other]:
                assert one[0] != another[0] and one[1] != another[1]


def test_parts_share_no_image_and_no_question(run: Run) -> None:
    rows = []
    for number in range(60):
        name = f"{number}.png"
        Path(name).write_bytes(picture(number // 2))  # two files of the same content
        rows.append({"image": name, "question": f"What is {number // 3}?", "extra": {"kept": number}, **PAIR})
    lines("a.jsonl", rows)
    made = run("split", "--parts", "train=80,test=20", "a.jsonl", "parts")
    parts = {name: loaded(part["file"]) for name, part in made["parts"].items()}
    assert len(parts["train"]) == 48 and len(parts["test"]) == 12 and made["largest"] == 6
    assert sorted(row["extra"]["kept"] for part in parts.values() for row in part) == list(range(60))
    seen = {name: {(int(row["image"][:-4]) // 2, row["question"]) for row in part} for name, part in parts.items()}
    for index in (0, 1):
        assert not {key[index] for key in seen["train"]} & {key[index] for key in seen["test"]}
    again = run("split", "--parts", "train=80,test=20", "a.jsonl", "again")
    assert Path("again/test.jsonl").read_bytes() == Path("parts/test.jsonl").read_bytes() and again["largest"] == 6
    run("split", "--parts", "train=80,test=20", "--seed", "1", "a.jsonl", "other")
    assert Path("other/test.jsonl").read_bytes() != Path("parts/test.jsonl").read_bytes()


def test_one_question_for_all_images_is_one_group(run: Run) -> None:
    for number in range(10):
        Path(f"{number}.png").write_bytes(picture(number))
    lines("a.jsonl", [{"image": f"{number}.png", "question": "Describe it.", **PAIR} for number in range(10)])
    refused = run("split", "--parts", "train=80,test=20", "a.jsonl", "parts")
    assert refused["code"] == 2 and "nothing is left for test: 1 groups" in refused["error"]
    made = run("split", "--parts", "train=80,test=20", "--by", "images", "a.jsonl", "parts")
    assert {name: part["rows"] for name, part in made["parts"].items()} == {"train": 8, "test": 2}
    for parts in ("train=80", "train=1,train=2", "train=-1,test=2", "train,test"):
        assert run("split", "--parts", parts, "a.jsonl", "parts")["code"] == 2


def test_tables_and_lists_are_copied_in_their_layout(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets  # type: ignore[import-untyped]  # it ships no types

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [
        {"image": {"bytes": picture(n), "path": f"{n}.png"}, "question": f"Q {n}", "extra": n, **PAIR} for n in range(6)
    ]
    features = datasets.Features(
        {name: datasets.Value("string") for name in ("question", "chosen", "rejected")}
        | {"image": datasets.Image(), "extra": datasets.Value("int64")}
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet("a.parquet")
    run("split", "--parts", "train=2,test=1", "a.parquet", "parts")
    parts = {name: read(f"parts/{name}.parquet", "rlaif_v") for name in ("train", "test")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 4, "test": 2}
    for part in parts.values():
        for place, example in enumerate(part):
            assert isinstance(part, Rows)
            assert example.images[0].read() == picture(part.values(place)["extra"])
    Path("a.json").write_text(json.dumps([{"prompt": f"Q {n}", "n": [n]} for n in range(4)]))
    run("split", "--parts", "train=3,test=1", "a.json", "listed")
    assert len(json.loads(Path("listed/train.json").read_text())) == 3
    Path("a.txt").write_text("one\ntwo\n\nthree\n")
    run("split", "--from", "prompts", "--parts", "train=2,test=1", "a.txt", "text")
    assert sorted((Path("text/train.txt").read_text() + Path("text/test.txt").read_text()).split()) == [
        "one",
        "three",
        "two",
    ]


def test_a_copied_row_keeps_the_image_that_another_row_held(run: Run) -> None:
    held = base64.b64encode(picture(1)).decode()
    Path("t.tsv").write_text(f"index\timage\tquestion\n1\t{held}\tShared words\n2\t1\tOther words\n")
    lines("test.jsonl", [{"prompt": "shared words"}])
    assert run("decontaminate", "--against", "test.jsonl", "t.tsv", "clean.tsv")["removed"] == 1
    (kept,) = read("clean.tsv", "vlmevalkit")
    assert kept.images[0].read() == picture(1)


# --- decontaminate


def test_words_have_no_case_and_chinese_has_no_spaces() -> None:
    assert words("The CAT's \uff21\uff22 2.5!") == ["the", "cat", "s", "ab", "2", "5"]
    assert words("图中有2只cat") == ["图", "中", "有", "2", "只", "cat"]


def test_rows_of_test_sets_are_removed(run: Run) -> None:
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    for name, seed in (("a.png", 1), ("b.png", 2), ("c.png", 3)):
        Path(name).write_bytes(picture(seed))
    Path("again.jpg").write_bytes(picture(3, side=200, kind="JPEG", quality=60))
    chinese = "这张图片里面有几只黑色的猫和白色的狗呢"
    tests = [
        {"prompt": f"Please: {long}?", "answer": "x"},
        {"prompt": "What colour is it?", "answer": "red", "image": "a.png"},
        {"prompt": chinese},
        {"prompt": "Short, no answer"},
        {"prompt": "Which?", "answer": "z", "image": "c.png"},
    ]
    lines("test.jsonl", tests)
    rows = [
        ("kept", {"prompt": "Something else", "answer": "red"}),
        ("words", {"prompt": f"Well, {long.upper()}"}),
        ("words", {"prompt": "请问" + chinese}),
        ("kept", {"prompt": "What colour is it?", "answer": "blue", "image": "b.png"}),
        ("text", {"prompt": "what colour is it", "answer": "Red."}),
        ("text", {"prompt": "short no answer", "answer": "anything"}),
        ("text", {"prompt": "What colour is it?"}),
        ("image", {"prompt": "Other words", "image": "a.png"}),
        ("similar image", {"prompt": "More words", "image": "again.jpg"}),
    ]
    lines("a.jsonl", [{**row, "id": number} for number, (_, row) in enumerate(rows)])
    made = run("decontaminate", "--against", "test.jsonl", "--compare", "perceptual", "a.jsonl", "clean.jsonl")
    assert made["code"] == 0 and made["kept"] == 2 and made["removed"] == 7 and made["rows"] == 9
    assert [row["id"] for row in loaded("clean.jsonl")] == [0, 3]
    report = loaded("clean.removed.jsonl")
    assert [one["why"] for one in report] == [why for why, _ in rows if why != "kept"]
    assert report[0] == {
        "row": "a.jsonl:2", "against": "test.jsonl", "why": "words", "shared": " ".join(long.split()[:13]),
    }  # fmt: skip
    assert {one["why"]: one["rows"] for one in made["by"]} == {"words": 2, "text": 3, "image": 1, "similar image": 1}
    exact = run("decontaminate", "--against", "test.jsonl", "--ngram", "15", "a.jsonl", "exact.jsonl")
    assert {one["why"]: one["rows"] for one in exact["by"]} == {"words": 1, "text": 3, "image": 1}
    lines("empty.jsonl", [{"prompt": "nothing of it"}])
    both = run("decontaminate", "--against", "empty.jsonl", "--against", "test.jsonl", "a.jsonl", "both.jsonl")
    assert {one["against"] for one in both["by"]} == {"test.jsonl"} and both["removed"] == 6


def test_short_text_does_not_count_where_both_rows_have_images(run: Run) -> None:
    """POPE's "Is there a dog?" "yes" is not every row with these words; an n-gram still is."""
    for name, seed in (("a.png", 1), ("b.png", 2)):
        Path(name).write_bytes(picture(seed))
    dog = {"prompt": "Is there a dog?", "answer": "yes"}
    long = {"prompt": "one two three four five six seven eight nine ten eleven twelve thirteen", "answer": "no"}
    blind = {"prompt": "Is there a cat?", "answer": "yes"}
    lines("test.jsonl", [{**dog, "image": "a.png"}, {**long, "image": "a.png"}, blind])
    rows = [{**dog, "image": "b.png"}, {"prompt": dog["prompt"], "image": "b.png"}, dog, {**dog, "image": "a.png"},
            {**long, "image": "b.png"}, {**blind, "image": "b.png"}]  # fmt: skip
    lines("a.jsonl", [{**row, "id": number} for number, row in enumerate(rows)])
    run("decontaminate", "--against", "test.jsonl", "a.jsonl", "clean.jsonl")
    assert [row["id"] for row in loaded("clean.jsonl")] == [0, 1]
    assert [one["why"] for one in loaded("clean.removed.jsonl")] == ["text", "image", "words", "text"]
    run("decontaminate", "--against", "test.jsonl", "--compare", "none", "a.jsonl", "text.jsonl")
    assert [row["id"] for row in loaded("text.jsonl")] == [0, 1, 3]


def test_images_are_alike_at_any_size_and_quality() -> None:
    scenes = [fingerprint(BytesPicture(picture(seed), "x")) for seed in range(40)]
    near = Near(8)
    for scene in scenes:
        near.add(scene)
    for seed in range(40):
        copy = fingerprint(BytesPicture(picture(seed, 150, "JPEG", 50), "x"))
        assert near.nearest(copy) is not None
        assert near.nearest(fingerprint(BytesPicture(picture(seed + 100), "x"))) is None
    flat = fingerprint(BytesPicture(_flat("red"), "x"))
    near.add(flat)
    assert flat == 0 and near.nearest(fingerprint(BytesPicture(_flat("blue"), "x"))) is None


def _flat(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(stream, "PNG")
    return stream.getvalue()


@given(st.integers(1, 2**128 - 1), st.sets(st.integers(0, 127), max_size=12), st.integers(0, 12))
def test_fingerprints_are_found_within_their_distance(one: int, flipped: set[int], distance: int) -> None:
    other = one
    for bit in flipped:
        other ^= 1 << bit
    near = Near(distance)
    near.add(one)
    expected = len(flipped) if len(flipped) <= distance and other else None
    assert near.nearest(other) == expected
