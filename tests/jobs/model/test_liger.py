"""Liger's layers: what they are put in place of, and that whole runs with them are the same runs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.conftest import ROOT
from tests.runs import ended, losses, submit, wait_for
from torch import nn
from transformers import (
    GemmaForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen2_5_VLTextModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from mmjobs.model import liger
from mmjobs.model.build import build
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe
from mmlaunch.run import ledger

Recipes = Callable[..., Recipe]
KERNELS = Path(os.environ.get("LIGER_FOLDER", ROOT / ".venv" / "liger"))
"""Where `make test-all` puts liger-kernel and Triton: beside the environment, since a CPU does not use them."""
INTERPRETED = """
import numpy
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime import interpreter

libdevice.rsqrt = lambda x: tl.rsqrt(x)
plain = interpreter._implicit_cvt


def convert(value):
    if isinstance(value, float):
        return tl.tensor(interpreter.TensorHandle(numpy.array([value], numpy.float32), tl.float32), tl.float32)
    return plain(value)


interpreter._implicit_cvt = convert
"""
"""What Triton's interpreter lacks for these kernels: a function of CUDA's own library, and numbers with a type."""
METHODS = {
    "sft": ["objective=sft", "model.train={vision: full}"],
    "dpo, an adapter": [
        "objective=dpo", "model.train={language: lora, projector: frozen}", "model.lora={rank: 4}",
    ],
}  # fmt: skip


@pytest.mark.nightly  # the kernels are interpreted
@pytest.mark.skipif(not KERNELS.exists(), reason="make test-all installs liger-kernel and Triton")
@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_with_them_is_the_same_run(small: Path, tmp_path: Path, method: str, stage: int) -> None:
    (tmp_path / "shims").mkdir()
    (tmp_path / "shims" / "sitecustomize.py").write_text(INTERPRETED)
    path = os.pathsep.join([str(tmp_path / "shims"), str(KERNELS)])
    options = [*METHODS[method], f"deepspeed.stage={stage}", "log.every=1", "batch.global=4"]
    arguments = [part for option in options for part in ("-s", option)]
    plain = submit(small, *arguments)
    wait_for(plain, ended)
    ours = submit(small, *arguments, "-s", "model.liger=true", PYTHONPATH=path, TRITON_INTERPRET="1")
    events = wait_for(ours, ended)
    expected = losses(list(ledger.read(plain.events)))
    assert events[-1]["state"] == "done" and len(expected) == 4
    assert losses(events) == pytest.approx(expected, rel=1e-5)
    assert losses(events) != expected, "they were computed by the same layers"


def test_without_a_gpu_the_layers_stay(tiny: Recipes, caplog: pytest.LogCaptureFixture) -> None:
    network: Any = build(tiny(model__liger=True).model).network
    assert type(network.get_decoder().norm) is LlamaRMSNorm
    assert "model.liger: its kernels need a GPU" in caplog.text


SMALL: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "norms", "mlps"),
    [(LlamaForCausalLM, 3, 1), (MistralForCausalLM, 3, 1), (Qwen2ForCausalLM, 3, 1), (Qwen3ForCausalLM, 5, 1),
     (Qwen2_5_VLTextModel, 3, 1), (GemmaForCausalLM, 0, 0)],
)  # fmt: skip
def test_what_they_equal_is_found_by_its_code(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: Any, norms: int, mlps: int
) -> None:
    """Liger itself is not needed for that: its layers are stood in for by empty ones."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    made: list[str] = []

    def layer(name: str) -> Any:
        def make(*arguments: Any, **named: Any) -> nn.Module:
            made.append(name)
            return nn.Module()

        return make

    stand_in = SimpleNamespace(LigerRMSNorm=layer("norm"), LigerSwiGLUMLP=layer("mlp"))
    imports = SimpleNamespace(util=importlib.util, import_module=lambda name: stand_in)
    monkeypatch.setattr(liger, "importlib", imports)
    network = kind(kind.config_class(**SMALL, head_dim=8))
    if not hasattr(network, "get_decoder"):
        network.get_decoder = lambda: network
    liger.use(network)
    assert (made.count("norm"), made.count("mlp")) == (norms, mlps)
    assert ("no layer that equals" in caplog.text) == (not made)


def test_without_the_library_it_says_what_to_install(tiny: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BadInput, match=r"pip install 'mmlaunch\[liger\]'"):
        build(tiny(model__liger=True).model)
