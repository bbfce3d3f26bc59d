"""The two trainers that sft.py compares: each in a process of its own, each at work only when it is its turn."""

from __future__ import annotations

import json
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.contender import Turns

RECIPE: dict[str, Any] = {
    "name": "bench",
    "model": {
        "vision": {"random": {"width": 128, "layers": 4, "heads": 4, "image_size": 64, "patch": 16}},
        "language": {"random": {"width": 256, "layers": 4, "heads": 4, "max_positions": 1024}},
        "train": {"vision": "frozen", "projector": "full", "language": "full"},
    },
    "data": {"train": {"format": "shapes", "limit": 1}, "workers": 0, "max_tokens": 512},
    "objective": "sft",
    "optim": {"lr": 1e-4, "schedule": "constant", "weight_decay": 0.0},
    "batch": {"global": 16, "tokens_per_gpu": 512},
    "steps": 100_000,
    "precision": "fp32",
    "evaluate": {"samples": 0},
    "checkpoint": {"every": "100000 steps"},
    "log": {"every": 1, "tensorboard": False},
    "resources": {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1, "cpus_per_rank": 1},
}
BATCH: int = RECIPE["batch"]["global"]


def ours(line: Connection, data: Path, own: Path, options: dict[str, Any]) -> None:
    """A rank of mmlaunch: its session, its loop, its engine."""
    from mmjobs.rank.context import Context
    from mmjobs.rank.events import EventWriter
    from mmjobs.rank.position import Position
    from mmjobs.rank.ranks import join
    from mmjobs.rank.signals import StopRequest
    from mmjobs.rank.watchdog import Watchdog
    from mmjobs.train import setup
    from mmlaunch.recipe.check import recipe_of
    from mmlaunch.run.paths import RunPaths
    from mmlaunch.submit.plan import deepspeed

    class Reporting(EventWriter):
        def write(self, kind: str, **fields: Any) -> None:
            if kind == "step":
                turns.step(fields["loss"])

    source = {"path": str(data / "rows.json"), "format": "llava", "images": str(data)}
    model = RECIPE["model"] | {"init_from": str(data / "model")}
    recipe = recipe_of(RECIPE | {"model": model, "data": RECIPE["data"] | {"train": source}})
    paths, position = RunPaths(own), Position()
    paths.attempt(1).logs.mkdir(parents=True)
    paths.attempt(1).deepspeed.write_text(json.dumps(deepspeed(recipe, BATCH, 1)))
    with Watchdog(paths, position) as watch:
        ranks = join(watch)
        turns = Turns(line)
        context = Context(recipe, paths, ranks, Reporting(paths, 1, True), position, StopRequest())
        setup.build_trainer(context).run()


def theirs(line: Connection, data: Path, own: Path, options: dict[str, Any]) -> None:
    """TRL's trainer on the same weights and rows, in the same order."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import SFTConfig, SFTTrainer

    class Told(SFTTrainer):
        parts: tuple[float, ...] = ()

        def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
            part: torch.Tensor = super().training_step(*arguments, **named)
            self.parts = (*self.parts, part.item())  # of the mean over the tokens of all micro-batches
            return part

        def log(self, *arguments: Any, **named: Any) -> None:
            super().log(*arguments, **named)
            parts, self.parts = self.parts, ()
            turns.step(sum(parts))

    config = SFTConfig(
        output_dir=str(own / "trl"), use_cpu=True, bf16=False, max_length=None, max_steps=RECIPE["steps"],
        learning_rate=RECIPE["optim"]["lr"], lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0,
        train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", report_to="none",
        disable_tqdm=True, dataloader_pin_memory=False, **{"per_device_train_batch_size": BATCH, **options},
    )  # fmt: skip
    processor = AutoProcessor.from_pretrained(data / "model")
    rows = _rows(data, processor)
    turns = Turns(line)
    model = AutoModelForImageTextToText.from_pretrained(data / "model", dtype=torch.float32)
    model.model.vision_tower.requires_grad_(False)
    Told(model, config, train_dataset=rows, processing_class=processor).train()


def _rows(data: Path, processor: Any) -> Any:
    """TRL's columns: the text before the answer as the chat template has it, the answer with its end, the image."""
    import datasets  # type: ignore[import-untyped]

    from mmjobs.data.sampler import position

    rows = json.loads((data / "rows.json").read_text())
    columns: dict[str, list[Any]] = {"prompt": [], "completion": [], "images": []}
    for row in (rows[position(index, len(rows), 0)] for index in range(len(rows))):
        question, answer = (turn["value"] for turn in row["conversations"])
        content = [{"type": "image"}, {"type": "text", "text": question.removeprefix("<image>")}]
        message = [{"role": "user", "content": content}]
        columns["prompt"].append(processor.apply_chat_template(message, add_generation_prompt=True))
        columns["completion"].append(answer + processor.tokenizer.eos_token)
        columns["images"].append([str(data / row["image"])])
    return datasets.Dataset.from_dict(columns).cast_column("images", datasets.List(datasets.Image()))
