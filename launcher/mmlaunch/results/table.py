"""The summary as tables of text, for a terminal and for the page."""

from __future__ import annotations

from dataclasses import dataclass

from mmlaunch.results.comparisons import Pairs
from mmlaunch.results.interval import Mean
from mmlaunch.results.summary import Evaluation


@dataclass(frozen=True)
class Table:
    """Rows of text under their headings."""

    title: str
    head: list[str]
    rows: list[list[str]]


def tables(evaluation: Evaluation) -> list[Table]:
    """All tables that have rows: scores, several answers, pairs, their categories, wins."""
    every = (_scores(evaluation), _several(evaluation), *_pairs(evaluation), _versus(evaluation))
    return [table for table in every if table.rows]


def number(value: float | None) -> str:
    """A score with the digits that say something."""
    return "-" if value is None else f"{value:.4f}" if abs(value) < 10 else f"{value:.5g}"


def interval(rows: Mean) -> str:
    bounds = rows.interval
    return "-" if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}"


def _scores(evaluation: Evaluation) -> Table:
    head = ["source", "metric", "rows", "score", "95 %", "failed", "unparsed", "timeouts", "errors", "truncated"]
    rows = [
        [
            name,
            f"{one.metric} (lower is better)" if one.lower else one.metric,
            f"{one.rows.count:,}",
            number(one.score),
            interval(one.rows),
            *(f"{one.counts[count]:,}" for count in head[5:]),
        ]
        for name, one in evaluation.sources
    ]
    return Table("scores", head, rows + (_overall(evaluation, head) if evaluation.answers else []))


def _overall(evaluation: Evaluation, head: list[str]) -> list[list[str]]:
    """The two means over all sources, with what they are means of."""
    overall = evaluation.overall
    if overall.sources == 0:
        return []
    count, sources = overall.rows.count, f"{overall.sources} source{'s' if overall.sources > 1 else ''}"
    metric = [""] if "metric" in head else []
    by_rows = ["overall, by rows", *metric, f"{count:,}", number(overall.rows.score), interval(overall.rows)]
    macro = ["macro, by sources", *metric, sources, number(overall.macro), ""]
    return [row + [""] * (len(head) - len(row)) for row in (by_rows, macro)]


def _several(evaluation: Evaluation) -> Table:
    """What several answers to each question are worth."""
    several = [(name, one, one.pass_at()) for name, one in evaluation.sources if one.several > 1]
    sizes = sorted({k for _, _, passed in several for k in passed})
    head = ["source", "answers", *(f"pass@{k}" for k in sizes), "majority", "ties"]
    rows = [
        [
            name,
            f"{one.several}",
            *(number(passed.get(k)) for k in sizes),
            number(one.majority.score),
            f"{one.ties:,}",
        ]
        for name, one, passed in several
    ]
    return Table("several answers", head, rows)


def _pairs(evaluation: Evaluation) -> list[Table]:
    head = ["source", "pairs", "accuracy", "95 %", "ties", "failed"]
    ordered = sorted(evaluation.pairs.items())
    rows = [
        [name, f"{one.rows.count:,}", number(one.rows.score), interval(one.rows), f"{one.ties:,}", f"{one.failed:,}"]
        for name, one in ordered
    ]
    if rows and not evaluation.answers:
        rows += _overall(evaluation, head)
    return [Table("pairs", head, rows), *(_categories(name, one) for name, one in ordered)]


def _categories(source: str, pairs: Pairs) -> Table:
    rows: list[list[str]] = []
    for category in pairs.categories:
        rows.append([category.name, f"{category.count:,}", number(category.score), ""])
        for name, one in category.subsets.items():
            bounds = interval(one)
            if name == category.name:  # no benchmark has it
                rows[-1][-1] = bounds
            else:
                rows.append([f"  {name}", f"{one.count:,}", number(one.score), bounds])
    if rows:
        rows.append(["macro, by categories", "", number(pairs.macro), ""])
    return Table(f"pairs of {source}", ["category", "pairs", "accuracy", "95 %"], rows)


def _versus(evaluation: Evaluation) -> Table:
    head = ["source", "rows", "win rate", "95 %", "wins", "ties", "losses", "failed"]
    rows = [
        [
            name, f"{one.rows.count:,}", number(one.rows.score), interval(one.rows),
            *(f"{count:,}" for count in (one.wins, one.ties, one.losses, one.failed)),
        ]
        for name, one in sorted(evaluation.versus.items())
    ]  # fmt: skip
    return Table("wins", head, rows)
