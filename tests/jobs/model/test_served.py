"""Served weights: what an engine reads is what a saved model holds, under the same names, with adapters merged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mmjobs.model import adapters, parts
from mmjobs.model.build import BuiltModel, build
from mmjobs.model.checksum import checksum
from mmjobs.model.served import Served, introduce
from mmjobs.model.toys import models as toys
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.model import Model
from mmlaunch.run.paths import SERVED

TRAIN = {"vision": "lora", "projector": "full", "language": "lora"}


def served(built: BuiltModel, folder: Path, precision: str = "fp32") -> dict[str, torch.Tensor]:
    introduce(built, precision, folder)
    checksums = Served(built.network, precision, folder, writes=True).write("7", lambda: None)
    index = json.loads((folder / SERVED).read_text())
    assert index["version"] == "7" and index["checksums"] == checksums
    found = {
        name: value for file in index["files"] for name, value in safetensors.torch.load_file(folder / file).items()
    }
    assert {name: list(checksum(value)) for name, value in found.items()} == checksums
    return found


def saved(network: Any, folder: Path) -> dict[str, torch.Tensor]:
    network.save_pretrained(folder)
    return {
        name: value
        for file in folder.glob("*.safetensors")
        for name, value in safetensors.torch.load_file(file).items()
    }


@pytest.mark.parametrize("kind", [{}, {"dora": True}])
def test_adapters_are_merged_on_the_way_and_stay(
    tiny: Callable[..., Recipe], tmp_path: Path, kind: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    built = build(tiny(model__lora={"rank": 4, "alpha": 8, **kind}, model__train=TRAIN).model)
    with torch.no_grad():
        for name, parameter in built.network.named_parameters():
            if parts.ADAPTER in name:
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    before = {name: value.clone() for name, value in built.network.state_dict().items()}
    found = served(built, tmp_path / "served")
    assert all(torch.equal(value, before[name]) for name, value in built.network.state_dict().items())
    adapters.merge(built.network)
    expected = saved(built.network, tmp_path / "saved")
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_names_are_those_of_the_family(tmp_path: Path, family: str) -> None:
    folder = toys.SEEING[family](tmp_path / family)
    built = build(Model.model_validate({"pretrained": str(folder)}))
    found, expected = served(built, tmp_path / "served", "bf16"), saved(built.network, tmp_path / "saved")
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], value.bfloat16()) for name, value in expected.items())


def test_a_network_of_our_own_is_served_by_nobody(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    built = build(tiny(model__attention="mmca").model)
    with pytest.raises(BadInput, match="no engine knows a model with this projector or this attention"):
        introduce(built, "fp32", tmp_path)
