"""Comparison: two trained models judge the same pairs of answers, and how far they differ beyond chance."""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmjobs.data.batch import Batch
from mmjobs.data.encode import Processor
from mmjobs.data.example import Origin
from mmjobs.data.formats.registry import parts as parts_of
from mmjobs.data.loader import Examples, batches
from mmjobs.data.mixture import Mixture
from mmjobs.data.readers.rows import Part
from mmjobs.data.sampler import one_each, split_over_ranks
from mmjobs.data.survey import survey
from mmjobs.data.survey_rows import Survey
from mmjobs.model import heads, parts
from mmjobs.model.build import BuiltModel, skeleton
from mmjobs.model.restore import restore
from mmjobs.objectives.forward import answer_log_probs, by_answer, hidden_states
from mmjobs.objectives.policy_vs_reference import CompletionIndex
from mmjobs.tasks.program import end
from mmjobs.tasks.statistics import around_mean, difference, wilson
from mmlaunch.errors import BadInput, MachineError
from mmlaunch.recipe import resolved
from mmlaunch.recipe.check import section_of
from mmlaunch.recipe.data import Source
from mmlaunch.recipe.requirements import Requirements
from mmlaunch.run import manifest
from mmlaunch.run.paths import RunPaths

Reasons = dict[str, tuple[str, str]]
"""The rows that are left out: of which kind the reason is, and the reason itself."""


def compare(runs: tuple[Path, Path], sources: Sequence[Source], size: int) -> dict[str, Any]:
    """Both runs on the pairs that both can judge, each row once whatever its repeat; one model in memory at a time."""
    judges = [Judge(RunPaths(run)) for run in runs]
    for judge in judges:
        judge.step(contents=False)  # before hours of work: the second may have none
    rows = tuple(part for source in sources for part in parts_of(source) if part.repeat)
    surveys = [judge.look(rows) for judge in judges]
    left_out = _left(surveys)
    common = {(row.part, row.row) for row in surveys[0].usable} & {(row.part, row.row) for row in surveys[1].usable}
    facts: list[dict[str, Any]] = []
    margins: list[dict[Origin, float]] = []
    for judge, surveyed in zip(judges, surveys, strict=True) if common else ():
        facts_of_run, margins_of_run = judge.judge(surveyed, common, size, left_out)
        facts.append(facts_of_run)
        margins.append(margins_of_run)
        gc.collect()  # a network holds itself in circles, and the next one wants its place
        torch.cuda.empty_cache()
    pairs = [pair for pair in margins[0] if pair in margins[1]] if margins else []
    if not pairs:
        some = next((f"{row}: {reason}" for row, (_, reason) in left_out.items()), "there are no rows")
        raise BadInput(f"no pair is left to compare ({some}); give rows with two answers, the better one first")
    return _result(facts, [[one[pair] for pair in pairs] for one in margins], left_out)


def _result(facts: list[dict[str, Any]], margins: list[list[float]], left_out: Reasons) -> dict[str, Any]:
    outcomes = []
    for facts_of_run, values in zip(facts, margins, strict=True):
        margin = torch.tensor(values, dtype=torch.float64)  # [N]
        outcomes.append((margin.sign() + 1) / 2)  # a tie is half right
        right = float(outcomes[-1].sum())
        facts_of_run |= {"right": right, "ties": int((margin == 0).sum()), "accuracy": right / len(values)}
        facts_of_run |= {"accuracy_interval": wilson(right, len(values))}
        facts_of_run |= {"margin": float(margin.mean()), "margin_interval": around_mean(margin)}
    return {
        "pairs": len(margins[0]),
        "a": facts[0],
        "b": facts[1],
        "difference": difference(outcomes[1] - outcomes[0]),
        "left": dict(Counter(why for why, _ in left_out.values())),
        "reasons": [{"row": row, "reason": reason} for row, (_, reason) in list(left_out.items())[:5]],
    }


