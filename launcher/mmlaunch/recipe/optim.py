"""`optim`: AdamW and its schedule."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from mmlaunch.recipe.scalars import NotNegative, Positive, Real, Share, Warmup, WarmupLength
from mmlaunch.recipe.section import Section

Beta = Annotated[Real, Field(ge=0, lt=1)]


def _pair(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class PartRates(Section):
    """Learning rates of single parts; those that are not named use `lr`."""

    vision: Positive | None = None
    """Of the vision encoder."""
    projector: Positive | None = None
    """Of the projector."""
    language: Positive | None = None
    """Of the language model."""
    embeddings: Positive | None = None
    """Of the token embeddings and the output head."""
    head: Positive | None = None
    """The number that a reward model gives an answer."""


class Optim(Section):
    """`optim`"""

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "learning_rate": "lr", "rate": "lr", "lr_scheduler_type": "schedule", "scheduler": "schedule",
        "lr_scheduler": "schedule", "warmup_ratio": "warmup", "warmup_steps": "warmup", "num_warmup_steps": "warmup",
        "wd": "weight_decay", "max_grad_norm": "clip", "gradient_clipping": "clip", "grad_clip": "clip",
        "adam_epsilon": "eps", "epsilon": "eps", "adam_betas": "betas",
    }  # fmt: skip

    lr: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False, examples=["5e-6"])]
    """The highest learning rate."""
    lrs: PartRates = Field(default_factory=PartRates)
    """Learning rates of single parts."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: WarmupLength = Warmup(share=0.03)
    """How long it rises at the beginning: 3%, or 100 steps."""
    final_lr: Share = 0.0
    """The learning rate at the end of the schedule, as a share of `lr`."""
    weight_decay: NotNegative = 0.0
    """Never applied to biases, norms and embeddings."""
    betas: Annotated[list[Beta], BeforeValidator(_pair), Field(min_length=2, max_length=2)] = [0.9, 0.95]
    """AdamW's two betas."""
    eps: Positive = 1e-8
    """AdamW's epsilon."""
    clip: NotNegative = 1.0
    """The largest norm of a gradient; 0 does not clip."""
    bad_steps: Annotated[int, Field(ge=0)] = 3
    """How many steps in a row may be skipped because their loss or gradient is not finite; one more stops the run."""
