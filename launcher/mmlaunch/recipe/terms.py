"""The terms of a preference objective: one name, its weight and its options for each published loss.

Each has one function of the same name in `mmjobs/objectives/terms/`. Formulas are over log-ratios of policy and
reference: `w` chosen, `l` rejected, D their difference, b the objective's beta.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from mmlaunch.recipe.plugin import Plugin, must_be_plugin, plugin_of
from mmlaunch.recipe.scalars import FreeForm, NotNegative, Positive, Real
from mmlaunch.recipe.section import Section, mistake

WITHOUT_REFERENCE = frozenset({"simpo", "orpo", "sft"})
"""Terms over the policy's own log-probabilities."""
BY_RATIO = frozenset({"anchor", "bco", "nca", "sppo", "aot", "apo_zero", "apo_down", "kto", "plackett_luce"})
"""Terms that no other divergence than the reverse KL has an f' for."""

NEEDS_SCORES = frozenset({"margin"})
"""Terms over the scores that the data give to answers."""
NEEDS_CORRUPTED = frozenset({"image_conditional"})
"""Terms over the chosen answer with a corrupted image."""
NEEDS_MISMATCHED = frozenset({"kto"})
"""Terms over answers to other prompts."""
NEEDS_ALL_ANSWERS = frozenset({"plackett_luce"})
"""Terms over more than the first two answers."""
SINGLE_ANSWERS = frozenset({"kto"})
"""Terms that can use a single answer with a label."""
BEYOND_PAIRS = frozenset({"aot", "kto", "plackett_luce"})
"""Terms in which no pair has a loss of its own."""

Smoothing = Annotated[Real, Field(ge=0, lt=0.5)]


class Term(Section):
    """What every term has: its weight in the sum. `sigmoid: 0.8` is short for `sigmoid: {weight: 0.8}`."""

    SHORT: ClassVar[str] = "weight"

    weight: NotNegative = 1.0
    """Its weight in the sum."""


class Smoothed(Term):
    """A term whose labels may be wrong now and then."""

    label_smoothing: Smoothing = 0.0
    """The share of pairs whose labels may be wrong."""


class Anchor(Term):
    """-logsigmoid(b w - delta): keeps the chosen answer's probability up (mDPO)."""

    delta: Real = 0.0
    """How much the chosen answer has to gain over the reference."""


class Margin(Term):
    """Cross-entropy against p = sigmoid(gamma x score gap) (MMPO)."""

    gamma: Positive = 1.0
    """How strongly a score gap becomes a label."""
    scores: Literal["as they are", "divided by their spread"] = "as they are"
    """Scores of different data sets have different scales; the spread is that of the training data's score gaps."""


class Exo(Term):
    """exo_pair; needs a little smoothing to be finite."""

    label_smoothing: Annotated[Real, Field(gt=0, lt=0.5)] = 1e-3
    """The share of pairs whose labels may be wrong; more than 0."""


class Aot(Smoothed):
    """Sorted log-ratios over the global batch."""

    pairs: Literal["paired", "unpaired"] = "paired"
    """paired: sort the gaps of pairs; unpaired: sort chosen and rejected answers apart."""


class Discopop(Term):
    """Log-ratio modulated loss."""

    tau: Positive = 0.05
    """The temperature of the modulation."""


class Simpo(Term):
    """-logsigmoid(b (mean logp w - mean logp l) - gamma); gamma is the margin itself, not gamma / b."""

    gamma: NotNegative = 0.5
    """The margin that chosen answers should have."""


class Kto(Term):
    """Unpaired: the reference point is the KL to mismatched answers, detached and never below 0."""

    desirable: NotNegative = 1.0
    """Weight of desirable answers."""
    undesirable: NotNegative = 1.0
    """Weight of undesirable answers."""


class OwnTerm(Term):
    """A term of the user's own: a function of the pairs and of this section, to one loss for each pair."""

    reference: bool = True
    """Whether it compares the policy with the reference model."""
    scores: bool = False
    """Whether it reads the scores that the data give to answers."""
    options: FreeForm = {}
    """Options that the function reads."""


