"""`stop`: a run that ends before its last step, since it gets no better."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mmlaunch.recipe.scalars import Count, Line, NotNegative
from mmlaunch.recipe.section import Section


class Stop(Section):
    """Early stopping: after `patience` evaluations without a better value the run saves and is done."""

    SHORT: ClassVar[str] = "metric"
    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "monitor": "metric", "early_stopping_patience": "patience", "least": "min_delta",
        "early_stopping_threshold": "min_delta", "threshold": "min_delta", "mode": "better", "best_is": "better",
    }  # fmt: skip

    metric: Annotated[Line, Field(examples=["eval/loss"])]
    """What an evaluation measures."""
    patience: Count = 3
    """The run ends after this many evaluations in a row without a better value."""
    min_delta: NotNegative = 0.0
    """The smallest improvement that counts as better."""
    better: Literal["lower", "higher"] | None = None
    """Which values are better. Left out: lower for losses and perplexities, otherwise higher."""

    @property
    def lower_is_better(self) -> bool:
        """Whether a value is better than a higher one."""
        if self.better is not None:
            return self.better == "lower"
        return any(word in self.metric for word in ("loss", "perplexity", "kl"))

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether a value is better than the best one so far; not a number never is."""
        if best is None or value != value:
            return value == value
        return best - value > self.min_delta if self.lower_is_better else value - best > self.min_delta
