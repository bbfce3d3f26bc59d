"""The ledger: appended events that survive a kill at any byte, two writers at once and a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlaunch.run import event_types, ledger

VALUES = st.one_of(
    st.integers(-(10**9), 10**9), st.text(max_size=30), st.booleans(), st.none(), st.lists(st.integers(), max_size=3)
)


@given(
    st.lists(
        st.dictionaries(
            st.text(min_size=1, max_size=8).filter(lambda k: k not in ("event", "time", "path")), VALUES, max_size=3
        ),
        max_size=5,
    )
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]]) -> None:
    path = tmp_path_factory.mktemp("ledger") / "events.jsonl"
    for record in records:
        ledger.append(path, "cancelling", **record)
    read = ledger.read(path)
    assert [{k: v for k, v in event.items() if k not in ("event", "time")} for event in read] == records
    assert read.torn == 0


def test_a_cut_at_every_byte_loses_only_what_was_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for step in range(5):
        ledger.append(path, "step", step=step, text="é → ü")
    data = path.read_bytes()
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        whole = data[:size].count(b"\n")
        read = ledger.read(path)
        steps = [event["step"] for event in read]
        assert steps[:whole] == list(range(whole))
        assert len(steps) + read.torn == whole + (not data[:size].endswith(b"\n") and size > 0)
        after = ledger.append(path, "ended", state="done")
        assert ledger.read(path).events[-1] == after  # the next event is never glued to a torn one
        assert [e["step"] for e in ledger.read(path).all("step")][:whole] == list(range(whole))


def test_two_writers_at_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    code = "import sys; from pathlib import Path; from mmlaunch.run import ledger\n"
    code += "for i in range(300):\n"
    code += "    ledger.append(Path(sys.argv[1]), 'step', step=i, writer=sys.argv[2], i=i, pad='x' * (i * 37 % 9000))"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    read = ledger.read(path)
    assert read.torn == 0
    for name in "ab":
        assert [event["i"] for event in read if event["writer"] == name] == list(range(300))


def test_kill_9_in_mid_write(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    code = "import sys; from pathlib import Path; from mmlaunch.run import ledger\ni = 0\n"
    code += "while True:\n    ledger.append(Path(sys.argv[1]), 'step', step=i, i=i, pad='x' * 200_000); i += 1"
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
        while not path.exists() or path.stat().st_size < 400_000:
            time.sleep(0.01)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        numbers = [event["i"] for event in ledger.read(path)]
        assert numbers == list(range(len(numbers)))
        path.unlink()


def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    ledger.append(path, "step", step=1)
    before = path.read_bytes()
    code = (
        "import resource, signal, sys; from pathlib import Path; from mmlaunch.run import ledger\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 50}, {len(before) + 50}))\n"
        "try: ledger.append(Path(sys.argv[1]), 'step', step=2, pad='x' * 4000)\n"
        "except OSError as error: print('refused', error.errno)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused")
    assert path.read_bytes() == before


def test_foreign_lines_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    ledger.append(path, "step", step=1)
    with path.open("ab") as file:
        file.write(b"\x00\xff\xfe\n[1, 2]\n{}\n")
    ledger.append(path, "step", step=2)
    read = ledger.read(path)
    assert [event["step"] for event in read] == [1, 2]
    assert read.torn == 3


def test_ends_of_a_long_ledger(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for step in range(2000):
        ledger.append(path, "step", step=step)
    ends = ledger.read_ends(path)
    assert ends.events[0]["step"] == 0 and ends.events[-1]["step"] == 1999
    assert ends.torn == 0 and len(ends.events) < 2000


@given(
    stretches=st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["checkpoint", "torn", "started"])), max_size=6)
)
def test_a_skim_leaves_out_steps_alone(
    tmp_path_factory: pytest.TempPathFactory, stretches: list[tuple[int, str]]
) -> None:
    path, step = tmp_path_factory.mktemp("skim") / "events.jsonl", 0
    ledger.append(path, "started", attempt=1)
    for steps, then in stretches:
        for _ in range(steps):
            step += 1
            ledger.append(path, "step", step=step, steps=999)
        if then == "torn":
            with path.open("ab") as file:
                file.write(b'{"time":1.0,"event":"step","step":\n')
        else:
            ledger.append(path, then, step=step, attempt=1)  # type: ignore[arg-type]  # one of two kinds
    whole, skimmed = ledger.read(path), ledger.skim(path)
    rest = [[event for event in events if event["event"] != "step"] for events in (whole, skimmed)]
    assert rest[0] == rest[1] and whole.torn == skimmed.torn
    assert [event for event in whole if event in skimmed.events] == list(skimmed), "in the same order"
    ends = [[event for event in events if event["event"] == "step"] for events in (whole, skimmed)]
    assert ends[0][:1] == ends[1][:1] and ends[0][-8:] == ends[1][-8:]


def test_a_tail_sees_each_event_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = ledger.Tail(path)
    assert tail.new() == ()
    ledger.append(path, "step", step=1)
    with path.open("ab") as file:
        file.write(b'{"time": 1, "event": "step", "st')
    assert [event["step"] for event in tail.new()] == [1]
    with path.open("ab") as file:
        file.write(b'ep": 2}\n')
    assert [event["step"] for event in tail.new()] == [2]
    assert tail.new() == ()


def test_no_number_that_json_lacks(tmp_path: Path) -> None:
    ledger.append(tmp_path / "e.jsonl", "step", step=1, loss=ledger.finite(float("nan")))
    assert json.loads((tmp_path / "e.jsonl").read_text())["loss"] == "nan"
    with pytest.raises(ValueError):
        ledger.append(tmp_path / "e.jsonl", "step", step=1, loss=float("inf"))


def test_anyone_may_read_it(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        ledger.append(tmp_path / "e.jsonl", "step", step=1)
    finally:
        os.umask(old)
    assert (tmp_path / "e.jsonl").stat().st_mode & 0o044 == 0o044


def test_an_event_that_no_reader_would_understand_is_refused(tmp_path: Path) -> None:
    kind: Any = "stpe"
    with pytest.raises(ValueError, match="no event is called 'stpe'"):
        ledger.append(tmp_path / "e.jsonl", kind, step=1)
    with pytest.raises(ValueError, match="an event 'failed' needs attempt, cause"):
        ledger.append(tmp_path / "e.jsonl", "failed", evidence="rank 0: ValueError: no")
    assert not (tmp_path / "e.jsonl").exists()
    assert set(get_args(event_types.Kind)) == set(event_types.TYPES)


def test_an_event_of_another_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text('{"time": 1, "event": "teleported", "to": "Mars"}\n')
    ledger.append(tmp_path / "e.jsonl", "step", step=1)
    events = ledger.read(tmp_path / "e.jsonl")
    assert [event["event"] for event in events] == ["teleported", "step"] and events.torn == 0


WRONG = ("three", "", [3], {"a": 1}, -3, 10**300, 1e300, float("nan"), float("inf"), True)


@pytest.mark.parametrize("value", WRONG)
def test_a_number_that_cannot_be_is_not_believed(tmp_path: Path, value: object) -> None:
    """A field that an event needs takes the event along; without any other field, it still says something."""
    path = tmp_path / "e.jsonl"
    lines = [
        {"time": 1.6e9, "event": "step", "step": 3, "steps": value, "attempt": value},
        {"time": 1.6e9, "event": "step", "step": value, "steps": 9},
        {"time": 1.6e9, "event": "ended", "state": "done", "exit_code": value},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    events = ledger.read(path)
    assert events.torn == 3 and events == ledger.read_ends(path)
    plain = [{key: field for key, field in event.items() if key != "time"} for event in events]
    assert plain == [{"event": "step", "step": 3}, {"event": "ended", "state": "done"}]
    assert list(ledger.Tail(path).new()) == list(events)


@pytest.mark.parametrize("lie", [-1, 0, 9e9, 1e300, "now", None, True, [], 10**400, float("nan")])
def test_a_clock_that_lies_is_corrected_by_the_order_of_the_lines(tmp_path: Path, lie: object) -> None:
    path = tmp_path / "e.jsonl"
    times = [lie, 1.7e9, lie, 1.7e9 + 5, 1.7e9 - 7, lie]
    path.write_text("".join(json.dumps({"time": time, "event": "cancelling"}) + "\n" for time in times))
    base = 1.7e9
    assert [event["time"] for event in ledger.read(path)] == [base, base, base, base + 5, base + 5, base + 5]
    path.write_text(json.dumps({"time": lie, "event": "cancelling"}) + "\n")
    assert ledger.read(path).events[0]["time"] == pytest.approx(path.stat().st_mtime, abs=5)
