"""A training job without torch: it stands in for `mmjobs/main.py` where a test is about the policy and the cluster.

It keeps the whole contract between job and launcher: the ranks' own signals, watchdog and error records, the ledger,
checkpoints with real manifests, the exit codes. Its "training" is a recurrence whose state stands only in checkpoints:
weights that are divided among the ranks, and a random number that is carried from step to step. A run that loses or
repeats a step, or resumes from another state, has other losses than `losses_of`. It starts in a fraction of a second.

`STUB_FAULT` makes one of its ranks, or all of them, fail on purpose; see `Fault`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import time
import traceback
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from mmjobs.rank import error_record, signals
from mmjobs.rank.position import Position
from mmjobs.rank.watchdog import Phase, Watchdog
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe, resolved
from mmlaunch.run import ledger, manifest, owner
from mmlaunch.run.exits import PEER_LOST, JobExit
from mmlaunch.run.paths import RunPaths

SIZE = 12
"""How many weights there are; rank r of w holds every w-th one, from r on."""
PACE = 0.05
"""Seconds that a step of the first attempt takes, so that a test can strike in the middle; later ones hurry."""
POLL = 0.002


class Fault(Enum):
    """What goes wrong."""

    RAISE = "raise"  # in the second step, always with the same words
    OUT_OF_MEMORY = "out of memory"
    KILLED = "killed"  # before the first step, by signal 9
    SLOW_SAVE = "slow save"  # the checkpoint before a requeue takes longer than any grace
    DEAF = "deaf"  # no signal is seen
    SLOW_IMPORT = "slow import"  # the ranks do not listen for a while
    SICK_NODE = "sick node"  # node1 is unfit


class OutOfMemoryError(RuntimeError):
    """Named as torch's own."""


class PeerLostError(RuntimeError):
    """Another rank went away."""


class UnfitNodeError(RuntimeError):
    """A node is not fit."""


class StopError(Exception):
    """The attempt was told to end, and everything is saved."""


@dataclass
class State:
    """What the next step depends on: equal on all ranks, but for the weights, of which each rank has its share."""

    weights: dict[int, float]
    random: int = 1
    step: int = 0

    @classmethod
    def at_the_start(cls, rank: int, world: int) -> State:
        return cls(dict.fromkeys(range(rank, SIZE, world), 1.0))

    def advance(self) -> None:
        """One step; the random number is that of Knuth's MMIX generator."""
        self.step += 1
        self.random = (self.random * 6364136223846793005 + 1442695040888963407) % 2**64
        for index in self.weights:
            noise = (self.random >> (index + 8)) % 1000 / 1000 - 0.5
            self.weights[index] = 0.97 * self.weights[index] + 0.1 * noise


def loss_of(weights: dict[int, float]) -> float:
    """Rounded once, after the exact sum: it does not depend on how many ranks there are."""
    return math.fsum(value * value for value in weights.values())


def losses_of(steps: int) -> dict[int, float]:
    """The loss after each step of a run that nothing stops."""
    state, losses = State.at_the_start(0, 1), {}
    for _ in range(steps):
        state.advance()
        losses[state.step] = loss_of(state.weights)
    return losses


