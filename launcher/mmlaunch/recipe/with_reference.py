"""The base of methods that may compare the policy with a reference model, which the recipe describes."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mmlaunch.recipe.method import Method
from mmlaunch.recipe.reference import ReferenceCopy, ReferenceSync
from mmlaunch.recipe.section import Mistake, mistake, rule


class WithReference(Method):
    """Where the reference's log-probabilities come from: precomputed, adapter off, a copy, or nowhere."""

    if TYPE_CHECKING:  # each section declares them, among its own fields and with its own default
        reference: str
        reference_stage: int | None
        reference_sync: ReferenceSync | None

    @property
    def reference_source(self) -> str:
        return self.reference

    @property
    def uses_reference(self) -> bool:
        return self.reference != "none"

    @property
    def reference_copy(self) -> ReferenceCopy | None:
        return ReferenceCopy(self.reference_stage, self.reference_sync) if self.reference == "copy" else None

    def frozen_stages(self, adapter_alone: bool, stage: int) -> list[int]:
        copy = self.reference_copy
        return [] if copy is None else [stage if copy.stage is None else copy.stage]

    @rule
    def _only_a_copy_moves(self) -> Iterator[Mistake]:
        if self.reference_sync is not None and self.reference != "copy":
            what = f"a reference that is {self.reference!r} cannot be moved"
            yield ("reference_sync",), None, mistake(what, "write reference: copy")

    @rule
    def _stage_is_of_a_copy(self) -> Iterator[Mistake]:
        if self.reference_stage is not None and self.reference != "copy":
            what = f"a reference that is {self.reference!r} is no model of its own"
            yield ("reference_stage",), self.reference_stage, mistake(what, "write reference: copy")
