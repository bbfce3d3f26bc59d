"""Which GPU each rank takes, with the devices and the environment that Slurm, a container or a shell gives it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmjobs.rank import gpu, preflight
from mmjobs.rank.gpu import View, number_of, problem
from mmlaunch.recipe import Recipe
from mmlaunch.restart import policy

A, B, C, D = "GPU-a", "GPU-b", "GPU-c", "GPU-d"
ALL = (A, B, C, D)


class Machine:
    """Pretended GPUs: torch sees those of CUDA_VISIBLE_DEVICES, as the driver shows them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gpus: Sequence[str], name: str = "NVIDIA H100 80GB HBM3"):
        self.chosen: int | None = None
        self._gpus, self._name = gpus, name
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(self._seen()))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(self._seen()))
        monkeypatch.setattr(torch.cuda, "get_device_properties", self._properties)
        monkeypatch.setattr(torch.cuda, "set_device", self._choose)

    def _seen(self) -> list[str]:
        visible = os.environ.get(gpu.VISIBLE)
        if visible is None:
            return list(self._gpus)
        wanted = [word for word in visible.split(",") if word]
        if visible.startswith("MIG-"):
            return wanted[:1]  # CUDA shows a process one slice, whatever is listed
        return [word if word.startswith("GPU-") else self._gpus[int(word)] for word in wanted]

    def _properties(self, number: int) -> Any:
        return SimpleNamespace(uuid=self._seen()[number], name=self._name)

    def _choose(self, number: int) -> None:
        assert number < len(self._seen()), "invalid device ordinal"
        self.chosen = number

    def devices(self) -> tuple[str, str]:
        """The GPU that was taken, and the one that DeepSpeed would take: it goes by LOCAL_RANK."""
        assert self.chosen is not None
        return self._seen()[self.chosen], self._seen()[int(os.environ["LOCAL_RANK"])]


@pytest.mark.parametrize(
    "visible",
    [
        pytest.param([None] * 4, id="a local run on all GPUs"),
        pytest.param(["0,1,2,3"] * 4, id="Slurm, all tasks see the GPUs of the job"),
        pytest.param(["0", "1", "2", "3"], id="--gpus-per-task without cgroups"),
        pytest.param(list(ALL), id="a GPU of its own by UUID"),
        pytest.param([",".join(ALL)] * 4, id="all by UUID"),
        pytest.param(["3,2,1,0"] * 4, id="in another order"),
        pytest.param(["0,1", "0,1", "2,3", "2,3"], id="--gpu-bind=closest, tasks in blocks"),
        pytest.param(["0,1", "2,3", "0,1", "2,3"], id="--gpu-bind=closest, tasks in turns"),
        pytest.param(["0,1", "2,3"], id="more GPUs than ranks"),
    ],
)
def test_each_rank_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, visible: list[str | None]) -> None:
    """On two nodes, whose GPUs have other UUIDs only in real life."""
    machine = Machine(monkeypatch, ALL)
    views, taken = [], []
    for number in ("n1", "n2"):
        for own in visible:
            _environment(monkeypatch, number, 0, own)
            views.append(gpu.seen())
    for rank, own in enumerate(visible * 2):
        _environment(monkeypatch, views[rank].node, rank % len(visible), own)
        gpu.take(rank, views)
        device, of_deepspeed = machine.devices()
        assert device == of_deepspeed
        taken.append((views[rank].node, device))
        assert problem(rank, views) is None
    assert len(set(taken)) == len(taken)


