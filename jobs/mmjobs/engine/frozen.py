"""Frozen models: a reference model or a reward model that answers and never learns."""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from torch import nn

from mmjobs.engine.engine import Step, cast_to_half


def frozen_model(network: nn.Module, precision: str, settings: dict[str, Any]) -> nn.Module:
    """A model that is called like an engine, `model(read, batch)`, in the precision of the run.

    At ZeRO stage 3 each rank keeps its share of the weights; below, each has all of them.
    """
    network.requires_grad_(False).eval()
    cast_to_half(network, settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autocast = precision == "bf16" and not settings["bf16"]["enabled"]
    step = Step(network, lambda: torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast))
    if settings["zero_optimization"]["stage"] < 3:
        return step.to(device)
    inference = {key: value for key, value in settings.items() if key not in ("optimizer", "scheduler")}
    zero = {key: value for key, value in settings["zero_optimization"].items() if key != "offload_optimizer"}
    config = {**inference, "zero_optimization": zero}
    engine: nn.Module = deepspeed.initialize(model=step, config=config, dist_init_required=False)[0]
    return engine
