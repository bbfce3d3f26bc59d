"""`objective`: what a run learns. A word (`dpo`) or a mapping (`{method: dpo, beta: 0.2}`)."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from mmlaunch.recipe.scalars import Count, Line, NotNegative, Positive, Real, Share
from mmlaunch.recipe.section import Mistake, Section, mistake, rule
from mmlaunch.recipe.terms import BY_RATIO, WITHOUT_REFERENCE, Terms

PRESETS: dict[str, dict[str, Any]] = {
    "dpo": {"terms": {"sigmoid": {}}},
    "mdpo": {"terms": {"sigmoid": {}, "image_conditional": {}, "anchor": {}}},
    "mpo": {"terms": {"sigmoid": {"weight": 0.8}, "bco": {"weight": 0.2}, "sft": {}}},
    "mmpo": {"terms": {"margin": {"gamma": 2.2}}, "beta": 0.01},
    "orpo": {"terms": {"sft": {}, "orpo": {"weight": 0.1}}},
    "simpo": {"terms": {"simpo": {"gamma": 0.5}}, "beta": 2.0},
}
"""Published mixtures. Every other term alone is a method of its own name as well."""

PREFERENCES = tuple(dict.fromkeys(["preference", *PRESETS, *(n for n in Terms.model_fields if n != "sft")]))
METHODS = ("sft", "reward", "ppo", "predict", *PREFERENCES)


class Sft(Section):
    """Supervised fine-tuning on answers."""

    SHORT: ClassVar[str] = "method"

    method: Literal["sft"] = "sft"


class Reward(Section):
    """A reward model: a value head on the last token of each answer."""

    SHORT: ClassVar[str] = "method"

    OTHER_NAMES: ClassVar[dict[str, str]] = {"center": "centre", "center_rewards_coefficient": "centre"}

    method: Literal["reward"] = "reward"
    loss: Literal["ranked", "regression"] = "ranked"
    """ranked: Plackett-Luce over the answers in their order; regression: the score itself."""
    margin: bool = False
    """Subtract the score gap of a pair from its reward gap."""
    soft_labels: Positive | None = None
    """gamma: the label of a pair is sigmoid(gamma x score gap)."""
    centre: NotNegative = 0.0
    """Weight of the squared sum of an example's rewards; 0.01 keeps them near 0."""

    @rule
    def _one_use_of_scores(self) -> Iterator[Mistake]:
        if self.loss == "regression" and (self.margin or self.soft_labels is not None):
            key = "margin" if self.margin else "soft_labels"
            yield (key,), None, mistake("regression fits the scores themselves", f"remove {key}, or loss: ranked")
        elif self.margin and self.soft_labels is not None:
            yield ("soft_labels",), None, mistake("margin uses the score gap already", "keep one of the two")


class ReferenceSync(Section):
    """Moves the reference towards the policy (TR-DPO)."""

    every: Count = 512
    mix: Share = 0.6


class Preference(Section):
    """Preference optimisation: a weighted sum of terms."""

    SHORT: ClassVar[str] = "method"

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "preset": "method", "loss_type": "terms", "losses": "terms", "f_divergence_type": "divergence",
        "ref": "reference", "ref_model": "reference", "use_weighting": "wpo", "sync_ref_model": "reference_sync",
    }  # fmt: skip

    method: Literal[PREFERENCES] = "preference"  # type: ignore[valid-type]  # one list serves schema and hints
    terms: Terms = Field(default_factory=Terms)
    beta: Positive = 0.1
    reference: Literal["precomputed", "adapter off", "copy", "none"] = "precomputed"
    """Where the reference's log-probabilities come from; none: the objective is reference-free."""
    reference_stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """The ZeRO stage of a copy: divided at 3, whole below. Left out: 3 where the policy's is 3; it would not fit."""
    reference_sync: ReferenceSync | None = None
    ld_alpha: Share | None = None
    """Weight of the tokens beyond the shorter answer's length (LD-DPO)."""
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"
    divergence_alpha: Real = 0.5
    wpo: bool = False
    """Weight each pair by the policy's own probability of it (WPO, eq. 2, without an upper bound)."""

    @property
    def weighted(self) -> dict[str, Any]:
        """The terms that have a part in the sum, by name."""
        return {name: term for name, term in self.terms.active.items() if term.weight}

    @property
    def refers(self) -> bool:
        """Whether anything is compared with a reference."""
        return self.reference != "none" and not self.weighted.keys() <= WITHOUT_REFERENCE

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        value = {"method": value} if isinstance(value, str) else value
        if not isinstance(value, dict):
            return value
        method = value.get("method", "preference")
        if not isinstance(method, str):
            return value
        preset = PRESETS.get(method) or ({"terms": {method: {}}} if method in Terms.model_fields else {})
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
    def _only_a_copy_moves(self) -> Iterator[Mistake]:
        if self.reference_sync is not None and self.reference != "copy":
            what = f"a reference that is {self.reference!r} cannot be moved"
            yield ("reference_sync",), None, mistake(what, "write reference: copy")

    @rule
    def _terms_know_the_divergence(self) -> Iterator[Mistake]:
        plain = sorted((BY_RATIO | {"simpo", "orpo"}) & self.weighted.keys())
        if self.divergence != "reverse_kl" and plain:
            what = f"{', '.join(plain)} is made of plain log-probabilities, which know no other divergence"
            yield ("divergence",), self.divergence, mistake(what, "remove divergence, or these terms")

    @rule
    def _weights_are_of_pairs(self) -> Iterator[Mistake]:
        if self.wpo and (others := sorted({"aot", "kto", "plackett_luce"} & self.weighted.keys())):
            what = f"{', '.join(others)} looks at more than a pair, and no pair keeps a weight of its own there"
            yield ("wpo",), True, mistake(what, f"remove wpo, or {', '.join(others)}")

    @rule
    def _alpha_is_read(self) -> Iterator[Mistake]:
        if self.divergence_alpha != 0.5 and self.divergence != "alpha":
            what = f"nothing reads it where the divergence is {self.divergence}"
            yield ("divergence_alpha",), self.divergence_alpha, mistake(what, "write divergence: alpha")

    @rule
    def _copy_is_asked(self) -> Iterator[Mistake]:
        if self.reference == "copy" and self.weighted and self.weighted.keys() <= WITHOUT_REFERENCE:
            yield ("reference",), "copy", mistake(f"{', '.join(self.weighted)} has no reference", "remove reference")

    @rule
    def _stage_is_of_a_copy(self) -> Iterator[Mistake]:
        if self.reference_stage is not None and self.reference != "copy":
            what = f"a reference that is {self.reference!r} is no model of its own"
            yield ("reference_stage",), self.reference_stage, mistake(what, "write reference: copy")

    @rule
    def _kto_refers(self) -> Iterator[Mistake]:
        if self.reference == "none" and "kto" in self.weighted:
            what = "kto measures its reference point against a reference"
            yield ("reference",), "none", mistake(what, "remove reference: none")


