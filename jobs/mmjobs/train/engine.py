"""The engine: gradients and updates of one model on plain PyTorch, the same on every rank."""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from mmjobs.data.batch import Batch
from mmjobs.model.parts import decays, part_of
from mmjobs.objectives.measured import Measured, Objective
from mmjobs.train.ranks import Ranks
from mmjobs.train.schedule import share
from mmlaunch.recipe.optim import Optim

WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.pt"


@dataclass(frozen=True)
class Update:
    """What one optimiser step did."""

    lr: float
    norm: float
    """Of the gradient, before it was clipped."""


class Engine:
    """Adds up the gradients of loss sums over micro-batches and ranks, and divides once, by the global units."""

    def __init__(self, network: nn.Module, optim: Optim, steps: int, precision: str, ranks: Ranks) -> None:
        self.network = network
        self._optim, self._steps, self._ranks = optim, steps, ranks
        self._half = precision == "bf16"
        trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
        self._gradient = torch.zeros(sum(parameter.numel() for _, parameter in trained))  # every gradient, side by side
        start = 0
        for _, parameter in trained:
            parameter.grad = self._gradient[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        self._optimizer = torch.optim.AdamW(
            _groups(trained, decays(network), optim), lr=optim.lr, betas=(optim.betas[0], optim.betas[1]), eps=optim.eps
        )
        self._peaks = [float(group["lr"]) for group in self._optimizer.param_groups]

    def train_on(self, batch: Batch, objective: Objective) -> Measured:
        """Measure a micro-batch and add the gradient of its loss sum."""
        self.network.train()
        with self._precision():
            measured = objective(self.network, batch)
        torch.autograd.backward(measured.loss)
        return measured

    def look_at(self, batch: Batch, objective: Objective) -> Measured:
        """Measure a batch without learning from it."""
        self.network.eval()
        with torch.no_grad(), self._precision():
            return objective(self.network, batch)

    def step(self, step: int, units: float) -> Update:
        """Reduce the gradient, divide it by the global units, clip it, and update the weights."""
        self._ranks.add(self._gradient)
        self._gradient /= units
        norm = float(torch.linalg.vector_norm(self._gradient))
        if self._optim.clip and norm > self._optim.clip:
            self._gradient *= self._optim.clip / norm
        factor = share(self._optim, step, self._steps)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        if norm == norm and norm != float("inf"):  # the trainer reports one that is not, with weights still whole
            self._optimizer.step()
        self._gradient.zero_()  # not to None: the gradients are views of one buffer
        return Update(self._optim.lr * factor, norm)

    def save(self, folder: Path) -> None:
        """Write weights and optimiser state, on rank 0: the other ranks hold the same."""
        if self._ranks.first:
            weights = {name: value.detach().contiguous() for name, value in self.network.state_dict().items()}
            # As bytes first: a full disk is then an OSError, which safetensors and torch.save both hide.
            (folder / WEIGHTS).write_bytes(safetensors.torch.save(weights, metadata={"format": "pt"}))
            buffer = io.BytesIO()
            torch.save(self._optimizer.state_dict(), buffer)
            (folder / OPTIMIZER).write_bytes(buffer.getbuffer())

    def load(self, folder: Path) -> None:
        """Take weights and optimiser state from a checkpoint, on every rank."""
        self.network.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
        self._optimizer.load_state_dict(torch.load(folder / OPTIMIZER, weights_only=True))

    def evaluating(self) -> nn.Module:
        """The network as it answers, not as it learns."""
        return self.network.eval()

    def precision(self) -> AbstractContextManager[None]:
        """The arithmetic of this run, for what is done with the network elsewhere."""
        return self._precision()

    def _precision(self) -> AbstractContextManager[None]:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._half)


def _groups(trained: list[tuple[str, nn.Parameter]], decayed: set[str], optim: Optim) -> list[dict[str, object]]:
    """Parameters that share a learning rate and a weight decay, in the order of the model."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained:
        lr = getattr(optim.lrs, part_of(name)) or optim.lr
        groups.setdefault((lr, optim.weight_decay if name in decayed else 0.0), []).append(parameter)
    return [{"params": parameters, "lr": lr, "weight_decay": decay} for (lr, decay), parameters in groups.items()]
