"""A processor whose tokens are bytes, and what it reads, for tests of data that need no model."""

from __future__ import annotations

from collections.abc import Collection

from mmjobs.data.chat import Chat, own_template
from mmjobs.data.encode import Processor
from mmjobs.data.example import Answer, Example, Origin, Turn
from mmjobs.data.formats.registry import parts
from mmjobs.data.images.preprocess import Squares
from mmjobs.data.mixture import Mixture, mixture
from mmjobs.data.survey import survey
from mmjobs.model import tokens
from mmlaunch.recipe.data import Source
from mmlaunch.recipe.model import Tiling

TOKENIZER = tokens.byte_tokenizer()
TOKENIZER.chat_template = own_template("plain")
CHAT = Chat(TOKENIZER, tokens.IMAGE)
PIXELS = Squares(16, 4, 259, Tiling(), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PROCESSOR = Processor(CHAT, PIXELS, longest=128)


def mixed(*sources: Source, processor: Processor = PROCESSOR, held_out: Collection[bytes] = ()) -> Mixture:
    return mixture(survey(sum(map(parts, sources), ()), processor, held_out), 0)


def text(prompt: str, *answers: str, row: int = 7) -> Example:
    return Example((), (Turn("user", (prompt,)),), tuple(map(Answer, answers)), Origin("here", row))
