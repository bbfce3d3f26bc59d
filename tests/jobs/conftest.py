"""Real ranks for the tests of the training side: processes of their own, started from one that has torch loaded."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from mmjobs.model import frozen_weights
from mmlaunch.recipe import Recipe, resolved
from mmlaunch.recipe.batch import split
from mmlaunch.recipe.check import recipe_of
from mmlaunch.run import ledger, manifest
from mmlaunch.run.paths import CheckpointPaths, RunPaths
from mmlaunch.submit.plan import deepspeed

_server = multiprocessing.get_context("forkserver")
_MUON = "deepspeed.runtime.zero.muon.muon_optimizer"  # DeepSpeed imports it, and half of torch, for any optimiser
_server.set_forkserver_preload(["mmjobs.tasks.train", "torch.utils.tensorboard", _MUON])


@pytest.fixture
def tiny() -> Callable[..., Recipe]:
    """Make recipes that train in a second; `optim__lr=1` stands for `optim: {lr: 1}`."""
    return tiny_recipe


def tiny_recipe(**changes: Any) -> Recipe:
    data: dict[str, Any] = {
        "name": "tiny",
        "model": {
            "vision": {"random": {"width": 16, "layers": 2, "heads": 2, "image_size": 16, "patch": 8}},
            "language": {"random": {"width": 16, "layers": 1, "heads": 2, "max_positions": 128}},
            "train": {"vision": "full"},
        },
        "data": {
            "train": {"format": "shapes", "limit": 50},
            "eval": {"format": "shapes", "skip": 1000, "limit": 7},
            "workers": 0,
        },
        "objective": "sft",
        "optim": {"lr": 3e-3},
        "batch": {"global": 8},
        "steps": 6,
        "precision": "fp32",
        "evaluate": {"samples": 0},
        "log": {"every": 1, "tensorboard": False},
        "resources": {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1, "cpus_per_rank": 1},
    }
    for path, value in changes.items():
        *sections, key = path.split("__")
        place = data
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return recipe_of(data)


@dataclass
class Job:
    """A run directory, and the ranks that work in it."""

    paths: RunPaths
    ranks: list[BaseProcess] = field(default_factory=list)
    attempt: int = 0
    prepare: Callable[[], None] | None = None
    """What each rank calls first: a way to make real ranks fail on purpose."""

    def start(self, recipe: Recipe, world: int, **environment: str) -> None:
        """Begin an attempt; `{rank}` in a value of the environment stands for the rank."""
        self.attempt += 1
        self.paths.attempt(self.attempt).logs.mkdir(parents=True)
        self.paths.resolved.write_text(resolved.text_of(recipe))
        found = split(recipe.batch.examples, world, recipe.batch.micro)
        assert found is not None
        with suppress(OSError):  # a test fills the disk
            self.paths.attempt(self.attempt).deepspeed.write_text(json.dumps(deepspeed(recipe, *found)))
        port = _free_port()
        shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        shared |= {"MMLAUNCH_ATTEMPT": str(self.attempt), **environment}
        self.ranks = []
        for rank in range(world):
            mine = {name: value.replace("{rank}", str(rank)) for name, value in shared.items()}
            mine |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            log = self.paths.attempt(self.attempt).rank_log(rank)
            self.ranks.append(_server.Process(target=_rank, args=(str(self.paths.root), mine, str(log), self.prepare)))
            self.ranks[-1].start()

    def wait(self, seconds: float = 60) -> list[int | None]:
        """The exit codes; a rank that fails takes the others with it, as the launcher sees to."""
        until = time.monotonic() + seconds
        while any(rank.is_alive() for rank in self.ranks):
            assert time.monotonic() < until, self.log()
            if any(rank.exitcode for rank in self.ranks):
                for rank in self.ranks:
                    rank.join(5)
                self.kill()
            time.sleep(0.01)
        return [rank.exitcode for rank in self.ranks]

    def run(self, recipe: Recipe, world: int = 1, **environment: str) -> list[int | None]:
        """One whole attempt."""
        self.start(recipe, world, **environment)
        return self.wait()

    def when(self, step: int, saved: int = 0) -> None:
        """Return once the ledger has reached a step in this attempt, and `saved` is a whole checkpoint."""
        until = time.monotonic() + 60
        while step not in {event["step"] for event in self.events("step") if event["attempt"] == self.attempt} or (
            saved and saved not in self.saved()
        ):
            assert time.monotonic() < until and any(rank.is_alive() for rank in self.ranks), self.log()
            time.sleep(0.002)

    def kill(self) -> None:
        for rank in self.ranks:
            if rank.pid is not None and rank.is_alive():
                os.kill(rank.pid, signal.SIGKILL)
            rank.join()

    def children(self, rank: int) -> list[int]:
        """The processes that a rank has started."""
        command = ["ps", "-o", "pid=", "--ppid", str(self.ranks[rank].pid)]
        return [int(child) for child in subprocess.run(command, capture_output=True, check=True).stdout.split()]

    def events(self, *kinds: Any) -> list[ledger.Event]:
        return ledger.read(self.paths.events).all(*kinds)

    def losses(self) -> dict[int, list[float]]:
        """Every loss that was written for each step, over all attempts."""
        found: dict[int, list[float]] = {}
        for event in self.events("step"):
            found.setdefault(event["step"], []).append(event["loss"])
        return found

    def weights(self, step: int) -> dict[str, torch.Tensor]:
        """All weights of a checkpoint, as they are now: what is read later from the disk may be another file."""
        weights = frozen_weights.read(
            CheckpointPaths(self.paths.checkpoint(step)).engine("model") / "model.safetensors"
        )
        return {name: value.clone() for name, value in weights.items()}

    def saved(self) -> list[int]:
        return manifest.steps(self.paths.checkpoints)

    def log(self, rank: int = 0) -> str:
        return self.paths.attempt(self.attempt).rank_log(rank).read_text()


def _free_port() -> int:
    """One below those that the system gives to whoever asks for any: between two tests, nobody else takes it."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def _rank(run_dir: str, environment: dict[str, str], log: str, prepare: Callable[[], None] | None) -> None:
    """What the launcher does in each process of a job."""
    os.environ.update(environment)
    if prepare is not None:
        prepare()
    multiprocessing.set_start_method(None, force=True)  # that of a rank's own workers, as everywhere else
    for name in ("MMLAUNCH_DEADLINE", "MMLAUNCH_LEAD", "MMLAUNCH_HANG_SECONDS"):
        if name not in environment:
            os.environ.pop(name, None)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    from mmjobs.main import run

    print(run(run_dir))


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable[[str], Job]]:
    """Make run directories by name; whatever still runs at the end is killed."""
    made: list[Job] = []

    def _job(name: str = "run") -> Job:
        root = tmp_path / name
        root.mkdir()
        made.append(Job(RunPaths(root)))
        return made[-1]

    yield _job
    for one in made:
        one.kill()


@pytest.fixture
def mount() -> Iterator[Callable[[Path, str], None]]:
    """Mount a tmpfs with these options, until the test is over."""
    mounted: list[Path] = []

    def _mount(folder: Path, options: str) -> None:
        if os.system(f"mount -t tmpfs -o {options} none {folder} 2>/dev/null"):
            pytest.skip("a small disk can be mounted by root only")
        mounted.append(folder)

    yield _mount
    for folder in mounted:
        os.system(f"umount -l {folder}")
