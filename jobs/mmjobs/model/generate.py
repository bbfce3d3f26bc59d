"""Generation: several answers to several prompts at a time.

Where attention can branch, prompts are read side by side in one row, each with its images once, and all answers of a
prompt attend to one copy of its keys and values. Other models generate by transformers' own `generate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from mmjobs.data.batch import Batch, collate
from mmjobs.data.chat import Chat, Tokens
from mmjobs.data.encode import Encoded
from mmjobs.data.example import Origin
from mmjobs.data.images.preprocess import Pixels
from mmjobs.model import last_layer, log_probs, trees
from mmjobs.model.kv_cache import KVCache
from mmjobs.model.sampling import Draws, draw
from mmlaunch.errors import BadInput
from mmlaunch.recipe.sampling import Sampling

TICK = 16
"""Tokens of an answer between two calls of what the caller wants to be called."""
_NOTHING = Encoded(Tokens([0], [False]), (), (), {}, Origin("nothing", 0))
"""What a rank without prompts answers, in lockstep with the others."""
Stream = Callable[[int, int], None]
"""Called with the number of an answer and its next token, as soon as it is drawn."""
Tick = Callable[[bool], bool]
"""Called every few tokens with whether any answer here goes on; returns whether any goes on anywhere."""
_FEWER = 0.5
"""Finished answers leave the batch once no more than this share of it goes on."""


@dataclass
class Generated:
    """One answer."""

    ids: list[int] = field(default_factory=list)
    """Its tokens, with the one that ended it."""
    log_probs: list[float] = field(default_factory=list)
    """Of each token, at the sampling temperature."""
    ended: bool = False
    """Whether it ended; otherwise it was cut at its greatest length."""
    finite: bool = True
    """Whether all logits were finite; otherwise no token was drawn from the first that were not."""


class Vocabulary:
    """What may be generated, and what ends an answer, for one model."""

    def __init__(self, network: Any, chat: Chat, sampling: Sampling) -> None:
        tokenizer = chat.tokenizer
        stops = {chat.end_id, tokenizer.eos_token_id, *(self._token(tokenizer, "stop", w) for w in sampling.stop)}
        self.stops = sorted(stop for stop in stops if stop is not None)
        width = network.get_output_embeddings().weight
        rows = int(getattr(width, "ds_shape", width.shape)[0])
        self.banned = torch.zeros(rows, dtype=torch.bool)  # [V]
        forbidden = {*tokenizer.all_special_ids, *_added(tokenizer), chat.image_id} - {None}
        forbidden |= {self._token(tokenizer, "forbid", word) for word in sampling.forbid}
        self.banned[[token for token in sorted(forbidden) if token < rows]] = True  # a tokenizer may be longer
        self.banned[len(tokenizer) :] = True  # rows that no token has
        ends = [stop for stop in self.stops if stop < rows]
        self.banned[ends] = False
        self.banned_early = self.banned.clone()
        """[V], what is banned while an answer is too short to end."""
        self.banned_early[ends] = True

    @staticmethod
    def _token(tokenizer: Any, key: str, word: str) -> int:
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            what = f"{word!r} is {len(ids)} tokens of this model, and only one can be looked for"
            raise BadInput(f"objective.sampling.{key}: {what}; write a word that is one token")
        return int(ids[0])

    def to(self, device: torch.device) -> Vocabulary:
        self.banned, self.banned_early = self.banned.to(device), self.banned_early.to(device)
        return self


def _added(tokenizer: Any) -> set[int]:
    return {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


class _Answers:
    """The answers while they grow."""

    def __init__(
        self, draws: Sequence[Draws], vocabulary: Vocabulary, sampling: Sampling, stream: Stream | None = None
    ) -> None:
        self.all = [Generated() for _ in draws]
        self._draws, self._vocabulary, self._sampling, self._stream = draws, vocabulary, sampling, stream
        self.going_on = list(range(len(draws)))
        """The numbers of those that have not ended."""

    def extend(self, scores: torch.Tensor, rows: Sequence[int], length: int) -> torch.Tensor:
        """Draw the next token of these answers from scores [B, V]: [B]. Those of ended answers mean nothing."""
        uniform = [0.0 if self._done(row) else self._draws[row].next() for row in rows]
        vocabulary, sampling = self._vocabulary, self._sampling
        banned = vocabulary.banned_early if length < sampling.min_new_tokens else vocabulary.banned
        drawn = draw(scores, uniform, sampling, banned)
        pairs = zip(rows, drawn.tokens.tolist(), drawn.log_probs.tolist(), strict=True)
        for row, token, value in pairs:
            if self._done(row):
                continue
            answer = self.all[row]
            if not math.isfinite(value):
                answer.finite = False
                continue
            answer.ids.append(token)
            answer.log_probs.append(value)
            answer.ended = token in vocabulary.stops
            if self._stream is not None:
                self._stream(row, token)
        self.going_on = [row for row in self.going_on if not self._done(row)]
        return drawn.tokens

    def _done(self, row: int) -> bool:
        answer = self.all[row]
        return answer.ended or not answer.finite or len(answer.ids) >= self._sampling.max_new_tokens


def generate(
    network: Any,
    prompts: Sequence[Encoded],
    draws: Sequence[Draws],
    vocabulary: Vocabulary,
    sampling: Sampling,
    pixels: Pixels,
    padding: int = 0,
    blank: bool = False,
    tick: Tick = bool,
    lockstep: bool = False,
    stream: Stream | None = None,
) -> list[Generated]:
    """The answers to each prompt, one after the other; there is one of `draws` for each of them.

    `blank`: an image that nothing is learnt from stands for images that no prompt has. `tick` is called by every rank
    as often as by the others, and they go on until nobody's answers do. In `lockstep` all ranks run the network
    together, token by token, whether they have prompts or not: it may be divided over them. An answer whose logits are
    not finite stays as it is, and the others go on: the caller says what that means.
    """
    if idle := lockstep and not prompts:
        prompts, draws = [_NOTHING], [Draws(0, 0, number) for number in range(sampling.answers)]
    answers = _Answers(draws, vocabulary.to(next(network.parameters()).device), sampling, stream)
    if idle:
        answers.going_on = []
    network.eval()
    with torch.no_grad():
        if prompts:
            batch = collate(prompts, pixels, padding, packed=trees.kind(network) == trees.NAME, blank=blank)
            if batch.trees is not None:
                _Branches(network, batch, len(prompts), answers, sampling).run(tick, lockstep)
            elif lockstep:
                what = "a model whose attention cannot branch generates whole on each rank"
                raise BadInput(f"objective.sampling: {what}; it needs more memory, or a lower deepspeed.stage")
            else:
                _by_transformers(network, prompts, answers, sampling, pixels, tick)
        while tick(False):
            pass
    return [] if idle else answers.all


class _Branches:
    """Answers that share the keys and values of their prompt."""

    def __init__(self, network: Any, batch: Batch, prompts: int, answers: _Answers, sampling: Sampling) -> None:
        self._network, self._answers, self._sampling = network, answers, sampling
        self._device = next(network.parameters()).device
        batch = batch.to(self._device)
        assert batch.trees is not None
        lengths = [tree[0] for tree in batch.trees]
        self._cache = KVCache(lengths, sampling.answers)
        ends = torch.tensor(lengths, device=self._device).cumsum(0) - 1
        named = trees.arguments(network, batch.trees, self._device) | {"kv_cache": self._cache}
        _check_window(network, max(lengths), sampling)
        states = self._states(batch.ids, batch.positions, ends, **batch.image_inputs, **named)
        if len(lengths) > prompts:  # the blank image's
            states = states[:prompts]
            self._cache.keep(torch.arange(prompts, device=self._device), self._table(prompts))
        self._scores = log_probs.scores(network, states).repeat_interleave(sampling.answers, 0)  # [B, V]
        self._lengths = torch.tensor(lengths[:prompts], device=self._device)[:, None]  # [P, 1]
        count = prompts * sampling.answers
        self._rows = torch.arange(count, device=self._device).view(prompts, sampling.answers)  # the answers, [P, n]

    def _table(self, prompts: int) -> torch.Tensor:
        return torch.arange(self._sampling.answers, device=self._device).expand(prompts, -1)

    def run(self, tick: Tick, lockstep: bool) -> None:
        answers, longest = self._answers, self._sampling.max_new_tokens
        for length in range(longest):
            tokens = answers.extend(self._scores, self._rows.flatten().tolist(), length)
            running = bool(answers.going_on)
            if lockstep or (running and (length + 1) % TICK == 0):
                running = tick(running) if lockstep else tick(True) or running
            if not running:
                return
            tokens = self._drop_finished(tokens.view(self._rows.shape))
            positions = (self._lengths + length).expand(self._rows.shape)
            named = trees.next_token(self._cache, self._device)
            read = torch.arange(tokens.numel(), device=self._device)
            states = self._states(tokens.reshape(1, -1), positions.reshape(1, -1), read, **named)
            self._cache.tokens += 1
            self._scores = log_probs.scores(self._network, states)

    def _states(
        self, ids: torch.Tensor, positions: torch.Tensor | None, read: torch.Tensor, **named: Any
    ) -> torch.Tensor:
        """The last hidden states at these places of a row: [1, T] -> [U, D]"""
        few = last_layer.arguments(self._network, read)
        output = self._network.get_submodule("model")(
            input_ids=ids, position_ids=positions, **named, **few, use_cache=False
        )
        states: torch.Tensor = output.last_hidden_state
        return states if few else states.flatten(0, 1)[read]

    def _drop_finished(self, tokens: torch.Tensor) -> torch.Tensor:
        """Leave out answers that have ended, once they are many: [P, n] -> [P', n']"""
        going_on = torch.zeros(len(self._answers.all), dtype=torch.bool)
        going_on[self._answers.going_on] = True
        active = going_on[self._rows.cpu()]  # [P, n]
        if not active.any():  # in lockstep with other ranks
            return tokens
        prompts = active.any(1).nonzero()[:, 0]
        widest = int(active.sum(1).max())
        if len(prompts) * widest > _FEWER * active.numel():
            return tokens
        answers = torch.argsort(active[prompts].to(torch.int8), dim=1, descending=True, stable=True)[:, :widest]
        prompts, answers = prompts.to(self._device), answers.to(self._device)
        self._cache.keep(prompts, answers)
        self._rows = self._rows[prompts[:, None], answers]
        self._lengths = self._lengths[prompts]
        return tokens[prompts[:, None], answers]


def _check_window(network: Any, longest: int, sampling: Sampling) -> None:
    config = network.get_decoder().config
    window = getattr(config, "sliding_window", None) if config.model_type == "mistral" else None
    if window is not None and longest + sampling.max_new_tokens > window:
        what = f"a prompt of {longest} tokens and its answer are more than this model's window of attention ({window})"
        raise BadInput(f"objective.sampling.max_new_tokens: {what}; write at most {max(1, window - longest)}")


def _by_transformers(
    network: Any, prompts: Sequence[Encoded], answers: _Answers, sampling: Sampling, pixels: Pixels, tick: Tick
) -> None:
    """Prompt by prompt, its answers together: padding would change what some models make of images and positions."""
    for number, prompt in enumerate(prompts):
        rows = range(number * sampling.answers, (number + 1) * sampling.answers)
        ids = torch.tensor([prompt.prompt.ids] * sampling.answers, device=next(network.parameters()).device)
        images = pixels.join([prompt.image_inputs] * sampling.answers, ids)
        chosen = _Chosen(answers, list(rows), ids.shape[1])
        with _without_own_settings(network):
            network.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=sampling.max_new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                logits_processor=LogitsProcessorList([chosen]),
                stopping_criteria=StoppingCriteriaList([_AllEnded(chosen, tick)]),
                **{name: value.to(ids.device) for name, value in images.items()},
            )


@contextmanager
def _without_own_settings(network: Any) -> Iterator[None]:
    """In this context a model has none of the settings that it was published with, such as Qwen2.5-VL's penalty for
    repetitions: answers are drawn from what the model itself says."""
    own, network.generation_config = network.generation_config, GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = own


class _Chosen(LogitsProcessor):
    """Leaves transformers the token alone that we draw."""

    def __init__(self, answers: _Answers, rows: list[int], prompt: int) -> None:
        self.answers, self.rows, self._prompt = answers, rows, prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens = self.answers.extend(scores, self.rows, input_ids.shape[1] - self._prompt)
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens[:, None], 0.0)


class _AllEnded(StoppingCriteria):
    """Stops when all answers of the prompt have ended."""

    def __init__(self, chosen: _Chosen, tick: Tick) -> None:
        self._chosen, self._tick, self._count = chosen, tick, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        self._count += 1
        if self._count % TICK == 0:
            self._tick(True)
        done = not set(self._chosen.rows) & set(self._chosen.answers.going_on)
        return torch.full((len(input_ids),), done, dtype=torch.bool, device=input_ids.device)


def all_finite(answers: list[Generated]) -> list[Generated]:
    """These answers; an error where the logits of one of them were not finite."""
    for answer in answers:
        if not answer.finite:
            raise FloatingPointError(not_finite(answer))
    return answers


def not_finite(answer: Generated) -> str:
    """What is wrong with an answer that could not go on."""
    return f"the logits of token {len(answer.ids) + 1} of an answer are not finite"


def greedy(network: nn.Module, chat: Chat, pixels: Pixels, prompt: Encoded, longest: int) -> str:
    """The likeliest answer to one prompt, at most so many tokens, as text."""
    sampling = Sampling(max_new_tokens=longest, temperature=0.0)
    vocabulary = Vocabulary(network, chat, sampling)
    (answer,) = all_finite(generate(network, [prompt], [Draws(0, 0, 0)], vocabulary, sampling, pixels))
    return answer_text(chat, answer)


def answer_text(chat: Chat, answer: Generated) -> str:
    """What an answer says, without the token that ends it."""
    ids = answer.ids[:-1] if answer.ended else answer.ids
    return str(chat.tokenizer.decode(ids, skip_special_tokens=True))
