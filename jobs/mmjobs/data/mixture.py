"""The mixture: the usable rows of all sources of one list, each as often as its repeat says."""

from __future__ import annotations

import hashlib
import statistics
from dataclasses import dataclass
from functools import cached_property

from mmjobs.data.example import Example
from mmjobs.data.readers.rows import Part
from mmjobs.data.sampler import repeated
from mmjobs.data.survey import Survey, Usable
from mmlaunch.errors import BadInput
from mmlaunch.recipe.requirements import Requirements


@dataclass(frozen=True)
class Mixture:
    """Examples by their place in the mixture."""

    survey: Survey
    places: tuple[int, ...]
    """Which of the survey's usable rows stands at each place."""

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> Example:
        row = self.usable(place)
        return self.part(place).rows[row.row]

    def usable(self, place: int) -> Usable:
        """The row at this place, as the survey read it."""
        return self.survey.usable[self.places[place]]

    def part(self, place: int) -> Part:
        """The source of the row at this place, with its settings."""
        return self.survey.parts[self.usable(place).part]

    def tokens(self, place: int, requirements: Requirements | None = None) -> int:
        """The length of all trees at this place that these requirements need."""
        row = self.usable(place)
        length = row.prompt + sum(row.answers)
        if requirements is not None and requirements.corrupted and row.images:
            length += row.prompt + row.answers[0]
        if requirements is not None and requirements.mismatched:
            length += min(row.answer_space, self.usable((place + 1) % len(self)).first_answer)
        return length

    @cached_property
    def std(self) -> float:
        """The standard deviation of the score gaps between the first two answers; 1 where there is none."""
        scores = [self.usable(place).scores for place in range(len(self))]
        gaps = [two[0] - two[1] for two in scores if len(two) > 1 and two[0] is not None and two[1] is not None]
        return statistics.pstdev(gaps) or 1.0 if gaps else 1.0

    @cached_property
    def digest(self) -> str:
        """A digest of the questions and answers in their order."""
        digest = hashlib.blake2b(digest_size=8)
        for place in range(len(self)):
            digest.update(self.usable(place).content)
        return digest.hexdigest()

    @cached_property
    def has_images(self) -> bool:
        """Whether any row has one."""
        return any(row.images for row in self.survey.usable)

    def __str__(self) -> str:
        counts = {
            "bad": "that cannot be used", "overlong": "too long", "held out": "also in the evaluation data",
            "surplus": "more than the format takes of their kind", "same answers": "whose answers are the same",
        }  # fmt: skip
        left = [f"{self.survey.count(why)} {what}" for why, what in counts.items() if self.survey.count(why)]
        return f"{len(self)} examples" + (f" (left out: {', '.join(left)})" if left else "")


def mixture(survey: Survey, seed: int, tolerant: bool = False) -> Mixture:
    """The usable rows with their repeats. A bad one is an error, unless the recipe is `tolerant` of it."""
    bad = [row for row in survey.left_out if row.why == "bad"]
    if bad and not tolerant:
        more = f" (and {len(bad) - 1} more rows; data.on_bad: skip leaves them out)" if len(bad) > 1 else ""
        raise BadInput(f"{bad[0].origin}: {bad[0].reason}{more}")
    of_part: dict[int, list[int]] = {number: [] for number in range(len(survey.parts))}
    for number, row in enumerate(survey.usable):
        of_part[row.part].append(number)
    places: list[int] = []
    for number, part in enumerate(survey.parts):
        rows = of_part[number]
        places += [rows[place] for place in repeated(len(rows), part.repeat, "repeat", seed, number)]
    if survey.parts and not places:
        raise BadInput(f"no example is left: {_losses(survey)}")
    return Mixture(survey, tuple(places))


def _losses(survey: Survey) -> str:
    kinds = {
        "overlong": "are too long",
        "held out": "held out",
        "surplus": "too many of a kind",
        "same answers": "have answers that are the same",
        "bad": "cannot be used",
    }
    counts = [f"{survey.count(why)} {what}" for why, what in kinds.items() if survey.count(why)]
    some = next((f" ({row.origin}: {row.reason})" for row in survey.left_out if row.why != "held out"), "")
    return ", ".join(counts) + some if counts else "the sources are empty"
