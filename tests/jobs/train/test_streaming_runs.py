"""Runs that read shards in turn, from files or from a stand-in of the hub: few at a time, and resumed as if never
interrupted."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.jobs.data.hub_server import NAME, Hub, serving
from tests.jobs.data.test_streaming import write_parquet, write_tar
from tests.jobs.kills import kill_at

from mmjobs.data.readers import hub, parquet, shards
from mmlaunch.recipe import Recipe
from mmlaunch.restart import policy

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]
ROWS, SHARDS = 16, 6


def noting(log: Path) -> None:
    """Each file that is opened is noted, in the order of all ranks."""
    plain = shards.LocalShards.lease

    def noted(self: shards.LocalShards, number: int) -> Any:
        with log.open("a") as file:
            file.write(f"{number}\n")
        return plain(self, number)

    shards.LocalShards.lease = noted  # type: ignore[method-assign]  # in a real rank, from outside


def write(folder: Path, kind: str) -> None:
    for number in range(SHARDS):
        numbers = range(ROWS * number, ROWS * (number + 1))
        if kind == "tar":
            write_tar(folder / f"{number}.tar", numbers)
        else:
            write_parquet(folder / f"{number}.parquet", numbers, padding=1000)


def both(*prepared: Callable[[], None]) -> None:
    for prepare in prepared:
        prepare()


@pytest.mark.nightly
def test_another_number_of_ranks_goes_on_in_the_same_order(job: Jobs, tiny: Recipes, tmp_path: Path) -> None:
    write(tmp_path / "data", "parquet")
    changes = {
        "data__train": {"path": str(tmp_path / "data"), "format": "trl"}, "data__eval": [], "data__shuffle": "shards",
        "data__shuffle_window": 20, "optim": {"lr": 3e-3, "eps": 1e-4}, "checkpoint": {"every": "5 steps"},
    }  # fmt: skip
    whole, other = job("whole"), job("other")
    assert whole.run(tiny(**changes, steps=15)) == [0], whole.log()
    other.prepare = kill_at("mmjobs.train.trainer:Trainer._step", 8)
    assert other.run(tiny(**changes, steps=15)) != [0]
    other.prepare = None
    assert other.run(tiny(**changes, steps=15, resources__tasks_per_node=2), 2) == [0, 0], other.log()
    for step, losses in whole.losses().items():
        assert other.losses()[step][-1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.parametrize(("kind", "workers"), [("tar", 0), pytest.param("parquet", 2, marks=pytest.mark.nightly)])
def test_files_in_turn(job: Jobs, tiny: Recipes, tmp_path: Path, kind: str, workers: int) -> None:
    write(tmp_path / "data", kind)
    source = {"path": str(tmp_path / "data"), "format": "trl"}
    changes = {
        "data__train": source, "data__eval": [], "data__shuffle": "shards", "data__shuffle_window": 2 * ROWS,
        "data__workers": workers, "batch": {"global": 8}, "steps": 18, "checkpoint": {"every": "5 steps"},
    }  # fmt: skip
    whole, broken = job("whole"), job("broken")
    assert whole.run(tiny(**changes)) == [0], whole.log()
    broken.prepare = kill_at("mmjobs.train.trainer:Trainer._step", 8)
    assert broken.run(tiny(**changes)) != [0]
    broken.prepare = partial(noting, tmp_path / "log")
    assert broken.run(tiny(**changes)) == [0], broken.log()
    assert {step: losses[-1] for step, losses in broken.losses().items()} == {
        step: losses[0] for step, losses in whole.losses().items()
    }
    opened = [int(number) for number in (tmp_path / "log").read_text().split()][-8 * 12 :]  # in the last twelve steps
    assert all(len(set(opened[begin : begin + 8])) <= 4 for begin in range(0, len(opened), 8))
    other = job("rows")
    of_rows = {name: value for name, value in changes.items() if "shuffle" not in name}
    assert other.run(tiny(**of_rows)) == [0], other.log()
    assert other.losses() != whole.losses()


@dataclass
class Node:
    """What a stand-in of the hub and a node have in common: its environment, and how full its cache is."""

    hub: Hub
    folder: Path
    most: int = 0

    @property
    def environment(self) -> dict[str, str]:
        names = {"TMPDIR": "node", "XDG_CACHE_HOME": "cache", "HF_HOME": "hf"}
        return {name: str(self.folder / value) for name, value in names.items()}

    def reach_hub(self) -> None:
        """A rank was forked from a process that knows another hub."""
        import huggingface_hub.constants as constants

        parquet.KEPT_BYTES = 1  # the piece that is read, and no more
        constants.ENDPOINT, constants.HF_HUB_OFFLINE = self.hub.address, False
        constants.HUGGINGFACE_CO_URL_TEMPLATE = self.hub.address + "/{repo_id}/resolve/{revision}/{filename}"

    def fetched(self) -> Counter[str]:
        """How often each file was, since this was last asked for."""
        fetched = Counter(self.hub.gets)
        self.hub.gets.clear()
        return fetched

    def watch(self, until: threading.Event) -> None:
        """A file may move or go while folders are looked through: what counts is there in both of two looks."""
        before: dict[int, int] = {}
        while not until.wait(0.002):
            now = {}
            for folder, _, names in os.walk(self.folder / "node"):
                for name in names:
                    with suppress(OSError):  # gone by now
                        status = Path(folder, name).stat()
                        now[status.st_ino] = status.st_size
            self.most = max(self.most, sum(min(size, now.get(inode, 0)) for inode, size in before.items()))
            before = now


@contextmanager
def node(folder: Path) -> Iterator[Node]:
    (folder / "node").mkdir()
    until = threading.Event()
    with serving(folder / "served") as hub:
        made = Node(hub, folder)
        watching = threading.Thread(target=made.watch, args=(until,))
        watching.start()
        try:
            yield made
        finally:
            until.set()
            watching.join()


@pytest.mark.parametrize(
    ("kind", "world", "workers"),
    [("parquet", 2, 0), *(pytest.param(kind, 1, 2, marks=pytest.mark.nightly) for kind in ("tar", "parquet"))],
)
def test_streaming(job: Jobs, tiny: Recipes, tmp_path: Path, kind: str, world: int, workers: int) -> None:
    with node(tmp_path) as here:
        write(here.hub.head / "data", kind)
        size = max(path.stat().st_size for path in (here.hub.head / "data").iterdir())
        limit = -(-2 * size // 1024)
        source = {"path": f"hf://datasets/{NAME}", "format": "trl", "streaming": True, "cache_limit": f"{limit}K"}
        changes = {
            "data__train": source, "data__eval": [], "data__shuffle": "shards", "data__shuffle_window": ROWS,
            "data__workers": workers,
            "batch": {"global": 8}, "steps": 24, "checkpoint": {"every": "5 steps"},
            "resources__tasks_per_node": world,
        }  # fmt: skip
        prepare = partial(Node.reach_hub, Node(Hub(here.hub.folder, address=here.hub.address), tmp_path))
        whole, broken = job("whole"), job("broken")
        whole.prepare = prepare
        assert whole.run(tiny(**changes), world, **here.environment) == [0] * world, whole.log()
        fetched = here.fetched()
        # two epochs, once to read all rows, of tar files once to see where they stand; and again what had to go early
        times = SHARDS * (3 if kind == "parquet" else 4)
        assert set(fetched) == {f"data/{number}.{kind}" for number in range(SHARDS)}
        assert times - 3 <= fetched.total() <= times + SHARDS * (1 + workers), fetched
        broken.prepare = partial(both, prepare, kill_at("mmjobs.train.trainer:Trainer._step", 8))
        assert broken.run(tiny(**changes), world, **here.environment) != [0] * world
        write_parquet(here.hub.folder / ("d" * 40) / "data" / "0.parquet", range(5))
        here.hub.branches["main"] = "d" * 40
        broken.prepare = prepare
        assert broken.run(tiny(**changes), world, **here.environment) == [0] * world, broken.log()
        assert {step: losses[-1] for step, losses in broken.losses().items()} == {
            step: losses[0] for step, losses in whole.losses().items()
        }
        assert 0 < here.most <= (limit << 10) + (20 << 10), "a small lock or note of the hub's client beside them"
        assert not list((tmp_path / "hf").rglob("*.parquet")), "and no copy elsewhere"


def without_patience() -> None:
    """The hub is asked twice, and its client does not wait."""
    import huggingface_hub.utils._http as client

    hub.WAITS = (0.01,)
    client.time = SimpleNamespace(sleep=lambda seconds: None)  # type: ignore[assignment, attr-defined]  # in a real rank


def test_a_network_that_fails_is_no_bad_row(job: Jobs, tiny: Recipes, tmp_path: Path) -> None:
    with node(tmp_path) as here:
        write(here.hub.head / "data", "tar")
        size = max(path.stat().st_size for path in (here.hub.head / "data").iterdir())
        source = {"path": f"hf://datasets/{NAME}", "format": "trl", "streaming": True, "cache_limit": f"{size // 512}K"}
        changes = {
            "data__train": source, "data__eval": [], "data__shuffle": "shards", "data__shuffle_window": ROWS,
            "data__on_bad": "skip", "batch": {"global": 8}, "steps": 100_000,
        }  # fmt: skip
        run, known = job("run"), Node(Hub(here.hub.folder, address=here.hub.address), tmp_path)
        run.prepare = partial(both, partial(Node.reach_hub, known), without_patience)
        run.start(tiny(**changes), 1, **here.environment)
        run.when(3)
        here.hub.down = True
        assert run.wait() == [1], run.log()
        record = json.loads(run.paths.attempt(1).rank_error(0).read_text())
        assert record["type"] == "HubUnreachable" and ".tar: the hub does not answer" in record["message"]
        assert policy.classify(1, run.paths.attempt(1), run.events()).cause == "network"
        here.hub.down = False
        assert not run.paths.skipped.exists() or not run.paths.skipped.read_text()
