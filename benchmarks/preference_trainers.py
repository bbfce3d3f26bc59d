"""The two trainers that preference.py and agreement.py compare, and what both of them start from."""

from __future__ import annotations

import hashlib
import json
import random
import re
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.contender import Turns

PAIRS, ROWS = 2, 48
"""A step has so many; there are so many in all."""
ANSWER, SPREAD = 140, 0.2  # tokens of an answer, log-normal; none is shorter than 3/7 or longer than 13/7 of it
RECIPE: dict[str, Any] = {
    "name": "bench",
    "model": {
        "vision": {"random": {"width": 128, "layers": 6, "heads": 4, "image_size": 336, "patch": 14}},
        "language": {"random": {"width": 512, "layers": 8, "heads": 8, "max_positions": 2048}},
        "train": {"vision": "frozen", "projector": "full", "language": "full"},
    },
    "data": {"train": {"format": "shapes", "limit": 1}, "workers": 0, "max_tokens": 1024},
    "objective": "dpo",
    "optim": {"lr": 1e-4, "schedule": "constant", "weight_decay": 0.0, "betas": [0.9, 0.999]},
    "batch": {"global": PAIRS, "tokens_per_gpu": 4096},
    "steps": ROWS // PAIRS,
    "precision": "fp32",
    "evaluate": {"samples": 0},
    "checkpoint": {"every": "100000 steps"},
    "log": {"every": 1, "tensorboard": False},
    "resources": {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1, "cpus_per_rank": 1},
}
LORA: dict[str, Any] = {"rank": 16, "alpha": 32, "dropout": 0.0}


