"""Samples: answers of the model itself to held-out questions, for people to look at."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmjobs.data.encode import Processor
from mmjobs.data.mixture import Mixture
from mmjobs.model.generate import greedy
from mmjobs.train.engine import Engine


@dataclass(frozen=True)
class Sample:
    """One held-out question and what the model says."""

    question: str
    truth: str
    answer: str
    pixels: torch.Tensor  # [N, 3, H, W], from 0 to 1


def draw(engine: Engine, processor: Processor, held_out: Mixture, count: int) -> list[Sample]:
    """The first `count` held-out examples, answered by greedy generation."""
    samples = []
    for place in range(min(count, len(held_out))):
        example = held_out[place]
        encoded = processor.encode(example)
        with torch.no_grad(), engine.precision():
            answer = greedy(
                engine.evaluating(), processor.chat, processor.pixels, processor.question(example), encoded.seen
            )
        question = "\n".join(turn.text.strip() for turn in example.prompt)
        samples.append(Sample(question, example.answers[0].text, answer, processor.pixels.visible(encoded.seen)))
    return samples
