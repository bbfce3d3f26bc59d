"""What of an example a method needs and does not find; the label of an answer without a pair."""

from __future__ import annotations

from mmjobs.data.example import Example
from mmlaunch.recipe.requirements import Requirements

_YES, _NO = ("true", "1"), ("false", "0")


def missing(requirements: Requirements, example: Example) -> str | None:
    """Why this example cannot be used, if it cannot."""
    count, least = len(example.answers), requirements.least
    if count < least:
        if requirements.labelled and count == 1:
            if unpaired_label(example):
                return None
            return f"has one answer, and its label is {example.label!r}; write true or false, or a second answer"
        return f"has {count} of {least} answers to learn from" if least > 1 else "has no answer to learn from"
    if requirements.scores and any(answer.score is None for answer in example.answers[: requirements.most]):
        return "has no score for each answer, and the objective is made of their gaps"
    return None


def unpaired_label(example: Example) -> int:
    """1 for a single answer that is desirable, -1 for one that is not, 0 where there are several or nobody knows."""
    label = (example.label or "").lower()
    return 0 if len(example.answers) != 1 else 1 if label in _YES else -1 if label in _NO else 0
