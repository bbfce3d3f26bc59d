"""Chat: from the turns of a conversation to tokens, with a loss mask.

The model's own template renders the whole text, images become the words that the model's processor writes for them, and
all of it is tokenised once: no seam between prompt, image and answer ever differs from what the tokenizer makes of the
whole. Offsets then say which tokens carry letters of an answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

from jinja2 import TemplateError

from mmjobs.data.example import Example, Slot, Turn
from mmjobs.data.expansion import Layout, layout
from mmjobs.data.special_words import Words, hide, special_words
from mmlaunch.errors import BadInput

Span = tuple[int, int]
Expand = Callable[[str], str]
"""From a rendered conversation to what the tokenizer gets: each image's word becomes the words of its features."""
OWN = ("plain", "llama-2", "llama-3", "vicuna")
_IMAGE = {"type": "image"}


@dataclass(frozen=True)
class Tokens:
    """Token ids, and which of them are in the loss."""

    ids: list[int]
    loss_mask: list[bool]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> Tokens:
        return Tokens(self.ids[part], self.loss_mask[part])


@dataclass(frozen=True)
class Tree:
    """A prompt, and the answers that branch off from it."""

    prompt: Tokens
    answers: tuple[Tokens, ...]


class TemplateMismatch(Exception):
    """The template refuses a conversation, or renders its beginning in another way once it goes on."""


def own_template(name: str) -> str:
    """One of the templates that come with mmlaunch."""
    return resources.files("mmjobs.data").joinpath("templates", f"{name}.jinja").read_text()