def write(
    data: Path,
    vocabulary: int,
    model: dict[str, Any] = RECIPE["model"],
    count: int = ROWS,
    half: bool = False,
    answer: int = ANSWER,
) -> None:
    """The weights that both start from, and drawings with two answers each; a byte is a token."""
    import torch

    from mmjobs.data.formats import shapes
    from mmjobs.model.build import build
    from mmlaunch.recipe.check import recipe_of

    torch.manual_seed(0)
    built = build(recipe_of(RECIPE | {"model": model}).model)
    built.network.resize_token_embeddings(vocabulary, mean_resizing=False)
    if half:
        torch.nn.Module.to(built.network, torch.bfloat16)
    built.network.save_pretrained(data / "model")
    built.processor.save_pretrained(data / "model")
    dice, rows = random.Random(0), []
    for number in range(count):
        side = model["vision"]["random"]["image_size"]
        shapes.example(number).images[0].open().resize((side, side)).save(data / f"{number}.png")
        lengths = [round(answer * min(13 / 7, max(3 / 7, dice.lognormvariate(0, SPREAD)))) for _ in range(2)]
        chosen, rejected = ("".join(dice.choice("abcdefghijklmnop") for _ in range(length)) for length in lengths)
        rows.append({"images": [f"{number}.png"], "prompt": "What is it?", "chosen": chosen, "rejected": rejected})
    (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def same_adapters(network: Any) -> None:
    """Adapters begin with random numbers: with the same ones under either trainer's names."""
    import torch

    for name, value in network.named_parameters():
        if "lora_A" in name:
            layer = re.sub(r"^(base_model\.model\.)?|\.lora_A.*$", "", name)
            seed = int.from_bytes(hashlib.blake2b(layer.encode(), digest_size=4).digest(), "big")
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                value.copy_(torch.rand(value.shape, generator=generator) * 0.1 - 0.05)


def ours(line: Connection, data: Path, own: Path, options: dict[str, Any]) -> None:
    """A rank of mmlaunch: its session, its loop, its engine."""
    from mmjobs.model import last_layer, log_probs
    from mmjobs.rank.context import Context
    from mmjobs.rank.events import EventWriter
    from mmjobs.rank.position import Position
    from mmjobs.rank.ranks import join
    from mmjobs.rank.signals import StopRequest
    from mmjobs.rank.watchdog import Watchdog
    from mmjobs.train import datasets, setup
    from mmlaunch.recipe.check import recipe_of
    from mmlaunch.run.paths import RunPaths
    from mmlaunch.submit.plan import deepspeed

    class Reporting(EventWriter):
        def write(self, kind: str, **fields: Any) -> None:
            if kind == "step":
                turns.more["mfu"] = fields.get("mfu")
                turns.step(fields["loss"], fields["grad_norm"])

    replaced: Any = setup  # this process does nothing else
    precompute = replaced.precompute_reference

    def timed(*arguments: Any) -> Any:
        began = turns.meter.seconds()
        store = precompute(*arguments)
        turns.more["reference"] = (turns.meter.seconds() - began) / len(store)
        return store

    replaced.precompute_reference = timed
    if options.get("whole_logits"):
        log_probs.use = lambda network: None
    if options.get("whole_layer"):
        last_layer.use = lambda network: None
    if options.get("rows"):
        datasets.shares_rows = lambda recipe, built, requirements: False
    pairs, recipe = options.get("pairs", PAIRS), recipe_of(recipe_for(data, options))
    paths, position = RunPaths(own / "run"), Position()  # alone there: runs side by side share their references
    paths.attempt(1).logs.mkdir(parents=True)
    paths.attempt(1).deepspeed.write_text(json.dumps(deepspeed(recipe, pairs, 1)))
    with Watchdog(paths, position) as watch:
        ranks = join(watch)
        turns = Turns(line)
        context = Context(recipe, paths, ranks, Reporting(paths, 1, True), position, StopRequest())
        built = setup.build_model(context)
        same_adapters(built.network)
        setup.build_trainer(context, built).run()


def recipe_for(data: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The recipe of ours with these options."""
    train = RECIPE["model"]["train"] | ({"projector": "frozen", "language": "lora"} if options.get("lora") else {})
    lora = LORA | {"rank": options.get("rank", LORA["rank"])}
    changed = {"pretrained": str(data / "model"), "train": train, **({"lora": lora} if options.get("lora") else {})}
    changed["activation_checkpointing"] = "on" if options.get("checkpointing") else "off"
    changed["liger"] = bool(options.get("liger"))
    source = {"path": str(data / "rows.jsonl"), "format": "trl", "images": str(data)}
    pairs, tokens = options.get("pairs", PAIRS), options.get("tokens", RECIPE["batch"]["tokens_per_gpu"])
    batch = {"global": pairs, "micro": pairs} if options.get("rows") else {"global": pairs, "tokens_per_gpu": tokens}
    return (
        RECIPE
        | {"model": changed, "data": RECIPE["data"] | {"train": source, "workers": options.get("workers", 0)}}
        | {"batch": batch, **({"profile": options["profile"]} if "profile" in options else {})}
        | {"objective": options.get("objective", "dpo"), "steps": options.get("steps", RECIPE["steps"])}
        | (_on_gpu(options) if options.get("gpu") else {})
    )


def _on_gpu(options: dict[str, Any]) -> dict[str, Any]:
    """Half precision; as a whole with half states, or the weights would not fit."""
    whole = {} if options.get("lora") else {"deepspeed": {"stage": 1, "optimizer_states": "bf16"}}
    return {"precision": "bf16", "resources": RECIPE["resources"] | {"gpus_per_node": 1}} | whole


def theirs(line: Connection, data: Path, own: Path, options: dict[str, Any]) -> None:
    """TRL's trainer on the same weights and rows, in the same order."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import DPOConfig, DPOTrainer
    from trl.trainer import utils

    gpu = bool(options.get("gpu"))
    if options.get("compact") and not gpu:  # as on a GPU: the head scores the answers' tokens only
        utils._use_triton = lambda device: True

    class Told(DPOTrainer):
        def log(self, logs: dict[str, float], *arguments: Any, **named: Any) -> None:
            super().log(logs, *arguments, **named)
            turns.step(logs["loss"], logs["grad_norm"])

    config = DPOConfig(
        output_dir=str(own / "trl"), use_cpu=not gpu, bf16=gpu, max_length=None,
        max_steps=options.get("steps", RECIPE["steps"]),
        learning_rate=RECIPE["optim"]["lr"], lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0,
        train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", report_to="none",
        disable_tqdm=True, dataloader_pin_memory=gpu, per_device_train_batch_size=options.get("pairs", PAIRS),
        gradient_checkpointing=bool(options.get("checkpointing")), **options.get("config", {}),
    )  # fmt: skip
    processor = AutoProcessor.from_pretrained(data / "model")
    turns = Turns(line)
    model = AutoModelForImageTextToText.from_pretrained(data / "model", dtype=torch.bfloat16 if gpu else torch.float32)
    model.model.vision_tower.requires_grad_(False)
    adapter = None
    if options.get("lora"):
        linear = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
        adapter = LoraConfig(
            r=options.get("rank", LORA["rank"]),
            lora_alpha=LORA["alpha"],
            lora_dropout=LORA["dropout"],
            target_modules=linear,
        )
    trainer = Told(
        model, args=config, train_dataset=_rows(data, processor), processing_class=processor, peft_config=adapter
    )
    same_adapters(trainer.model)
    trainer.train()


def _rows(data: Path, processor: Any) -> Any:
    """TRL's columns: the text before the answers as the chat template has it, the answers with their end, the image."""
    import datasets  # type: ignore[import-untyped]

    from mmjobs.data.sampler import position

    rows = [json.loads(line) for line in (data / "rows.jsonl").read_text().splitlines()]
    columns: dict[str, list[Any]] = {"prompt": [], "chosen": [], "rejected": [], "images": []}
    for row in (rows[position(index, len(rows), 0)] for index in range(len(rows))):
        content = [{"type": "image"}, {"type": "text", "text": "\n" + row["prompt"]}]  # as ours puts it
        message = [{"role": "user", "content": content}]
        columns["prompt"].append(processor.apply_chat_template(message, add_generation_prompt=True))
        for name in ("chosen", "rejected"):
            columns[name].append(row[name] + processor.tokenizer.eos_token)
        columns["images"].append([str(data / row["images"][0])])
    return datasets.Dataset.from_dict(columns).cast_column("images", datasets.List(datasets.Image()))