@pytest.mark.parametrize("visible", ["2,3", f"{C},{D}"])
def test_a_subset_that_the_user_names_is_kept(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    machine = Machine(monkeypatch, ALL)
    _environment(monkeypatch, "n1", 1, visible)
    gpu.take(1, [gpu.seen()] * 2)
    assert machine.devices() == (D, D) and machine.chosen == 1


def test_a_container_with_cgroups_numbers_its_only_gpu_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task sees CUDA_VISIBLE_DEVICES=0, and each means another GPU by it."""
    views = [View("n1", (own,), visible="0") for own in ALL]
    machine = Machine(monkeypatch, [D])
    _environment(monkeypatch, "n1", 3, "0")
    gpu.take(3, views)
    assert machine.devices() == (D, D) and os.environ["LOCAL_RANK"] == "0"
    assert [problem(rank, views) for rank in range(4)] == [None] * 4


def test_without_gpus_nothing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, [])
    _environment(monkeypatch, "n1", 1, None)
    gpu.take(1, [gpu.seen()] * 2)
    assert machine.chosen is None and os.environ["LOCAL_RANK"] == "1"
    assert problem(1, [gpu.seen()] * 2) is None


SHARED = "resources.gpus_per_node: the 4 ranks of node n1 see "


@pytest.mark.parametrize(
    "views, texts, mistake",
    [
        pytest.param(
            [View("n1", (A, B), visible="0,1")] * 4,
            [SHARED + "2 GPUs (CUDA_VISIBLE_DEVICES=0,1), and ranks {} would share one; "
             "write 2, or give each rank a GPU of its own".replace("{}", ranks) for ranks in ("0, 2", "1, 3") * 2],
            True, id="two GPUs for four ranks",
        ),
        pytest.param(
            [View("n1", (A,), visible=A)] * 4,
            [SHARED + f"1 GPU (CUDA_VISIBLE_DEVICES={A}), and ranks 0, 1, 2, 3 would share one; "
             "write 1, or give each rank a GPU of its own"] * 4,
            True, id="all ranks are bound to one",
        ),
        pytest.param(
            [View("n1", (A, B, C), visible="0,1,2,3")] * 4,
            [SHARED + "3 GPUs (CUDA_VISIBLE_DEVICES=0,1,2,3), and ranks 0, 3 would share one; "
             "write 3, or give each rank a GPU of its own", None, None],
            False, id="one of four has fallen off the bus",
        ),
        pytest.param(
            [View("n1", (A, B, C))] * 4,
            [SHARED + "3 GPUs (CUDA_VISIBLE_DEVICES is not set), and ranks 0, 3 would share one; "
             "write 3, or give each rank a GPU of its own", None, None],
            False, id="a node with fewer than it should have",
        ),
        pytest.param(
            [View("n1", tuple(ALL[int(number)] for number in numbers.split(",")), visible=numbers)
             for numbers in ("0,1,2,3", "0,2,1,3", "1,2,3,0", "2,3,0,1")],
            [SHARED + "4 GPUs (CUDA_VISIBLE_DEVICES=0,1,2,3), and ranks 0, 1 would share one; give each rank its own"],
            False, id="a binding that mixes them",
        ),
        pytest.param(
            [View("n1", (f"MIG-{place}",), True, f"MIG-{place}") for place in "abcd"],
            ["resources.gpus_per_node: the 4 ranks of node n1 were given slices of GPUs (MIG), "
             "which NCCL does not join; ask for whole GPUs, or write 1"] * 4,
            True, id="slices of GPUs",
        ),
        pytest.param([View("n1", (), error="CUDA error: unknown error")] * 2,
                     ["a GPU cannot be used: CUDA error: unknown error"] * 2, False, id="a driver that fails"),
    ],
)  # fmt: skip
def test_two_ranks_of_a_node_never_share_one(views: list[View], texts: list[str | None], mistake: bool) -> None:
    for rank, text in enumerate(texts):
        found = problem(rank, views)
        assert found == (None if text is None else gpu.Problem(text, mistake))
    elsewhere = [View("n0", ALL, visible="0,1,2,3")] * 4
    assert [problem(rank, elsewhere + views) for rank in range(4)] == [None] * 4, "the other node is fit"
    assert problem(4, elsewhere + [views[0]] * (not views[0].error) + [View("n2", (A,))]) is None


def test_a_slice_serves_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, [], "NVIDIA A100-SXM4-40GB MIG 3g.20gb")
    _environment(monkeypatch, "n1", 0, "MIG-1,MIG-2")
    views = [gpu.seen(), View("n2", ("MIG-1",), True, "MIG-1")]
    gpu.take(0, views)
    assert machine.devices()[0] == "MIG-1" and problem(0, views) is None and views[0].sliced


def test_what_is_missing_is_said_with_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(gpu.VISIBLE, "")
    assert preflight.gpu_problem(2) == "0 GPUs can be used instead of 2 (CUDA_VISIBLE_DEVICES=)"


def _see(gpus: tuple[str, ...], visible: str) -> None:
    """In a real rank: it sees these GPUs, which compute on the CPU."""
    gpu.seen = lambda: View("n1", gpus, visible=visible)
    gpu.take = lambda rank, views: None
    preflight.gpu_problem = lambda wanted: None


def test_an_attempt_whose_ranks_would_share_a_gpu_is_refused_and_not_restarted(
    job: Callable[[str], Any], tiny: Callable[..., Recipe]
) -> None:
    run = job("run")
    run.prepare = partial(_see, (A,), "0")
    recipe = tiny(resources__gpus_per_node=2, resources__tasks_per_node=None)
    assert run.run(recipe, 2) == [94, 94], run.log()
    attempt = run.paths.attempt(1)
    message = json.loads(attempt.rank_errors[0].read_text())["message"]
    assert message.startswith("resources.gpus_per_node: the 2 ranks of node n1 see 1 GPU (CUDA_VISIBLE_DEVICES=0)")
    ending = policy.classify(94, attempt, run.events())
    assert ending.cause == "bad input" and message in ending.evidence
    run.prepare = partial(_see, (A, B), "0,1")
    assert run.run(recipe, 2) == [0, 0], run.log()


def _environment(monkeypatch: pytest.MonkeyPatch, node: str, local: int, visible: str | None) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", node)
    monkeypatch.setenv("LOCAL_RANK", str(local))
    if visible is None:
        monkeypatch.delenv(gpu.VISIBLE, raising=False)
    else:
        monkeypatch.setenv(gpu.VISIBLE, visible)


def test_the_number_follows_those_who_see_the_same() -> None:
    views = [View("n1", ALL), View("n2", ALL), View("n1", ALL), View("n1", (A,))]
    assert [number_of(rank, views) for rank in range(4)] == [0, 0, 1, 0]
