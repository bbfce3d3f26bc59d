"""What a method needs to see in an example: answers, scores, labels, images that are corrupted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Requirements:
    """The defaults ask for one answer and look at everything."""

    least: int = 1
    """Answers that an example needs."""
    most: int | None = None
    """Answers that are used, the best first; None: all."""
    room: int = 1
    """Tokens that are kept free behind a prompt, for what is generated."""
    prompts: bool = True
    """Whether the earlier answers of a conversation are in the loss as well."""
    scores: bool = False
    """Whether each answer needs a score."""
    corrupted: bool = False
    """Whether the chosen answer is also computed with a corrupted image."""
    mismatched: bool = False
    """Whether an answer to another prompt is computed too."""
    labelled: bool = False
    """Whether one answer is enough where a label says if it is desirable."""
