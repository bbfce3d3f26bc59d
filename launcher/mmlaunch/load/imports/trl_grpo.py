"""The arguments of TRL's GRPO: rewards, how answers are generated, what is averaged."""

from __future__ import annotations

from typing import Any

from mmlaunch.load.imports.configuration import Configuration, words_of
from mmlaunch.load.imports.draft import Draft

ANSWER = 256
"""Tokens of the longest answer, where GRPO's configuration does not say it."""
REWARDS: dict[str, dict[str, Any]] = {
    "accuracy_reward": {"function": "math"},
    "think_format_reward": {"function": "format", "options": {"pattern": r"<think>(?!.*<think>).*</think>.*"}},
}
"""The reward functions that come with TRL, and those here that score the same."""


def convert(config: Configuration, draft: Draft) -> None:
    """Write the objective."""
    draft.put("objective.method", "grpo")
    _rewards(config, draft)
    _sampling(config, draft)
    if weight := config.number("beta"):
        why = "each token weighted by its ratio, so that the gradient is that of KL; TRL does not"
        draft.put("objective.kl", {"weight": weight, "place": "loss", "form": "k3"}, why)
    for name, path in (
        ("epsilon", "clip"),
        ("epsilon_high", "clip_high"),
        ("num_iterations", "epochs"),
        ("delta", "dual_clip"),
    ):
        if (value := config.take(name)) is not None:
            draft.put(f"objective.{path}", value)
    means = {"grpo": "sequence", "dr_grpo": "constant", "bnpo": "token", "dapo": "token"}
    loss = str(config.take("loss_type", default="dapo"))
    if loss == "cispo":
        draft.put("objective.loss", "cispo")
    elif loss in means:
        draft.put("objective.aggregate", means[loss])
    else:
        draft.leave("loss_type", loss, "objective.loss: ppo, gspo or cispo; objective.aggregate says what is averaged")
    scale = config.take("scale_rewards", default="group")
    if scale in (False, "none"):
        draft.put("objective.advantage", "dr_grpo")
    elif scale == "batch":
        draft.leave("scale_rewards", scale, "objective.advantage: grpo divides by the spread of the group")


def _rewards(config: Configuration, draft: Draft) -> None:
    names = words_of(config.take("reward_funcs")) + words_of(config.take("reward_model_name_or_path"))
    weights = config.numbers("reward_weights", len(names), "reward functions")
    sources: list[dict[str, Any]] = []
    comments = {}
    for index, (name, weight) in enumerate(zip(names, weights, strict=True)):
        source: dict[str, Any] = dict(REWARDS.get(name, {}))
        if not source and "/" in name:
            source = {"path": name}
            comments[index] = "guess: a reward run of mmlaunch, or its export"
        elif not source:
            module, dot, function = name.rpartition(".")
            source = {"function": f"{module}:{function}" if dot else f"rewards.py:{name}"}
            comments[index] = "guess: a function of yours; its arguments differ from TRL's: docs/rewards.md"
        sources.append(source | ({} if weight == 1 else {"weight": weight}))
    if not sources:
        sources, comments = [{"function": "exact"}], {0: "guess: the configuration names no rewards"}
    draft.put("objective.rewards", sources)
    draft.comments.update({f"objective.rewards[{index}]": text for index, text in comments.items()})


def _sampling(config: Configuration, draft: Draft) -> None:
    sampling = {
        "answers": config.whole("num_generations", default=8),
        "max_new_tokens": config.whole("max_completion_length", default=ANSWER),
        "temperature": config.take("temperature", default=1.0),
    }  # fmt: skip
    draft.put("objective.sampling", sampling)
    for name in ("top_p", "top_k", "min_p"):
        value = config.take(name)
        if value not in (None, 1.0, 1, 0, -1):
            draft.leave(name, value, "GRPO learns from the whole distribution that answers are drawn from")


def put_rollouts(config: Configuration, draft: Draft) -> None:
    """How many answers there are between two rounds of generation; TRL counts answers where others count prompts."""
    total, answers = draft.get("batch.global"), draft.get("objective.sampling")["answers"]
    several, whole = config.whole("steps_per_generation"), config.whole("generation_batch_size")
    per_pass = draft.get("batch.micro") * draft.get("resources.nodes") * draft.get("resources.gpus_per_node")
    draft.put("objective.rollouts", whole or (per_pass * several if several else total))
    if answers > 0 and draft.get("batch.micro") % answers:
        micro = draft.values.pop("batch.micro")
        draft.leave(
            "per_device_train_batch_size", micro, f"a rank works on whole groups of {answers} answers at a time"
        )