class Terms(Section):
    """The weighted sum. A term that is not named has no part in it.

    A term of the user's own stands under its plugin: `{sigmoid: 1, my_terms.py:softer: 0.5}`.
    """

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "dpo": "sigmoid", "bco_pair": "bco", "nca_pair": "nca", "exo_pair": "exo", "sppo_hard": "sppo", "nll": "sft",
        "rpo": "sft", "sft_loss": "sft", "kto_pair": "kto", "aot_pair": "aot", "conditional": "image_conditional",
    }  # fmt: skip

    sigmoid: Smoothed | None = None
    """-logsigmoid(b D) (DPO)."""
    image_conditional: Term | None = None
    """Sigmoid of the chosen answer with its image against the same answer with a corrupted one (mDPO)."""
    anchor: Anchor | None = None
    """-logsigmoid(b w - delta): keeps the chosen answer's probability up (mDPO)."""
    bco: Term | None = None
    """-logsigmoid(b w - shift) - logsigmoid(shift - b l); shift is the mean of all earlier rewards (MPO)."""
    sft: Term | None = None
    """Mean negative log-probability of the chosen answer's tokens over the global batch."""
    margin: Margin | None = None
    """Cross-entropy against a soft label from the score gap (MMPO)."""
    ipo: Term | None = None
    """A squared loss on the mean log-ratio gap (IPO)."""
    hinge: Term | None = None
    """max(0, 1 - b D) (SLiC)."""
    robust: Smoothed | None = None
    """DPO that is unbiased where labels are wrong at a known rate (robust DPO)."""
    nca: Term | None = None
    """Noise contrastive alignment."""
    exo: Exo | None = None
    """Reverse KL to a softened preference (EXO)."""
    sppo: Term | None = None
    """Self-play preference optimisation, with hard labels."""
    aot: Aot | None = None
    """Alignment by optimal transport, over the global batch."""
    apo_zero: Term | None = None
    """Anchored preference optimisation: chosen up, rejected down."""
    apo_down: Term | None = None
    """Anchored preference optimisation: chosen down, rejected further down."""
    discopop: Discopop | None = None
    """The log-ratio modulated loss that DiscoPOP found."""
    simpo: Simpo | None = None
    """Mean log-probabilities with a margin, without a reference (SimPO)."""
    orpo: Term | None = None
    """The odds ratio alone; the method orpo adds it, with its weight of 0.1, to sft."""
    kto: Kto | None = None
    """Kahneman-Tversky optimisation, also of single answers with a label."""
    plackett_luce: Term | None = None
    """K-way DPO over ranked answers."""

    own: dict[str, OwnTerm] = {}
    """Terms of your own by their plugins; they may stand beside the others as well."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = super().__get_pydantic_json_schema__(core_schema, handler)
        schema["patternProperties"] = {":": schema["properties"]["own"]["additionalProperties"]}
        return schema

    @property
    def active(self) -> dict[str, Term]:
        """The terms that were named, by name; a plugin by that of its function."""
        shipped = {name: term for name in type(self).model_fields if isinstance(term := getattr(self, name), Term)}
        return shipped | {plugin.name: term for plugin, term in self.plugins.items()}

    @property
    def plugins(self) -> dict[Plugin, OwnTerm]:
        """The functions of the user's own."""
        return {plugin: term for written, term in self.own.items() if (plugin := plugin_of(written)) is not None}

    @model_validator(mode="before")
    @classmethod
    def _own_beside_others(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        beside = {name: term for name, term in value.items() if isinstance(name, str) and ":" in name}
        if not beside:
            return value
        rest = {name: term for name, term in value.items() if name not in beside}
        return {**rest, "own": {**(rest.get("own") or {}), **beside}}

    @field_validator("own")
    @classmethod
    def _are_plugins(cls, value: dict[str, OwnTerm]) -> dict[str, OwnTerm]:
        names = [must_be_plugin(written, "my_loss").name for written in value]
        if taken := sorted({name for name in names if name in cls.model_fields or names.count(name) > 1}):
            raise mistake(f"two terms are called {taken[0]}", "give the function another name")
        return value


SHIPPED = tuple(name for name in Terms.model_fields if name != "own")
"""The terms that come with mmlaunch."""
