"""The mixture: the usable rows of all sources of one list, each as often as its repeat says."""

from __future__ import annotations

import hashlib
import statistics
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mmjobs.data.example import Example
from mmjobs.data.readers.rows import Part
from mmjobs.data.sampler import Numbers, repeated
from mmjobs.data.survey_rows import Arrays, LeftOutRows, Survey, Usable, Why
from mmlaunch.errors import BadInput
from mmlaunch.recipe.requirements import Requirements

_CHUNK = 1 << 16


@dataclass(frozen=True)
class Mixture:
    """Examples by their place in the mixture."""

    survey: Survey
    places: Numbers
    """Which of the survey's usable rows stands at each place."""

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> Example:
        row = self.usable(place)
        return self.part(place).rows[row.row]

    def usable(self, place: int) -> Usable:
        """The row at this place, as the survey read it."""
        return self.survey.usable[int(self.places[place])]

    def part(self, place: int) -> Part:
        """The source of the row at this place, with its settings."""
        return self.survey.parts[int(self._arrays["part"][self.places[place]])]

    def tokens(self, place: int, requirements: Requirements | None = None) -> int:
        """The length of all trees at this place that these requirements need."""
        return int(self.lengths(requirements, slice(place, place + 1))[0])

    def lengths(self, requirements: Requirements | None = None, places: slice = slice(None)) -> Numbers:
        """The same for several places, or for all."""
        rows = self.places[places]
        lengths: Numbers = self._arrays["total"][rows].astype(np.int64)
        if requirements is not None and requirements.corrupted:
            usable = self.survey.usable
            first = usable.answers.values[usable.answers.ends[rows] - usable.answers.counts_at(rows)]
            lengths += np.where(usable.images.counts_at(rows) > 0, self._arrays["prompt"][rows] + first, 0)
        if requirements is not None and requirements.mismatched:
            following = self.places[(np.arange(*places.indices(len(self))) + 1) % len(self)]
            lengths += np.minimum(self._arrays["answer_space"][rows], self._arrays["first_answer"][following])
        return lengths

    @cached_property
    def std(self) -> float:
        """The standard deviation of the score gaps between the first two answers; 1 where there is none."""
        scores = self.survey.usable.scores
        rows = self.places[scores.counts_at(self.places) > 1]
        first = scores.ends[rows] - scores.counts_at(rows)
        gaps = scores.values[first] - scores.values[first + 1]
        known = gaps[~np.isnan(gaps)].tolist()
        return statistics.pstdev(known) or 1.0 if known else 1.0

    @cached_property
    def digest(self) -> str:
        """A digest of the questions and answers in their order."""
        digest = hashlib.blake2b(digest_size=8)
        for start in range(0, len(self), _CHUNK):
            digest.update(self._arrays["content"][self.places[start : start + _CHUNK]].tobytes())
        return digest.hexdigest()

    @cached_property
    def has_images(self) -> bool:
        """Whether any row has one."""
        return len(self.survey.usable.images.values) > 0

    @property
    def _arrays(self) -> Arrays:
        return self.survey.usable.arrays

    def __str__(self) -> str:
        counts: dict[Why, str] = {
            "bad": "that cannot be used", "overlong": "too long", "held out": "also in the evaluation data",
            "surplus": "more than the format takes of their kind", "same answers": "whose answers are the same",
        }  # fmt: skip
        left = [f"{self.survey.count(why)} {what}" for why, what in counts.items() if self.survey.count(why)]
        return f"{len(self)} examples" + (f" (left out: {', '.join(left)})" if left else "")


def mixture(survey: Survey, seed: int, tolerant: bool = False) -> Mixture:
    """The usable rows with their repeats. A bad one is an error, unless the recipe is `tolerant` of it."""
    if not tolerant:
        refuse_bad(survey.left_out, some=len(survey.usable) > 0)
    parts = survey.usable.arrays["part"]
    places = [np.empty(0, dtype=np.int64)]
    for number, part in enumerate(survey.parts):
        rows = np.flatnonzero(parts == number)
        places.append(rows[repeated(len(rows), part.repeat, "repeat", seed, number)])
    mixed = Mixture(survey, np.concatenate(places))
    if survey.parts and not len(mixed):
        raise BadInput(f"no example is left: {_losses(survey)}")
    return mixed


def refuse_bad(left_out: LeftOutRows, some: bool = True) -> None:
    """Raise `BadInput` for the first bad row. `some`: whether any row can be used."""
    bad = left_out.numbers("bad")
    if len(bad):
        first, more = left_out[int(bad[0])], ""
        if len(bad) > 1 and some:
            more = f" (and {len(bad) - 1} more rows; data.on_bad: skip leaves them out)"
        elif len(bad) > 1:
            more = f" (and so are all {len(bad)} rows)"
        raise BadInput(f"{first.origin}: {first.reason}{more}")


def _losses(survey: Survey) -> str:
    kinds: dict[Why, str] = {
        "overlong": "are too long",
        "held out": "held out",
        "surplus": "too many of a kind",
        "same answers": "have answers that are the same",
        "bad": "cannot be used",
    }
    counts = [f"{survey.count(why)} {what}" for why, what in kinds.items() if survey.count(why)]
    some = next((f" ({row.origin}: {row.reason})" for row in survey.left_out if row.why != "held out"), "")
    return ", ".join(counts) + some if counts else "the sources are empty"
