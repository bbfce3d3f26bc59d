"""Every ZeRO stage: the same training as plain PyTorch's, and a kill that changes nothing."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from mmjobs.data.encode import Processor
from mmjobs.data.formats.shapes import example
from mmjobs.data.sampler import position, seed_of
from mmjobs.model import parts
from mmjobs.model.build import build
from mmjobs.model.parts import decays
from mmjobs.model.toys import models as toys
from mmjobs.model.toys import tokenizers
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.model import Model

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]
LORA = {
    "model__train": {"vision": "frozen", "language": "lora"},
    "model__lora": {"rank": 2, "alpha": 4, "dropout": 0.1},
}


def alone(recipe: Recipe, steps: int) -> list[float]:
    """The losses of a plain loop over whole global batches, one example at a time."""
    torch.manual_seed(seed_of("model", recipe.seed))
    built = build(recipe.model)
    processor = Processor(built.chat, built.pixels, recipe.data.max_tokens)
    network: Any = built.network.train()
    decayed = decays(network)
    trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in trained if (name in decayed) == wanted], "weight_decay": decay}
        for wanted, decay in ((True, recipe.optim.weight_decay), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.optim.lr, betas=(0.9, 0.95), eps=recipe.optim.eps)
    losses, rows = [], recipe.data.train[0].limit or 0
    for step in range(steps):
        encoded = [
            processor.encode(example(position(index, rows, recipe.seed)))
            for index in range(step * recipe.batch.examples, (step + 1) * recipe.batch.examples)
        ]
        units = sum(len(one.answers[0]) for one in encoded)
        total = 0.0
        for one in encoded:
            ids = torch.tensor([one.prompt.ids + one.answers[0].ids])
            logits = network(input_ids=ids, **one.image_inputs).logits[0, len(one.prompt) - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, ids[0, len(one.prompt) :], reduction="sum") / units
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_([parameter for _, parameter in trained], recipe.optim.clip)
        half = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = recipe.optim.lr * half
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


PACKED, EVEN = {"tokens_per_gpu": 96}, {"micro": 2}


@pytest.mark.parametrize(
    ("stage", "batch", "saving"), [(0, EVEN, "off"), (1, PACKED, "on"), (2, EVEN, "off"), (3, PACKED, "on")]
)
def test_it_is_the_training_of_plain_pytorch(
    job: Jobs, tiny: Recipes, stage: int, batch: dict[str, int], saving: str
) -> None:
    recipe = tiny(
        deepspeed__stage=stage, batch={"global": 8, **batch}, data__max_tokens=64, optim__weight_decay=0.1,
        optim__warmup="0 steps", optim__clip=0.3, steps=5, model__activation_checkpointing=saving,
        evaluate__samples=1,
    )  # fmt: skip
    run = job(f"stage-{stage}")
    assert run.run(recipe, 2, MMLAUNCH_HANG_SECONDS="20") == [0, 0], run.log()
    assert [values[0] for values in run.losses().values()] == pytest.approx(alone(recipe, 5), rel=2e-5)
    assert len(run.events("evaluated")[-1]["samples"]) == 1


EACH_WAY = [(0, "fp32", "none"), (1, "bf16", "none"), (2, "fp32", "optimizer")]
"""Stages, precisions and offload; another number of ranks resumes stage 3 every day."""
OTHERS = [
    (3, "bf16", "all"),
    *(way for way in product([0, 1, 2, 3], ["fp32", "bf16"], ["none"]) if way not in EACH_WAY),
]


@pytest.mark.parametrize(
    ("stage", "precision", "offload"), [*EACH_WAY, *(pytest.param(*way, marks=pytest.mark.nightly) for way in OTHERS)]
)
def test_resumed_bit_for_bit(job: Jobs, tiny: Recipes, stage: int, precision: str, offload: str) -> None:
    changes = {
        "deepspeed": {"stage": stage, "offload": offload}, "precision": precision, "model__dropout": 0.1,
        "checkpoint__every": "3 steps", "batch__micro": 2, "steps": 14, **(LORA if stage in (1, 3) else {}),
    }  # fmt: skip
    whole, broken = job("whole"), job("broken")
    assert whole.run(tiny(**changes), 2) == [0, 0], whole.log()
    broken.start(tiny(**changes), 2)
    broken.when(7, saved=6)
    broken.kill()
    assert broken.run(tiny(**changes), 2) == [0, 0], broken.log()
    assert broken.events("resumed")
    for step, values in whole.losses().items():
        assert set(broken.losses()[step]) == set(values)
    one, other = whole.weights(14), broken.weights(14)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stage", [2, *(pytest.param(stage, marks=pytest.mark.nightly) for stage in (0, 3))])
def test_tied_weights_and_every_attention_are_saved_and_resumed(
    job: Jobs, tiny: Recipes, tmp_path: Path, stage: int
) -> None:
    folder = toys.gemma(tmp_path / "gemma")
    rows = [
        {"conversations": [{"from": "human", "value": f"{n}?"}, {"from": "gpt", "value": f"{n}!"}]} for n in range(9)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    changes = {
        "model": {"pretrained": str(folder)}, "deepspeed__stage": stage, "data__eval": [], "precision": "bf16",
        "data__train": {"path": str(tmp_path / "rows.json"), "format": "llava", "images": "none"},
        "batch": {"global": 4, "tokens_per_gpu": 128}, "data__max_tokens": 64,
    }  # fmt: skip
    run = job("tied")
    assert run.run(tiny(**changes, steps=2), 2) == [0, 0], run.log()
    assert run.run(tiny(**changes, steps=4), 2) == [0, 0], run.log()
    assert run.events("resumed")[0]["step"] == 2
    state = run.weights(4)
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
    mmca = job("mmca")
    changes = {"model__attention": "mmca", "model__projector": "pixel_shuffle", "deepspeed__stage": stage, "steps": 2}
    recipe = tiny(**changes, batch={"global": 4, "tokens_per_gpu": 128}, data__max_tokens=64)
    assert mmca.run(recipe, 2) == [0, 0], mmca.log()


def parts_of(folder: Path) -> dict[str, Any]:
    """A CLIP and a LLaMA on disk, whose tokenizer lacks the tokens for images and padding."""
    vision = {"path": str(toys.clip(folder / "clip"))}
    return {"vision": vision, "language": str(toys.llama(folder / "llama", tokenizers.llama2_tokenizer()))}


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("parts", "fp32"),
        pytest.param("whole", "fp32", marks=pytest.mark.nightly),
        pytest.param("export", "fp32", marks=pytest.mark.nightly),
        ("export", "bf16"),
    ],
)
def test_weights_that_are_divided_as_they_are_read(
    job: Jobs, tiny: Recipes, tmp_path: Path, kind: str, precision: str
) -> None:
    """The same training as with whole weights on every rank."""
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "parts": lambda: {**parts_of(tmp_path), "chat_template": "plain"},
        "whole": lambda: {"pretrained": str(toys.llava(tmp_path / "llava"))},
        "export": lambda: {
            "pretrained": str(toys.llava(tmp_path / "llava")),
            "init_from": str(toys.llava(tmp_path / "llava")),
            "train": {"vision": "frozen", "language": "lora"}, "lora": {"rank": 2, "alpha": 4},
        },
    }  # fmt: skip
    changes = {"model": makers[kind](), "batch": {"global": 4, "micro": 2}, "precision": precision, "steps": 4}
    found = {}
    for stage in (1, 3):
        run = job(f"stage-{stage}")
        assert run.run(tiny(**changes, deepspeed__stage=stage), 2) == [0, 0], run.log()
        found[stage] = [values[0] for values in run.losses().values()]
        assert run.events("ready")[0]["parameters"]["language"]["frozen" if kind == "export" else "trainable"] > 10_000
    assert found[3] == pytest.approx(found[1], rel=2e-5 if precision == "fp32" else 2e-3)


ONE_RANK = """
import json, sys
import torch.distributed as dist
from mmjobs.model import parts
from mmjobs.model.build import build
from mmjobs.engine.engine import building
from mmlaunch.recipe.model import Model
from mmlaunch.recipe.parts import part_of

dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
with building({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}):
    network = build(Model.model_validate(json.loads(sys.argv[1]))).network
empty = {part_of(name) for name, value in network.named_parameters() if not value.numel()}
kept = {part_of(name) for name, value in network.named_parameters() if value.numel()}
print(json.dumps({"empty": sorted(empty), "kept": sorted(kept), "counts": parts.counts(network)}))
"""


def test_no_rank_keeps_the_whole_of_what_it_reads(tmp_path: Path) -> None:
    model = {**parts_of(tmp_path), "chat_template": "plain"}
    done = subprocess.run(
        [sys.executable, "-c", ONE_RANK, json.dumps(model)],
        capture_output=True, text=True, check=False, env={**os.environ, "LOCAL_RANK": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["empty"] == ["embeddings", "language", "vision"] and found["kept"] == ["projector"]
    assert found["counts"] == parts.counts(build(Model.model_validate(model)).network)


@pytest.mark.parametrize(
    ("written", "planned", "saves"), [("auto", "on", True), ("auto", "off", False), ("off", "on", False)]
)
def test_activations_are_saved_as_the_plan_says(
    job: Jobs, tiny: Recipes, written: str, planned: str, saves: bool
) -> None:
    run = job("run")
    recipe = tiny(model__activation_checkpointing=written, steps=1, evaluate__samples=0)
    assert run.run(recipe, MMLAUNCH_CHECKPOINTING=planned) == [0], run.log()
    assert run.events("ready")[0]["activation_checkpointing"] is saves
