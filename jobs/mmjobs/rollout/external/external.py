"""The external engine as a generator: new weights for all servers, then prompts, and answers that are checked."""

from __future__ import annotations

import base64
import io
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TypeVar

from PIL import Image

from mmjobs.engine.engine import Engine
from mmjobs.model.build import BuiltModel
from mmjobs.model.generate import Generated, Tick, Vocabulary
from mmjobs.model.sampling import Draws
from mmjobs.model.served import Served
from mmjobs.rank.context import Context
from mmjobs.rollout.external.client import GRACE, Client, EngineFailed, ServerLost, Stale
from mmjobs.rollout.external.messages import Answer, Answered, Answers, Load, Loaded, Question, Questions, Settings
from mmjobs.rollout.generator import Check
from mmjobs.rollout.rows import Prompts
from mmlaunch.errors import BadInput
from mmlaunch.recipe.reinforcement import Reinforcement
from mmlaunch.recipe.sampling import Sampling

_MOMENT = 0.2
"""Seconds between two times that all ranks look at signals together."""
_TRIES = 3
"""How often in a row the same prompts may cost a server its life."""
T = TypeVar("T")


class External:
    """Servers that answer prompts; each rank asks the one of its number, in turns."""

    def __init__(self, context: Context, actor: Engine, built: BuiltModel, settings: Reinforcement) -> None:
        assert settings.engine is not None
        self._context, self._ranks, self._actor = context, context.ranks, actor
        self._engine, recipe = settings.engine, context.recipe
        count = self._engine.servers(recipe.resources.gpus_per_node)
        attempt = context.events.attempt
        self._clients = [Client(number, context.paths, attempt, self._engine) for number in range(count)]
        self._served = Served(actor.network, recipe.precision, context.paths.served, self._ranks.first)
        self._vocabulary = Vocabulary(actor.network, built.chat, settings.sampling)
        self._version, self._checksums = "", dict[str, list[int]]()
        self._seconds = 0.0

    @contextmanager
    def ready(self, check: Check) -> Iterator[None]:
        """The weights go to a folder of the run, from there to the servers, and their checksums come back."""
        begin, version = time.monotonic(), self._actor.digest()
        if version != self._version:
            self._context.ranks.watch.doing("writes weights for the engine")
            self._checksums = self._ranks.from_first(self._served.write(version, self._ranks.watch.moved))
            self._version = version

            def tick(running: bool) -> bool:
                check()
                return self._ranks.any(running)

            self._context.ranks.watch.doing("waits for the engine's servers")
            self._beside(self._load_all if self._ranks.first else None, tick)
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
        questions = [
            self._question(prompts, index, draws[place * n : place * n + n]) for place, index in enumerate(indices)
        ]
        request = Questions(self._version, self._settings(sampling), questions)
        answers = self._beside(lambda: self._asked(request), tick)
        assert answers is not None
        if answers.version != self._version or len(answers.prompts) != len(indices):
            raise EngineFailed(f"the engine has answered {len(answers.prompts)} prompts with version {answers.version}")
        made = []
        for index, answered in zip(indices, answers.prompts, strict=True):
            _check_prompt(prompts, index, answered)
            made += [self._generated(one, request.settings) for one in self._several(answered, n)]
        return made

    def measured(self) -> dict[str, float]:
        seconds, self._seconds = self._seconds, 0.0
        return {"seconds_sync": seconds}

    def _question(self, prompts: Prompts, index: int, draws: Sequence[Draws]) -> Question:
        """One placeholder stands for each image: the engine expands it by its own processor."""
        examples = prompts.examples
        place, processor = examples.place_of(index), examples.processor
        images = examples.images(index)
        options = processor.pixels.options(len(images), examples.mixture.part(place).max_tiles) if images else {}
        ids = processor.chat.prompt(examples.mixture[place].prompt)
        return Question(ids, [_png(image) for image in images], [one.seed for one in draws], options)

    def _settings(self, sampling: Sampling) -> Settings:
        return Settings(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_new_tokens=sampling.min_new_tokens,
            max_new_tokens=sampling.max_new_tokens,
            stops=self._vocabulary.stops,
            forbidden=self._vocabulary.banned.nonzero()[:, 0].tolist(),
        )

    def _asked(self, request: Questions) -> Answers:
        client = self._clients[self._ranks.rank % len(self._clients)]
        for _ in range(_TRIES):
            try:
                return client.generate(request)
            except Stale:  # it was started again while nobody asked it
                self._load(client)
            except ServerLost as error:
                self._revive(client, error)
        raise EngineFailed(f"{client.name} has died {_TRIES} times in a row over the same prompts")

    def _revive(self, client: Client, error: ServerLost) -> None:
        """Wait for whoever watches over a server to start it again."""
        if not client.started_again(GRACE):
            raise error
        client.wait(self._engine.start)
        self._load(client)

    def _load_all(self) -> None:
        """All servers at once; what one of them says wrong is raised."""
        for future in [_thread(lambda client=client: self._begin(client)) for client in self._clients]:  # type: ignore[misc]
            future.result()

    def _begin(self, client: Client) -> None:
        client.wait(self._engine.start)
        try:
            self._load(client)
        except ServerLost as error:
            self._revive(client, error)

    def _load(self, client: Client) -> None:
        request = Load(str(self._context.paths.served), self._version)
        _check_weights(client.name, client.load(request), self._version, self._checksums)

    def _several(self, answered: Answered, count: int) -> list[Answer]:
        if len(answered.answers) != count:
            raise EngineFailed(f"the engine has given {len(answered.answers)} answers to a prompt instead of {count}")
        return answered.answers

    def _generated(self, answer: Answer, settings: Settings) -> Generated:
        ids, values = answer.ids, answer.log_probs
        wrong = ""
        if not 0 < len(ids) <= settings.max_new_tokens or len(values) != len(ids):
            wrong = f"{len(ids)} tokens with {len(values)} log-probabilities, of at most {settings.max_new_tokens}"
        elif not all(math.isfinite(value) and value < 1e-3 for value in values):
            wrong = "a number that is no log-probability"
        elif banned := set(ids) & set(settings.forbidden):
            wrong = f"the token {min(banned)}, which is forbidden"
        if wrong:
            raise EngineFailed(f"the engine has answered with {wrong}")
        return Generated(ids, values, ids[-1] in settings.stops)

    def _beside(self, work: Callable[[], T] | None, tick: Tick) -> T | None:
        """Do something in a thread, while all ranks go on looking at signals until nobody has anything left to do."""
        future = None if work is None else _thread(work)
        running = True
        while running:
            if future is not None:
                wait([future], _MOMENT)
                if future.done() and (error := future.exception()) is not None:
                    raise error
            running = tick(future is not None and not future.done())
        return None if future is None else future.result()


