"""TensorBoard's event files: points of steps that will be done again are cut off."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmlaunch.run.paths import curves_in

_HEADER = struct.Struct("<QI")
"""A TFRecord: its length, a checksum of the length, as many bytes, a checksum of those (4 bytes)."""


def cut(folder: Path, resumed: int, again: bool = False) -> None:
    """Cut off all points after step `resumed`; with `again`, also those of the evaluation at this step.

    TensorBoard's two readers hide such points only by chance: the one in Rust where the same curve steps back, the one
    in Python where the first attempt left a mark as well. What is not in the files needs no hiding.
    """
    for path in curves_in(folder):
        _truncate(path, lambda event: event.step > resumed or (again and event.step == resumed and _measured(event)))


def _measured(event: Any) -> bool:
    """Whether an event belongs to an evaluation, which comes after the step itself."""
    return any(not value.tag.startswith("train/") for value in event.summary.value)


def _truncate(path: Path, orphaned: Callable[[Any], bool]) -> None:
    """Events stand in the order of their steps: all after the first orphaned one are orphaned too."""
    for offset, event in _events(path):
        if orphaned(event) and event.HasField("summary"):
            with path.open("r+b") as file:
                file.truncate(offset)
            return


def _events(path: Path) -> Iterator[tuple[int, Any]]:
    """Each whole event and its offset. TensorBoard's own reader computes every checksum in Python: 2 MB a second."""
    from tensorboard.compat.proto.event_pb2 import Event

    with path.open("rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            offset, (length, _) = file.tell() - _HEADER.size, _HEADER.unpack(header)
            data = file.read(length)
            if len(data) < length or len(file.read(4)) < 4:
                return  # the attempt was killed in the midst of it
            yield offset, Event.FromString(data)
