"""Streaming from a stand-in of the hub: files come when they are needed, once to a node, and within a limit."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants as constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.jobs.data.hub_server import NAME, Hub, serving

from mmjobs.data.formats.registry import parts
from mmjobs.data.readers import hub as hub_reader
from mmjobs.data.readers import streamed
from mmjobs.data.readers.shard_cache import ShardCache, folder
from mmlaunch.errors import BadInput, RecipeError
from mmlaunch.load import load_recipe
from mmlaunch.recipe.data import Source

sleep = time.sleep
PATH = f"hf://datasets/{NAME}"
RECIPES = Path(__file__).resolve().parents[3] / "recipes"


def png(colour: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (colour % 256, 30, 60)).save(stream, "PNG")
    return stream.getvalue()


def row(number: int) -> dict[str, Any]:
    talk = [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": f"It is {number}."}]
    return {"images": [{"bytes": png(number), "path": f"{number}.png"}], "messages": talk}


def write_parquet(path: Path, numbers: range, padding: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**row(number), "padding": os.urandom(padding)} for number in numbers]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)


def write_tar(path: Path, numbers: range) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            text = json.dumps({"messages": row(number)["messages"]}).encode()
            for ending, content in (("png", png(number)), ("json", text)):
                member = tarfile.TarInfo(f"{number:06d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server; this process and its children use it, with caches of their own and no patience."""
    (tmp_path / "node").mkdir()
    with serving(tmp_path / "served") as hub:
        for name, value in {"XDG_CACHE_HOME": "cache", "TMPDIR": "node", "HF_HOME": "hf"}.items():
            monkeypatch.setenv(name, str(tmp_path / value))
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub_reader, "WAITS", (0.01, 0.02))
        monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds / 100))
        forget()
        yield hub
        forget()


def forget() -> None:
    """What a process knows of the hub."""
    from huggingface_hub import HfFileSystem

    HfFileSystem.clear_instance_cache()
    for known in (hub_reader.pinned, streamed._shards, streamed._table):
        known.cache_clear()


def source(path: str = PATH, **more: Any) -> Source:
    return Source.model_validate({"path": path, "format": "trl", "streaming": True, **more})


def texts(source: Source) -> list[str]:
    (part,) = parts(source)
    return [example.answers[0].text for example in part.rows]


