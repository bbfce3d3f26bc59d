"""The external engine as a generator: new weights for all servers, then prompts, and answers that are checked."""

from __future__ import annotations

import base64
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from typing import TypeVar

from PIL import Image

from mmjobs.engine.engine import Engine
from mmjobs.model.build import BuiltModel
from mmjobs.model.generate import Generated, Tick, Vocabulary
from mmjobs.model.sampling import Draws
from mmjobs.model.served import Served
from mmjobs.rank.context import Context
from mmjobs.rollout.external.client import EngineFailed, in_thread
from mmjobs.rollout.external.messages import Answer, Answers, Question, Questions, Settings
from mmjobs.rollout.external.servers import Servers
from mmjobs.rollout.generator import Check
from mmjobs.rollout.rows import Prompts
from mmlaunch.errors import BadInput
from mmlaunch.recipe.reinforcement import Reinforcement
from mmlaunch.recipe.sampling import Sampling

_MOMENT = 0.2
"""Seconds between two times that all ranks look at signals together."""
_ROUNDING = 1e-3
"""How far rounding may bring a log-probability above 0."""
T = TypeVar("T")


class External:
    """Servers that answer prompts; each rank asks the one of its number, in turns."""

    def __init__(self, context: Context, actor: Engine, built: BuiltModel, settings: Reinforcement) -> None:
        assert settings.engine is not None
        self._context, self._ranks, self._actor = context, context.ranks, actor
        recipe, count = context.recipe, settings.engine.servers(context.recipe.resources.gpus_per_node)
        self._servers = Servers(context.paths, context.events.attempt, settings.engine, count)
        self._served = Served(actor.network, recipe.precision, context.paths.served, self._ranks.first)
        self._vocabulary = Vocabulary(actor.network, built.chat, settings.sampling)
        self._seconds = 0.0

    @contextmanager
    def ready(self, check: Check) -> Iterator[None]:
        """The weights go to a folder of the run, from there to the servers, and their checksums come back."""
        begin, version = time.monotonic(), self._actor.digest()
        if version != self._servers.version:
            self._ranks.watch.doing("writes weights for the engine")
            self._servers.expect(version, self._ranks.from_first(self._served.write(version, self._ranks.watch.moved)))

            def tick(running: bool) -> bool:
                check()
                return self._ranks.any(running)

            self._ranks.watch.doing("waits for the engine's servers")
            self._beside(self._servers.load_all if self._ranks.first else None, tick)
            self._seconds += time.monotonic() - begin
        yield

    def answer(
        self, prompts: Prompts, indices: Sequence[int], draws: Sequence[Draws], sampling: Sampling, tick: Tick
    ) -> list[Generated]:
        """A server that dies is waited for, and asked again; the answers are checked against what was asked."""
        if not indices:
            self._beside(None, tick)
            return []
        n = sampling.answers
        asked = [question(prompts, index, draws[place * n : place * n + n]) for place, index in enumerate(indices)]
        request = Questions(self._servers.version, settings_of(sampling, self._vocabulary), asked)
        answers = self._beside(lambda: self._servers.answer(self._ranks.rank, request), tick)
        assert answers is not None
        return checked(prompts, indices, request, answers)

    def measured(self) -> dict[str, float]:
        seconds, self._seconds = self._seconds, 0.0
        return {"seconds_sync": seconds}

    def _beside(self, work: Callable[[], T] | None, tick: Tick) -> T | None:
        """Do something in a thread, while all ranks go on looking at signals until nobody has anything left to do."""
        future = None if work is None else in_thread(work)
        running = True
        while running:
            if future is not None:
                wait([future], _MOMENT)
                if future.done() and (error := future.exception()) is not None:
                    raise error
            running = tick(future is not None and not future.done())
        return None if future is None else future.result()


def question(prompts: Prompts, index: int, draws: Sequence[Draws]) -> Question:
    """A prompt as an engine gets it: one placeholder for each image, which it expands by its own processor."""
    examples = prompts.examples
    place, processor = examples.place_of(index), examples.processor
    images = examples.images(index)
    options = processor.pixels.options(len(images), examples.mixture.part(place).max_tiles) if images else {}
    ids = processor.chat.prompt(examples.mixture[place].prompt)
    return Question(ids, [_png(image) for image in images], [one.seed for one in draws], options)


def settings_of(sampling: Sampling, vocabulary: Vocabulary) -> Settings:
    """How answers are drawn."""
    return Settings(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_new_tokens=sampling.min_new_tokens,
        max_new_tokens=sampling.max_new_tokens,
        stops=vocabulary.stops,
        forbidden=vocabulary.banned.nonzero()[:, 0].tolist(),
    )


def checked(prompts: Prompts, indices: Sequence[int], request: Questions, answers: Answers) -> list[Generated]:
    """The answers to these prompts, once they are what was asked for."""
    if answers.version != request.version or len(answers.prompts) != len(indices):
        what = f"{len(answers.prompts)} prompts by version {answers.version}, not {len(indices)} by {request.version}"
        raise EngineFailed(f"the engine has answered {what}")
    made = []
    for index, asked, answered in zip(indices, request.prompts, answers.prompts, strict=True):
        _check_prompt(prompts, index, answered.prompt)
        if len(answered.answers) != len(asked.seeds):
            what = f"{len(answered.answers)} answers instead of {len(asked.seeds)}"
            raise EngineFailed(f"{prompts.origin(index)}: the engine has given {what}")
        for one in answered.answers:
            if wrong := _wrong(one, request.settings):
                raise EngineFailed(f"{prompts.origin(index)}: the engine has answered with {wrong}")
            made.append(Generated(one.ids, one.log_probs, one.ids[-1] in request.settings.stops))
    return made


def _wrong(answer: Answer, settings: Settings) -> str:
    """What no answer may have."""
    ids, values = answer.ids, answer.log_probs
    if not 0 < len(ids) <= settings.max_new_tokens or len(values) != len(ids):
        return f"{len(ids)} tokens with {len(values)} log-probabilities, of at most {settings.max_new_tokens}"
    if not all(math.isfinite(value) and value < _ROUNDING for value in values):
        return "a number that is no log-probability"
    forbidden = set(ids) & set(settings.forbidden)
    return f"the token {min(forbidden)}, which is forbidden" if forbidden else ""


def _check_prompt(prompts: Prompts, index: int, theirs: list[int]) -> None:
    """Whether the engine has read the prompt that is learnt from, token by token (TRL #6294)."""
    ours, image = prompts[index].prompt.ids, prompts.examples.processor.chat.image_id
    if ours == theirs:
        return
    same = min(len(ours), len(theirs))
    at = next((place for place in range(same) if ours[place] != theirs[place]), same)
    counts = [f"{len(ids)} tokens ({ids.count(-1 if image is None else image)} of images)" for ids in (theirs, ours)]
    what = f"the engine has read its prompt as {counts[0]}, the trainer as {counts[1]}; they differ from token {at} on"
    right = "the processor in rollouts/weights must prepare images as the trainer does"
    raise BadInput(f"objective.engine: {prompts.origin(index)}: {what}; {right}")


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()
