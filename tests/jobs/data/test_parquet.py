"""Parquet: rows as `datasets` reads them, read where they are; memory and copies do not grow with the rows."""

from __future__ import annotations

import datetime
import os
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmjobs.data.example import BadRow
from mmjobs.data.readers import parquet
from mmlaunch.errors import BadInput

PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 40


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets  # type: ignore[import-untyped]  # it ships no types

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def as_datasets_reads(*paths: Path) -> list[dict[str, Any]]:
    import datasets

    table = datasets.Dataset.from_parquet([str(path) for path in paths]).with_format("arrow")
    return [row for place in range(len(table)) for row in table[place : place + 1].to_pylist()]


def rows_of(table: parquet.Parquet) -> list[dict[str, Any]]:
    return [dict(table.row(index).values) for index in range(len(table))]


def many_columns(count: int) -> pa.Table:
    """Rows with every type that data sets of conversations and images use, and nulls among them."""
    images = [None if n % 5 == 4 else {"bytes": PNG + bytes([n]), "path": f"{n}.png"} for n in range(count)]
    turns = [[{"role": "user", "content": f"é {n}", "extra": None}] * (n % 3) for n in range(count)]
    day = datetime.datetime(2026, 1, 2, 3, 4, 5)
    return pa.table(
        {
            "image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "images": pa.array([[one, one] for one in images]),
            "messages": pa.array(
                turns,
                pa.large_list(
                    pa.struct([("role", pa.string()), ("content", pa.large_string()), ("extra", pa.float64())])
                ),
            ),
            "label": pa.array([n % 2 == 0 if n % 7 else None for n in range(count)]),
            "score": pa.array([n / 3 if n % 4 else None for n in range(count)], pa.float32()),
            "number": pa.array([1 << n % 60 for n in range(count)], pa.uint64()),
            "binary": pa.array([bytes([n]) * n for n in range(count)], pa.large_binary()),
            "nested": pa.array([{"a": {"b": [n, None]}, "c": []} for n in range(count)]),
            "nothing": pa.nulls(count),
            "when": pa.array([day] * count, pa.timestamp("us")),
            "price": pa.array([Decimal("1.50")] * count, pa.decimal128(10, 2)),
            "fixed": pa.array([[n, n + 1] for n in range(count)], pa.list_(pa.int32(), 2)),
        }
    )


@pytest.mark.parametrize("group", [1, 7, 1000])
def test_rows_are_those_of_datasets(tmp_path: Path, group: int) -> None:
    pq.write_table(many_columns(31), tmp_path / "a.parquet", row_group_size=group)
    table = parquet.opened(tmp_path / "a.parquet", None)
    assert rows_of(table) == as_datasets_reads(tmp_path / "a.parquet")
    again = pickle.loads(pickle.dumps(table))
    assert list(again.row(30).values) == list(table.row(30).values) == many_columns(1).column_names


def test_dictionaries_are_their_values_and_written_types_are_kept(tmp_path: Path) -> None:
    import datasets

    words = pa.table({"word": pa.array(["a", "b", None, "a"]).dictionary_encode(), "n": pa.array([1, 2, 3, 4])})
    pq.write_table(words, tmp_path / "words.parquet")
    assert [row["word"] for row in rows_of(parquet.opened(tmp_path / "words.parquet", None))] == ["a", "b", None, "a"]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "kind": datasets.ClassLabel(names=["a", "b"]),
            "grid": datasets.Array2D((2, 2), "int32"),
        }
    )
    made = [{"image": {"bytes": PNG, "path": None}, "kind": n % 2, "grid": [[n, 1], [2, 3]]} for n in range(5)]
    datasets.Dataset.from_list(made, features=features).to_parquet(tmp_path / "typed.parquet")
    assert rows_of(parquet.opened(tmp_path / "typed.parquet", None)) == as_datasets_reads(tmp_path / "typed.parquet")


