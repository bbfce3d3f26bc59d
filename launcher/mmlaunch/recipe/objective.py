"""`objective`: what a run learns. A word (`dpo`) or a mapping (`{method: dpo, beta: 0.2}`)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union

from pydantic import Discriminator, Field, Tag

from mmlaunch.recipe.method import Method
from mmlaunch.recipe.preference import PREFERENCES, Preference
from mmlaunch.recipe.requirements import Requirements
from mmlaunch.recipe.sampling import Sampling
from mmlaunch.recipe.scalars import Count, Line, NotNegative, Positive, Real
from mmlaunch.recipe.section import Mistake, Section, mistake, rule


class Sft(Method):
    """Supervised fine-tuning on answers."""

    OBJECTIVE: ClassVar[str] = "sft"

    method: Literal["sft"] = "sft"
    """Supervised fine-tuning."""

    @property
    def requirements(self) -> Requirements:
        return Requirements(most=1)

    @property
    def metrics(self) -> tuple[str, ...]:
        return "accuracy", "token_accuracy"


class Reward(Method):
    """A reward model: a scoring head on the last token of each answer."""

    OBJECTIVE: ClassVar[str] = "reward"
    SCORING_HEAD: ClassVar[bool] = True

    OTHER_NAMES: ClassVar[dict[str, str]] = {"center": "centre", "center_rewards_coefficient": "centre"}

    method: Literal["reward"] = "reward"
    """A reward model."""
    loss: Literal["ranked", "regression"] = "ranked"
    """ranked: Plackett-Luce over the answers in their order; regression: the score itself."""
    margin: bool = False
    """Subtract the score gap of a pair from its reward gap."""
    soft_labels: Positive | None = None
    """gamma: the label of a pair is sigmoid(gamma x score gap)."""
    centre: NotNegative = 0.0
    """Weight of the squared sum of an example's rewards; 0.01 keeps them near 0."""

    @property
    def requirements(self) -> Requirements:
        scores = self.loss == "regression" or self.margin or self.soft_labels is not None
        return Requirements(least=1 if self.loss == "regression" else 2, prompts=False, scores=scores)

    @property
    def metrics(self) -> tuple[str, ...]:
        return "reward", "reward_squared", "accuracy", "margin"

    @property
    def evaluation_metrics(self) -> list[str]:
        return ["eval/loss", "eval/reward", "eval/reward_spread", "eval/accuracy", "eval/margin"]

    @rule
    def _one_use_of_scores(self) -> Iterator[Mistake]:
        if self.loss == "regression" and (self.margin or self.soft_labels is not None):
            key = "margin" if self.margin else "soft_labels"
            yield (key,), None, mistake("regression fits the scores themselves", f"remove {key}, or loss: ranked")
        elif self.margin and self.soft_labels is not None:
            yield ("soft_labels",), None, mistake("margin uses the score gap already", "keep one of the two")


class RewardSource(Section):
    """Where PPO's rewards come from: a reward run."""

    SHORT: ClassVar[str] = "path"
    TRAINED: ClassVar[tuple[str, ...]] = ("path",)

    path: Annotated[Line, Field(examples=["runs/rm-llama3-8b"])]
    """A reward run or its export."""
    standardise: bool = True
    """By the mean and spread that are stored with the reward model."""
    clip: Positive = 10.0
    """The largest reward, in absolute value, after it is standardised."""


class Critic(Section):
    """PPO's value model."""

    init_from: Literal["reward", "policy"] = "reward"
    """The weights that it starts from: the reward model's or the policy's."""
    lr: Positive | None = None
    """Left out: optim.lr."""
    stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """Its own ZeRO stage; left out: the policy's."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps at the beginning that train only the critic."""


