"""What a task does with a batch of rows, and what all tasks write of a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from mmjobs.data.example import Slot
from mmjobs.inference.inputs import Failed, InputRow
from mmjobs.inference.made import path_of
from mmjobs.inference.records import Record

Check = Callable[[], None]
"""Called by all ranks inside long work; raises `Interrupted` when the attempt has to end."""


LATER = frozenset(
    {"kind", "metric", "better", "scores", "kinds", "extracted", "counts", "made", "begun", "turn_predictions"}
)
"""Fields that only some tasks write, some of them later; whoever reads records takes them for a task's."""


class Work(Protocol):
    """The work of a task. All ranks call it together, each with a batch of its own or none."""

    def length(self, row: InputRow) -> int:
        """By which the rows of a window are sorted; raises `Failed` for a row that cannot be worked on."""

    def records(self, rows: Sequence[InputRow], check: Check) -> list[Record]:
        """One record for each row, in their order."""

    def failed(self, row: InputRow, reason: Failed) -> Record:
        """The record of a row that has no answer: it is counted as all others of its source are."""

    def facts(self) -> Mapping[str, Any]:
        """What the records were made with, for the footer of the shard."""

    def close(self) -> None:
        """End whatever was started."""


def record(row: InputRow, own: Mapping[str, Any]) -> Record:
    """The user's fields as they were, then those of the task. A field of the user's that bears the name of one of ours
    with another value is kept under `input_<name>`, and so is one that another task writes."""
    ours = {"index": row.index, "source": row.own_source, **_request(row), **own}
    taken = {key for key, value in row.values.items() if (ours[key] != value if key in ours else key in LATER)}
    users = {f"input_{key}" if key in taken else key: value for key, value in row.values.items()}
    return {**{key: value for key, value in users.items() if key not in ours}, **ours}


def failed(row: InputRow, reason: Failed, own: Mapping[str, Any]) -> Record:
    """The record of a row that has no answer."""
    return record(row, {**own, "error": {"reason": reason.reason, "detail": reason.detail}})


def _request(row: InputRow) -> dict[str, Any]:
    """What the model was asked: the conversation, with <image> in the place of an image; the images; the truths."""
    example = row.example
    if example is None:
        return {"prompt": None, "images": [], "truths": []}
    messages = [
        {"role": turn.role, "content": "".join("<image>" if isinstance(part, Slot) else part for part in turn.content)}
        for turn in example.prompt
    ]
    alone = len(messages) == 1 and messages[0]["role"] == "user"
    return {
        "prompt": messages[0]["content"] if alone else messages,
        "images": [path_of(picture) for picture in example.images],
        "truths": row.truths,
    }
