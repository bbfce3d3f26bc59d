"""The engine: gradients and updates of one model through DeepSpeed, as the attempt's deepspeed.json says."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import nn

from mmjobs.data.batch import Batch
from mmjobs.engine.lr_schedule import share
from mmjobs.model import sharded
from mmjobs.model.parts import decays, drops, part_of
from mmjobs.model.weights import FILE as WEIGHTS
from mmjobs.objectives.objective import Objective, ObjectiveOutput, Units
from mmjobs.rank.position import Position
from mmjobs.rank.ranks import Ranks, peers
from mmlaunch.recipe.optim import Optim

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
import deepspeed  # noqa: E402  it chooses its accelerator when it is imported

from mmjobs.engine import universal  # noqa: E402  it imports deepspeed
from mmjobs.engine.checkpoint_io import PREFIX, EngineFiles, Files  # noqa: E402  it imports deepspeed

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo does the work, without a compiler and its minute
TAG = "deepspeed"
T = TypeVar("T")
_SETTINGS = ("lr", "betas", "eps", "weight_decay")


@dataclass(frozen=True)
class Update:
    """What one optimiser step did."""

    lr: float
    norm: float
    """Of the gradient, before it was clipped; one that is not finite has changed nothing."""
    rescaled: bool = False
    """Whether half precision only overflowed: the next losses are scaled less."""


class _Step(nn.Module):
    """One call from DeepSpeed's point of view, whatever the objective does inside: its hooks count on that."""

    def __init__(self, network: nn.Module, arithmetic: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self.network, self._arithmetic = network, arithmetic
        self.universal_checkpoint_info = universal.INFO  # DeepSpeed saves what it finds under this name

    def forward(self, read: Callable[[nn.Module, Batch], T], batch: Batch) -> T:
        with self._arithmetic():
            return read(self.network, batch)


@contextmanager
def reading(settings: dict[str, Any]) -> Iterator[None]:
    """In here a model is built; what it reads is divided over the ranks at once where the configuration says so."""
    deepspeed.init_distributed(dist_init_required=False)  # it takes the process group that there is
    with sharded.reading(settings):
        yield


def answering(network: nn.Module, precision: str, settings: dict[str, Any]) -> nn.Module:
    """A network that never learns, called like an engine, as precise; at stage 3, each rank keeps its share of it."""
    _cast(network, settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = precision == "bf16" and not settings["bf16"]["enabled"]
    step = _Step(network, lambda: torch.autocast(device.type, dtype=torch.bfloat16, enabled=half))
    if settings["zero_optimization"]["stage"] < 3:
        return step.to(device)
    kept = {key: value for key, value in settings.items() if key not in ("optimizer", "scheduler")}
    zero = {key: value for key, value in settings["zero_optimization"].items() if key != "offload_optimizer"}
    config = {**kept, "zero_optimization": zero}
    found: nn.Module = deepspeed.initialize(model=step, config=config, dist_init_required=False)[0]
    return found


def _cast(network: nn.Module, settings: dict[str, Any]) -> None:
    """Into the half precision that a configuration asks for; DeepSpeed does so with whole parameters only."""
    for kind, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if settings[kind]["enabled"]:
            for parameter in network.parameters():
                sharded.cast(parameter, dtype)


class Engine:
    """Adds up the gradients of loss sums over micro-batches and ranks, over the units of the whole global batch."""

    def __init__(
        self,
        network: nn.Module,
        optim: Optim,
        steps: int,
        precision: str,
        config: Path,
        ranks: Ranks,
        where: Position,
    ) -> None:
        self.network, self._precision, self._where = network, precision, where
        self._optim, self._steps, self._ranks = optim, steps, ranks
        settings = json.loads(config.read_text())
        self.stage: int = settings["zero_optimization"]["stage"]
        self._scaled = bool(settings["fp16"]["enabled"])
        self._half = precision == "bf16" and not settings["bf16"]["enabled"]  # stage 0 has no masters of half weights
        trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
        self._trained = [parameter for _, parameter in trained]
        self._drops = drops(network)
        _cast(network, settings)
        groups = _groups(trained, decays(network), optim)
        self._groups = [list(group["params"]) for group in groups]
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=_Step(network, self.precision),
            model_parameters=groups,
            config=settings,
            dist_init_required=False,
        )
        if ranks.world == 1 and not self.stage:  # it would copy all gradients together and apart, for nobody
            self._engine.enable_backward_allreduce = False
        self._engine.checkpoint_engine = self._files = EngineFiles()
        self._engine._copy_recovery_script = lambda path: None  # programs, written past `EngineFiles`
        self._settings = [{k: v for k, v in group.items() if k in _SETTINGS} for group in self._optimizer.param_groups]

    @property
    def layout(self) -> dict[str, Any]:
        """What a checkpoint must have in common with this engine to be loaded; stages 1 and 2 save the same."""
        groups = [len(group) for group in self._groups]
        return {"stage": self.stage, "precision": self._precision, "groups": groups}

    @property
    def sharded(self) -> bool:
        """Whether no rank has all weights: whatever is done with the network, all ranks do it together."""
        return self.stage == 3

    @peers()
    def train_on(self, batches: Sequence[Batch], objective: Objective, units: Units) -> list[ObjectiveOutput]:
        """Measure the micro-batches of a step, and add up the gradients of their loss sums over the global `units`."""
        self._engine.train()
        found = []
        for number, batch in enumerate(batches, 1):
            self._where.samples = batch.origins
            self._engine.set_gradient_accumulation_boundary(number == len(batches))
            measured = self._engine(objective, batch.to(self._engine.device))
            parts = [
                total * (self._ranks.world / units[unit]) for unit, total in measured.losses.items() if units[unit]
            ]
            self._engine.backward(torch.stack(parts).sum(), scale_wrt_gas=False)  # it averages over ranks
            found.append(measured)
            if number < len(batches):
                self._engine.step()  # between the micro-batches of a step it only counts
        self._where.samples = ()
        return found

    @peers()
    def step(self, step: int) -> Update:
        """Update the weights with the gradient of the step, clipped; one that is not finite leaves them as they are."""
        factor = share(self._optim, step, self._steps)
        for group, settings in zip(self._optimizer.param_groups, self._settings, strict=True):
            group.update({**settings, "lr": settings["lr"] * factor})  # the recipe's, not those of a checkpoint
        if self.stage:
            self._engine.step()  # it looks for itself
            norm = float("inf") if self._optimizer.overflow else float(self._engine.get_global_grad_norm())
        elif math.isfinite(norm := self._norm()):
            self._engine.step()
        else:
            self._optimizer.zero_grad()
        return Update(self._optim.lr * factor, norm, rescaled=self._scaled and not math.isfinite(norm))

    @peers()
    def look_at(self, batch: Batch, read: Callable[[nn.Module, Batch], T], learning: bool = False) -> T:
        """Measure or read a batch without learning from it; as a model that answers, or with the dropout of one that is
        `learning`."""
        self._engine.train(learning and self._drops)
        self._where.samples = batch.origins
        with torch.no_grad():
            found: T = self._engine(read, batch.to(self._engine.device))
        self._where.samples = ()
        return found

    def is_finite(self) -> bool:
        """Whether all weights are numbers, those that this rank has."""
        return all(bool(sharded.own(parameter).isfinite().all()) for parameter in self.network.parameters())

    @peers()
    def snapshot(self, folder: Path) -> Files:
        """Weights and optimiser state as files in memory, of each rank its own part; all ranks together."""
        self._files.collected = {}
        self._engine.save_checkpoint(str(folder), tag=TAG, client_state={}, save_latest=False)
        weights = self._weights()
        files, self._files.collected = self._files.collected, {}
        if self._ranks.first:
            files[folder / WEIGHTS] = safetensors.torch.save(weights, metadata={"format": "pt"})
        return files

    def load(self, folder: Path) -> None:
        """Take weights and optimiser state from a checkpoint of as many ranks, on every rank."""
        self._engine.load_checkpoint(str(folder), tag=TAG, load_lr_scheduler_states=False)

    def convert(self, folder: Path, converted: Path) -> Iterator[None]:
        """On one rank, prepare a checkpoint for `load_converted`; each turn is a piece of the work."""
        return universal.convert(folder / TAG, converted, self.stage)

    @peers()
    def load_converted(self, folder: Path, converted: Path) -> None:
        """Take weights and optimiser state from a checkpoint of any number of ranks, on every rank."""
        still = {name: value for name, value in self.network.named_parameters() if not value.requires_grad}
        with safetensors.safe_open(folder / WEIGHTS, "pt") as file:
            saved = set(file.keys())
            for name, value in [*still.items(), *self.network.named_buffers()]:
                if name in saved:
                    with torch.no_grad(), deepspeed.zero.GatheredParameters([value], modifier_rank=0):
                        value.copy_(file.get_tensor(name))
        universal.restore(self._optimizer, converted, self.stage)

    def evaluating(self) -> nn.Module:
        """The network as it answers, not as it learns."""
        return self.network.eval()

    def precision(self) -> AbstractContextManager[None]:
        """The arithmetic of this run, for what is done with the network elsewhere."""
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._half)

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _norm(self) -> float:
        """Of a gradient that DeepSpeed has reduced: at stage 0 it keeps its own norm to itself."""
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        return float(nn.utils.get_total_norm(gradients))

    def _weights(self) -> dict[str, torch.Tensor]:
        """All weights under the names of the network, on rank 0."""
        if self.sharded:
            state = self._engine._zero3_consolidated_16bit_state_dict() or {}
            state = {name.removeprefix(PREFIX): value for name, value in state.items()}
        else:
            state = self.network.state_dict()
        found: dict[str, torch.Tensor] = {}
        seen: set[int] = set()
        for name, value in state.items():
            found[name] = value.detach().cpu().contiguous()
            if found[name].data_ptr() in seen:  # tied weights: each name has its own copy in the file
                found[name] = found[name].clone()
            seen.add(found[name].data_ptr())
        return found


def _groups(trained: list[tuple[str, nn.Parameter]], decayed: set[str], optim: Optim) -> list[dict[str, Any]]:
    """Parameters that share a learning rate and a weight decay, in the order of the model."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained:
        lr = getattr(optim.lrs, part_of(name)) or optim.lr
        groups.setdefault((lr, optim.weight_decay if name in decayed else 0.0), []).append(parameter)
    return [{"params": parameters, "lr": lr, "weight_decay": decay} for (lr, decay), parameters in groups.items()]
