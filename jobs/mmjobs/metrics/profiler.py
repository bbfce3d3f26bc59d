"""The profiler: torch's traces of some steps on some ranks, as the recipe says or a command asks of a live run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from mmlaunch.recipe.profile import Profile
from mmlaunch.run.paths import RunPaths

LOOK = 2.0
"""Seconds between two looks for a request."""
ROWS = 40


@dataclass(frozen=True)
class Window:
    """The steps that are profiled, on one rank."""

    first: int
    last: int
    shapes: bool = False
    memory: bool = False


class Profiler:
    """Traces the steps of one rank. Whatever goes wrong costs the trace, and not the run."""

    def __init__(
        self, run: RunPaths, rank: int, settings: Profile | None, say: Callable[[str], None], began: float = 0.0
    ) -> None:
        """`began`: when the attempt did; requests that are older are over."""
        self._run, self._rank, self._say, self._began = run, rank, say, began
        self._planned: Window | None = None
        self._window: Window | None = None
        self._running: Any = None
        self._looked, self._last_request = 0.0, ""
        if settings is not None and rank in settings.ranks:
            self._planned = Window(settings.first, settings.last, settings.shapes, settings.memory)

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """In this context the rank does a step."""
        if self._running is None:
            self._window = self._planned if self._planned and number == self._planned.first else self._requested(number)
            if self._window is not None:
                self._guarded(self._start)
        yield
        if self._running is not None and self._window is not None and number >= self._window.last:
            self._guarded(self._stop)

    def close(self) -> None:
        """The attempt ends: what was traced so far is written."""
        if self._running is not None:
            self._guarded(self._stop)

    def _requested(self, number: int) -> Window | None:
        """What a command requests from this step on: `{"ranks": [0], "steps": 3, "time": ...}`."""
        if time.monotonic() < self._looked + LOOK:
            return None
        self._looked = time.monotonic()
        with suppress(OSError, ValueError, KeyError, TypeError):
            text = self._run.profile_request.read_text()
            request = json.loads(text)
            if text != self._last_request and request["time"] >= self._began and self._rank in request["ranks"]:
                self._last_request = text
                return Window(number, number + int(request["steps"]) - 1, bool(request.get("shapes")))
        return None

    def _start(self) -> None:
        assert self._window is not None
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        running: Any = torch.profiler.profile(
            activities=kinds, record_shapes=self._window.shapes, profile_memory=self._window.memory
        )
        running.__enter__()
        self._running = running

    def _stop(self) -> None:
        window, running = self._window, self._running
        self._window = self._running = None
        assert window is not None
        running.__exit__(None, None, None)
        trace = self._run.trace(window.first, window.last, self._rank)
        trace.parent.mkdir(parents=True, exist_ok=True)
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = running.key_averages().table(sort_by=by, row_limit=ROWS)
        trace.with_name(trace.name.replace(".json.gz", ".txt")).write_text(f"{table}\n")
        partial = trace.with_name(f".{trace.name}")
        running.export_chrome_trace(str(partial))  # by its ending it is compressed
        partial.replace(trace)  # whoever waits for it sees it whole
        self._say(f"profile of steps {window.first} to {window.last}: {trace.relative_to(self._run.root)}")

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  the profiler of another library
            self._window = self._running = None
            what = f"no profile: {type(error).__name__}: {error}"
            self._say(what)
            with suppress(OSError):  # a command may wait for it
                self._run.profiles.mkdir(exist_ok=True)
                self._run.profile_failure(self._rank).write_text(f"{what}\n")
