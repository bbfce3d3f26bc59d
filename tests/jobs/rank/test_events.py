"""What rank 0 writes down: a ledger that cannot be written costs its events, and never the run."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmjobs.rank import disk
from mmjobs.rank.events import EventWriter
from mmlaunch.run import heartbeats, ledger
from mmlaunch.run.heartbeats import Heartbeat
from mmlaunch.run.paths import RunPaths


def test_what_could_not_be_written_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunPaths(tmp_path)
    events = EventWriter(run, 2, first=True)
    events.write("step", step=1)
    aside = run.events.rename(tmp_path / "aside")
    run.events.symlink_to("/dev/full")
    for step in (2, 3, 4):
        events.write("step", step=step)
    aside.replace(run.events)
    events.write("step", step=5)
    events.write("step", step=6)
    read = ledger.read(run.events)
    assert [event.get("step", event.get("missing")) for event in read] == [1, 3, 5, 6]
    (warned,) = read.all("warning")
    assert warned["what"] == "3 event(s) are missing before this one: the ledger could not be written"
    told = capsys.readouterr().out
    assert told.count("warning") == 1 and "goes on without events" in told and "No space left" in told


@pytest.mark.parametrize("target", ["/proc/version", "/sys/kernel/notes", "/dev/full"])
def test_a_ledger_that_may_not_be_written_ends_no_training(tmp_path: Path, target: str) -> None:
    """Files of the kernel refuse in several ways, to root as well: no permission, read-only, an error of the device."""
    run = RunPaths(tmp_path)
    run.events.symlink_to(target)
    with pytest.raises(OSError):
        ledger.append(run.events, "step", step=1)
    EventWriter(run, 1, first=True).write("step", step=1)


def test_another_mistake_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        EventWriter(RunPaths(tmp_path / "gone"), 1, first=True).write("step", step=1)
    assert not disk.is_not_writable(FileNotFoundError(2, "no such file"))


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk on which nothing is left."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_heartbeat_is_left_on_a_full_disk(full_disk: Path) -> None:
    attempt = RunPaths(full_disk).attempt(1)
    Heartbeat("training", 3, False, 1.0, 1000.123, rank=0).write(attempt)
    with pytest.raises(OSError), (full_disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)
    Heartbeat("training", 4, False, 2.0, 2.0, rank=0).write(attempt)
    beat = heartbeats.read(attempt.heartbeat(0))
    assert beat is not None and (beat.step, beat.alive) == (4, 2.0)
    assert [path.name for path in attempt.heartbeats.iterdir()] == ["rank-0.json"]
