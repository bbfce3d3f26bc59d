"""`batch`: how many examples make one step, and how they are spread over ranks."""

from typing import Annotated, ClassVar

from pydantic import Field

from mmlaunch.recipe.scalars import Count
from mmlaunch.recipe.section import Section


class Batch(Section):
    """`batch`"""

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "size": "global", "batch_size": "global", "global_batch_size": "global", "train_batch_size": "global",
        "micro_batch_size": "micro", "per_device": "micro", "per_device_train_batch_size": "micro",
        "per_gpu": "micro", "train_micro_batch_size_per_gpu": "micro", "tokens": "tokens_per_gpu",
        "max_tokens": "tokens_per_gpu",
    }  # fmt: skip

    examples: Annotated[Count, Field(alias="global", examples=[256])]
    """Examples of one optimiser step, over all ranks."""
    micro: Count | None = None
    """Examples that a rank processes at a time. Left out: rows are packed up to tokens_per_gpu."""
    tokens_per_gpu: Count | None = None
    """The longest packed row."""


def split(examples: int, world: int, micro: int | None) -> tuple[int, int] | None:
    """(micro-batch, accumulation) with examples = micro x world x accumulation, or None when there is no such split."""
    if examples % world:
        return None
    share = examples // world
    micro = micro or share
    return (micro, share // micro) if share % micro == 0 else None


def neighbours(examples: int, step: int) -> str:
    """The multiples of `step` around a number, for a hint: `224 or 256`."""
    below = examples - examples % step
    return f"{below} or {below + step}" if below else str(step)
