"""The policy's loss in reinforcement learning: answers that were better than expected become likelier."""

from __future__ import annotations

import torch
from torch import nn

from mmjobs.data.batch import Batch
from mmjobs.objectives.forward import answer_log_probs, by_answer, by_example
from mmjobs.objectives.objective import ObjectiveOutput, Units
from mmlaunch.recipe.reinforcement import Reinforcement

OLD, REFERENCE, ADVANTAGE, VALID, WEIGHT = "old", "reference", "advantage", "valid", "weight"
"""The token values of a rollout: the log-probabilities of the policy that made it and of the reference, how much better
the token was than expected, whether it is learnt from, and what corrects that another engine has drawn it (else 1)."""
SFT, POLICY = "sft", "policy"
NOTHING = 1e-9
"""The units of answers without any score: their loss is 0, and so is its mean."""
_BOUND = 20.0
"""The largest logarithm of a ratio."""


class Policy:
    """Rollouts count by tokens, answers or the room of their answers; batches without any are supervised."""

    def __init__(self, settings: Reinforcement) -> None:
        self._settings, self._temperature = settings, settings.sampling.temperature
        self.over: tuple[str, ...] = (POLICY, SFT) if settings.sft_weight else (POLICY,)
        self.metrics = settings.metrics
        self.kl_weight = settings.kl.weight
        """Of the KL divergence in the loss; it may follow a target."""
        self.gap: torch.Tensor | None = None
        """The largest difference to the old log-probability of any token since it was last read."""

    def units(self, batch: Batch) -> Units:
        units = dict.fromkeys(self.over, 0.0)
        if not batch.token_values:
            units |= {SFT: float(batch.loss_mask.sum())} if SFT in self.over else {}
            return units
        valid, how = batch.token_values[VALID], self._settings.mean_over
        answers = float((by_answer(valid.double(), batch) > 0).sum()) if how != "token" else 0.0
        longest = float(self._settings.sampling.max_new_tokens)
        count = {"token": float(valid.sum()), "sequence": answers, "constant": answers * longest}[how]
        units[POLICY] = max(count, NOTHING)
        return units

    def __call__(self, network: nn.Module, batch: Batch) -> ObjectiveOutput:
        if not batch.token_values:
            return self._supervised(network, batch)
        settings = self._settings
        entropy = "learnt entropy" if settings.entropy else "entropy"
        computed = answer_log_probs(network, batch, entropy, temperature=self._temperature)
        new = computed.values  # [U]
        rollout = {name: values.to(new.device) for name, values in batch.token_values.items()}
        # With one step for each rollout nothing has to be measured before it: the policy is the one that answered.
        old = rollout[OLD].to(new.dtype) if OLD in rollout else new.detach()
        advantage = rollout[ADVANTAGE].to(new.dtype)
        valid = rollout[VALID].to(new.dtype)
        self._remember_gap(new, old, valid)
        ratio = self._ratio(new, old, valid, batch)
        losses = self._surrogate(ratio, advantage, new)
        if WEIGHT in rollout:
            losses = losses * rollout[WEIGHT].to(new.dtype)
        if settings.entropy:
            losses = losses - settings.entropy * computed.entropy
        metrics = self._metrics(ratio.detach(), new.detach(), old, advantage, computed.entropy.detach(), valid)
        if settings.kl.used:
            reference = rollout[REFERENCE].to(new.dtype)
            metrics["kl"] = _mean(new.detach() - reference, valid)
            if settings.kl.place == "loss":
                losses = losses + self.kl_weight * self._divergence(new, old, reference)
        losses = losses * valid * self._weights(valid, batch)
        totals = {unit: losses.new_zeros(()) for unit in self.over} | {POLICY: losses.sum()}
        return ObjectiveOutput(totals, by_example(losses.detach(), batch), metrics)

    def _ratio(self, new: torch.Tensor, old: torch.Tensor, valid: torch.Tensor, batch: Batch) -> torch.Tensor:
        """New by old probability of each token; for GSPO the mean of the whole answer (arXiv 2507.18071, eq. 7): [U]"""
        log_ratio = new - old
        if self._settings.loss == "gspo":
            owners = batch.in_loss(batch.owners)
            mean = by_answer(log_ratio * valid, batch) / by_answer(valid, batch).clamp_min(1)
            log_ratio = new - new.detach() + mean.detach()[owners]
        return log_ratio.clamp(-_BOUND, _BOUND).exp()

    def _surrogate(self, ratio: torch.Tensor, advantage: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """The loss of each token: [U]"""
        settings, (low, high) = self._settings, self._bounds
        if settings.loss == "cispo":  # arXiv 2506.13585, eq. 4
            return -ratio.clamp(max=high).detach() * advantage * new
        losses = -torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)  # arXiv 1707.06347, eq. 7
        if settings.dual_clip is not None:  # arXiv 1912.09729, eq. 3
            bounded = torch.minimum(losses, -settings.dual_clip * advantage)
            losses = torch.where(advantage < 0, bounded, losses)
        return losses

    @property
    def _bounds(self) -> tuple[float, float]:
        clip, high = self._settings.clip, self._settings.clip_high
        return 1 - clip, 1 + (clip if high is None else high)

    def _divergence(self, new: torch.Tensor, old: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """What has the gradient of the KL divergence to the reference: [U]"""
        form, difference = self._settings.kl.form, new - reference
        ratio = (new - old).clamp(-_BOUND, _BOUND).exp()  # tokens of an older policy count as often as they would now
        if form == "k2":
            return ratio.detach() * difference.square() / 2
        value = difference if form == "k1" else torch.expm1((-difference).clamp(-_BOUND, _BOUND)) + difference
        return ratio * value

    def _weights(self, valid: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What each token counts for in the sum: [U]"""
        if self._settings.mean_over != "sequence":
            return torch.ones_like(valid)
        return (1 / by_answer(valid, batch).clamp_min(1))[batch.in_loss(batch.owners)]

    def _metrics(
        self,
        ratio: torch.Tensor,
        new: torch.Tensor,
        old: torch.Tensor,
        advantage: torch.Tensor,
        entropy: torch.Tensor,
        valid: torch.Tensor,
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        (low, high), difference = self._bounds, (new - old).clamp(-_BOUND, _BOUND)
        too_low, too_high = (ratio < low) & (advantage < 0), (ratio > high) & (advantage > 0)  # where the bound counts
        if self._settings.loss == "cispo":
            too_low, too_high = torch.zeros_like(too_low), (ratio > high) & (advantage != 0)
        return {
            "ratio": _mean(ratio, valid),
            "clipped_low": _mean(too_low.to(ratio), valid),
            "clipped_high": _mean(too_high.to(ratio), valid),
            "entropy": _mean(entropy, valid),
            "kl_to_old": _mean(torch.expm1(difference) - difference, valid),
        }

    def _remember_gap(self, new: torch.Tensor, old: torch.Tensor, valid: torch.Tensor) -> None:
        gap = ((new.detach() - old).abs() * valid).amax() if len(new) else new.new_zeros(())
        self.gap = gap if self.gap is None else torch.maximum(self.gap, gap)

    def _supervised(self, network: nn.Module, batch: Batch) -> ObjectiveOutput:
        """Of a batch without rollouts, or of an empty one."""
        losses = -self._settings.sft_weight * answer_log_probs(network, batch).values
        totals = {unit: losses.sum() if unit == SFT else 0 * losses.sum() for unit in self.over}
        nothing = losses.new_zeros(()).detach()
        metrics = dict.fromkeys(self.metrics, (nothing, nothing))
        return ObjectiveOutput(totals, by_example(losses.detach(), batch), metrics)


def _mean(values: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum over valid tokens, and their number."""
    return (values * valid).sum().detach(), valid.sum()