@pytest.mark.parametrize("kind", ["parquet", "tar", "jsonl"])
def test_rows_come_file_by_file_within_the_limit(server: Hub, kind: str) -> None:
    for shard in range(5):
        numbers, path = range(8 * shard, 8 * shard + 8), server.head / "data" / f"train-{shard:05d}-of-00005.{kind}"
        if kind == "parquet":
            write_parquet(path, numbers)
        elif kind == "tar":
            write_tar(path, numbers)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps({"messages": row(number)["messages"]}) + "\n" for number in numbers))
    size = max(path.stat().st_size for path in server.head.rglob("*.*"))
    limit = -(-2 * size // 1024)
    wanted = source(cache_limit=f"{limit}K", split="train" if kind != "tar" else None)
    (part,) = parts(wanted)
    assert len(part.rows) == 40 and len(server.gets) == (1 if kind == "parquet" else 6), "all to see where rows stand"
    server.gets.clear()
    for number in range(40):
        example = part.rows[number]
        assert example.answers[0].text == f"It is {number}."
        assert kind == "jsonl" or example.images[0].read() == png(number)
        held = sum(path.stat().st_size for path in folder().rglob("*") if path.is_file())
        assert held <= limit << 10
    assert len(server.gets) <= 5 and len(set(server.gets)) >= 4, "the first one may be here already"
    assert str(example.origin).startswith(f"hf://datasets/{NAME}@ccccccc/data/train-00004-of-00005.{kind}:")
    asked = len(server.asked)
    server.gets.clear()
    server.ranges.clear()
    forget()
    assert len(parts(wanted)[0].rows) == 40
    assert not server.ranges and len(server.gets) < 2, "it is known where rows stand; the first file shows its columns"
    assert not [one for one in server.asked[asked:] if "tree" in one]


def test_only_the_ends_of_parquet_files_are_fetched_before(server: Hub) -> None:
    for shard in range(3):
        write_parquet(server.head / f"{shard}.parquet", range(8 * shard, 8 * shard + 8), padding=1 << 19)
    size = sum(path.stat().st_size for path in server.head.iterdir())
    streamed.table_of(source())
    assert not server.gets and sum(count for _, count in server.ranges) < size / 2
    assert texts(source())[23] == "It is 23."


def test_splits_folders_and_files(server: Hub) -> None:
    write_parquet(server.head / "data" / "train-00000-of-00001.parquet", range(6))
    write_parquet(server.head / "data" / "test-00000-of-00001.parquet", range(2))
    write_tar(server.head / "tars" / "0.tar", range(3))
    (server.head / "README.md").write_text("# Pairs")
    assert len(texts(source(f"{PATH}/data", split="test"))) == 2
    assert len(texts(source(f"{PATH}/data/train-00000-of-00001.parquet"))) == 6
    assert len(texts(source(f"{PATH}@main/tars"))) == 3
    for wrong, said in {
        PATH: "has files of parquet and tar; streaming needs files of one kind",
        f"{PATH}/data": r"has the splits test, train; choose one: split: train",
        f"{PATH}/more": r"lab/pairs has no more",
        f"{PATH}@v7": r"has no revision v7; write another one behind @",
        "hf://datasets/lab/other": "no such data set, or it is private",
    }.items():
        with pytest.raises(BadInput, match=said):
            texts(source(wrong))
    with pytest.raises(BadInput, match=r"cache_limit is 1,024 bytes, and tars/0.tar alone has .*; write a larger one"):
        texts(source(f"{PATH}/tars", cache_limit="1K"))


def test_configurations(server: Hub) -> None:
    write_tar(server.head / "tars" / "train-0.tar", range(3))
    write_parquet(server.head / "data" / "train" / "0.parquet", range(2))
    write_parquet(server.head / "data" / "deep" / "er" / "0.parquet", range(4))
    (server.head / "README.md").write_text(
        "---\nconfigs:\n- {config_name: a, data_files: 'tars/*'}\n"
        "- {config_name: b, data_files: {train: 'data/*/*.parquet', all: 'data/**/*.parquet'}}\n---\n"
    )
    counts = [
        len(texts(source(config=config, split=split))) for config, split in (("a", None), ("b", "train"), ("b", "all"))
    ]
    assert counts == [3, 2, 6]
    with pytest.raises(BadInput, match="names no configuration c; it names a, b"):
        texts(source(config="c"))


def test_what_the_hub_says(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(server.head / "0.tar", range(4))
    rows = parts(source())[0].rows
    for path in folder().rglob("*.tar"):
        path.unlink()
    server.down = True
    with pytest.raises(hub_reader.HubUnreachable, match=r"0.tar: the hub does not answer"):
        rows[0]  # no bad row, which could be left out
    threading.Timer(0.3, lambda: setattr(server, "down", False)).start()
    monkeypatch.setattr(hub_reader, "WAITS", (1.0,) * 300)
    assert rows[3].answers[0].text == "It is 3."
    server.gated = True
    forget()
    with pytest.raises(
        BadInput, match=r"is gated; accept its terms at https://huggingface.co/datasets/lab/pairs, and name"
    ):
        texts(source())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="HF_HUB_OFFLINE is set, and streaming reads from the hub; unset it, or remove"):
        texts(source())


def test_the_token_is_sent(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    write_parquet(server.head / "0.parquet", range(4))
    texts(source())
    assert server.tokens == {"Bearer hf_" + "x" * 34}


def hold(cache: ShardCache, file: str, fetch: Callable[[Path], Path], seconds: float, held: Any) -> None:
    with cache.lease(file, 1000, fetch) as path:
        held.set()
        time.sleep(seconds)
        os._exit(0 if path.exists() else 1)


class Fetch:
    """Writes a file of 1,000 bytes, and notes that it did."""

    def __init__(self, log: Path, name: str) -> None:
        self.log, self.name = log, name

    def __call__(self, folder: Path) -> Path:
        with self.log.open("a") as log:
            log.write(f"{self.name}\n")
        time.sleep(0.05)
        (folder / "file").write_bytes(b"x" * 1000)
        return folder / "file"


def test_processes_share_files_and_none_goes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    cache, log = ShardCache("lab/pairs@c", 2500), tmp_path / "log"
    fork = multiprocessing.get_context("fork")
    events = [fork.Event() for _ in range(4)]
    readers = [fork.Process(target=hold, args=(cache, "a", Fetch(log, "a"), 0.6, event)) for event in events]
    for reader in readers:
        reader.start()
    assert all(event.wait(10) for event in events) and log.read_text() == "a\n", "four readers, fetched once"
    for name in "bcbc":
        with cache.lease(name, 1000, Fetch(log, name)) as path:
            assert path.exists() and sum(file.stat().st_size for file in cache.files.iterdir()) <= 2500
    for reader in readers:
        reader.join()
    assert [reader.exitcode for reader in readers] == [0] * 4 and log.read_text().split() == ["a", "b", "c", "b", "c"]
    for name in "bca":
        with cache.lease(name, 1000, Fetch(log, name)):
            pass
    assert log.read_text().split()[5:] == ["b", "a"], "the one that was read last had stayed"


def test_what_killed_processes_leave_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    cache, log = ShardCache("lab/pairs@c", 2000), tmp_path / "log"

    def killed(folder: Path) -> Path:
        (folder / "part").write_bytes(b"x" * 900)
        os._exit(9)

    for name in "ab":
        fork = multiprocessing.get_context("fork")
        child = fork.Process(target=hold, args=(cache, name, killed, 0, fork.Event()))
        child.start()
        child.join()
        assert child.exitcode == 9
    for name in "acb":
        with cache.lease(name, 1000, Fetch(log, name)):
            assert sum(file.stat().st_size for file in folder().rglob("*") if file.is_file()) <= 2000


def test_too_small_for_its_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("mmjobs.data.readers.shard_cache.PATIENCE", 0.2)
    cache, log = ShardCache("lab/pairs@c", 1500), tmp_path / "log"
    with (
        cache.lease("a", 1000, Fetch(log, "a")),
        pytest.raises(BadInput, match=r"are being read at once; write a larger cache_limit, or fewer data\.workers"),
        cache.lease("b", 1000, Fetch(log, "b")),
    ):
        pass


def test_the_recipe() -> None:
    def problems(*changes: str) -> str:
        with pytest.raises(RecipeError) as raised:
            load_recipe(RECIPES / "dpo_llama3.yaml", list(changes))
        return str(raised.value)

    stream = f"data.train={{path: {PATH}, format: rlaif_v, streaming: true, cache_limit: 50GB}}"
    recipe = load_recipe(RECIPES / "dpo_llama3.yaml", [stream, "data.shuffle=shards"]).recipe
    assert recipe.data.train[0].cache_bytes == 50 << 30
    assert "a file for each of them; add data.shuffle: shards" in problems(stream)
    here = "data.train={path: data/rows, format: rlaif_v, streaming: true}"
    assert "only data sets of the hub are streamed" in problems(here, "data.shuffle=shards")
    limited = "data.train={path: data/rows, format: rlaif_v, cache_limit: 1G}"
    assert "limits what is streamed; add streaming: true" in problems(limited)
