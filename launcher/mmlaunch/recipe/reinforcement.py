"""`objective` for reinforcement learning: PPO with a critic; GRPO and RLOO, which compare the answers to a prompt."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mmlaunch.recipe.engine import Engine
from mmlaunch.recipe.method import Method
from mmlaunch.recipe.requirements import Requirements
from mmlaunch.recipe.rewards import RewardSource
from mmlaunch.recipe.sampling import Sampling
from mmlaunch.recipe.scalars import Count, NotNegative, OneOrMore, Positive, Real, Share
from mmlaunch.recipe.section import Mistake, Section, mistake, rule

Stage = Annotated[int, Field(ge=0, le=3)]
Fraction = Annotated[Real, Field(gt=0, lt=1)]


class Kl(Section):
    """The penalty for moving away from the reference model."""

    SHORT: ClassVar[str] = "weight"
    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "coef": "weight", "beta": "weight", "target": "target_per_sequence", "kl_target": "target_per_sequence",
        "estimator": "form", "kl_estimator": "form", "use_bias_correction_kl": "weighted",
    }  # fmt: skip

    weight: NotNegative = 0.0
    """Of the KL divergence; 0: no penalty, and no reference model."""
    place: Literal["reward", "loss"] = "reward"
    """reward: subtracted from the reward of each token, without a gradient of its own; loss: added to the loss."""
    form: Literal["k1", "k2", "k3"] = "k1"
    """k1 = l - r, with the log-probabilities l of the policy and r of the reference; k2 = (l - r)^2 / 2;
    k3 = exp(r - l) - 1 + l - r."""
    weighted: bool | None = None
    """In the loss: by the ratio of new to old probability, with its gradient. Left out: as is right for the form."""
    target_per_sequence: Positive | None = None
    """Adapts the weight until the mean over answers, of the sum over their tokens, is this."""
    horizon: Positive = 10_000
    """How many answers the weight takes to follow its target."""

    @property
    def used(self) -> bool:
        """Whether a reference model is needed."""
        return self.weight > 0

    @property
    def is_weighted(self) -> bool:
        return self.form != "k2" if self.weighted is None else self.weighted

    @rule
    def _its_gradient_is_that_of_kl(self) -> Iterator[Mistake]:
        """The gradient is what matters, not the value (ppo estimators of Schulman's note; arXiv 2506.09477)."""
        if self.place == "reward":
            if self.form != "k1":
                what = f"{self.form} in the reward does not have the gradient of the KL divergence"
                yield ("form",), self.form, mistake(what, "write k1, or place: loss")
            if self.weighted is not None:
                yield ("weighted",), None, mistake("only a loss is weighted by the ratio", "remove it, or place: loss")
            return
        if self.form == "k1" and not self.is_weighted:
            what = "the gradient of k1 alone is 0 on average: no force at all"
            yield ("weighted",), False, mistake(what, "write weighted: true, form: k2, or place: reward")
        elif self.form == "k3" and not self.is_weighted:
            what = "the gradient of k3 alone is that of the reversed divergence, KL(reference, policy)"
            yield ("weighted",), False, mistake(what, "write weighted: true, or form: k2")
        elif self.form == "k2" and self.is_weighted:
            what = "the gradient of weighted k2 is not that of the KL divergence"
            yield ("weighted",), True, mistake(what, "remove it, or write form: k3")

    @rule
    def _without_weight_nothing_counts(self) -> Iterator[Mistake]:
        if self.weight:
            return
        if self.target_per_sequence is not None:
            what = "a weight of 0 stays 0 whatever its target"
            yield ("target_per_sequence",), self.target_per_sequence, mistake(what, "write weight: 0.1 to begin with")
        elif self.place == "loss":
            yield ("place",), "loss", mistake("a penalty of weight 0 does nothing", "add weight: 0.05, or remove it")


class Penalised(Kl):
    """The penalty, unless a recipe says otherwise."""

    weight: NotNegative = 0.05


class Overlong(Section):
    """A soft penalty for answers that are nearly as long as they may be (DAPO)."""

    margin: Count
    """It begins so many tokens before sampling.max_new_tokens."""
    weight: Positive = 1.0
    """What an answer of the greatest length loses."""


class Shaping(Section):
    """What becomes of a score before anything is learnt from it, in this order."""

    overlong: Overlong | None = None
    """A soft penalty for long answers."""
    no_end: Literal["keep", "replace", "subtract"] = "keep"
    """What happens to the score of an answer that was cut at its greatest length."""
    no_end_reward: Real = -1.0
    """replace: the score of such an answer; subtract: what it loses."""
    normalise: bool = False
    """By the mean and the standard deviation of all scores so far."""
    clip: Positive | None = None
    """The largest reward, in absolute value."""

    @rule
    def _a_penalty_costs(self) -> Iterator[Mistake]:
        if self.no_end == "subtract" and self.no_end_reward <= 0:
            what = f"{self.no_end_reward:g} is subtracted: answers without an end would gain"
            yield ("no_end_reward",), self.no_end_reward, mistake(what, "write a positive number, or no_end: replace")


class Groups(Section):
    """Dynamic sampling (DAPO): prompts whose answers all fail or all succeed are replaced by others."""

    low: Real = 0.0
    """Groups whose mean score is not above this are dropped."""
    high: Real = 1.0
    """Groups whose mean score is not below this are dropped."""
    tries: Count = 10
    """How often a rollout is filled up before the run ends with an error."""


class Critic(Section):
    """PPO's value model, which has an optimiser of its own."""

    init_from: Literal["auto", "reward", "policy"] = "auto"
    """Whose weights it starts from; auto: the reward model's, where there is one. Its head starts at 0."""
    lr: Positive | None = None
    """Left out: optim.lr."""
    stage: Stage | None = None
    """Its own ZeRO stage; left out: the policy's."""
    offload: Literal["none", "optimizer", "all"] | None = None
    """What of it is kept in CPU memory; left out: as for the policy."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps at the beginning that train only the critic."""
    shares_reward_model: bool = False
    """Keep the weights of the first reward model once: it is the critic without its adapter. Needs LoRA alone."""


class Reinforcement(Method):
    """The policy answers prompts, rewards say how good the answers are, and it is trained on them."""

    OBJECTIVE: ClassVar[str] = "policy"
    ROLLOUTS: ClassVar[bool] = True

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "reward": "rewards", "reward_model": "rewards", "reward_model_path": "rewards", "reward_fn": "rewards",
        "reward_funcs": "rewards", "ppo_epochs": "epochs", "num_ppo_epochs": "epochs", "num_iterations": "epochs",
        "kl_coef": "kl", "init_kl_coef": "kl", "beta": "kl", "cliprange": "clip", "epsilon": "clip",
        "epsilon_high": "clip_high", "rollout": "sampling", "rollout_batch_size": "rollouts",
        "estimator": "advantage", "adv_estimator": "advantage", "loss_type": "aggregate", "loss_agg_mode": "aggregate",
        "entropy_coeff": "entropy", "ent_coef": "entropy", "filter_groups": "groups", "dynamic_sampling": "groups",
        "ptx_coef": "sft_weight",
        **{name: f"sampling.{own}" for name, own in Sampling.OTHER_NAMES.items()},
    }  # fmt: skip

    rewards: Annotated[list[RewardSource], OneOrMore(), Field(examples=["runs/rm-llama3-8b"])] = []
    """What gives rewards: reward runs and functions, each with a weight; their sum is the score of an answer."""
    max_failed: Share = 0.2
    """The share of scores of a rollout that functions may fail to give (timeout, error) before the run ends."""
    shaping: Shaping = Field(default_factory=Shaping)
    """What becomes of a score before it is learnt from."""
    sampling: Sampling = Field(default_factory=Sampling)
    """How answers are generated."""
    engine: Engine | None = None
    """Servers that generate the answers; left out: the trainer's own processes."""
    rollouts: Count = 128
    """Answers that are generated before each round of updates: whole groups, and whole batches."""
    epochs: Count = 1
    """Passes over the answers of a round."""
    reference: Literal["adapter off", "copy"] | None = None
    """The model that kl compares with. Left out: the policy without its adapter, where that is all it learns."""
    reference_stage: Stage | None = None
    """The ZeRO stage of a copy. Left out: 3 where the policy's is 3."""
    kl: Kl = Field(default_factory=Kl)
    """The penalty for moving away from the reference model."""
    groups: Groups | None = None
    """Replaces prompts whose answers all fail or all succeed; left out: they stay."""
    loss: Literal["ppo", "gspo", "cispo"] = "ppo"
    """ppo: each token's ratio is clipped; gspo: that of the whole answer; cispo: the ratio only weighs."""
    clip: Fraction = 0.2
    """How far the ratio of new to old probability may fall below 1 before its gradient ends."""
    clip_high: Positive | None = None
    """How far it may rise above 1; left out: as far as it may fall."""
    dual_clip: Annotated[Real, Field(gt=1)] | None = None
    """The largest loss of a token that was worse than expected, as a multiple of its advantage."""
    aggregate: Literal["token", "sequence", "constant"] | None = None
    """A mean over all tokens; over answers, of the mean of their tokens; or sums by sampling.max_new_tokens. Left out:
    token, and sequence for gspo."""
    entropy: NotNegative = 0.0
    """Weight of the entropy of the next token, which is made larger."""
    sft_weight: NotNegative = 0.0
    """Weight of supervised loss on the data's own answers, in the same step."""

    @property
    def requirements(self) -> Requirements:
        needs_truth = self.sft_weight > 0 or any(source.needs_truth for source in self.rewards)
        room = self.sampling.max_new_tokens
        return Requirements(least=1 if needs_truth else 0, most=0, prompts=False, room=room)

    @property
    def reward_sources(self) -> list[RewardSource]:
        return self.rewards

    @property
    def mean_over(self) -> str:
        """What a loss is averaged over."""
        return self.aggregate or ("sequence" if self.loss == "gspo" else "token")

    @property
    def trains_critic(self) -> bool:
        """Whether a value model is trained beside the policy."""
        return False

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("ratio", "clipped_low", "clipped_high", "entropy", "kl_to_old", *(("kl",) if self.kl.used else ()))

    @property
    def evaluation_metrics(self) -> list[str]:
        return [f"eval/{name}" for name in ("reward", "right", "length", "truncated")]

    @property
    def models_of_rewards(self) -> list[RewardSource]:
        """The sources that are models."""
        return [source for source in self.rewards if source.path is not None]

    @property
    def served_by(self) -> Engine | None:
        return self.engine

    @property
    def reference_source(self) -> str:
        return self.reference or "none"

    def frozen_stages(self, adapter_alone: bool, stage: int) -> list[int]:
        """Reward models, and the reference: where the policy learns an adapter alone, it is the policy without it."""
        copied = self.kl.used and (self.reference == "copy" or (self.reference is None and not adapter_alone))
        reference = stage if self.reference_stage is None else self.reference_stage
        return [stage] * len(self.models_of_rewards) + [reference] * copied

    @rule
    def _has_reward(self) -> Iterator[Mistake]:
        if not self.rewards:
            right = "add rewards: runs/rm-llama3-8b (a reward run), or rewards: numeric (a function)"
            yield (), None, mistake(f"{self.method} has no rewards", right)

    @rule
    def _whole_distribution(self) -> Iterator[Mistake]:
        """What was cut off when an answer was drawn would have to be cut off when it is learnt from."""
        for key, value, off in (("top_p", self.sampling.top_p, 1.0), ("top_k", self.sampling.top_k, None)):
            if value != off:
                what = f"{self.method} learns from the whole distribution that answers are drawn from"
                yield ("sampling", key), value, mistake(what, f"remove {key}; temperature makes answers less varied")
        if not self.sampling.temperature:
            what = f"{self.method} needs answers that differ, and temperature 0 gives one"
            yield ("sampling", "temperature"), 0, mistake(what, "write 1")

    @rule
    def _whole_groups(self) -> Iterator[Mistake]:
        answers = self.sampling.answers
        if self.rollouts % answers:
            right = f"write a multiple of {answers}, e.g. {max(1, round(self.rollouts / answers)) * answers}"
            what = f"{self.rollouts} answers are not whole groups of sampling.answers ({answers})"
            yield ("rollouts",), self.rollouts, mistake(what, right)

    @rule
    def _room_for_penalty(self) -> Iterator[Mistake]:
        overlong, longest = self.shaping.overlong, self.sampling.max_new_tokens
        if overlong is not None and overlong.margin >= longest:
            what = f"the penalty would begin before the first of {longest} tokens"
            yield ("shaping", "overlong", "margin"), overlong.margin, mistake(what, f"write at most {longest - 1}")

    @rule
    def _dual_clip_is_of_ppo(self) -> Iterator[Mistake]:
        if self.dual_clip is not None and self.loss != "ppo":
            yield ("dual_clip",), self.dual_clip, mistake(f"{self.loss} has no second clip", "remove it, or loss: ppo")