@dataclass
class Ranks:
    """All ranks of an attempt. They tell each other everything through files, and all call `gather` together."""

    folder: Path
    rank: int
    world: int
    watch: Watchdog
    _turn: int = 0
    _pids: list[int] = field(default_factory=list)

    def join(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self._pids = self.gather(os.getpid())

    def gather(self, value: Any) -> list[Any]:
        """What every rank says, in their order."""
        self._turn += 1
        own = self._file(self._turn, self.rank)
        temporary = own.with_suffix(".tmp")
        temporary.write_text(json.dumps(value))
        temporary.replace(own)
        with self.watch.waiting():
            values = [self._read(rank) for rank in range(self.world)]
        self._file(self._turn - 1, self.rank).unlink(missing_ok=True)  # all have read it, or they were not here yet
        return values

    def _read(self, rank: int) -> Any:
        path, waited = self._file(self._turn, rank), 0
        while not path.exists():
            time.sleep(POLL)
            waited += 1
            if waited % 50 == 0 and self._pids and not runs(self._pids[rank]):
                raise PeerLostError(f"rank {rank} went away")
        return json.loads(path.read_text())

    def _file(self, turn: int, rank: int) -> Path:
        return self.folder / f"{turn}-{rank}.json"


@dataclass
class Job:
    """One attempt, on one rank."""

    paths: RunPaths
    recipe: Recipe
    ranks: Ranks
    stop: signals.StopRequest
    position: Position
    attempt: int
    fault: Fault | None
    state: State = field(init=False)
    saved: int = 0

    def run(self) -> dict[str, Any]:
        self._preflight()
        self._resume()
        self._write("ready", world=self.ranks.world, parameters={})
        steps = self.recipe.steps or 1
        while self.state.step < steps:
            self._boundary()
            self._step(steps)
        self._save()
        return {"step": steps}

    def _step(self, steps: int) -> None:
        self.position.step = self.state.step + 1
        self.ranks.watch.enter(Phase.STEP)
        began = time.monotonic()
        if self.fault is Fault.RAISE and self.state.step:  # what comes before a step was done is never retried
            raise RuntimeError("always the same")
        if self.fault is Fault.OUT_OF_MEMORY:
            raise OutOfMemoryError("there is no room for a step")
        if self.fault is Fault.KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        self.state.advance()
        shares = self.ranks.gather(self.state.weights)
        if self.attempt == 1:
            time.sleep(PACE)
        loss = loss_of({int(index): value for share in shares for index, value in share.items()})
        if self.state.step % self.recipe.log.every == 0 or self.state.step in (1, steps):
            self._write("step", step=self.state.step, steps=steps, loss=loss)
        self.ranks.watch.stepped(time.monotonic() - began)

    def _boundary(self) -> None:
        """A signal to any rank concerns them all; they save at the same step, and leave together."""
        seen = self.ranks.gather([self.stop.signal, self.stop.too_late_for(PACE)])
        number, late = max(number for number, _ in seen), any(late for _, late in seen)
        every = [every.steps for every in self.recipe.checkpoint.every if every.steps]
        if number or late:
            self._write("signal", name=signals.name_of(number) if number else "deadline", step=self.state.step)
            if self.fault is Fault.SLOW_SAVE:
                time.sleep(float(os.environ.get("STUB_SAVE", "60")))
            if self.state.step:
                self._save()
            self.ranks.gather("leaving")
            raise StopError
        if any(self.state.step % steps == 0 for steps in every):
            self._save()

    def _save(self) -> None:
        step = self.state.step
        if step == self.saved:
            return
        self.ranks.watch.enter(Phase.SAVE)
        began = time.monotonic()
        folder = manifest.staging(self.paths.checkpoints, step)
        if self.ranks.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        self.ranks.gather("empty")
        (folder / f"weights-{self.ranks.rank}.json").write_text(json.dumps(self.state.weights))
        if self.ranks.rank == 0:
            (folder / "state.json").write_text(json.dumps({"step": step, "random": self.state.random}))
        self.ranks.gather("written")
        if self.ranks.rank == 0:
            size = manifest.seal(folder, self.paths.checkpoint(step), step, self.ranks.world).bytes
            for old in manifest.steps(self.paths.checkpoints)[:-3]:
                shutil.rmtree(self.paths.checkpoint(old))
            seconds = round(time.monotonic() - began, 3)
            self._write("checkpoint", step=step, seconds=seconds, stall=seconds, bytes=size)
        self.ranks.gather("sealed")
        self.saved = step

    def _resume(self) -> None:
        """From the newest valid checkpoint, whatever number of ranks has saved it."""
        folder, rank, world = self.paths.checkpoints, self.ranks.rank, self.ranks.world
        newest = None
        if rank == 0:
            folder.mkdir(exist_ok=True)
            manifest.sweep(folder)
            valid, rejected = manifest.newest(folder)
            for reason in rejected:
                self._write("checkpoint", rejected=reason)
            newest = valid.step if valid else None
        step = self.ranks.gather(newest)[0]
        self.state = State.at_the_start(rank, world)
        if step is None:
            return
        whole: dict[str, float] = {}
        for path in self.paths.checkpoint(step).glob("weights-*.json"):
            whole |= json.loads(path.read_text())
        self.state = State({index: whole[str(index)] for index in self.state.weights})
        state = json.loads((self.paths.checkpoint(step) / "state.json").read_text())
        self.state.step, self.state.random = state["step"], state["random"]
        self.saved = step
        self._write("resumed", step=step)

    def _preflight(self) -> None:
        node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        problem = f"node {node}: it is sick today" if self.fault is Fault.SICK_NODE and node == "node1" else None
        problems = [text for text in self.ranks.gather(problem) if text]
        if problem:
            error_record.leave(self.paths, None, "UnfitNode", problem, node=node)
        if problems:
            self.ranks.gather("leaving")
            raise UnfitNodeError("; ".join(problems))

    def _write(self, kind: Any, **fields: Any) -> None:
        if self.ranks.rank == 0:
            owner.check(self.paths, int(os.environ.get(owner.VARIABLE) or 0), self.attempt)
            ledger.append(self.paths.events, kind, attempt=self.attempt, **fields)


def run(run_dir: str) -> dict[str, Any]:
    """This rank's part of one attempt. Returns when the run is finished; every other end is a `SystemExit`."""
    fault = Fault(os.environ["STUB_FAULT"]) if os.environ.get("STUB_FAULT") else None
    if fault is Fault.SLOW_IMPORT and os.environ["MMLAUNCH_ATTEMPT"] == "1":
        print("the imports take long", flush=True)
        time.sleep(5)
    stop = signals.listen()
    if fault is Fault.DEAF:
        signals.ignore_signals()
    paths, position = RunPaths(Path(run_dir)), Position()
    try:
        with Watchdog(paths, position) as watch:
            recipe = resolved.read(paths.resolved)
            attempt = int(os.environ["MMLAUNCH_ATTEMPT"])
            folder = paths.attempt(attempt).root / "stub"
            ranks = Ranks(folder, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), watch)
            ranks.join()
            print(f"rank {ranks.rank} of {ranks.world} runs on {socket.gethostname()}, pid {os.getpid()}", flush=True)
            result = Job(paths, recipe, ranks, stop, position, attempt, fault).run()
            ranks.gather("leaving")
            return result
    except StopError:
        code = int(JobExit.AGAIN)
    except UnfitNodeError:
        code = int(JobExit.UNFIT_NODE)
    except owner.NotTheOwner as error:
        code = _failed(paths, position, error, type(error).__name__, JobExit.STOP)
    except BadInput as error:
        code = _failed(paths, position, error, type(error).__name__, JobExit.BAD_INPUT)
    except PeerLostError as error:
        code = _failed(paths, position, error, PEER_LOST, 1)
    except Exception as error:  # noqa: BLE001  as the real one does: whatever it was is recorded
        code = _failed(paths, position, error, type(error).__name__, 1)
    finally:
        signals.ignore_signals()
    raise SystemExit(code)


def _failed(paths: RunPaths, position: Position, error: Exception, kind: str, code: int) -> int:
    error_record.say(traceback.format_exc() if code == 1 else f"{kind}: {error}")
    error_record.leave(paths, position.step, kind, str(error), traceback=traceback.format_exc())
    return code


def runs(pid: int) -> bool:
    """Whether a process of this machine is there; a zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
