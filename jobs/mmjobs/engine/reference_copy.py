"""The reference copy: the policy as it began, a model of its own that stays, or slowly follows the policy (TR-DPO)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from mmjobs.data.batch import Batch
from mmjobs.engine.checkpoint_io import Files
from mmjobs.engine.frozen import frozen_model
from mmjobs.objectives.forward import answer_token_log_probs
from mmlaunch.recipe.reference import ReferenceSync

FILE = "reference.safetensors"


class ReferenceCopy:
    """A reference model that runs at every step, under a ZeRO stage of its own."""

    def __init__(
        self,
        network: nn.Module,
        precision: str,
        settings: dict[str, Any],
        sync: ReferenceSync | None,
        first: bool,
        temperature: float = 1.0,
    ) -> None:
        """`first`: whether this rank writes the copy into checkpoints."""
        self._read = partial(answer_token_log_probs, temperature=temperature)
        self._model = frozen_model(network, precision, settings)
        self._network, self._sync, self._first = network, sync, first

    def __call__(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            log_probs: torch.Tensor = self._model(self._read, batch)
        return log_probs

    def follow(self, network: nn.Module, step: int) -> None:
        """After a step of the policy: every `sync.every` steps, move the weights towards the policy's."""
        if self._sync is None or step % self._sync.every:
            return
        with torch.no_grad():
            policy = dict(network.named_parameters())
            for name, parameter in self._network.named_parameters():
                parameter.lerp_(policy[name].to(parameter), self._sync.mix)

    @property
    def changes(self) -> bool:
        """Whether a checkpoint has to hold it."""
        return self._sync is not None

    @property
    def layout(self) -> dict[str, Any]:
        """A copy that changes is whole on every rank, so any checkpoint of it can be loaded."""
        return {}

    @property
    def divided(self) -> bool:
        return False

    def weights_to_keep(self) -> None:
        """All of them change."""

    def kept_as(self, name: str) -> None:
        """Nothing is kept."""

    def snapshot(self, folder: Path) -> Files:
        """The weights as a file in memory, on rank 0; all ranks have the same."""
        if not self._first:
            return {}
        state = {name: value.detach().cpu().contiguous().clone() for name, value in self._network.named_parameters()}
        return {folder / FILE: safetensors.torch.save(state)}

    def load(self, folder: Path) -> None:
        """Take the weights of a checkpoint."""
        saved = safetensors.torch.load_file(folder / FILE)
        with torch.no_grad():
            for name, parameter in self._network.named_parameters():
                parameter.copy_(saved[name])

    def convert(self, folder: Path, converted: Path) -> Iterator[None]:
        """Nothing is divided, so nothing has to be converted."""
        return iter(())

    def load_converted(self, folder: Path, converted: Path) -> None:
        self.load(folder)
