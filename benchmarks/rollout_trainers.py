"""The two trainers of GRPO that rollout.py compares: whole steps on the same small LLaVA, prompts and rewards.

In the first steps both are given the same answers, of many lengths, in the place of those that they would generate:
losses and gradients have to be the same. Then each generates its own, all of one length: both have as much to do.
"""

from __future__ import annotations

import json
import random
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.contender import Turns
from benchmarks.preference_trainers import RECIPE, _rows

PROMPTS, ANSWERS, TOKENS, GIVEN, STEPS = 2, 4, 48, 3, 24
"""A step has so many prompts with so many answers of so many tokens; so many steps have answers that are given."""
SCORE = """\
def reward(answer, truth=None):
    return answer.count("a") + 0.1 * answer.count("b")
"""


def given(group: int, number: int) -> list[int]:
    """The tokens of an answer that both are given."""
    dice = random.Random(f"{group}-{number}")
    return [dice.randrange(97, 113) for _ in range(dice.randrange(TOKENS // 2, TOKENS + 1))]


def ours(line: Connection, data: Path, own: Path, options: dict[str, Any]) -> None:
    """A rank of mmlaunch: its source of rollouts, its loop, its engine."""
    from mmjobs.model.generate import Generated
    from mmjobs.rank.context import Context
    from mmjobs.rank.events import EventWriter
    from mmjobs.rank.position import Position
    from mmjobs.rank.ranks import join
    from mmjobs.rank.signals import StopRequest
    from mmjobs.rank.watchdog import Watchdog
    from mmjobs.rollout import generator
    from mmjobs.train.policy_setup import build_policy_trainer
    from mmlaunch.recipe.check import recipe_of
    from mmlaunch.run.paths import RunPaths
    from mmlaunch.submit.plan import deepspeed

    class Reporting(EventWriter):
        def write(self, kind: str, **fields: Any) -> None:
            if kind == "step":
                turns.more["phases"] = {name: value for name, value in fields.items() if name.startswith("seconds_")}
                turns.step(fields["loss"], fields["grad_norm"])

    replaced: Any = generator  # this process does nothing else
    generate, groups = replaced.generate, iter(range(PROMPTS * GIVEN))

    def generated(network: Any, prompts: Any, *arguments: Any) -> Any:
        numbers = [next(groups, None) for _ in prompts]
        if None in numbers:
            return generate(network, prompts, *arguments)
        answers = [given(int(group), number) for group in numbers if group is not None for number in range(ANSWERS)]
        return [Generated(ids, [0.0] * len(ids)) for ids in answers]

    replaced.generate = generated
    source = {"path": str(data / "rows.jsonl"), "format": "trl", "images": str(data)}
    sampling = {"answers": ANSWERS, "max_new_tokens": TOKENS, "min_new_tokens": TOKENS - 1, "prompts": PROMPTS}
    count = PROMPTS * ANSWERS
    objective = {"method": "grpo", "rewards": "score.py:reward", "sampling": sampling, "rollouts": count}
    train = RECIPE["model"]["train"]
    recipe = recipe_of(
        RECIPE
        | {"model": {"pretrained": str(data / "model"), "train": train}, "objective": objective}
        | {
            "data": RECIPE["data"] | {"train": source},
            "batch": {"global": count, "tokens_per_gpu": 4096},
            "steps": STEPS,
        }
    )
    paths, position = RunPaths(own / "run"), Position()
    paths.attempt(1).logs.mkdir(parents=True)
    paths.attempt(1).deepspeed.write_text(json.dumps(deepspeed(recipe, count, 1)))
    paths.plugin_files.mkdir(parents=True)
    paths.plugin_file("score.py").write_text(SCORE)
    with Watchdog(paths, position) as watch:
        ranks = join(watch)
        turns = Turns(line)
        build_policy_trainer(Context(recipe, paths, ranks, Reporting(paths, 1, True), position, StopRequest())).run()


def theirs(line: Connection, data: Path, own: Path, options: dict[str, Any]) -> None:
    """TRL's trainer on the same weights, prompts and rewards, in the same order."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import GRPOConfig, GRPOTrainer

    scope: dict[str, Any] = {}
    exec(SCORE, scope)
    groups = iter(range(PROMPTS * GIVEN))

    class Told(GRPOTrainer):
        def _generate_single_turn(self, prompt_ids: Any, *arguments: Any, **named: Any) -> Any:
            numbers = [next(groups, None) for _ in range(len(prompt_ids) // ANSWERS)]
            if None in numbers:
                return super()._generate_single_turn(prompt_ids, *arguments, **named)
            return [
                given(int(group), number) for group in numbers if group is not None for number in range(ANSWERS)
            ], None

        def log(self, logs: dict[str, float], *arguments: Any, **named: Any) -> None:
            super().log(logs, *arguments, **named)
            turns.step(logs["loss"], logs["grad_norm"])

    def rewards(completions: list[Any], **_: Any) -> list[float]:
        texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
        return [scope["reward"](text) for text in texts]

    config = GRPOConfig(
        output_dir=str(own / "trl"), use_cpu=True, bf16=False, max_steps=STEPS, learning_rate=RECIPE["optim"]["lr"],
        lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, shuffle_dataset=False, logging_steps=1,
        save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
        per_device_train_batch_size=PROMPTS * ANSWERS, num_generations=ANSWERS, max_completion_length=TOKENS,
        steps_per_generation=1, beta=0.0, temperature=1.0, top_p=1.0, top_k=0, gradient_checkpointing=False,
        generation_kwargs={"min_new_tokens": TOKENS},
    )  # fmt: skip
    processor = AutoProcessor.from_pretrained(data / "model")
    turns = Turns(line)
    model = AutoModelForImageTextToText.from_pretrained(data / "model", dtype=torch.float32)
    model.model.vision_tower.requires_grad_(False)
    rows = _rows(data, processor).remove_columns(["chosen", "rejected"])
    content = [{"type": "image"}, {"type": "text", "text": "\nWhat is it?"}]
    rows = rows.map(lambda row: {"prompt": [{"role": "user", "content": content}]})
    Told(model, reward_funcs=rewards, args=config, train_dataset=rows, processing_class=processor).train()