class Ppo(Reinforcement):
    """Proximal policy optimisation, with a critic."""

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        **Reinforcement.OTHER_NAMES, "lambda": "lam", "gae_lambda": "lam", "cliprange_value": "value_clip",
        "vf_clip": "value_clip", "whiten_advantages": "whiten",
    }  # fmt: skip

    method: Literal["ppo"]
    """Proximal policy optimisation."""
    kl: Penalised = Field(default_factory=Penalised)
    """The penalty for moving away from the reference model."""
    advantage: Literal["gae"] = "gae"
    """Generalised advantage estimation."""
    gamma: Annotated[Real, Field(gt=0, le=1)] = 1.0
    """The discount of later rewards."""
    lam: Annotated[Real, Field(ge=0, le=1)] = 0.95
    """The lambda of the policy's advantages."""
    value_lam: Annotated[Real, Field(ge=0, le=1)] | None = None
    """The lambda of the critic's targets; left out: lam."""
    bootstrap_truncated: bool = False
    """Whether the critic says what would have followed an answer that was cut at its greatest length; otherwise 0."""
    whiten_rewards: bool = False
    """Give the rewards of a round's tokens spread 1."""
    whiten: bool = True
    """Give the advantages of a round mean 0 and spread 1."""
    value_clip: Positive | None = 0.2
    """How far a value may move from the old one before its gradient ends."""
    critic: Critic = Field(default_factory=Critic)
    """The value model."""

    @property
    def trains_critic(self) -> bool:
        return True

    def critic_stage(self, policy_stage: int) -> int | None:
        return policy_stage if self.critic.stage is None else self.critic.stage

    def critic_offload(self, policy_offload: str) -> str:
        return self.critic.offload or policy_offload

    def frozen_stages(self, adapter_alone: bool, stage: int) -> list[int]:
        return super().frozen_stages(adapter_alone, stage)[int(self.critic.shares_reward_model) :]

    @rule
    def _critic_starts_somewhere(self) -> Iterator[Mistake]:
        critic = self.critic
        if critic.init_from == "reward" and self.rewards and not self.models_of_rewards:
            what = "the critic is to start from the reward model, and no reward is a model"
            yield ("critic", "init_from"), "reward", mistake(what, "write policy, or remove it")
        if critic.shares_reward_model and (critic.init_from == "policy" or not self.models_of_rewards):
            what = "the critic does not start from a reward model, and has no weights of one"
            yield ("critic", "shares_reward_model"), True, mistake(what, "remove it, or add a reward run to rewards")


