"""The task `inspect_data`: the data of a recipe as its model reads them, in numbers and as samples."""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmjobs.tasks.program import end
from mmlaunch.recipe import Recipe, resolved

PACKED = 64
"""Global batches that are packed to measure how full their rows are."""


def inspect(recipe: Recipe, samples: int, page: Path | None, decode: bool) -> dict[str, Any]:
    """Every source of a recipe, surveyed as training surveys it."""
    import torch

    from mmjobs.data.encode import Processor
    from mmjobs.data.formats.registry import parts
    from mmjobs.data.mixture import mixture
    from mmjobs.data.survey import survey
    from mmjobs.model.build import skeleton

    with torch.device("meta"):  # only its tokens and pixels are needed, never its weights
        built = skeleton(recipe.model, recipe.precision, empty=True)
    longest = built.longest(recipe.data.max_tokens)
    processor = Processor(built.chat, built.pixels, longest, recipe.data.overlong, recipe.objective.requirements)
    result: dict[str, Any] = {"longest": processor.longest, "groups": {}}
    shown: list[tuple[Any, int | None]] = []
    questions: set[bytes] = set()
    read = "train" if recipe.trains else "input"
    for group in ("eval", read):
        sources = recipe.data.inputs if group == "input" else getattr(recipe.data, group)
        held_out = questions if group == "train" and recipe.data.deduplicate else set()
        surveyed = survey(sum((parts(source) for source in sources), ()), processor, held_out, moved=_Dots(group))
        if group == "eval":
            questions = surveyed.questions
        if decode:
            surveyed = _decoded(surveyed, processor)
        result["groups"][group] = [_part(surveyed, number, recipe.seed) for number in range(len(surveyed.parts))]
        if surveyed.usable:
            mixed = mixture(surveyed, recipe.seed, tolerant=True)
            if group == read:
                result["examples"] = len(mixed)
                result["fill"] = _fill(mixed, recipe)
            if group == read or not shown:
                shown = [(mixed[place], mixed.part(place).max_tiles) for place in range(min(samples, len(mixed)))]
    if shown:
        from mmjobs.tasks.inspect_page import page_of, sample

        samples_shown = [sample(processor, example, budget) for example, budget in shown]
        result["samples"] = [one.facts() for one in samples_shown]
        if page is not None:
            page.write_text(page_of(recipe.name, result, samples_shown))
    return result


def _part(surveyed: Any, number: int, seed: int) -> dict[str, Any]:
    part = surveyed.parts[number]
    rows = [row for row in surveyed.usable if row.part == number]
    left_out = [row for row in surveyed.left_out if row.part == number]
    sizes = [size for row in rows for size in row.images]
    return {
        "name": part.name,
        "rows": len(part.rows),
        "usable": len(rows),
        "repeat": part.repeat,
        "answers": _summary([len(row.answers) for row in rows]),
        "tokens": _summary([row.prompt + sum(row.answers) for row in rows]),
        "prompt_tokens": _summary([row.prompt for row in rows]),
        "answer_tokens": _summary([length for row in rows for length in row.answers]),
        "images": _summary([len(row.images) for row in rows]),
        "width": _summary([size[0] for size in sizes]),
        "height": _summary([size[1] for size in sizes]),
        "left": dict(Counter(row.why for row in left_out)),
        "reasons": [{"row": row.origin, "why": row.why, "reason": row.reason} for row in left_out[:5]],
    }


def _summary(numbers: Sequence[int]) -> dict[str, int] | None:
    """Minimum, median, 99th percentile and maximum."""
    if not numbers:
        return None
    ranked = sorted(numbers)
    at = {"min": 0, "median": (len(ranked) - 1) // 2, "p99": math.ceil(0.99 * len(ranked)) - 1, "max": len(ranked) - 1}
    return {name: ranked[place] for name, place in at.items()}


def _fill(mixed: Any, recipe: Recipe) -> float | None:
    """How full packed rows are, in the first global batches of the first epoch."""
    from mmjobs.data.packing import pack
    from mmjobs.data.shuffle import order_of

    budget, size = recipe.batch.tokens_per_gpu, recipe.batch.examples
    if budget is None:
        return None
    fills, place_of = [], order_of(mixed, recipe.data, recipe.seed)
    for start in range(0, min(len(mixed), PACKED * size), size):
        lengths = [mixed.tokens(place_of(index)) for index in range(start, start + size)]
        fills.append(pack(lengths, recipe.trainers.world, budget).fill)
    return sum(fills) / len(fills)


def _decoded(surveyed: Any, processor: Any) -> Any:
    """The survey after every image was decoded: some images are damaged after a header that is whole."""
    from mmjobs.data.example import BadPicture
    from mmjobs.data.survey_rows import LeftOut, LeftOutRows, Survey, UsableRows

    usable, left_out = [], list(surveyed.left_out)
    for row in surveyed.usable:
        example = surveyed.parts[row.part].rows[row.row]
        try:
            for picture in example.images:
                picture.open(processor.pixels.max_side)
            usable.append(row)
        except BadPicture as error:
            left_out.append(LeftOut(row.part, row.row, "bad", str(example.origin), str(error)))
    return Survey(surveyed.parts, UsableRows.of(usable), LeftOutRows.of(left_out))


class _Dots:
    """Progress on standard error, for a terminal."""

    def __init__(self, group: str) -> None:
        self.group, self.rows = group, 0

    def __call__(self) -> None:
        self.rows += 1
        if sys.stderr.isatty() and self.rows % 500 == 0:
            print(f"\r{self.group}: {self.rows:,} rows", end="", file=sys.stderr, flush=True)


def main() -> int:
    """`python -m mmjobs.tasks.inspect_data RESOLVED`, which `mmlaunch data` calls."""
    parser = argparse.ArgumentParser(prog="mmlaunch data")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--html", type=Path)
    parser.add_argument("--decode", action="store_true")
    return end(parser, lambda given: inspect(resolved.read(given.recipe), given.samples, given.html, given.decode))


if __name__ == "__main__":
    sys.exit(main())
