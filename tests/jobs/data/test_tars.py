"""Tar files of webdataset: rows in any order, images as bytes, long names, damage, and an index that is made once."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmjobs.data.example import BadRow
from mmjobs.data.formats.registry import parts
from mmjobs.data.readers import tars
from mmlaunch.errors import BadInput
from mmlaunch.recipe.data import Source


def jpeg(colour: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def write(path: Path, samples: list[dict[str, bytes]], first: int = 0, folder: str = "") -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number, sample in enumerate(samples, first):
            for part, content in sample.items():
                member = tarfile.TarInfo(f"{folder}{number:06d}.{part}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def llava(number: int, **more: Any) -> bytes:
    talk = [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": f"Number {number}."}]
    return json.dumps({"id": number, "conversations": talk, **more}).encode()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mmlaunch" / "tars"


def test_several_files_are_one_source(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(2):
        samples = [{"jpg": jpeg(10 * number), "json": llava(number)} for number in range(3 * shard, 3 * shard + 3)]
        write(folder / f"shard-{shard}.tar", samples, 3 * shard, "long/" * 40)
    (part,) = parts(Source(path=str(folder), format="llava", images=str(folder)))
    assert len(part.rows) == 6
    for number in (5, 0, 3):
        example = part.rows[number]
        assert example.answers[0].text == f"Number {number}." and len(example.images) == 1
        assert example.images[0].read() == jpeg(10 * number)
        assert (Path(example.origin.source).name, example.origin.row) == (f"shard-{number // 3}.tar", number % 3)
    assert len(list(cache.glob("*.npy"))) == 2


def test_where_samples_begin_is_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.tar"
    write(file, [{"json": b'{"a": 1}'}, {"json": b'{"a": 2}'}])
    first = tars.opened(file)
    looked: list[Path] = []

    def samples(path: Path) -> Iterator[tuple[int, int]]:
        looked.append(path)
        return iter(())

    monkeypatch.setattr(tars, "_samples", samples)
    again = tars.opened(file)
    assert not looked and [again.row(index).values for index in (1, 0)] == [{"a": 2}, {"a": 1}]
    assert len(first) == len(again) == 2
    write(file, [{"json": b'{"a": 1}'}])
    with pytest.raises(BadInput, match="holds no samples"):
        tars.opened(file)  # it is another file now
    assert looked == [file]


def test_the_parts_of_a_sample(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    two = {"0.png": b"zero", "1.png": b"one", "txt": b"a text", "question.txt": b"what?"}
    named = {"jpg": b"own", "json": json.dumps({"image": "images/000001.jpg", "n": 1}).encode()}
    other = {"json": json.dumps({"images": ["000002.a.jpg", "elsewhere.jpg"]}).encode(), "a.jpg": b"own"}
    write(file, [two, named, other])
    table = tars.opened(file)
    assert table.row(0).values == {
        "images": [{"bytes": b"zero", "path": "000000.0.png"}, {"bytes": b"one", "path": "000000.1.png"}],
        "text": "a text", "question": "what?",
    }  # fmt: skip
    assert table.row(1).values == {"image": {"bytes": b"own", "path": "000001.jpg"}, "n": 1}
    assert table.row(2).values["images"] == [{"bytes": b"own", "path": "000002.a.jpg"}, "elsewhere.jpg"]


def test_what_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    write(file, [{"json": b"{"}, {"json": b'{"a": 1}'}])
    with pytest.raises(BadRow, match="cannot be read from the tar file"):
        tars.opened(file).row(0)
    assert tars.opened(file).row(1).values == {"a": 1}
    (tmp_path / "b.tar").write_bytes(b"no tar file at all" * 100)
    with pytest.raises(BadInput, match=r"cannot be read as a tar file: .*; is it complete\?"):
        tars.opened(tmp_path / "b.tar")
    with pytest.raises(BadInput, match="tar files have no splits; remove split: train"):
        parts(Source(path=str(file), format="trl", split="train"))