class Four(Sampling):
    """Groups of four."""

    answers: Count = 4


class Eight(Sampling):
    """Groups of eight."""

    answers: Count = 8


class Grpo(Reinforcement):
    """Group-relative policy optimisation: answers are compared with the others to the same prompt."""

    method: Literal["grpo"]
    """Group-relative policy optimisation."""
    sampling: Eight = Field(default_factory=Eight)
    """How answers are generated."""
    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce++", "remax"] = "grpo"
    """grpo: by the group's spread; dr_grpo: without it; rloo: less the mean of the others; reinforce++: less the mean
    of the group, if there is one, then whitened over the round; remax: less the score of the likeliest answer."""

    @rule
    def _compares_answers(self) -> Iterator[Mistake]:
        if self.sampling.answers == 1 and self.advantage not in ("remax", "reinforce++"):
            what = "one answer has no others to be compared with"
            yield ("sampling", "answers"), 1, mistake(what, "write 4 or more, or advantage: remax or reinforce++")

    @rule
    def _whole_groups_are_compared(self) -> Iterator[Mistake]:
        if self.groups is not None and self.sampling.answers == 1:
            yield ("groups",), None, mistake("groups of one answer all agree", "remove it, or sample more answers")


class Rloo(Reinforcement):
    """REINFORCE with the mean of the other answers to the same prompt as its baseline."""

    method: Literal["rloo"]
    """REINFORCE leave-one-out."""
    kl: Penalised = Field(default_factory=Penalised)
    """The penalty for moving away from the reference model."""
    sampling: Four = Field(default_factory=Four)
    """How answers are generated."""
    advantage: Literal["rloo"] = "rloo"
    """Each score less the mean of the others."""

    @rule
    def _compares_answers(self) -> Iterator[Mistake]:
        if self.sampling.answers == 1:
            what = "one answer has no others to be compared with"
            yield ("sampling", "answers"), 1, mistake(what, "write 4 or more")