class Sampling(Section):
    """How answers are generated."""

    OTHER_NAMES: ClassVar[dict[str, str]] = {"max_length": "max_new_tokens", "topk": "top_k", "topp": "top_p"}

    max_new_tokens: Count = 512
    temperature: NotNegative = 1.0
    """0 takes the likeliest token each time."""
    top_k: Count | None = None
    top_p: Annotated[Real, Field(gt=0, le=1)] = 1.0
    answers: Count = 1
    """Answers per prompt."""


class RewardSource(Section):
    """Where PPO's rewards come from: a reward run."""

    SHORT: ClassVar[str] = "path"

    path: Annotated[Line, Field(examples=["runs/rm-llama3-8b"])]
    standardise: bool = True
    """By the mean and spread that are stored with the reward model."""
    clip: Positive = 10.0


class Critic(Section):
    """PPO's value model."""

    init_from: Literal["reward", "policy"] = "reward"
    lr: Positive | None = None
    """Left out: optim.lr."""
    stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """Its own ZeRO stage; left out: the policy's."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps at the beginning that train only the critic."""


class Ppo(Section):
    """Proximal policy optimisation against a reward model."""

    SHORT: ClassVar[str] = "method"

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "reward_model": "reward", "reward_model_path": "reward", "ppo_epochs": "epochs", "kl_coef": "kl",
        "lambda": "lam", "cliprange": "clip", "rollout": "sampling",
    }  # fmt: skip

    method: Literal["ppo"]
    reward: Annotated[RewardSource | None, Field(validate_default=False)] = None
    sampling: Sampling = Field(default_factory=Sampling)
    rollouts: Count = 128
    """Answers that are sampled before each round of updates."""
    epochs: Count = 1
    kl: NotNegative = 0.1
    clip: Annotated[Real, Field(gt=0, lt=1)] = 0.2
    value_clip: Annotated[Real, Field(gt=0, lt=1)] = 0.2
    gamma: Annotated[Real, Field(gt=0, le=1)] = 0.99
    lam: Annotated[Real, Field(ge=0, le=1)] = 0.95
    whiten: bool = True
    """Give the advantages of a round mean 0 and spread 1."""
    critic: Critic = Field(default_factory=Critic)
    sft_weight: NotNegative = 0.0
    """Weight of supervised loss on the training answers, where they have any."""

    @rule
    def _has_reward(self) -> Iterator[Mistake]:
        if self.reward is None:
            yield (), None, mistake("ppo has no reward source", "add reward: runs/rm-llama3-8b (a reward run)")


class Predict(Section):
    """No training: answers to prompts, written to a file."""

    SHORT: ClassVar[str] = "method"

    method: Literal["predict"]
    sampling: Sampling = Field(default_factory=Sampling)
    output: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "predictions.jsonl"
    """A file of this name in the run directory."""


def objective_method(value: Any) -> Any:
    """The method of an objective in any of its forms: a word, a mapping, a section."""
    if isinstance(value, str):
        return str(value)
    return value.get("method", "preference") if isinstance(value, dict) else getattr(value, "method", "preference")


CHOOSES = ("objective", "method")
"""The value that decides which section reads the others; while it is mistaken, nobody knows what they mean."""

TAGS = frozenset({"<sft>", "<reward>", "<preference>", "<ppo>", "<predict>"})
"""What pydantic puts into the place of an error to say which of the five read it."""


def _stage(value: Any) -> str:
    """Which of the five models reads this mapping."""
    method = objective_method(value)
    return f"<{method}>" if method in ("sft", "reward", "ppo", "predict") else "<preference>"


Objective = Annotated[
    Annotated[Sft, Tag("<sft>")]
    | Annotated[Reward, Tag("<reward>")]
    | Annotated[Preference, Tag("<preference>")]
    | Annotated[Ppo, Tag("<ppo>")]
    | Annotated[Predict, Tag("<predict>")],
    Discriminator(_stage),
]
