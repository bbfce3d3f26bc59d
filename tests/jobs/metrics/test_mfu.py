"""Useful arithmetic: equal to what torch counts in a real step, and no share of a peak that nobody knows."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmjobs.data.batch import collate
from mmjobs.data.encode import Processor
from mmjobs.data.formats import shapes
from mmjobs.metrics import mfu
from mmjobs.metrics.mfu import ModelFlops, peak
from mmjobs.metrics.throughput import Throughput
from mmjobs.model.build import build
from mmjobs.objectives.sft import Sft
from mmjobs.rank.position import Position
from mmjobs.rank.ranks import Ranks
from mmjobs.rank.watchdog import Watchdog
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.requirements import Requirements
from mmlaunch.run.paths import RunPaths

VISION = {"random": {"width": 32, "layers": 2, "heads": 2, "image_size": 128, "patch": 8}, "feature_layer": -1}
LANGUAGE = {"random": {"width": 64, "layers": 8, "heads": 2, "max_positions": 1024}}
MATRICES = ("mm", "addmm", "convolution", "convolution_backward")


def counted(step: Callable[[], Any]) -> float:
    """What torch counts of a step, without attention: it counts the half that is masked too."""
    with FlopCounterMode(display=False) as counter:
        step()
    counts = counter.get_flop_counts()["Global"]
    return float(sum(flop for name, flop in counts.items() if str(name).split(".")[-1] in MATRICES))


@pytest.mark.parametrize(
    "train",
    [
        {"vision": "full", "projector": "full", "language": "full"},
        {"vision": "frozen", "projector": "full", "language": "full"},
        {"vision": "frozen", "projector": "full", "language": "frozen"},
        {"vision": "frozen", "projector": "frozen", "language": "lora"},
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_it_is_what_a_step_computes(tiny: Callable[..., Recipe], train: dict[str, str], packed: bool) -> None:
    lora = {"model__lora": {"rank": 4, "alpha": 4}} if train["language"] == "lora" else {}
    recipe = tiny(model__vision=VISION, model__language=LANGUAGE, model__train=train, **lora)
    built = build(recipe.model)
    processor = Processor(built.chat, built.pixels, built.positions, requirements=Requirements(most=1))
    batch = collate([processor.encode(shapes.example(row)) for row in (0, 0)], built.pixels, 0, packed)
    work = ModelFlops.of(built.network, peak=1e12)
    done = counted(lambda: Sft()(built.network, batch).loss.backward())
    attention = work.squares * 2 * batch.ids.numel() ** 2 / 4
    assert work.flop(batch) - attention == pytest.approx(done, rel=0.03)


def test_attention_and_padding(tiny: Callable[..., Recipe]) -> None:
    built = build(tiny(model__language=LANGUAGE).model)
    processor = Processor(built.chat, built.pixels, built.positions, requirements=Requirements(most=1))
    found = [processor.encode(shapes.example(row)) for row in range(5)]
    lengths = [len(one.prompt.ids) + len(one.answers[0].ids) for one in found]
    assert len(set(lengths)) > 1
    work = ModelFlops.of(built.network, peak=1e12)
    padded, packed = (work.flop(collate(found, built.pixels, 0, packed)) for packed in (False, True))
    assert padded == packed == pytest.approx(sum(work.flop(collate([one], built.pixels, 0)) for one in found))
    # scores and their sums over values: 2 x 2 T^2 D in each of 8 layers, half of it masked; twice as much backward
    assert work.squares == 8 * (2 * 2 * 64) / 2 * 3


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "fp16", 756e12),
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA GH200 480GB", "bf16", 989e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("NVIDIA A40", "bf16", 149.7e12),
        ("Tesla V100-SXM2-32GB", "fp16", 125e12),
        ("Tesla V100-SXM2-32GB", "bf16", None),
        ("NVIDIA H100 80GB HBM3", "fp32", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("NVIDIA H100 NVL", "bf16", None),
        ("NVIDIA A4000", "bf16", None),
        ("NVIDIA GeForce RTX 4090", "bf16", None),
    ],
)
def test_peaks_of_known_devices_only(device: str, precision: str, expected: float | None) -> None:
    assert peak(device, precision) == expected


class Alone(Ranks):
    """The only rank: sums are its own."""

    def sums(self, *values: float) -> list[float]:
        return list(values)


ALONE = Alone(0, 1, Watchdog(RunPaths(Path("nowhere")), Position()))


def test_no_guess_on_cpu(tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(tiny().model).network
    assert mfu.model_flops(network, "bf16") is None
    assert "mfu" not in Throughput(ALONE, 8, None, None).rates().as_fields()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A40")
    flops = mfu.model_flops(network, "bf16")
    assert flops is not None and flops.peak == 149.7e12 and mfu.model_flops(network, "fp32") is None


def test_rates_are_those_since_the_last_log_line(tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(tiny().model)
    batch = collate(
        [
            Processor(built.chat, built.pixels, built.positions, requirements=Requirements(most=1)).encode(
                shapes.example(0)
            )
        ],
        built.pixels,
        0,
    )
    clock = iter([10.0, 12.0, 14.0, 15.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    flops = ModelFlops.of(built.network, peak=1e6)
    throughput = Throughput(ALONE, 8, None, flops)
    for _ in range(2):
        throughput.step([batch, batch])
    fields = throughput.rates().as_fields()
    assert fields["mfu"] == pytest.approx(4 * flops.flop(batch) / 4 / 1e6, abs=1e-4) and fields["rate"] == 4
    assert fields["tokens_per_second"] == int(batch.loss_mask.sum()) and fields["fill"] == 1
    throughput.step([batch])
    assert throughput.rates().as_fields()["mfu"] == pytest.approx(flops.flop(batch) / 1 / 1e6, abs=1e-4)
