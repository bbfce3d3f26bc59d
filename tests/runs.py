"""What tests of whole runs share: the command line as users type it, and waiting for what a ledger says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from mmlaunch.run import ledger
from mmlaunch.run.ledger import Event
from mmlaunch.run.paths import RunPaths

T = TypeVar("T")


def mmlaunch(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmlaunch", *map(str, arguments)]
    env = {**os.environ, **environment}
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env=env)
    except subprocess.TimeoutExpired as error:
        printed = (error.stdout or b"").decode() + (error.stderr or b"").decode()
        raise AssertionError(
            f"no end of {command}:\n{printed}\n{_what_ranks_do(Path(env['MMLAUNCH_RUNS']))}"
        ) from error


def _what_ranks_do(runs: Path) -> str:
    """The ends of the logs of all ranks below `runs`, with the stacks of those that still live."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes()
            is_rank = b"mmlaunch.schedulers.rank" in command and b"mmlaunch.submit.ranks" not in command
            if is_rank and str(runs).encode() in command:
                os.kill(int(process.name), signal.SIGQUIT)
                time.sleep(0.3)  # ranks and their workers write to the same log
    logs = sorted(runs.glob("*/attempts/*/logs/*"))
    return "\n".join(f"{path}:\n{path.read_text(errors='replace')[-6000:]}" for path in logs)


def submit(*arguments: str | Path, cluster: str = "local", **environment: str) -> RunPaths:
    done = mmlaunch("submit", "--cluster", cluster, "--json", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return RunPaths(Path(json.loads(done.stdout)["directory"]))


def wait_for(run: RunPaths, right: Callable[[list[Event]], bool], seconds: float = 180) -> list[Event]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        events = list(ledger.read(run.events))
        if right(events):
            return events
        time.sleep(0.1)
    logs = "\n".join(path.read_text() for path in run.root.glob("attempts/*/logs/*.out"))
    raise AssertionError(f"it never came: {[e['event'] for e in events]}\n{logs[-3000:]}")


def ended(events: list[Event]) -> bool:
    return any(event["event"] == "ended" for event in events)


def at_step(step: int) -> Callable[[list[Event]], bool]:
    return lambda events: any(event["event"] == "step" and event["step"] >= step for event in events)


def saved_at(step: int) -> Callable[[list[Event]], bool]:
    """At that step, with a whole checkpoint: a save goes on beside the training, and a kill may come before its end."""
    return lambda events: at_step(step)(events) and any(e["event"] == "checkpoint" and e.get("step") for e in events)


def losses(events: list[Event]) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in events if event["event"] == "step"}


def before_the_resume(events: list[Event]) -> tuple[int, list[int], list[int]]:
    """The step that a run was first resumed from; the steps that were saved, and those that were done, before that."""
    index = next(number for number, event in enumerate(events) if event["event"] == "resumed")
    saved = [e["step"] for e in events[:index] if e["event"] == "checkpoint" and "rejected" not in e]
    return events[index]["step"], saved, [e["step"] for e in events[:index] if e["event"] == "step"]


def until(look: Callable[[], T], seconds: float = 180) -> T:
    """What `look` says, once it says something."""
    limit = time.monotonic() + seconds
    while not (said := look()):
        assert time.monotonic() < limit, f"still waiting for {look} after {seconds:g} s"
        time.sleep(0.3)
    return said


def write_conversations(path: Path) -> None:
    """Eight rows of the llava format, without images: enough for a run of a few seconds."""
    talk = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cat."}]
    path.write_text(json.dumps([{"id": str(number), "conversations": talk} for number in range(8)]))
