"""Liger's layers: norms and MLPs of the language model in one kernel each, which reads and writes memory once.

They compute what transformers' layers compute, and keep the names of the weights. What else Liger has is not used: the
logits of a batch never exist here (`log_probs`), and its rotary positions replace a function of the whole process.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from typing import Any

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralMLP, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm

from mmjobs.model.sharded import shape, undivided
from mmlaunch.errors import BadInput

log = logging.getLogger(__name__)
_NORMS = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm)
_MLPS = (LlamaMLP, MistralMLP, Qwen2MLP, Qwen3MLP)
_SILU = ("silu", "swish")


def use(network: Any) -> None:
    """Put them in the place of those layers of a language model that they equal."""
    if importlib.util.find_spec("liger_kernel") is None:
        what = "model.liger needs liger-kernel, and this machine has none"
        raise BadInput(f"{what}; install it there: pip install 'mmlaunch[liger]'")
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        log.warning("model.liger: its kernels need a GPU; here transformers' own layers compute the same")
        return
    decoder, text, count = network.get_decoder(), network.config.get_text_config(), 0
    for path, layer in list(decoder.named_modules()):
        new = _norm(layer) if type(layer) in _NORMS else _mlp(layer, text) if type(layer) in _MLPS else None
        if new is not None:
            parent, _, name = path.rpartition(".")
            setattr(decoder.get_submodule(parent), name, new.train(layer.training))
            count += 1
    if not count:
        what = f"Liger has no layer that equals those of a model of type {text.model_type}"
        raise BadInput(f"model.liger: {what}; remove it")


def _norm(layer: Any) -> nn.Module:
    norms = importlib.import_module("liger_kernel.transformers.rms_norm")
    with torch.device("meta"), undivided():
        new: nn.Module = norms.LigerRMSNorm(shape(layer.weight)[0], eps=layer.variance_epsilon)
    new.weight = layer.weight
    return new


def _mlp(layer: Any, config: Any) -> nn.Module | None:
    """Around the linear layers that are there; None where the activation is another one."""
    if config.hidden_act not in _SILU:
        return None
    mlps = importlib.import_module("liger_kernel.transformers.swiglu")
    with torch.device("meta"), undivided():
        new: nn.Module = mlps.LigerSwiGLUMLP(config)
    new.gate_proj, new.up_proj, new.down_proj = layer.gate_proj, layer.up_proj, layer.down_proj
    return new
