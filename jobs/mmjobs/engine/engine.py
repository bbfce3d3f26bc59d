"""The engine: gradients and updates of one model through DeepSpeed, as the attempt's deepspeed.json says."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import deepspeed
import safetensors
import safetensors.torch
import torch
from torch import nn

from mmjobs.data.batch import Batch
from mmjobs.engine import universal
from mmjobs.engine.checkpoint_io import EngineFiles, Files
from mmjobs.engine.lr_schedule import lr_factor
from mmjobs.model import frozen_weights, sharded
from mmjobs.model.checksum import checksum
from mmjobs.model.parts import decays, has_dropout
from mmjobs.model.weights import FILE as WEIGHTS
from mmjobs.objectives.objective import ObjectiveOutput, Units
from mmjobs.rank.position import Position
from mmjobs.rank.ranks import Ranks, peers
from mmjobs.rank.shared_files import visible
from mmlaunch.errors import BadInput
from mmlaunch.recipe.optim import Optim
from mmlaunch.recipe.parts import part_of

TAG = "deepspeed"
T = TypeVar("T")
_SETTINGS = ("lr", "betas", "eps", "weight_decay")


@dataclass(frozen=True)
class Update:
    """What one optimiser step did."""

    lr: float
    norm: float
    """The norm of the gradient before it was clipped. One that is not finite has changed no weight."""
    rescaled: bool = False
    """Whether half precision only overflowed: the next losses are scaled less."""


class Step(nn.Module):
    """One forward call for DeepSpeed, whatever is computed inside: its hooks need exactly one."""

    def __init__(self, network: nn.Module, autocast: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self.network, self._autocast = network, autocast
        self.universal_checkpoint_info = universal.INFO  # DeepSpeed saves the attribute of this name

    def forward(self, read: Callable[[nn.Module, Batch], T], batch: Batch) -> T:
        with self._autocast():
            return read(self.network, batch)


@contextmanager
def building(settings: dict[str, Any]) -> Iterator[None]:
    """In this context a model is built; at ZeRO stage 3 its weights are divided over the ranks as they are read."""
    deepspeed.init_distributed(dist_init_required=False)  # it uses the process group that exists
    with sharded.reading(settings):
        yield


def cast_to_half(network: nn.Module, settings: dict[str, Any]) -> None:
    """To the half precision that a configuration asks for; DeepSpeed casts whole parameters only."""
    for kind, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if settings[kind]["enabled"]:
            for parameter in network.parameters():
                sharded.cast(parameter, dtype)


class Engine:
    """Accumulates the gradients of loss sums over micro-batches and ranks, divided by the units of the global batch."""

    def __init__(
        self,
        network: nn.Module,
        optim: Optim,
        steps: int,
        precision: str,
        settings: dict[str, Any],
        ranks: Ranks,
        position: Position,
    ) -> None:
        """`settings`: DeepSpeed's configuration; `steps`: the length of the learning rate's schedule."""
        self.network, self._precision, self._position = network, precision, position
        self._optim, self._steps, self._ranks = optim, steps, ranks
        self.stage: int = settings["zero_optimization"]["stage"]
        self._scaled = bool(settings["fp16"]["enabled"])
        self._half = precision == "bf16" and not settings["bf16"]["enabled"]  # stage 0 has no masters of half weights
        trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
        self._trained = [parameter for _, parameter in trained]
        self._frozen = {name: value for name, value in network.named_parameters(remove_duplicate=False)
                        if not value.requires_grad}  # fmt: skip
        self._kept: str | None = None
        """Under which name the run keeps the frozen weights."""
        self._unkept = bool(self._frozen)
        self._has_dropout = has_dropout(network)
        cast_to_half(network, settings)
        groups = _parameter_groups(trained, decays(network), optim)
        self._groups = [list(group["params"]) for group in groups]
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=Step(network, self.autocast),
            model_parameters=groups,
            config=settings,
            dist_init_required=False,
        )
        if ranks.world == 1 and not self.stage:  # it would copy all gradients together and apart, for nobody
            self._engine.enable_backward_allreduce = False
        self._engine.checkpoint_engine = self._files = EngineFiles()
        self._engine._copy_recovery_script = lambda path: None  # programs, written without `EngineFiles`
        self._settings = [{k: v for k, v in group.items() if k in _SETTINGS} for group in self._optimizer.param_groups]

    @property
    def layout(self) -> dict[str, Any]:
        """What a checkpoint must have in common with this engine to be loaded; stages 1 and 2 save the same."""
        groups = [len(group) for group in self._groups]
        return {"stage": self.stage, "precision": self._precision, "groups": groups}

    @property
    def divided(self) -> bool:
        """Whether each rank saves a part of its own, which other numbers of ranks cannot load as it is."""
        return self.stage > 0

    @property
    def sharded(self) -> bool:
        """Whether no rank has all weights: whatever uses the network, all ranks run it together."""
        return self.stage == 3

    @peers()
    def accumulate(
        self, batches: Sequence[Batch], measure: Callable[[nn.Module, Batch], ObjectiveOutput], units: Units
    ) -> list[ObjectiveOutput]:
        """Forward and backward of the micro-batches of a step.

        The gradient is that of the loss sums of all ranks, each divided by its `units` in the global batch.
        """
        self._engine.train()
        outputs = []
        for number, batch in enumerate(batches, 1):
            self._position.samples = batch.origins
            self._engine.set_gradient_accumulation_boundary(number == len(batches))
            output = self._engine(measure, batch.to(self._engine.device))
            losses = [total * (self._ranks.world / units[unit]) for unit, total in output.losses.items() if units[unit]]
            self._engine.backward(torch.stack(losses).sum(), scale_wrt_gas=False)  # it averages over ranks
            outputs.append(output)
            if number < len(batches):
                self._engine.step()  # between the micro-batches of a step it only counts
        self._position.samples = ()
        return outputs

    @peers()
    def step(self, step: int) -> Update:
        """Update the weights with the clipped gradient of the step; one that is not finite leaves them as they are."""
        factor = lr_factor(self._optim, step, self._steps)
        for group, settings in zip(self._optimizer.param_groups, self._settings, strict=True):
            group.update({**settings, "lr": settings["lr"] * factor})  # the recipe's, not those of a checkpoint
        if self.stage:
            self._engine.step()  # it checks the gradient itself
            norm = float("inf") if self._optimizer.overflow else float(self._engine.get_global_grad_norm())
        elif math.isfinite(norm := self._norm()):
            self._engine.step()
        else:
            self._optimizer.zero_grad()
        return Update(self._optim.lr * factor, norm, rescaled=self._scaled and not math.isfinite(norm))

    @peers()
    def compute(self, batch: Batch, read: Callable[[nn.Module, Batch], T], dropout: bool = False) -> T:
        """The result of `read` on a batch, without gradients; with `dropout`, as the network is while it trains."""
        self._engine.train(dropout and self._has_dropout)
        self._position.samples = batch.origins
        with torch.no_grad():
            result: T = self._engine(read, batch.to(self._engine.device))
        self._position.samples = ()
        return result

    def is_finite(self) -> bool:
        """Whether all weights that this rank has are finite numbers."""
        return all(bool(sharded.own(parameter).isfinite().all()) for parameter in self.network.parameters())

    @peers()
    def weights_to_keep(self) -> dict[str, torch.Tensor] | None:
        """This rank's share of the frozen weights, for all ranks write them; None if there are none, or the run keeps
        them already. All ranks together."""
        if not self._unkept:
            return None
        return sharded.share(self._frozen, self._ranks.rank, self._ranks.world, self._ranks.watch.moved)

    def kept_as(self, name: str) -> None:
        """The run keeps the frozen weights under this name."""
        self._kept, self._unkept = name, False

    @peers()
    def snapshot(self, folder: Path) -> Files:
        """Trained weights and optimiser state as files in memory, each rank its own part; all ranks together."""
        # The weights first: while they become a file there are three copies of them, and of the rest there is none yet.
        weights, written = self._weights(), Files()
        if weights or self._ranks.first:
            path = frozen_weights.of_rank(folder / WEIGHTS, self._ranks.rank)
            written[path] = safetensors.torch.save(weights, metadata=frozen_weights.metadata(self._kept))
        del weights
        self._files.collected = {}
        self._engine.save_checkpoint(
            str(folder), tag=TAG, client_state={}, save_latest=False, exclude_frozen_parameters=True
        )
        files, self._files.collected = self._files.collected | written, {}
        return files

    def load(self, folder: Path) -> None:
        """Take weights and optimiser state from a checkpoint of as many ranks, on every rank."""
        self._check_names(folder / WEIGHTS)
        self._engine.load_checkpoint(str(folder), tag=TAG, load_lr_scheduler_states=False, load_module_strict=False)
        self._load_frozen(folder / WEIGHTS)

    def convert(self, folder: Path, converted: Path) -> Iterator[None]:
        """On one rank, prepare a checkpoint for `load_converted`; each turn is a piece of the work."""
        return universal.convert(folder / TAG, converted, self.stage)

    @peers()
    def load_converted(self, folder: Path, converted: Path) -> None:
        """Take weights and optimiser state from a checkpoint of any number of ranks, on every rank."""
        not_converted = {**self._frozen, **dict(self.network.named_buffers())}
        for path in frozen_weights.files(folder / WEIGHTS):
            with safetensors.safe_open(path, "pt") as file:
                for name in sorted(not_converted.keys() & set(file.keys())):  # version 0.2 saved the frozen weights too
                    value = not_converted[name]
                    with torch.no_grad(), deepspeed.zero.GatheredParameters([value], modifier_rank=0):
                        value.copy_(file.get_tensor(name))
        self._load_frozen(folder / WEIGHTS)
        universal.restore(self._optimizer, converted, self.stage)

    def _check_names(self, weights: Path) -> None:
        """Refuse a checkpoint that lacks a weight: it would keep its first value, and nobody would notice."""
        if self.sharded:  # each rank looks at what it saved
            own = frozen_weights.of_rank(weights, self._ranks.rank)
            saved = set().union(*self._ranks.gather(frozen_weights.names_in([own] if own.is_file() else [])))
        else:
            saved = frozen_weights.names_in([weights])
        frozen = set() if frozen_weights.named_by(weights) is None else self._frozen.keys()
        missing = sorted(self.network.state_dict().keys() - saved - frozen)
        if missing:
            raise BadInput(f"{weights} lacks {', '.join(missing[:3])}: it was not saved by a run of this model")

    def _load_frozen(self, weights: Path) -> None:
        """Take the frozen weights that a checkpoint names; one that names none holds all."""
        folder = frozen_weights.place(weights)
        if folder is None:
            return
        self.kept_as(folder.name)
        if not frozen_weights.is_kept(visible(folder)):
            return  # `resume` has compared the model as it was built
        with frozen_weights.opened(folder) as read:
            for name, value in self._frozen.items():
                self._ranks.watch.moved()
                with torch.no_grad(), sharded.whole([value]):
                    value.copy_(read(name))

    def eval_network(self) -> nn.Module:
        """The network in evaluation mode, without dropout."""
        return self.network.eval()

    @contextmanager
    def generating(self, gather: bool = True) -> Iterator[nn.Module]:
        """In this context the network is in evaluation mode, and whole on this rank: at stage 3 it is gathered once,
        and DeepSpeed's hooks, which would gather layer by layer on all ranks together, are put aside. Without `gather`
        they are not, and all ranks call the network together."""
        offload = getattr(self._optimizer, "parameter_offload", None) if self.sharded and gather else None
        hooks = [] if offload is None else [*offload.forward_hooks, *offload.backward_hooks]
        tables = {id(table): table for hook in hooks if (table := hook.hooks_dict_ref()) is not None}
        kept = {number: list(table.items()) for number, table in tables.items()}
        for hook in hooks:
            hook.hooks_dict_ref().pop(hook.id, None)
        try:
            with sharded.whole(self.network.parameters() if gather else ()):
                yield self.network.eval()
        finally:
            for number, table in tables.items():
                table.clear()
                table.update(kept[number])

    def digest(self) -> str:
        """Of the trained weights of all ranks; equal weights on as many ranks have the same."""
        sums = [checksum(sharded.own(parameter)) for parameter in self._trained]
        return hashlib.blake2b(repr(self._ranks.gather(sums)).encode(), digest_size=12).hexdigest()

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of this run, for what uses the network without the engine."""
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._half)

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _norm(self) -> float:
        """The norm of a gradient that DeepSpeed has reduced: at stage 0 it does not tell its own."""
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        return float(nn.utils.get_total_norm(gradients))

    def _weights(self) -> dict[str, torch.Tensor]:
        """The weights that are trained, and the buffers, under the names of the network: those that this rank saves.

        Rank 0 saves all of them; at stage 3 each rank some, and none ever has more than these and one that is whole.
        """
        state = {name: value for name, value in self.network.state_dict(keep_vars=True).items()
                 if name not in self._frozen}  # fmt: skip
        savers = self._ranks.world if self.sharded else 1
        return sharded.share(state, self._ranks.rank, savers, self._ranks.watch.moved)


def _parameter_groups(trained: list[tuple[str, nn.Parameter]], decayed: set[str], optim: Optim) -> list[dict[str, Any]]:
    """Parameters that share a learning rate and a weight decay, in the order of the model."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained:
        lr = getattr(optim.lrs, part_of(name)) or optim.lr
        groups.setdefault((lr, optim.weight_decay if name in decayed else 0.0), []).append(parameter)
    return [{"params": parameters, "lr": lr, "weight_decay": decay} for (lr, decay), parameters in groups.items()]
