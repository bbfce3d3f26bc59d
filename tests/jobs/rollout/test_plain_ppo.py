"""PPO and GRPO written out plainly once more: one process, one answer at a time, torch's own optimisers, fp64.

It is fed with the tokens and the raw scores of a real run, and with nothing else of it: initial weights come from the
seed. From there it computes log-probabilities, values, rewards, advantages, losses and updates by itself, and after 20
steps its losses are still those of the run.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mmjobs.data.encode import Encoded, Processor
from mmjobs.data.formats.registry import parts
from mmjobs.data.mixture import mixture
from mmjobs.data.sampler import position, seed_of, shuffled
from mmjobs.data.survey import survey
from mmjobs.model.build import BuiltModel, build
from mmlaunch.recipe import Recipe

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]
Numbers = list[float]

SCORE = """
def share(answer, truth):
    return None if set("%&()") & set(answer) else sum(" " <= letter < "P" for letter in answer) / 6
"""
STEPS, WARMUP, PER_ROLLOUT = 20, 5, 4
SAMPLING = {"answers": 2, "max_new_tokens": 6, "prompts": 4, "temperature": 0.8, "stop": list("abcdefgXYZ;:!?")}
COMMON = {"rewards": ["score.py:share"], "sampling": SAMPLING, "rollouts": 16, "epochs": 2, "clip_high": 0.3}
PPO = {**COMMON, "method": "ppo", "kl": {"weight": 0.1, "target_per_sequence": 0.05, "horizon": 50},
       "shaping": {"overlong": {"margin": 3}, "no_end": "subtract", "no_end_reward": 0.3, "normalise": True,
                   "clip": 1.2},
       "gamma": 0.98, "lam": 0.9, "value_lam": 1.0, "bootstrap_truncated": True, "whiten_rewards": True,
       "value_clip": 0.1, "critic": {"lr": 1e-2}, "entropy": 0.02, "dual_clip": 1.5}  # fmt: skip
GRPO = {**COMMON, "method": "grpo", "sampling": {**SAMPLING, "answers": 4}, "aggregate": "sequence",
        "kl": {"weight": 0.05, "place": "loss", "form": "k3"}}  # fmt: skip


@dataclass
class Answer:
    """One answer, and what is known of each of its tokens."""

    prompt: Encoded
    ids: list[int]
    ended: bool
    score: float | None
    old: torch.Tensor
    reference: torch.Tensor
    values: torch.Tensor
    behind: float = 0.0
    """The value behind its last token."""
    advantages: Numbers | None = None
    returns: Numbers | None = None


class Optimiser:
    """AdamW with its warm-up, its cosine, and the norm of the gradient as the recipe says."""

    def __init__(self, network: nn.Module, recipe: Recipe, lr: float) -> None:
        self.own, self.lr, self.clip, self.done = recipe.optim, lr, recipe.optim.clip, 0
        named = {name: value for name, value in network.named_parameters() if value.requires_grad}
        words = {id(part.weight) for part in network.modules() if isinstance(part, nn.Embedding)}
        self.trained = list(named.values())
        decayed = [value for value in self.trained if value.ndim > 1 and id(value) not in words]
        other = [value for value in self.trained if value.ndim == 1 or id(value) in words]
        groups = [{"params": decayed, "weight_decay": self.own.weight_decay}, {"params": other, "weight_decay": 0.0}]
        self.adam = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8)

    def step(self, loss: torch.Tensor) -> float:
        """One update; the norm of the gradient before it was clipped."""
        self.adam.zero_grad()
        loss.backward()
        norm = float(torch.stack([v.grad.square().sum() for v in self.trained if v.grad is not None]).sum().sqrt())
        rising, falling = (self.done + 1) / WARMUP, (self.done - WARMUP) / (STEPS - WARMUP)
        for group in self.adam.param_groups:
            group["lr"] = self.lr * (rising if rising <= 1 else 0.5 * (1 + math.cos(math.pi * falling)))
        for value in self.trained:
            if value.grad is not None:
                value.grad *= min(1.0, self.clip / (norm + 1e-6))
        self.adam.step()
        self.done += 1
        return norm


class Plain:
    """The models, and one function for each thing that is done with them."""

    def __init__(self, recipe: Recipe, of_run: Any) -> None:
        self.recipe, self.of_run = recipe, of_run
        self.settings = cast(Any, recipe.objective)
        self.built = self._built(False)
        self.policy = cast(Any, self.built.network)
        self.reference = copy.deepcopy(self.policy)
        self.optimiser = Optimiser(self.policy, recipe, recipe.optim.lr)
        self.has_critic = self.settings.method == "ppo"
        if self.has_critic:
            self.critic = cast(Any, self._built(True).network)
            with torch.no_grad():
                self.critic.score.weight.zero_()
            self.critic_optimiser = Optimiser(self.critic, recipe, self.settings.critic.lr)
        processor = Processor(self.built.chat, self.built.pixels, self.built.positions)
        (source,) = recipe.data.train
        self.examples = mixture(survey(parts(source), processor), recipe.seed)
        self.processor = processor
        self.kl_weight, self.seen = self.settings.kl.weight, list[float]()

    def _built(self, scoring_head: bool) -> BuiltModel:
        torch.manual_seed(seed_of("model", self.recipe.seed))
        built = build(self.recipe.model, "fp32", scoring_head)
        built.network.double()
        return built

    def log_probs(self, network: Any, prompt: Encoded, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each token of an answer, and the entropy before it."""
        whole = torch.tensor([[*prompt.prompt.ids, *ids]])
        images = self.built.pixels.join([prompt.image_inputs], whole)
        logits = network(input_ids=whole, **images).logits[0, len(prompt.prompt) - 1 : -1]
        likely = torch.log_softmax(logits / self.settings.sampling.temperature, -1)
        return likely[torch.arange(len(ids)), ids], -(likely.exp() * likely).sum(-1)

    def values(self, prompt: Encoded, ids: list[int]) -> torch.Tensor:
        """Before each token of an answer, and behind the last."""
        whole = torch.tensor([[*prompt.prompt.ids, *ids]])
        images = self.built.pixels.join([prompt.image_inputs], whole)
        hidden = self.critic.model(input_ids=whole, **images).last_hidden_state[0]
        result: torch.Tensor = (hidden @ self.critic.score.weight[0])[len(prompt.prompt) - 1 :]
        return result

    def take(self, step: int) -> list[Answer]:
        """The answers of the rollout that begins at this step, with what is measured before they are learnt from."""
        file = load_file(self.of_run.paths.rollout(step) / "rollout.safetensors")
        n, answers = self.settings.sampling.answers, list[Answer]()
        for row, length in enumerate(file["lengths"].tolist()):
            index, ids = int(file["prompts"][row // n]), file["ids"][row, :length].tolist()
            prompt = self.processor.prompt(self.examples[position(index, len(self.examples), self.recipe.seed)])
            score, ended = float(file["scores"][row]), bool(file["ended"][row])
            with torch.no_grad():
                old, reference = (self.log_probs(network, prompt, ids)[0] for network in (self.policy, self.reference))
                values = self.values(prompt, ids) if self.has_critic else torch.zeros(length + 1)
            assert torch.allclose(old, file["behaviour"][row, :length], atol=1e-4), "the policy is still the same"
            known = None if math.isnan(score) else score
            answers.append(Answer(prompt, ids, ended, known, old, reference, values[:-1], float(values[-1])))
        return answers

    def learn(self, answers: list[Answer]) -> dict[str, float]:
        """Rewards, advantages and returns."""
        scored = [one for one in answers if one.score is not None]
        rewards = [self.shaped(one) for one in scored]
        if self.has_critic:
            self.seen += rewards
            rewards = self.normalised(rewards)
        k1 = [(one.old - one.reference).tolist() for one in scored]
        kl = sum(map(sum, k1)) / len(scored)
        if self.has_critic:
            self.with_critic(scored, rewards, k1)
        else:
            self.in_groups(answers, scored, rewards)
        result = {"kl_sequence": kl, "kl_weight": self.kl_weight, "reward_shaped": sum(rewards) / len(rewards)}
        target = self.settings.kl.target_per_sequence
        if target is not None:
            error = max(-0.2, min(0.2, kl / target - 1))
            self.kl_weight *= 1 + error * len(scored) / self.settings.kl.horizon
        return result

    def shaped(self, one: Answer) -> float:
        """The raw score less what a long answer loses, and one without an end."""
        shaping, reward = self.settings.shaping, one.score
        assert reward is not None
        if shaping.overlong is not None:
            longest, margin, length = self.settings.sampling.max_new_tokens, shaping.overlong.margin, len(one.ids)
            reward += 0.0 if length <= longest - margin else (longest - margin - length) / margin
        return reward - shaping.no_end_reward if shaping.no_end == "subtract" and not one.ended else reward

    def normalised(self, rewards: Numbers) -> Numbers:
        mean = sum(self.seen) / len(self.seen)
        std = math.sqrt(sum((one - mean) ** 2 for one in self.seen) / (len(self.seen) - 1))
        most = self.settings.shaping.clip
        return [max(-most, min(most, (one - mean) / std)) for one in rewards]

    def with_critic(self, scored: list[Answer], rewards: Numbers, k1: list[Numbers]) -> None:
        each = [[-self.kl_weight * value for value in row] for row in k1]
        for row, reward in zip(each, rewards, strict=True):
            row[-1] += reward
        each = whitened(each, keep_mean=True)
        for one, row in zip(scored, each, strict=True):
            one.advantages = self.estimated(one, row, self.settings.lam)
            long = self.estimated(one, row, self.settings.value_lam)
            one.returns = [a + v for a, v in zip(long, one.values.tolist(), strict=True)]
        for one, row in zip(scored, whitened([one.advantages or [] for one in scored]), strict=True):
            one.advantages = row

    def estimated(self, one: Answer, rewards: Numbers, lam: float) -> Numbers:
        values = [*one.values.tolist(), 0.0 if one.ended else one.behind]
        advantages, following = [0.0] * len(rewards), 0.0
        for t in range(len(rewards) - 1, -1, -1):
            error = rewards[t] + self.settings.gamma * values[t + 1] - values[t]
            advantages[t] = following = error + self.settings.gamma * lam * following
        return advantages

    def in_groups(self, answers: list[Answer], scored: list[Answer], rewards: Numbers) -> None:
        n, of = self.settings.sampling.answers, {id(one): r for one, r in zip(scored, rewards, strict=True)}
        for begin in range(0, len(answers), n):
            group = [one for one in answers[begin : begin + n] if one.score is not None]
            own = [of[id(one)] for one in group]
            mean = sum(own) / max(1, len(own))
            std = math.sqrt(sum((r - mean) ** 2 for r in own) / max(1, len(own) - 1))
            for one, reward in zip(group, own, strict=True):
                one.advantages = [0.0 if len(set(own)) == 1 else (reward - mean) / (std + 1e-6)] * len(one.ids)

    def step(self, minibatch: Sequence[Answer]) -> dict[str, float]:
        """One update of the policy, and one of the critic."""
        learnt = [one for one in minibatch if one.advantages is not None]
        tokens = sum(len(one.ids) for one in learnt)
        result, losses, entropies, ratios = {}, [], [], []
        if self.has_critic:
            critic = torch.stack([self.value_loss(one) for one in learnt]).sum() / tokens
            result["critic/grad_norm"] = self.critic_optimiser.step(critic)
            result["critic/loss"] = float(critic.detach())
        for one in learnt:
            loss, entropy, ratio = self.policy_loss(one)
            losses.append(loss.sum() / tokens if self.has_critic else loss.mean() / len(learnt))
            entropies.append(float(entropy.detach().sum()) / tokens)
            ratios.append(float(ratio.detach().sum()) / tokens)
        loss = torch.stack(losses).sum()
        result |= {"loss": float(loss.detach()), "entropy": sum(entropies), "ratio": sum(ratios)}
        result["grad_norm"] = self.optimiser.step(loss)
        return result

    def policy_loss(self, one: Answer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        new, entropy = self.log_probs(self.policy, one.prompt, one.ids)
        ratio, losses = torch.exp(new - one.old), []
        for own, advantage in zip(ratio, one.advantages or [], strict=True):
            objective = torch.minimum(own * advantage, own.clamp(0.8, 1.3) * advantage)
            if self.settings.dual_clip and advantage < 0:
                objective = objective.clamp(min=self.settings.dual_clip * advantage)
            losses.append(-objective)
        loss = torch.stack(losses) - self.settings.entropy * entropy
        if self.settings.kl.place == "loss":
            k3 = torch.exp(one.reference - new) - 1 + new - one.reference
            loss = loss + self.kl_weight * ratio * k3
        return loss, entropy, ratio

    def value_loss(self, one: Answer) -> torch.Tensor:
        new, returns = self.values(one.prompt, one.ids)[:-1], torch.tensor(one.returns, dtype=torch.float64)
        near = one.values + (new - one.values).clamp(-self.settings.value_clip, self.settings.value_clip)
        return 0.5 * torch.maximum((new - returns) ** 2, (near - returns) ** 2).sum()


def whitened(rows: list[Numbers], keep_mean: bool = False) -> list[Numbers]:
    flat = [value for row in rows for value in row]
    mean = sum(flat) / len(flat)
    std = math.sqrt(sum((value - mean) ** 2 for value in flat) / len(flat) + 1e-8)
    return [[(value - mean) / std + (mean if keep_mean else 0.0) for value in row] for row in rows]


def keep_rollouts() -> None:
    """In a rank: a rollout that nobody needs any more stays."""
    from mmjobs.rollout import parts as parts_of

    parts_of.prune = lambda *_: None


@pytest.mark.parametrize(
    ("objective", "vision"),
    [pytest.param(PPO, "full", id="ppo"), pytest.param(GRPO, "frozen", id="grpo", marks=pytest.mark.nightly)],
)
def test_twenty_steps_are_those_of_a_plain_loop(
    job: Jobs, tiny: Recipes, objective: dict[str, Any], vision: str
) -> None:
    """A frozen encoder remembers what it has seen; one that is trained does not."""
    recipe = tiny(
        objective=objective, steps=STEPS, batch__global=8, batch__micro=4, optim__lr=2e-3, optim__warmup=WARMUP,
        optim__weight_decay=0.1, optim__clip=0.5, data__eval=[], model__train__vision=vision,
    )  # fmt: skip
    run = job("run")
    run.paths.plugin_file("score.py").parent.mkdir(parents=True)
    run.paths.plugin_file("score.py").write_text(SCORE)
    run.prepare = keep_rollouts
    assert run.run(recipe) == [0], run.log()
    measured = {event["step"]: event for event in run.events("step")}
    plain, answers = Plain(recipe, run), list[Answer]()
    n = plain.settings.sampling.answers
    for step in range(STEPS):
        epoch, number = divmod(step % PER_ROLLOUT, 2)
        if step % PER_ROLLOUT == 0:
            answers = plain.take(step)
            expected = plain.learn(answers)
        order = shuffled(len(answers) // n, "rollout", recipe.seed, step - step % PER_ROLLOUT, epoch)
        groups = order[number * len(order) // 2 : (number + 1) * len(order) // 2]
        expected |= plain.step([answers[group * n + k] for group in groups for k in range(n)])
        of_run = measured[step + 1]
        for name, value in expected.items():
            assert of_run[name] == pytest.approx(value, abs=2e-5, rel=2e-5), (step, name)
    assert any(one.ended for one in answers) and not all(one.ended for one in answers)

    def largest(name: str) -> float:
        return max(float(event.get(name, 0.0)) for event in measured.values())

    used = ["kl_to_old", "clipped_low", "clipped_high", "reward_missing", "reward_std", "kl_sequence"]
    used += ["reward_clipped", "critic/clipped"] if plain.has_critic else []
    assert all(largest(name) > 1e-3 for name in used), {name: largest(name) for name in used}
    assert largest("grad_norm") > recipe.optim.clip
