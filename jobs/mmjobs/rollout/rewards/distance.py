"""The similarity of two texts by the letters that have to be changed."""

from __future__ import annotations


def edits(first: str, second: str, most: int) -> int:
    """How many letters have to be added, removed or replaced; `most` + 1 where it is more than `most`."""
    if len(first) > len(second):
        first, second = second, first
    if len(second) - len(first) > most:
        return most + 1
    row = list(range(len(first) + 1))
    for place, letter in enumerate(second, 1):
        above, row[0] = row[0], place
        for column, own in enumerate(first, 1):
            above, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, above + (own != letter))
        if min(row) > most:
            return most + 1
    return row[-1]


def anls(answer: str, truth: str, threshold: float) -> float:
    """1 - edits / length of the longer text, and 0 below the threshold; without case, with single spaces."""
    own, right = (" ".join(text.lower().split()) for text in (answer, truth))
    longer = max(len(own), len(right))
    if longer == 0:
        return 0.0
    most = int(longer * (1 - threshold) + 1e-9)
    distance = edits(own, right, most)
    return 1 - distance / longer if distance <= most else 0.0
