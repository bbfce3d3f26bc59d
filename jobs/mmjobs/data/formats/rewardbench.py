"""The `rewardbench` format: prompts with a better and a worse answer, in subsets, as reward models are tested."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from mmjobs.data.example import Answer, Example
from mmjobs.data.formats import trl
from mmjobs.data.readers.answers import worded
from mmjobs.data.readers.folder import Folder
from mmjobs.data.readers.row import Row
from mmjobs.data.readers.rows import Rows, examples, file_of
from mmjobs.data.readers.turns import prompt
from mmjobs.data.writers.fit import Holds
from mmjobs.data.writers.words import Facts, question
from mmlaunch.recipe.data import Source

COLUMNS: tuple[tuple[str, ...], ...] = (("prompt", "chosen", "rejected", "subset"),)
"""Rows with all of one of these columns are in this format, unless a format of a lower `ORDER` matches."""
ORDER = 55

HOLDS = Holds(fewest=2, most=2)


def rows(source: Source) -> Rows:
    """`prompt`, `chosen`, `rejected`, `subset`, `id`; chosen and rejected as text, messages, or lists of texts.

    Lists (version 2) hold several right and several wrong answers without an order among them: right ones have the
    score 1, wrong ones 0.
    """
    make = partial(_example, folder=Folder.of(source, file_of(source)))
    return examples(source, "rewardbench", ["chosen", "rejected"], make)


def _example(row: Row, folder: Folder) -> Example:
    chosen, rejected = row.need("chosen"), row.need("rejected")
    if not (_texts(chosen) and _texts(rejected)):
        return trl.example(row, folder)
    conversation = trl.prompt_messages(row)
    images = trl.pictures(row, conversation, folder)
    answers = [Answer(worded(row, text, "chosen"), 1.0) for text in chosen]
    answers += [Answer(worded(row, text, "rejected"), 0.0) for text in rejected]
    if len({answer.text for answer in answers}) < len(answers):
        raise row.bad("has the same answer twice; a preference needs a difference")
    if len(answers) == 2:
        answers = [Answer(answer.text) for answer in answers]
    return Example(images, prompt(row, conversation, len(images)), tuple(answers), row.origin, row.label())


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and not any(isinstance(item, dict) for item in value)


def row_of(example: Example, images: Sequence[str], facts: Facts) -> dict[str, Any]:
    chosen, rejected = example.answers
    return {
        "id": facts.name,
        "prompt": question(example),
        **({"images": list(images)} if images else {}),
        "chosen": chosen.text,
        "rejected": rejected.text,
        "subset": facts.category or "all",
    }
