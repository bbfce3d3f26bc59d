"""Evaluation in reinforcement learning: the likeliest answers to held-out prompts, and their scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mmjobs.data.loader import Examples
from mmjobs.metrics.tensorboard import Sample
from mmjobs.model.vision_memory import VisionMemory
from mmjobs.rank.context import Context
from mmjobs.rollout.collect import Collector
from mmjobs.rollout.parts import NoParts
from mmjobs.rollout.rollout import Rollout, of_groups
from mmjobs.rollout.rows import Prompts, Rows
from mmjobs.rollout.scoring import Scorer, sample_of

_KEPT = 64
"""Held-out prompts whose pixels are in memory at a time."""


class RolloutEvaluation:
    """The held-out prompts, split over the ranks; one answer to each, without any draw."""

    def __init__(
        self,
        context: Context,
        examples: Examples,
        collector: Collector,
        scorer: Scorer,
        rows: Rows,
        seen: VisionMemory,
    ) -> None:
        self._context, self._prompts = context, Prompts(examples, seen, most=_KEPT)
        self._collector, self._scorer = collector.of_prompts(self._prompts), scorer
        self._rows = rows.of_prompts(self._prompts, answers=1)
        self._sampling = collector.sampling.model_copy(update={"temperature": 0.0, "answers": 1})
        self._rollout: Rollout | None = None

    def __len__(self) -> int:
        return len(self._prompts.examples.mixture)

    def measure(self, check: Callable[[], None]) -> dict[str, float]:
        """The mean score without shaping, the share of right answers where functions say so, lengths."""
        groups = self._collector.generate(range(len(self)), self._sampling, NoParts(), check)
        self._rollout = rollout = of_groups(0, groups, self._sampling.max_new_tokens)
        self._scorer.measured()  # of the last rollout
        rollout.scores = self._scorer.score(rollout, self._prompts, self._rows, check)
        of_sources, exists = self._scorer.measured(), ~rollout.scores.isnan()
        measured = {"reward": float(rollout.scores[exists].mean()) if exists.any() else 0.0}
        measured |= {name: value for name, value in of_sources.items() if name == "right" or "/" in name}
        measured["length"] = float(rollout.lengths.double().mean())
        measured["truncated"] = 1 - float(rollout.ended.double().mean())
        return {f"eval/{name}": value for name, value in measured.items()}

    def samples(self) -> Sequence[Sample]:
        """The first held-out prompts with the answers that were just measured; on rank 0. All forget the pixels."""
        rollout, shown = self._rollout, list[Sample]()
        if rollout is not None and self._context.ranks.first:
            count = min(self._context.recipe.evaluate.samples, len(rollout.prompts))
            shown = [self._sample(rollout, answer) for answer in range(count)]
        self._prompts.forget()
        return shown

    def _sample(self, rollout: Rollout, answer: int) -> Sample:
        processor, score = self._prompts.examples.processor, float(rollout.scores[answer])
        one = sample_of(rollout, answer, self._prompts, processor.chat)
        images = self._prompts[int(rollout.prompts[answer])].image_inputs
        text = f"{one.answer}\n\nscore {score:.3f}" if math.isfinite(score) else one.answer
        return Sample(one.prompt, one.truth or "", text, processor.pixels.visible(images))
