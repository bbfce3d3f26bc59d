"""The reference model as a copy of its own: its ZeRO stage, and whether it follows the policy."""

from dataclasses import dataclass

from mmlaunch.recipe.scalars import Count, Share
from mmlaunch.recipe.section import Section


class ReferenceSync(Section):
    """Moves the reference towards the policy (TR-DPO)."""

    every: Count = 512
    """Steps between two moves."""
    mix: Share = 0.6
    """The share of the policy in the moved reference."""


@dataclass(frozen=True)
class ReferenceCopy:
    """How a copy of the reference model is kept."""

    stage: int | None
    """Its ZeRO stage; None: that of the policy."""
    sync: ReferenceSync | None
    """How it follows the policy; None: it stays as it is."""
