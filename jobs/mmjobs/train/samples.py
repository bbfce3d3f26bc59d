"""Samples: answers of the model itself to held-out questions, for people to look at."""

from __future__ import annotations

import torch

from mmjobs.data.encode import Processor
from mmjobs.data.mixture import Mixture
from mmjobs.engine.engine import Engine
from mmjobs.metrics.tensorboard import Sample
from mmjobs.model.generate import greedy


def draw(engine: Engine, processor: Processor, held_out: Mixture, count: int) -> list[Sample]:
    """The first `count` held-out examples, answered by greedy generation."""
    samples = []
    for place in range(min(count, len(held_out))):
        example = held_out[place]
        encoded = processor.encode(example)
        with torch.no_grad(), engine.precision():
            answer = greedy(
                engine.evaluating(), processor.chat, processor.pixels, processor.question(example), encoded.image_inputs
            )
        question = "\n".join(turn.text.strip() for turn in example.prompt)
        samples.append(
            Sample(question, example.answers[0].text, answer, processor.pixels.visible(encoded.image_inputs))
        )
    return samples