class Chat:
    """The tokenizer and the chat template of one model."""

    def __init__(self, tokenizer: Any, image_token: str | None) -> None:
        if not tokenizer.is_fast:
            raise BadInput("the tokenizer has no fast version, and a slow one does not say what a token stands for")
        if not tokenizer.chat_template:
            raise BadInput(f"model.chat_template: the model ships no chat template; write one of {', '.join(OWN)}")
        self.tokenizer, self.image_token = tokenizer, image_token

    @cached_property
    def image_id(self) -> int | None:
        """The token of one image, before it becomes as many as the image has features."""
        return None if self.image_token is None else int(self.tokenizer.convert_tokens_to_ids(self.image_token))

    @cached_property
    def end_id(self) -> int:
        """The token that every answer ends with."""
        text, _ = self._answered([Turn("user", ("Hello",))], "Hello")
        return self._read(text, {}, str)[0][-1]

    def prompt(self, turns: Sequence[Turn], expand: Expand = str, begun: str = "") -> list[int]:
        """The tokens that an answer is generated from, with the beginning of that answer where one is given."""
        if not begun:
            turns, _, hidden = self._hidden(turns)
            return self._read(self._render(turns, asks=True), hidden, expand)[0]
        turns, (begun,), hidden = self._hidden(turns, [begun])
        text, (start, _) = self._answered(turns, begun)
        return self._read(text[: text.index(begun, start) + len(begun)], hidden, expand)[0]

    def tree(self, turns: Sequence[Turn], answers: Sequence[str], expand: Expand = str) -> Tree:
        """The conversation and its answers: what all of them share is the prompt, and each ends with the end token."""
        turns, answers, hidden = self._hidden(turns, answers)
        earlier = self._earlier_answers(turns)
        if not answers:
            ids, spans = self._read(self._render(turns, asks=True), hidden, expand)
            return Tree(_marked(ids, spans, earlier), ())
        wholes, starts = [], []
        for text, span in (self._answered(turns, answer) for answer in answers):
            ids, spans = self._read(text, hidden, expand)
            wholes.append(_marked(ids, spans, [*earlier, span]))
            starts.append(next(place for place, of_token in enumerate(spans) if _touches(of_token, span)))
        shared = _common([whole.ids for whole in wholes], min(starts))
        return Tree(wholes[0][:shared], tuple(whole[shared:] for whole in wholes))

    def _earlier_answers(self, turns: Sequence[Turn]) -> list[Span]:
        """Where the earlier answers that are in the loss stand in the text of the whole conversation."""
        places = [place for place, turn in enumerate(turns) if turn.in_loss]
        whole = self._render(turns, asks=True) if places else ""
        spans = []
        for place in places:
            text, (start, stop) = self._answered(turns[:place], turns[place].text)
            if not whole.startswith(text):  # at the end of a conversation the template writes no end token
                stop -= len(self.tokenizer.eos_token)
            if not whole.startswith(text[:stop]):
                raise TemplateMismatch("the chat template writes a turn in another way once the conversation goes on")
            spans.append((start, stop))
        return spans

    def _answered(self, turns: Sequence[Turn], answer: str) -> tuple[str, Span]:
        """The text that ends with this answer, and where in it the answer and its end token stand."""
        question = self._render(turns, asks=True)
        whole = self._render([*turns, Turn("assistant", (answer,))], asks=False)
        if not whole.startswith(question):
            raise TemplateMismatch("the chat template writes a question in another way once it is answered")
        start = whole.find(answer, len(question))
        if start < 0:  # some templates trim
            answer = answer.strip()
            start = whole.find(answer, len(question))
        if start < 0:
            raise TemplateMismatch("the chat template changes the words of an answer")
        stop = start + len(answer)
        end = self._end.match(whole, stop)
        text = whole[: end.end()] if end else whole[:stop] + self.tokenizer.eos_token
        return text, (len(question), len(text))

    def asked(self, turns: Sequence[Turn]) -> str:
        """The text that an answer is generated from, before images are expanded."""
        return self._render(turns, asks=True)

    def answered(self, turns: Sequence[Turn], answer: str) -> str:
        """The text of a conversation up to the end of its answer, before images are expanded."""
        return self._answered(turns, answer)[0]

    def messages(self, turns: Sequence[Turn], images: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The turns as standard messages, with these `images` in their places."""
        given = iter(images)
        messages = [{"role": turn.role, "content": self._content(turn)} for turn in turns]
        for message in messages if images else ():
            shown = [part | {"image": next(given)} if part == _IMAGE else part for part in message["content"]]
            message["content"] = shown
        return messages

    def _render(self, turns: Sequence[Turn], asks: bool) -> str:
        messages = self.messages(turns)
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks))
        except TemplateError as error:
            raise TemplateMismatch(f"the chat template refuses it: {error}") from None

    def _content(self, turn: Turn) -> Any:
        if self.image_token is None:  # the templates of text models want one string
            return turn.text
        return [_IMAGE if isinstance(part, Slot) else {"type": "text", "text": part} for part in turn.content]

    def _read(self, text: str, hidden: Words, expand: Expand) -> tuple[list[int], list[Span]]:
        """The tokens of a text and the letters that each of them covers, without a gap; those of images cover none."""
        shown = self._laid_out(text, expand)
        begins = self._begins and not text.startswith(self.tokenizer.bos_token)
        ids: list[int] = [self.tokenizer.bos_token_id] if begins else []  # a template may leave it to the tokenizer
        spans: list[Span] = [(0, 0)] * len(ids)
        at = reached = 0
        for piece in re.split(f"([{''.join(hidden)}])", shown.text) if hidden else [shown.text]:
            if piece in hidden:
                more = self._inside(hidden[piece], split_special_tokens=True)[0]
                ids += more
                spans += [shown.origin(at, at + 1)] * len(more)
            else:
                more, offsets = self._inside(piece) if at else self._outset(piece)
                for token, (start, stop) in zip(more, offsets, strict=True):
                    begin, reached = min(reached, at + start), max(reached, at + stop)  # spaces may be left out
                    count = shown.repeats.get(at + start, 1) if start < stop else 1
                    ids += [token] * count
                    spans += [shown.origin(begin, reached)] * count
            at += len(piece)
            reached = at
        return ids, spans

    def _laid_out(self, text: str, expand: Expand) -> Layout:
        """A rendered conversation with the words of its images."""
        if self.image_token is None or self.image_token not in text:
            return layout(text, text, "", self._repeated)
        return layout(text, expand(text), self.image_token, self._repeated)

    def _outset(self, text: str, **options: bool) -> tuple[list[int], list[Span]]:
        """The tokens of a text at the beginning of the conversation, and where they stand in it."""
        made = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, **options)
        return made["input_ids"], made["offset_mapping"]

    def _inside(self, text: str, **options: bool) -> tuple[list[int], list[Span]]:
        """The tokens of a text that continues another one: some tokenizers put a space before the first word of all."""
        anchor = "\n"
        if not text:
            return [], []
        ids, offsets = self._outset(anchor + text, **options)
        begin = next((place for place, (_, stop) in enumerate(offsets) if stop > len(anchor)), len(ids))
        if begin and offsets[begin - 1][1] == len(anchor) <= offsets[begin][0]:
            return ids[begin:], [(start - len(anchor), stop - len(anchor)) for start, stop in offsets[begin:]]
        return self._outset(text, **options)  # the anchor has grown together with the text

    def without_end(self, answer: str) -> str:
        """An answer without the end tokens that some data carry behind it: one is written by the template."""
        return self._closing.sub("", answer)

    def end_inside(self, answer: str) -> str | None:
        """The token that ends a turn, where it stands in the midst of an answer; None where it does not."""
        text = self.without_end(answer)
        return next((word for word in self._ends if word in text), None)

    def has_special_words(self, example: Example) -> bool:
        """Whether somebody writes a word that is a special token: here it stays a word."""
        texts = [*(turn.text for turn in example.prompt), *(self.without_end(one.text) for one in example.answers)]
        return any(self._specials.search(text) for text in texts)

    def _hidden(self, turns: Sequence[Turn], answers: Sequence[str] = ()) -> tuple[list[Turn], list[str], Words]:
        turns = [turn.changed(self.without_end, last=True) if turn.role == "assistant" else turn for turn in turns]
        return hide(turns, [self.without_end(answer) for answer in answers], self._specials)

    @cached_property
    def _specials(self) -> re.Pattern[str]:
        return special_words(self.tokenizer, self.image_token)

    @cached_property
    def _ends(self) -> tuple[str, ...]:
        """What ends an answer of the served model, as words."""
        words = {self.tokenizer.convert_ids_to_tokens(self.end_id), self.tokenizer.eos_token}
        return tuple(sorted(word for word in words if word))

    @cached_property
    def _closing(self) -> re.Pattern[str]:
        """End tokens behind an answer, with the spaces behind these."""
        return re.compile(rf"(?:(?:{'|'.join(map(re.escape, self._ends)) or '(?!)'})\s*)+\Z")

    @cached_property
    def _repeated(self) -> re.Pattern[str]:
        """One special token several times in a row, as images have them."""
        return re.compile(f"({self._specials.pattern})\\1+")

    @cached_property
    def _end(self) -> re.Pattern[str]:
        """The token that ends a turn, with the space that some templates put before it."""
        return re.compile(rf"\s*(?:{self._specials.pattern})")

    @cached_property
    def _begins(self) -> bool:
        """Whether the tokenizer puts its first token before every text."""
        first = self.tokenizer.bos_token_id
        return first is not None and self.tokenizer("")["input_ids"][:1] == [first]


def _touches(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _marked(ids: list[int], spans: Sequence[Span], answers: Iterable[Span]) -> Tokens:
    answer_spans = list(answers)
    return Tokens(ids, [any(_touches(span, one) for one in answer_spans) for span in spans])


def _common(sequences: Sequence[list[int]], most: int) -> int:
    """The length of the common beginning of all sequences, at most `most`."""
    first = sequences[0]
    return next((n for n in range(most) if any(other[n] != first[n] for other in sequences[1:])), most)
