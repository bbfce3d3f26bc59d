"""The frozen copy: the model as it began, kept beside the one that learns, or slowly following it (TR-DPO)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from mmjobs.data.batch import Batch
from mmjobs.engine.engine import answering
from mmjobs.objectives.forward import answer_token_log_probs
from mmlaunch.recipe.objective import ReferenceSync

FILE = "reference.safetensors"


class ReferenceCopy:
    """A reference that is asked at every step, under a ZeRO stage of its own."""

    def __init__(
        self, network: nn.Module, precision: str, settings: dict[str, Any], sync: ReferenceSync | None
    ) -> None:
        self._network, self._sync = network.requires_grad_(False).eval(), sync
        self._answering = answering(network, precision, settings)

    def __call__(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = self._answering(answer_token_log_probs, batch)
        return found

    def stepped(self, network: nn.Module, step: int) -> None:
        """The policy has finished a step; now and then it draws the copy after it."""
        if self._sync is None or step % self._sync.every:
            return
        with torch.no_grad():
            leads = dict(network.named_parameters())
            for name, own in self._network.named_parameters():
                own.lerp_(leads[name].to(own), self._sync.mix)

    @property
    def moves(self) -> bool:
        """Whether a checkpoint has to hold it."""
        return self._sync is not None

    def content(self) -> bytes:
        """What a checkpoint holds of it."""
        state = {name: value.detach().cpu().contiguous().clone() for name, value in self._network.named_parameters()}
        return safetensors.torch.save(state)

    def load(self, folder: Path) -> None:
        """Where it stood at a checkpoint."""
        saved = safetensors.torch.load_file(folder / FILE)
        with torch.no_grad():
            for name, own in self._network.named_parameters():
                own.copy_(saved[name])
