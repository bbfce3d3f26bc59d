"""`objective` for preferences: a weighted sum of terms, or the name of a published mixture."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from mmlaunch.recipe.plugin import Plugin
from mmlaunch.recipe.reference import ReferenceSync
from mmlaunch.recipe.requirements import Requirements
from mmlaunch.recipe.scalars import Positive, Real, Share
from mmlaunch.recipe.section import Mistake, mistake, rule
from mmlaunch.recipe.terms import (
    BEYOND_PAIRS,
    BY_RATIO,
    NEEDS_ALL_ANSWERS,
    NEEDS_CORRUPTED,
    NEEDS_MISMATCHED,
    NEEDS_SCORES,
    SHIPPED,
    SINGLE_ANSWERS,
    WITHOUT_REFERENCE,
    Terms,
)
from mmlaunch.recipe.with_reference import WithReference

PRESETS: dict[str, dict[str, Any]] = {
    "dpo": {"terms": {"sigmoid": {}}},
    "mdpo": {"terms": {"sigmoid": {}, "image_conditional": {}, "anchor": {}}},
    "mpo": {"terms": {"sigmoid": {"weight": 0.8}, "bco": {"weight": 0.2}, "sft": {}}},
    "mmpo": {"terms": {"margin": {"gamma": 2.2}}, "beta": 0.01},
    "orpo": {"terms": {"sft": {}, "orpo": {"weight": 0.1}}},
    "simpo": {"terms": {"simpo": {"gamma": 0.5}}, "beta": 2.0},
}
"""Published mixtures. Every other term alone is a method of its own name as well."""

PREFERENCES = tuple(dict.fromkeys(["preference", *PRESETS, *(name for name in SHIPPED if name != "sft")]))

LABEL_BINS = ("below_0.5", *(f"from_0.{tenth}" for tenth in range(5, 10)))
"""The bins of the label histogram of MMPO."""


class Preference(WithReference):
    """Preference optimisation: a weighted sum of terms."""

    OBJECTIVE: ClassVar[str] = "preference"

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "preset": "method", "loss_type": "terms", "losses": "terms", "f_divergence_type": "divergence",
        "ref": "reference", "ref_model": "reference", "use_weighting": "wpo", "sync_ref_model": "reference_sync",
    }  # fmt: skip

    method: Literal[PREFERENCES] = "preference"  # type: ignore[valid-type]  # one list serves schema and hints
    """The name of a published mixture or of a single term; preference: the terms alone."""
    terms: Terms = Field(default_factory=Terms)
    """The weighted sum of losses: a weight, or options, for each term."""
    beta: Positive = 0.1
    """How strongly the policy is held to the reference."""
    reference: Literal["precomputed", "adapter off", "copy", "none"] = "precomputed"
    """Where the reference's log-probabilities come from; none: the objective is reference-free."""
    reference_stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """The ZeRO stage of a copy: divided at 3, whole below. Left out: 3 where the policy's is 3; it would not fit."""
    reference_sync: ReferenceSync | None = None
    """Let a copy of the reference follow the policy (TR-DPO)."""
    ld_alpha: Share | None = None
    """Weight of the tokens beyond the shorter answer's length (LD-DPO)."""
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"
    """The f-divergence that holds the policy to the reference (f-DPO)."""
    divergence_alpha: Real = 0.5
    """The alpha of the alpha-divergence."""
    wpo: bool = False
    """Weight each pair by the policy's own probability of it (WPO, eq. 2, without an upper bound)."""

    @property
    def weighted(self) -> dict[str, Any]:
        """The terms that have a part in the sum, by name."""
        return {name: term for name, term in self.terms.active.items() if term.weight}

    @property
    def requirements(self) -> Requirements:
        names = self.weighted.keys()
        return Requirements(
            least=2,
            most=None if names & NEEDS_ALL_ANSWERS else 2,
            prompts=False,
            scores=bool(names & NEEDS_SCORES) or any(term.scores for term in self.terms.own.values() if term.weight),
            corrupted=bool(names & NEEDS_CORRUPTED),
            mismatched=bool(names & NEEDS_MISMATCHED),
            labelled=names <= SINGLE_ANSWERS,
        )

    @property
    def metrics(self) -> tuple[str, ...]:
        names = ["accuracy", *(f"rewards/{name}" for name in ("chosen", "rejected", "margin"))]
        names += ["logps/chosen", "logps/rejected", *(f"loss/{name}" for name in self.weighted)]
        names += ["kl"] if self.uses_reference else []
        names += ["conditional_accuracy"] if "image_conditional" in self.weighted else []
        names += ["shift"] if "bco" in self.weighted else []
        return (*names, *(f"labels/{name}" for name in LABEL_BINS if "margin" in self.weighted))

    @property
    def plugins(self) -> Mapping[tuple[str, ...], Plugin]:
        return {("terms", plugin.written): plugin for plugin in self.terms.plugins}

    @property
    def uses_reference(self) -> bool:
        return super().uses_reference and not self._without_reference

    @property
    def _without_reference(self) -> bool:
        """Whether no term compares the policy with the reference."""
        own = {plugin.name for plugin, term in self.terms.plugins.items() if not term.reference}
        return self.weighted.keys() <= WITHOUT_REFERENCE | own

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        value = {"method": value} if isinstance(value, str) else value
        if not isinstance(value, dict):
            return value
        method = value.get("method", "preference")
        if not isinstance(method, str):
            return value
        preset = PRESETS.get(method) or ({"terms": {method: {}}} if method in PREFERENCES[1:] else {})
        written = value.get("terms")
        if written is not None and not isinstance(written, dict):
            return value
        terms = {**preset.get("terms", {}), **(written or {})}
        return {**{key: item for key, item in preset.items() if key != "terms"}, **value, "terms": terms}

    @rule
    def _has_weight(self) -> Iterator[Mistake]:
        if not any(term.weight for term in self.terms.active.values()):
            right = "write terms: {sigmoid: 1}, or a preset: dpo, mdpo, mpo, mmpo"
            yield ("terms",), None, mistake("no term has any weight", right)

    @rule
    def _terms_know_the_divergence(self) -> Iterator[Mistake]:
        plain = sorted((BY_RATIO | {"simpo", "orpo"}) & self.weighted.keys())
        if self.divergence != "reverse_kl" and plain:
            what = f"{', '.join(plain)} is made of plain log-probabilities, which know no other divergence"
            yield ("divergence",), self.divergence, mistake(what, "remove divergence, or these terms")

    @rule
    def _weights_are_of_pairs(self) -> Iterator[Mistake]:
        if self.wpo and (others := sorted(BEYOND_PAIRS & self.weighted.keys())):
            what = f"{', '.join(others)} looks at more than a pair, and no pair keeps a weight of its own there"
            yield ("wpo",), True, mistake(what, f"remove wpo, or {', '.join(others)}")

    @rule
    def _alpha_is_read(self) -> Iterator[Mistake]:
        if self.divergence_alpha != 0.5 and self.divergence != "alpha":
            what = f"nothing reads it where the divergence is {self.divergence}"
            yield ("divergence_alpha",), self.divergence_alpha, mistake(what, "write divergence: alpha")

    @rule
    def _copy_is_asked(self) -> Iterator[Mistake]:
        if self.reference == "copy" and self.weighted and self._without_reference:
            yield ("reference",), "copy", mistake(f"{', '.join(self.weighted)} has no reference", "remove reference")

    @rule
    def _kto_refers(self) -> Iterator[Mistake]:
        if self.reference == "none" and "kto" in self.weighted:
            what = "kto measures its reference point against a reference"
            yield ("reference",), "none", mistake(what, "remove reference: none")
