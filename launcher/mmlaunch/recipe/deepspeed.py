"""`deepspeed`: the ZeRO stage, what is kept in CPU memory, and anything else that DeepSpeed knows."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mmlaunch.recipe.scalars import FreeForm
from mmlaunch.recipe.section import Mistake, Section, mistake, rule

OWNED = {
    "train_batch_size": "batch.global",
    "train_micro_batch_size_per_gpu": "batch.micro",
    "gradient_accumulation_steps": "batch.global and batch.micro",
    "gradient_clipping": "optim.clip",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
    "bf16": "precision",
    "fp16": "precision",
}
"""DeepSpeed keys that another place of the recipe decides."""


class DeepSpeed(Section):
    """`deepspeed`"""

    OTHER_NAMES: ClassVar[dict[str, str]] = {"zero": "stage", "zero_stage": "stage", "config": "overrides",
                                           "bf16_optimizer_states": "optimizer_states"}  # fmt: skip

    stage: Annotated[int, Field(ge=0, le=3)] = 0
    """ZeRO: 0 nothing is divided, 1 optimiser states, 2 and gradients, 3 and parameters."""
    optimizer_states: Literal["fp32", "bf16"] = "fp32"
    """bf16: AdamW's moments and the master weights take 2 bytes each instead of 4. It learns less exactly."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What is kept in CPU memory: optimiser states (stage 1 and up), or parameters too (stage 3)."""
    overrides: FreeForm = {}
    """Merged into the DeepSpeed configuration as it is."""

    @rule
    def _stage_moves_it(self) -> Iterator[Mistake]:
        needed = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.stage < needed:
            what = f"{self.offload!r} cannot be moved to CPU memory by ZeRO stage {self.stage}"
            yield ("offload",), self.offload, mistake(what, f"write stage: {needed}, or offload: none")

    @rule
    def _decided_in_one_place(self) -> Iterator[Mistake]:
        for key in self.overrides:
            if key in OWNED:
                what = f"{key} is decided by {OWNED[key]}"
                yield ("overrides", key), None, mistake(what, f"set {OWNED[key]} instead")
        zero = self.overrides.get("zero_optimization")
        for key, place in (("stage", "stage"), ("offload_optimizer", "offload"), ("offload_param", "offload")):
            if isinstance(zero, dict) and key in zero:
                wrong = mistake(f"{key} is decided by deepspeed.{place}", f"set deepspeed.{place} instead")
                yield ("overrides", "zero_optimization", key), None, wrong