def _thread(work: Callable[[], T]) -> Future[T]:
    """The result of a function in a thread that no end of the process waits for."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  it is raised in the thread that waits
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _check_weights(name: str, loaded: Loaded, version: str, checksums: dict[str, list[int]]) -> None:
    """Whether a server has read every tensor as it was written: bytes may be old, missing or of another file."""
    what = ""
    if loaded.version != version:
        what = f"it still has version {loaded.version or 'none'} of the policy, and {version} was written"
    elif missing := sorted(set(checksums) ^ set(loaded.checksums)):
        what = f"{len(missing)} tensors are not on both sides, e.g. {missing[0]}"
    elif different := sorted(tensor for tensor, value in checksums.items() if loaded.checksums[tensor] != value):
        what = f"{len(different)} of {len(checksums)} tensors differ, e.g. {different[0]}"
    if what:
        raise EngineFailed(f"{name} has other weights than the trainer: {what}")


def _check_prompt(prompts: Prompts, index: int, answered: Answered) -> None:
    """Whether the engine has read the prompt that is learnt from, token by token (TRL #6294)."""
    ours, theirs = prompts[index].prompt.ids, answered.prompt
    if ours == theirs:
        return
    image = prompts.examples.processor.chat.image_id
    same = min(len(ours), len(theirs))
    at = next((place for place in range(same) if ours[place] != theirs[place]), same)
    counts = f"{len(theirs)} tokens ({theirs.count(image or -1)} of images), the trainer {len(ours)}"
    what = f"the engine has read its prompt as {counts} ({ours.count(image or -1)}); they differ from token {at} on"
    right = "the processor in rollouts/weights must prepare images as the trainer does"
    raise BadInput(f"objective.engine: {prompts.origin(index)}: {what}; {right}")


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()