class Ppo(Method):
    """Proximal policy optimisation against a reward model."""

    SUPPORTED: ClassVar[bool] = False

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "reward_model": "reward", "reward_model_path": "reward", "ppo_epochs": "epochs", "kl_coef": "kl",
        "lambda": "lam", "cliprange": "clip", "rollout": "sampling",
    }  # fmt: skip

    method: Literal["ppo"]
    """Proximal policy optimisation."""
    reward: Annotated[RewardSource | None, Field(validate_default=False)] = None
    """What gives rewards: a reward run."""
    sampling: Sampling = Field(default_factory=Sampling)
    """How answers are generated."""
    rollouts: Count = 128
    """Answers that are sampled before each round of updates."""
    epochs: Count = 1
    """Passes over the answers of a round."""
    kl: NotNegative = 0.1
    """Weight of the KL penalty to the reference, for each token."""
    clip: Annotated[Real, Field(gt=0, lt=1)] = 0.2
    """How far the ratio of new to old probability may move from 1."""
    value_clip: Annotated[Real, Field(gt=0, lt=1)] = 0.2
    """How far a value may move from the old one."""
    gamma: Annotated[Real, Field(gt=0, le=1)] = 0.99
    """The discount of later rewards."""
    lam: Annotated[Real, Field(ge=0, le=1)] = 0.95
    """The lambda of generalised advantage estimation."""
    whiten: bool = True
    """Give the advantages of a round mean 0 and spread 1."""
    critic: Critic = Field(default_factory=Critic)
    """The value model."""
    sft_weight: NotNegative = 0.0
    """Weight of supervised loss on the training answers, where they have any."""

    @property
    def requirements(self) -> Requirements:
        return Requirements(least=0)

    def frozen_models(self, lora: bool) -> int:
        """The reward model; the reference as well, which with LoRA is the policy without its adapter."""
        return 1 if lora else 2

    def critic_stage(self, policy_stage: int) -> int | None:
        return policy_stage if self.critic.stage is None else self.critic.stage

    @rule
    def _has_reward(self) -> Iterator[Mistake]:
        if self.reward is None:
            yield (), None, mistake("ppo has no reward source", "add reward: runs/rm-llama3-8b (a reward run)")


class Predict(Method):
    """No training: answers to prompts, written to a file."""

    TASK: ClassVar[str] = "predict"
    SUPPORTED: ClassVar[bool] = False

    method: Literal["predict"]
    """Answers to prompts, without training."""
    sampling: Sampling = Field(default_factory=Sampling)
    """How answers are generated."""
    output: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "predictions.jsonl"
    """A file of this name in the run directory."""

    @property
    def requirements(self) -> Requirements:
        return Requirements(least=0)


def objective_method(value: Any) -> Any:
    """The method of an objective in any of its forms: a word, a mapping, a section."""
    if isinstance(value, str):
        return str(value)
    return value.get("method", "preference") if isinstance(value, dict) else getattr(value, "method", "preference")


CHOOSES = ("objective", "method")
"""The value that decides which section reads the others; while it is mistaken, nobody knows what they mean."""

SECTIONS: dict[str, type[Method]] = {
    "sft": Sft, "reward": Reward, "preference": Preference, "ppo": Ppo, "predict": Predict,
}  # fmt: skip
"""Every section that reads an `objective`. All methods that are not named here are mixtures of preference terms."""

METHODS = (*(name for name in SECTIONS if name != "preference"), *PREFERENCES)
"""Every word that an `objective` may be."""

TAGS = frozenset(f"<{name}>" for name in SECTIONS)
"""What pydantic puts into the place of an error to say which section read it."""


def section_name(value: Any) -> str:
    """The name of the section that reads this objective."""
    method = objective_method(value)
    return method if isinstance(method, str) and method in SECTIONS else "preference"


def _tag(value: Any) -> str:
    return f"<{section_name(value)}>"


if TYPE_CHECKING:
    Objective = Method  # the rest of the code asks what every method has
else:
    Objective = Annotated[
        Union[tuple(Annotated[section, Tag(f"<{name}>")] for name, section in SECTIONS.items())],  # noqa: UP007
        Discriminator(_tag),
    ]
