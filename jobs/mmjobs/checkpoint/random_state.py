"""The random states of a rank, which dropout draws from."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from mmjobs.data.sampler import seed_of
from mmjobs.engine.universal import harmless


def seed(recipe_seed: int, rank: int, step: int) -> None:
    """A new state for this rank, which no other rank and no other step has."""
    torch.manual_seed(seed_of("rank", recipe_seed, rank, step))


def content() -> memoryview:
    """The states of this process as the bytes of a file."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    file = io.BytesIO()
    torch.save(states, file)
    return file.getbuffer()


def load(path: Path) -> None:
    """Continue with the states of a file."""
    with harmless(path):
        states = torch.load(path, weights_only=True)
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
