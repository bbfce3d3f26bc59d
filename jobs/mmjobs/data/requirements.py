"""What an objective looks at in an example."""

from __future__ import annotations

from dataclasses import dataclass

from mmjobs.data.example import Example
from mmlaunch.recipe.objective import Objective, Preference, Reward, Sft

_YES, _NO = ("true", "1"), ("false", "0")


@dataclass(frozen=True)
class Requirements:
    """The defaults are those of someone who wants to see everything."""

    least: int = 1
    """Answers that an example needs."""
    most: int | None = None
    """Answers that are looked at, the best first; None: all."""
    prompts: bool = True
    """Whether the earlier answers of a conversation are learnt as well."""
    scores: bool = False
    """Whether each answer needs a score."""
    corrupted: bool = False
    """Whether the chosen answer is looked at with spoiled images too."""
    mismatched: bool = False
    """Whether an answer to something else is looked at too."""
    labelled: bool = False
    """Whether one answer is enough where a label says if it is a good one."""

    def missing(self, example: Example) -> str | None:
        """Why this example cannot serve, if it cannot."""
        count = len(example.answers)
        if count < self.least:
            if self.labelled and count == 1:
                if unpaired_label(example):
                    return None
                return f"has one answer, and its label is {example.label!r}; write true or false, or a second answer"
            needed = f"{count} of {self.least} answers to learn from" if self.least > 1 else "no answer to learn from"
            return f"has {needed}"
        if self.scores and any(answer.score is None for answer in example.answers[: self.most]):
            return "has no score for each answer, and the objective is made of their gaps"
        return None


def unpaired_label(example: Example) -> int:
    """1 for a single answer that is desirable, -1 for one that is not, 0 where there are several or nobody knows."""
    label = (example.label or "").lower()
    return 0 if len(example.answers) != 1 else 1 if label in _YES else -1 if label in _NO else 0


def of(objective: Objective) -> Requirements:
    """What the objective of a recipe wants."""
    if isinstance(objective, Sft):
        return Requirements(most=1)
    if isinstance(objective, Reward):
        uses = objective.loss == "regression" or objective.margin or objective.soft_labels is not None
        return Requirements(least=1 if objective.loss == "regression" else 2, prompts=False, scores=uses)
    if isinstance(objective, Preference):
        terms = {name for name, term in objective.terms.active.items() if term.weight}
        return Requirements(
            least=2,
            most=None if "plackett_luce" in terms else 2,
            prompts=False,
            scores="margin" in terms,
            corrupted="image_conditional" in terms,
            mismatched="kto" in terms,
            labelled=terms <= {"kto"},
        )
    return Requirements(least=0)
