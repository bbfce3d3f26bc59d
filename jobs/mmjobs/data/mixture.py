"""The mixture: the rows of all sources of one list, with their repeats, without those that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from mmjobs.data.encode import Processor
from mmjobs.data.example import Example
from mmjobs.data.formats import FORMATS
from mmjobs.data.order import repeated
from mmlaunch.errors import BadInput
from mmlaunch.recipe.data import Source


@dataclass(frozen=True)
class Mixture:
    """Examples by their place in the mixture, and how many were left out."""

    sources: tuple[Sequence[Example], ...]
    places: tuple[tuple[int, int], ...]
    """(source, row) of each place."""
    overlong: int
    held_out: int

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> Example:
        source, row = self.places[place]
        return self.sources[source][row]

    def __str__(self) -> str:
        left = [f"{self.overlong} too long"] * bool(self.overlong)
        left += [f"{self.held_out} also in the evaluation data"] * bool(self.held_out)
        return f"{len(self)} examples" + (f" (left out: {', '.join(left)})" if left else "")


def mixture(
    sources: Sequence[Source],
    processor: Processor,
    seed: int,
    held_out: Collection[object] = (),
    moved: Callable[[], None] = lambda: None,
) -> Mixture:
    """The rows of `sources`; questions that stand in `held_out` are left out. Millions take time: each has `moved`."""
    opened = tuple(FORMATS[source.format](source) for source in sources)
    places: list[tuple[int, int]] = []
    overlong = also_held_out = 0
    for number, (source, rows) in enumerate(zip(sources, opened, strict=True)):
        usable = []
        for row, example in enumerate(rows):
            moved()
            if held_out and example.question in held_out:
                also_held_out += 1
            elif not processor.fits(example):
                overlong += 1
            else:
                usable.append(row)
        places += [(number, usable[n]) for n in repeated(len(usable), source.repeat, "repeat", seed, number)]
    if sources and not places:
        raise BadInput(
            f"no example is left: {overlong} are longer than {processor.longest} tokens, {also_held_out} held out"
        )
    return Mixture(opened, tuple(places), overlong, also_held_out)


def questions(of: Mixture) -> set[object]:
    """The questions of a mixture, for another one to leave out."""
    return {of[place].question for place in range(len(of))}
