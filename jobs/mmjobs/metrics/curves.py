"""The curves of a run: one call writes a point to TensorBoard and to the trackers of the recipe."""

from __future__ import annotations

import importlib
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

from mmjobs.metrics.tensorboard import Sample, TensorBoardWriter
from mmjobs.metrics.trackers.tracker import TrackedRun, Tracker
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.trackers import TRACKERS
from mmlaunch.recipe.trackers import Tracker as Setting
from mmlaunch.run import ledger, plugins
from mmlaunch.run.files import publish
from mmlaunch.run.paths import RunPaths

Warn = Callable[[str], None]
Point = tuple[Mapping[str, float], int]
"""The values of curves by their names, and the step."""
PATIENCE = 60.0
"""Seconds that the end of a run waits for its trackers."""
PATIENCE_BEFORE_STOP = 5.0
"""The same where the job has to leave its nodes: what is not sent then comes from the ledger later."""
_NO_CURVES = ("time", "event", "attempt", "step", "steps")
"""What an event of a step says beside its numbers."""


class Curves:
    """TensorBoard and the trackers, on rank 0; elsewhere it does nothing."""

    def __init__(self, board: TensorBoardWriter, trackers: Sequence[TrackerWriter] = ()) -> None:
        self._board, self._trackers = board, trackers

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One point on each curve."""
        self._board.scalars(values, step)
        for tracker in self._trackers:
            tracker.scalars(values, step)

    def samples(self, samples: Sequence[Sample], step: int) -> None:
        """Generated answers with their images, in TensorBoard."""
        self._board.samples(samples, step)

    def flush(self) -> None:
        self._board.flush()

    def close(self, done: bool) -> None:
        """The orderly end of an attempt; `done`: no other one follows."""
        self._board.flush()
        for tracker in self._trackers:
            tracker.end(done)
        until = time.monotonic() + (PATIENCE if done else PATIENCE_BEFORE_STOP)
        for tracker in self._trackers:
            tracker.wait(until - time.monotonic())


class TrackerWriter:
    """Writes into one tracker, on a thread of its own: a slow server does not hold up the training. Whatever goes wrong
    there costs its curves, and not the run."""

    def __init__(
        self,
        name: str,
        open_tracker: Callable[[], Tracker],
        note: Path,
        warn: Warn,
        earlier: Callable[[], Iterable[Point]] = tuple,
        keeps_after: float = 0.0,
    ) -> None:
        """`note`: the file that says which steps the tracker has. `earlier`: what was logged before this attempt, of
        which the tracker gets what it lacks. `keeps_after`: in so many seconds it loses a point if this process is
        killed."""
        self._name, self._open, self._note, self._warn = name, open_tracker, note, warn
        self._earlier, self._keeps_after = earlier, keeps_after
        self._not_kept = deque[tuple[float, str]]()
        self._last: dict[str, int] = {}
        """The newest step of each kind of point: train/loss and eval/loss may have other steps."""
        self._waiting: Queue[Point | None] = Queue()
        self._done = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._waiting.put((dict(values), step))

    def end(self, done: bool) -> None:
        """Nothing comes behind what waits."""
        self._done = done
        self._waiting.put(None)

    def wait(self, seconds: float) -> None:
        """Until what waits is sent."""
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            self._warn(f"{self._name} has not taken all points: the run does not wait longer")

    def _run(self) -> None:
        try:
            self._note.parent.mkdir(parents=True, exist_ok=True)
            tracker = self._open()
            with suppress(OSError, ValueError):  # then a point may stand there twice
                self._last = {str(kind): int(step) for kind, step in json.loads(self._note.read_text()).items()}
            for values, step in self._earlier():
                self._log(tracker, values, step)
            while (point := self._waiting.get()) is not None:
                self._log(tracker, *point)
            tracker.close(self._done)
            publish(self._note, json.dumps(self._last))
        except BaseException as error:  # noqa: BLE001  somebody else's server and code, on a thread that ends here
            self._warn(f"{self._name} gets no more points: {type(error).__name__}: {error}")

    def _log(self, tracker: Tracker, values: Mapping[str, float], step: int) -> None:
        """Points that the tracker does not have yet: a resumed run does some steps again."""
        kinds = {name: name.partition("/")[0] for name in values}
        new = {name: float(value) for name, value in values.items()
               if step > self._last.get(kinds[name], -1) and math.isfinite(value)}  # fmt: skip
        if not new:
            return
        tracker.log(new, step)
        self._last |= {kinds[name]: step for name in new}
        now, kept = time.monotonic(), None
        self._not_kept.append((now + self._keeps_after, json.dumps(self._last)))
        while self._not_kept and self._not_kept[0][0] <= now:
            kept = self._not_kept.popleft()[1]
        if kept is not None:
            publish(self._note, kept)


def open_trackers(recipe: Recipe, run: RunPaths, resumed: int, first: bool, warn: Warn) -> list[TrackerWriter]:
    """The trackers of a recipe, on rank 0; raises `BadInput` where the package of one is missing."""
    writers = []
    for index, setting in enumerate(recipe.log.trackers if first else ()):
        name = setting.kind if setting.kind in TRACKERS else f"{index}-{setting.kind.rpartition(':')[2]}"
        tracked = TrackedRun(
            name=run.root.name,
            project=setting.project,
            config=recipe.model_dump(mode="json", exclude_defaults=True, exclude={"notify", "env", "log"}),
            folder=run.tracker(name),
            online=setting.online,
            options=setting.options,
        )
        opening, keeps_after = _opening(setting)
        note = tracked.folder / "steps.json"
        earlier = partial(logged, run, resumed)
        writers.append(TrackerWriter(setting.kind, partial(opening, tracked), note, warn, earlier, keeps_after))
    return writers


def logged(run: RunPaths, until: int) -> list[Point]:
    """What the ledger says of the steps up to this one, each once."""
    points: dict[tuple[str, int], Point] = {}
    for event in ledger.read(run.events).all("step", "evaluated") if until else ():
        kind, step = event["event"], int(event["step"])
        values = event["metrics"] if kind == "evaluated" else as_curves(event)
        if step <= until:
            points[kind, step] = {name: value for name, value in values.items() if isinstance(value, float | int)}, step
    return sorted(points.values(), key=lambda point: point[1])


def as_curves(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a step under the names of their curves."""
    return {f"train/{name}": value for name, value in numbers.items() if name not in _NO_CURVES}


def _opening(setting: Setting) -> tuple[Callable[[TrackedRun], Any], float]:
    """What opens a tracker, of a file in `trackers` or the user's own, and the seconds after which it keeps a point."""
    if (own := setting.plugin) is not None:
        opening: Callable[[TrackedRun], Any] = plugins.load(own.file, own.module, own.name)
        return opening, 0.0
    module = importlib.import_module(f"mmjobs.metrics.trackers.{setting.kind}")
    try:
        importlib.import_module(module.PACKAGE)
    except ImportError as error:
        right = f"install it there: pip install 'mmlaunch[{setting.kind}]', or remove it from log.trackers"
        what = f"log.trackers: {setting.kind} cannot be imported where the ranks run ({error})"
        raise BadInput(f"{what}; {right}") from None
    return module.open_tracker, getattr(module, "KEEPS_AFTER", 0.0)
