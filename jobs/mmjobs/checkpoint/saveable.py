"""What a checkpoint holds a folder of: an engine, or a model beside it that changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from mmjobs.engine.checkpoint_io import Files


class Saveable(Protocol):
    """Saved and loaded by all ranks together, in a folder of its own."""

    @property
    def layout(self) -> dict[str, Any]:
        """What it must have in common with the one that saved a checkpoint, to load it."""

    @property
    def divided(self) -> bool:
        """Whether each rank saves a part of its own, which other numbers of ranks cannot load as it is."""

    def weights_to_keep(self) -> Mapping[str, torch.Tensor] | None:
        """This rank's share of what no step changes; None if there is nothing, or the run keeps it already."""

    def kept_as(self, name: str) -> None:
        """The run keeps that under this name."""

    def snapshot(self, folder: Path) -> Files:
        """The files of this rank, in memory; somebody else writes them."""

    def load(self, folder: Path) -> None:
        """Take the state that as many ranks have saved."""

    def convert(self, folder: Path, converted: Path) -> Iterator[None]:
        """On one rank, prepare what another number of ranks has saved; each turn is a piece of the work."""

    def load_converted(self, folder: Path, converted: Path) -> None:
        """Take the state that `convert` has prepared."""


Engines = Mapping[str, Saveable]
"""By the name of the folder in a checkpoint."""
