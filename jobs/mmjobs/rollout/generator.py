"""The generator: what answers prompts with the policy's present weights; here in the trainer's own process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from mmjobs.data.chat import Chat
from mmjobs.engine.engine import Engine
from mmjobs.model.generate import Generated, Tick, Vocabulary, all_finite, generate
from mmjobs.model.sampling import Draws
from mmjobs.rollout.rows import Prompts
from mmlaunch.recipe.sampling import Sampling

Check = Callable[[], None]
"""Called by all ranks inside long work; raises `Interrupted` when the attempt has to end."""


class Generator(Protocol):
    """Answers prompts. All ranks use it together, each with prompts of its own or none."""

    def ready(self, check: Check) -> AbstractContextManager[None]:
        """In this context it answers with the weights that the policy has now."""

    def answer(
        self, prompts: Prompts, indices: Sequence[int], draws: Sequence[Draws], sampling: Sampling, tick: Tick
    ) -> list[Generated]:
        """The answers to each prompt, one after the other; there is one of `draws` for each of them."""

    def measured(self) -> dict[str, float]:
        """What was measured since it was last read."""


class InProcess:
    """The policy itself answers, between two updates."""

    def __init__(self, actor: Engine, chat: Chat, sampling: Sampling, blank: bool, layered: bool = False) -> None:
        """`blank`: whether an image that nothing is learnt from stands for those that no prompt of a batch has;
        `layered`: whether a divided policy answers layer by layer, on all ranks together, and is never whole."""
        self._actor, self._blank, self._network = actor, blank, actor.network
        self._lockstep = layered and actor.sharded
        self._vocabulary = Vocabulary(actor.network, chat, sampling)

    @contextmanager
    def ready(self, check: Check) -> Iterator[None]:
        with self._actor.generating(gather=not self._lockstep) as network:
            self._network = network
            yield

    def answer(
        self, prompts: Prompts, indices: Sequence[int], draws: Sequence[Draws], sampling: Sampling, tick: Tick
    ) -> list[Generated]:
        processor = prompts.examples.processor
        with self._actor.autocast():
            answers = generate(
                self._network, [prompts[index] for index in indices], draws, self._vocabulary, sampling,
                processor.pixels, processor.chat.tokenizer.pad_token_id, self._blank, tick, self._lockstep,
            )  # fmt: skip
        return all_finite(answers)

    def measured(self) -> dict[str, float]:
        return {}
