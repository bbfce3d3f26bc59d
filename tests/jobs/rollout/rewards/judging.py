"""What a shipped reward function says of an answer, called as a worker calls it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mmjobs.rollout.rewards.call import Function
from mmjobs.rollout.rewards.score import Sample, Verdict
from mmlaunch.recipe.reward_functions import CONTEXT
from mmlaunch.recipe.rewards import RewardSource

RIGHT, WRONG, UNPARSED = (1.0, "right"), (0.0, "wrong"), (0.0, "unparsed")


def verdict(function: str, answer: str, *truths: str | None, prompt: str = "", **options: Any) -> Verdict:
    """What a recipe with these options would have the function say of an answer."""
    source = RewardSource.model_validate({"function": function, "options": options})
    known = tuple(truth for truth in truths if truth is not None)
    sample = Sample(prompt, answer, known[0] if known else None, "rows:1", finished=True, truths=known)
    return Function(function, None, source.keywords, CONTEXT)(asdict(sample))


def judge(function: str, answer: str, *truths: str | None, **more: Any) -> tuple[Any, str]:
    """The score and its kind."""
    judged = verdict(function, answer, *truths, **more)
    return judged.score, judged.kind