def test_files_whose_columns_differ(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    first = pa.table({"a": pa.array([1, 2], pa.int64()), "b": ["x", None], "s": [{"p": 1, "q": "1"}, None]})
    second = pa.table({"s": [{"q": "2", "p": 2}], "a": pa.array([3], pa.int32())})
    pq.write_table(first, folder / "0.parquet")
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), folder / "1.parquet")
    pq.write_table(second, folder / "2.parquet")
    found = parquet.opened(folder, None)
    assert (
        rows_of(found) == as_datasets_reads(folder / "0.parquet", folder / "2.parquet")
        and rows_of(found)[2]["b"] is None
    )
    assert (str(found.row(1).origin), str(found.row(2).origin)) == (f"{folder}/0.parquet:1", f"{folder}/2.parquet:0")
    assert found.shard_starts.tolist() == [0, 2, 2]
    pq.write_table(pa.table({"a": [4], "more": [1]}), folder / "3.parquet")
    with pytest.raises(BadInput, match=r"3.parquet: has the columns more, which .*0.parquet lacks"):
        parquet.opened(folder, None)
    pq.write_table(pa.table({"a": ["four"]}), folder / "3.parquet")
    with pytest.raises(BadRow, match=r"3.parquet:0: cannot be read from the table: its columns are not those"):
        parquet.opened(folder, None).row(3)


def test_what_is_torn_or_changed_is_named_by_file_and_row(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(many_columns(20), file, row_group_size=5, compression="none")
    content = bytearray(file.read_bytes())
    table = parquet.opened(file, None)
    at = int(pq.read_metadata(file).row_group(2).column(0).data_page_offset)
    content[at : at + 60] = b"\xff" * 60
    file.write_bytes(content)
    with pytest.raises(BadRow, match=r"a.parquet:11: cannot be read from the table"):
        table.row(11)
    assert table.row(0).values["label"] is None and table.row(19).values["number"] == 1 << 19
    pq.write_table(many_columns(20), file, row_group_size=4)
    with pytest.raises(BadRow, match=r"a.parquet:6: .*the file has changed"):
        table.row(6)
    file.unlink()
    with pytest.raises(BadRow, match=r"a.parquet:12: .*No such file"):
        table.row(12)


def big(path: Path, rows: int, size: int, group: int) -> None:
    with pq.ParquetWriter(path, pa.schema([("n", pa.int64()), ("image", pa.binary())]), compression="none") as writer:
        for begin in range(0, rows, group):
            numbers = range(begin, min(rows, begin + group))
            writer.write_table(pa.table({"n": [*numbers], "image": [os.urandom(size) for _ in numbers]}), group)


def private() -> int:
    """The bytes that this process has of its own."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Private_Dirty")))


def test_memory_stays_and_nothing_is_copied(tmp_path: Path, caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 96 MB with a row group of 64 MB, read at random: what is kept are eight pieces of 1 MB."""
    monkeypatch.setattr(parquet, "KEPT_BYTES", 8 << 20)
    monkeypatch.setattr(parquet, "PIECE_BYTES", 1 << 20)
    big(tmp_path / "a.parquet", 960, 100_000, 640)
    table = parquet.opened(tmp_path / "a.parquet", None)
    assert table.row(639).values["n"] == 639  # what pyarrow itself needs is loaded
    pa.default_memory_pool().release_unused()
    before = private()
    for index in [*range(0, 960, 31), *range(950, 0, -97)]:
        assert table.row(index).values["n"] == index
        assert parquet.KEPT.bytes <= 8 << 20
    pa.default_memory_pool().release_unused()
    assert private() - before < 24 << 20
    assert not caches.exists() and [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_a_worker_keeps_pieces_of_its_own(tmp_path: Path) -> None:
    big(tmp_path / "a.parquet", 20, 100, 10)
    table = parquet.opened(tmp_path / "a.parquet", None)
    assert table.row(3).values["n"] == 3 and parquet.KEPT.bytes
    if (child := os.fork()) == 0:
        right = not parquet.KEPT.bytes and table.row(13).values["n"] == 13
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
