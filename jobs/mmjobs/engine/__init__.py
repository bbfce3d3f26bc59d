"""The DeepSpeed engine: gradients, updates, frozen models, and the files of its checkpoints.

DeepSpeed looks around while it is imported. What it should see is set here, before a module of this package needs it.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def _as_if_missing(package: str) -> Iterator[None]:
    """In this context an import of a package fails, unless it is imported already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # what Python takes for: there is none
    try:
        yield
    finally:
        del sys.modules[package]


os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
with _as_if_missing("mlflow"):  # its autotuner, which nobody uses here, would import it: a second on every rank
    import deepspeed
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo does the work, without a compiler and its minute
