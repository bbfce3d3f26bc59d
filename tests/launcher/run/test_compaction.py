"""Compaction: a long ledger becomes a short one, and no reader sees a difference."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from mmlaunch.restart import attempt
from mmlaunch.run import compaction, ledger
from mmlaunch.run.paths import RunPaths

BEGAN = 1_795_952_000.0


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "LEAST", 1000)


def _long(path: Path, steps: int, first: int = 1) -> None:
    with path.open("a") as file:
        for step in range(first, first + steps):
            events = [{"event": "step", "attempt": 1, "step": step, "loss": 1 / step, "memory": 512_049_152}]
            events += [{"event": "checkpoint", "attempt": 1, "step": step}] if step % 100 == 0 else []
            for event in events:
                print(json.dumps({"time": BEGAN + step, **event}, separators=(",", ":")), file=file)


def test_every_reader_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    ledger.append(path, "submitted", executor="local")
    _long(path, 1000)
    before, skimmed, size = ledger.read(path), ledger.skim(path), path.stat().st_size
    for first in (1001, 2001):  # again, when it has grown
        lines = ledger.length(path)
        compaction.compact(path)
        assert path.stat().st_size < size / 3
        assert (ledger.read(path), ledger.skim(path), ledger.length(path)) == (before, skimmed, lines)
        assert [line for line in path.read_text().splitlines() if '"checkpoint"' in line]
        _long(path, 1000, first)
        before, skimmed = ledger.read(path), ledger.skim(path)
    assert [event["step"] for event in before.all("step")] == list(range(1, 3001))
    archives = sorted(file.name for file in tmp_path.iterdir() if file != path)
    assert archives == ["events.steps-1.jsonl.gz", "events.steps-2.jsonl.gz"]


def test_a_short_ledger_stays_one_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    compaction.compact(path)  # there is none
    for _ in range(3):
        ledger.append(path, "step", step=1)
    before = path.read_bytes()
    compaction.compact(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_torn_lines_and_what_follows_them_stay(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    _long(path, 300)
    with path.open("ab") as file:
        file.write(b'{"time":1,"event":"step","st\n\xff\xfe\n')
    _long(path, 300, 301)
    with path.open("ab") as file:
        file.write(b'{"time":1,"event":"step","step":60')  # its writer was killed
    before = ledger.read(path)
    assert before.torn == 3
    compaction.compact(path)
    assert ledger.read(path) == before
    ledger.append(path, "step", step=601)
    assert ledger.read(path).events[-1]["step"] == 601


def test_who_follows_a_ledger_sees_each_event_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    _long(path, 500)
    tail, behind, early = ledger.Tail(path), ledger.Tail(path, ledger.length(path)), ledger.Tail(path)
    steps = [event["step"] for event in tail.new() if event["event"] == "step"]
    assert behind.new() == ()
    _long(path, 500, 501)
    compaction.compact(path)  # with steps that nobody has read yet
    ledger.append(path, "ended", state="done")
    new = tail.new()
    assert new == behind.new()
    assert [*steps, *(event["step"] for event in new if event["event"] == "step")] == list(range(1, 1001))
    assert new[-1]["event"] == "ended"
    assert len(early.new()) == 1011
    assert tail.new() == behind.new() == early.new() == ()


@pytest.mark.parametrize("damage", ["gone", "torn"])
def test_a_damaged_archive_costs_its_steps_alone(tmp_path: Path, damage: str) -> None:
    path, archive = tmp_path / "events.jsonl", tmp_path / "events.steps-1.jsonl.gz"
    _long(path, 1000)
    skimmed, lines = ledger.skim(path), ledger.length(path)
    compaction.compact(path)
    if damage == "gone":
        archive.unlink()
    else:
        os.truncate(archive, archive.stat().st_size // 2)
    read = ledger.read(path)
    assert ledger.skim(path) == skimmed
    assert read.torn > 0
    assert len(read.events) + read.torn == lines == ledger.length(path)
    assert len(read.all("checkpoint")) == 10


def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    _long(path, 1000)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        compaction.compact(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def _append(path: Path, writer: int, count: int) -> None:
    for number in range(count):
        ledger.append(path, "warning", what=f"{writer}/{number}")


def test_writers_beside_it_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    _long(path, 500)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append, args=(path, writer, 300)) for writer in range(2)]
    for writer in writers:
        writer.start()
    for first in range(501, 3001, 500):
        with os.fdopen(ledger.locked(path), "ab") as file:
            for step in range(first, first + 500):
                event = {"time": BEGAN, "event": "step", "step": step, "loss": 1 / step}
                file.write(json.dumps(event, separators=(",", ":")).encode() + b"\n")
        compaction.compact(path)
    for writer in writers:
        writer.join()
    read = ledger.read(path)
    assert read.torn == 0
    assert sorted(event["what"] for event in read.all("warning")) == sorted(
        f"{writer}/{number}" for writer in range(2) for number in range(300)
    )
    assert [event["step"] for event in read.all("step")] == list(range(1, 3001))


def test_a_kill_at_any_moment_leaves_a_whole_ledger(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    path = tmp_path / "events.jsonl"
    _long(path, 2000)
    for round_ in range(12):
        before = ledger.read(path)
        process = context.Process(target=compaction.compact, args=(path,))
        process.start()
        time.sleep(round_ * 0.002)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert ledger.read(path) == before
        _long(path, 500, 2001 + 500 * round_)


def test_a_new_attempt_compacts_what_the_ones_before_have_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunPaths(tmp_path / "run")
    run.root.mkdir()
    ledger.append(run.events, "submitted", executor="local", name="run")
    ledger.append(run.events, "queued", job="1")
    _long(run.events, 1000)
    script = tmp_path / "script.sh"
    script.write_text("true\n")
    run.attempt(0).deepspeed.parent.mkdir(parents=True)
    run.attempt(0).deepspeed.write_text("{}")
    monkeypatch.chdir(tmp_path)
    before = ledger.read(run.events)
    number, _ = attempt.begin(run, script)
    assert number == 1
    assert (run.root / "events.steps-1.jsonl.gz").exists()
    now = [event for event in ledger.read(run.events) if event["event"] != "started"]
    assert [event for event in now if event["event"] != "failed"][: len(before.events)] == list(before.events)
