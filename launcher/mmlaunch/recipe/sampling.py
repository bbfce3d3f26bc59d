"""`sampling`: how answers are generated."""

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from mmlaunch.recipe.scalars import Count, Line, NotNegative, Real
from mmlaunch.recipe.section import Mistake, Section, mistake, rule

LAYERED = "MMLAUNCH_LAYERED"
"""Set where a policy at ZeRO stage 3 does not fit whole: it answers layer by layer, on all ranks together."""


class Sampling(Section):
    """How answers are generated."""

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "max_length": "max_new_tokens", "max_tokens": "max_new_tokens", "min_length": "min_new_tokens",
        "max_completion_length": "max_new_tokens", "response_length": "max_new_tokens",
        "max_response_length": "max_new_tokens", "generate_max_len": "max_new_tokens",
        "n_samples_per_prompt": "answers",
        "topk": "top_k", "topp": "top_p", "n": "answers", "num_generations": "answers",
        "num_return_sequences": "answers", "group_size": "answers", "generation_batch_size": "prompts",
        "stop_strings": "stop", "bad_words": "forbid",
    }  # fmt: skip

    max_new_tokens: Count = 512
    """The longest answer, in tokens, with the one that ends it."""
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    """No answer ends before it has so many tokens."""
    temperature: NotNegative = 1.0
    """0 takes the likeliest token each time."""
    top_k: Count | None = None
    """Sample from the k likeliest tokens only."""
    top_p: Annotated[Real, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that have this probability together."""
    answers: Count = 1
    """Answers per prompt."""
    stop: list[Line] = []
    """Tokens that end an answer, besides the one that ends every answer of the model."""
    forbid: list[Line] = []
    """Tokens that are never generated. Image tokens and other special tokens never are."""
    prompts: Count = 8
    """Prompts that a rank generates answers to at a time."""

    @rule
    def _ends(self) -> Iterator[Mistake]:
        if self.min_new_tokens >= self.max_new_tokens:
            what = f"an answer of at least {self.min_new_tokens} tokens cannot have at most {self.max_new_tokens}"
            yield ("min_new_tokens",), self.min_new_tokens, mistake(what, "write a smaller number")
