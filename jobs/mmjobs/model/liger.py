"""Liger's layers: norms and MLPs of the language model in one kernel each, which reads and writes memory once.

They compute what transformers' layers compute, and keep the names of the weights. What else Liger has is not used: the
logits of a batch never exist here (`log_probs`), and its rotary positions replace a function of the whole process.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from mmjobs.model.sharded import shape, undivided
from mmlaunch.errors import BadInput

log = logging.getLogger(__name__)
_SMALLEST = SimpleNamespace(hidden_size=1, intermediate_size=1, hidden_act="silu")
"""The configuration of an MLP whose linear layers are replaced at once."""


def use(network: Any) -> None:
    """Put them in the place of those layers of a language model that they equal."""
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        log.warning("model.liger: its kernels need a GPU; here transformers' own layers compute the same")
        return
    if importlib.util.find_spec("liger_kernel") is None:
        what = "model.liger needs liger-kernel, and this machine has none"
        raise BadInput(f"{what}; install it there: pip install 'mmlaunch[liger]'")
    decoder, count = network.get_decoder(), 0
    for path, layer in list(decoder.named_modules()):
        if (new := _in_place_of(layer)) is not None:
            parent, _, name = path.rpartition(".")
            setattr(decoder.get_submodule(parent), name, new.train(layer.training))
            count += 1
    if not count:
        kind = network.config.get_text_config().model_type
        log.warning(f"model.liger: Liger has no layer that equals those of a model of type {kind}; they stay")


def _in_place_of(layer: Any) -> nn.Module | None:
    """Liger's layer with the same weights; None where it would compute something else.

    Each family of transformers has classes of its own, with the same code wherever they compute the same.
    """
    if _computes_like(layer, LlamaRMSNorm) and hasattr(layer, "variance_epsilon"):
        norms = importlib.import_module("liger_kernel.transformers.rms_norm")
        with torch.device("meta"), undivided():
            norm: nn.Module = norms.LigerRMSNorm(shape(layer.weight)[0], eps=layer.variance_epsilon)
        norm.weight = layer.weight
        return norm
    if _computes_like(layer, LlamaMLP) and type(layer.act_fn) is type(ACT2FN["silu"]):
        mlps = importlib.import_module("liger_kernel.transformers.swiglu")
        with torch.device("meta"), undivided():
            mlp: nn.Module = mlps.LigerSwiGLUMLP(_SMALLEST)
        mlp.gate_proj, mlp.up_proj, mlp.down_proj = layer.gate_proj, layer.up_proj, layer.down_proj
        return mlp
    return None


def _computes_like(layer: nn.Module, known: type[nn.Module]) -> bool:
    codes = [getattr(one.forward, "__code__", None) for one in (type(layer), known)]
    ours, theirs = ((code.co_code, code.co_names, code.co_consts) if code else None for code in codes)
    return ours is not None and ours == theirs