class Judge:
    """A run as its newest valid checkpoint judges pairs."""

    def __init__(self, paths: RunPaths) -> None:
        self.paths, self.recipe = paths, resolved.read(paths.resolved)
        self.scores = self.recipe.objective.has_scoring_head

    def step(self, contents: bool) -> int:
        """The step of that checkpoint; its files are hashed only where their `contents` matter."""
        newest, rejected = manifest.newest(self.paths.checkpoints, contents)
        if newest is None:
            what = f"{self.paths.name} has no valid checkpoint ({'; '.join(rejected) or 'none was ever saved'})"
            raise BadInput(f"{what}; compare runs that have saved one")
        return newest.step

    def look(self, rows: Sequence[Part]) -> Survey:
        """The rows that it can judge, and why it cannot judge the others."""
        with torch.device("meta"):  # only its tokens and pixels are needed, never its weights
            built = skeleton(self.recipe.model, self.recipe.precision, empty=True)
        return survey(rows, self._processor(built), moved=_Progress(self.paths.name, "rows"))

    def judge(
        self, surveyed: Survey, common: Collection[tuple[int, int]], size: int, left_out: Reasons
    ) -> tuple[dict[str, Any], dict[Origin, float]]:
        """Facts of the run, and its margin of each pair; a pair whose image turns out to be damaged is left out."""
        step = self.step(contents=True)  # only now: a run that goes on has dropped older ones by the time they are read
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        built = restore(self.recipe, self.paths.checkpoint(step))
        network: Any = built.network
        network.to(device).eval()
        numbers = [n for n, row in enumerate(surveyed.usable) if (row.part, row.row) in common]
        places = np.array(numbers, dtype=np.int64)
        pairs = Examples(Mixture(surveyed, places), self._processor(built), tolerant=True, packed=built.branches)
        precision = parts.TYPES[self.recipe.precision]
        moved = _Progress(self.paths.name, f"of {len(places):,} pairs")
        margins: dict[Origin, float] = {}
        for batch in batches(
            pairs, split_over_ranks(range(len(places)), one_each, size, 0, 1), self.recipe.data.workers
        ):
            left_out.update({bad.sample: ("bad", bad.what) for bad in batch.skipped})
            if len(batch):
                with torch.no_grad(), torch.autocast(device.type, precision, precision != torch.float32):
                    here = margins_of(network, batch.to(device), self.scores)
                margins |= zip(batch.origins, here.tolist(), strict=True)
            moved(len(batch))
        if strange := [pair for pair, margin in margins.items() if not math.isfinite(margin)]:
            what = f"{self.paths.name}, step {step}: {len(strange)} of {len(margins)} margins are no finite numbers"
            raise BadInput(f"{what}, the first of {strange[0]}; compare a run whose weights are sound")
        by = "score" if self.scores else "log-probability"
        return {"run": self.paths.name, "step": step, "judges_by": by}, margins

    def _processor(self, built: BuiltModel) -> Processor:
        """Answers are judged whole: where training would cut a long one, its row is left out."""
        longest = built.longest(self.recipe.data.max_tokens)
        return Processor(built.chat, built.pixels, longest, "drop", Requirements(least=2, most=2, prompts=False))


def margins_of(network: nn.Module, batch: Batch, scores: bool) -> torch.Tensor:
    """How far the first answer of each pair is ahead of the second: [N]"""
    if scores:
        values = heads.score_of(network, hidden_states(network, batch, batch.answers.last))  # [A]
    else:
        values = by_answer(answer_log_probs(network, batch).values.double(), batch)  # [A]
    index = CompletionIndex.of(batch)
    return (values[index.chosen] - values[index.rejected]).double()


def _left(surveys: Sequence[Survey]) -> Reasons:
    left_out: Reasons = {}
    for number, one in enumerate(surveys):
        others = {(row.part, row.row) for row in surveys[1 - number].usable}
        for row in one.left_out:
            alone = f" (for {'AB'[number]} alone)" if (row.part, row.row) in others else ""
            left_out.setdefault(row.origin, (row.why, row.reason + alone))
    return left_out


class _Progress:
    """Counts on standard error, for a terminal."""

    def __init__(self, name: str, what: str) -> None:
        self._name, self._what, self._count, self._shown = name, what, 0, 0

    def __call__(self, more: int = 1) -> None:
        self._count += more
        if sys.stderr.isatty() and self._count >= self._shown + 100:
            self._shown = self._count
            print(f"\r\033[K{self._name}: {self._count:,} {self._what}", end="", file=sys.stderr, flush=True)


def main() -> int:
    """`python -m mmjobs.tasks.compare RUN_A RUN_B SOURCES`, which `mmlaunch compare` calls."""
    parser = argparse.ArgumentParser(prog="mmlaunch compare")
    parser.add_argument("runs", type=Path, nargs=2)
    parser.add_argument("sources", help="data sets as in a recipe, in JSON")
    parser.add_argument("--batch", type=int, default=8)
    return end(parser, _compare)


def _compare(given: argparse.Namespace) -> dict[str, Any]:
    sources = [section_of(Source, source) for source in json.loads(given.sources)]
    try:
        return compare((given.runs[0], given.runs[1]), sources, given.batch)
    except torch.OutOfMemoryError:
        what = f"the GPU has no room for {given.batch} examples at a time; write a smaller --batch"
        raise MachineError(what) from None


if __name__ == "__main__":
    sys.exit(main())
