"""The files of DeepSpeed's checkpoints: saved into memory, so that they can be written later; loaded without code."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

from mmjobs.engine import universal
from mmjobs.model.weights import FILE as WEIGHTS

torch.serialization.set_crc32_options(False)  # half the time of a save: the manifest has better sums
Files = dict[Path, bytes | memoryview]
"""The content of files to be written, as it was at the moment of the checkpoint."""

PREFIX = "network."
"""What DeepSpeed writes before the names of a network's parameters."""


class EngineFiles(TorchCheckpointEngine):  # type: ignore[misc]  # deepspeed has no types
    """DeepSpeed's checkpoint engine: it saves into memory, and loads no code."""

    def __init__(self) -> None:
        super().__init__()
        self.collected: Files = {}

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing: the folder is made when the files are written."""

    def save(self, state_dict: Any, path: str) -> None:
        """Save all but the weights, where one rank has all of them: they have a file of their own."""
        buffer = io.BytesIO()
        torch.save({**state_dict, "module": {}} if self._whole(path) else state_dict, buffer)
        self.collected[Path(path)] = buffer.getbuffer()

    def load(self, path: str, map_location: Any = None) -> Any:
        """Load without running code of the file: only tensors, containers and known classes of DeepSpeed.

        Frozen weights, which a run keeps once, are not among them.
        """
        with universal.harmless(Path(path)):
            state = torch.load(path, map_location=map_location, weights_only=True)
        if self._whole(path):
            weights = safetensors.torch.load_file(Path(path).parent.parent / WEIGHTS)
            state["module"] = {f"{PREFIX}{name}": value for name, value in weights.items()}
        return state

    @staticmethod
    def _whole(path: str) -> bool:
        """Whether a file holds the weights of the whole model; at stage 3 each rank has its own fragments."""
        return Path(path).name.startswith("mp_rank_")
