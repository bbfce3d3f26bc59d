"""Summaries against closed forms and brute force: what counts as wrong, intervals, several answers, comparisons."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import tracemalloc
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from mmlaunch.results import categories
from mmlaunch.results.interval import Mean, wilson
from mmlaunch.results.summary import Evaluation, summary
from mmlaunch.results.table import tables

Record = dict[str, Any]


def row(score: float | None, *images: str, source: str = "a", kind: str = "", **more: Any) -> Record:
    kind = kind or {1.0: "right", 0.0: "wrong"}.get(-1.0 if score is None else score, "scored")
    fields = {"source": source, "images": list(images), "predictions": ["x"], "finish": ["eos"], "metric": "exact"}
    return {**fields, "scores": [score], "kinds": [kind], **more}


def several(values: Iterable[float], extracted: Iterable[str | None], **more: Any) -> Record:
    values = list(values)
    kinds = ["right" if value else "wrong" for value in values]
    return {"source": "a", "scores": values, "kinds": kinds, "extracted": list(extracted), "metric": "final", **more}


def source(records: Iterable[Record], name: str = "a") -> dict[str, Any]:
    facts: dict[str, Any] = summary(records).as_json()["by_source"][name]
    return facts


def mean(*rows: tuple[float, str]) -> Mean:
    made = Mean()
    for value, images in rows:
        made.add(value, images)  # each letter is an image
    return made


def test_what_failed_or_was_not_read_counts_as_wrong_and_is_shown() -> None:
    failed: Record = {"source": "a", "metric": "exact", "error": {"reason": "image", "detail": "size 0"}, "scores": []}
    records = [
        row(1.0), row(1.0, finish=["length"]), row(0.0), row(0.0, kind="unparsed"), row(None, kind="unparsed"),
        row(None, kind="timeout"), row(None, kind="error"), row(float("nan")), failed, row(1.0, error="late"),
    ]  # fmt: skip
    facts = source(records)
    assert (facts["n"], facts["score"], facts["answers"]) == (10, 0.2, 8)
    counts = {name: facts[name] for name in ("failed", "unparsed", "timeouts", "errors", "truncated")}
    assert counts == {"failed": 2, "unparsed": 2, "timeouts": 1, "errors": 2, "truncated": 1}
    assert source([row(0.8, kind="unparsed")])["score"] == 0.0, "both unparsed is not right"


def test_where_lower_is_better_a_failure_is_the_worst() -> None:
    records = [row(0.0, better="lower"), row(None, kind="timeout", better="lower"), row(0.5, better="lower")]
    facts = source(records)
    assert (facts["score"], facts["better"]) == (0.5, "lower")
    assert source([{"source": "a", "error": "x", "better": "lower"}])["score"] == 1.0


def test_a_row_counts_once_however_many_answers_it_has() -> None:
    records = [several([1.0, 0.0, 0.0, 0.0], "abcd"), row(1.0)]
    assert summary(records).overall.rows.score == (0.25 + 1) / 2


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (0, 10), (7, 10), (10, 10), (500, 1000)])
def test_wilson_for_independent_rows(right: int, count: int) -> None:
    rows = mean(*((1.0, "") for _ in range(right)), *((0.0, "") for _ in range(count - right)))
    share, z = right / count, 1.959963984540054
    root = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    wanted = tuple((share + z * z / (2 * count) + sign * root) / (1 + z * z / count) for sign in (-1, 1))
    assert rows.interval == pytest.approx(wanted, abs=1e-12) and rows.score == share
    low, high = rows.interval or (None, None)
    assert low is not None and high is not None and 0 <= low <= share <= high <= 1


def test_the_interval_of_clusters_is_that_of_a_ratio() -> None:
    rows = [(1.0, "a"), (0.0, "a"), (1.0, "b"), (1.0, "b"), (1.0, "b"), (0.0, "c"), (1.0, ""), (0.25, "")]
    clusters = [(1.0, 2), (3.0, 3), (0.0, 1), (1.0, 1), (0.25, 1)]
    made = mean(*rows)
    ratio = sum(total for total, _ in clusters) / 8
    variance = 5 / 4 * sum((total - ratio * count) ** 2 for total, count in clusters) / 8**2
    half = 1.959963984540054 * math.sqrt(variance)
    assert made.score == pytest.approx(ratio)
    assert made.interval == pytest.approx((max(0.0, ratio - half), min(1.0, ratio + half)))


def test_rows_that_share_any_image_are_one_cluster() -> None:
    """a-b and c-d are two clusters until a row has b and c."""
    rows = [(1.0, "ab"), (0.0, "b"), (1.0, "cd"), (0.0, "d"), (1.0, "e"), (1.0, "f")]
    joined = mean(*rows, (0.0, "bc"))
    as_one = mean(*((value, "x" if set(images) & set("abcd") else images) for value, images in rows), (0.0, "x"))
    assert joined.interval == pytest.approx(as_one.interval)
    wider, narrower = mean(*rows[:4]).interval, mean(*((value, "") for value, _ in rows[:4])).interval
    assert wider != narrower


def test_the_interval_copies_no_images() -> None:
    """There are as many as rows, and they are what a summary holds."""
    count, mean = 20_000, Mean()
    for number in range(count):
        mean.add(number % 3 / 2, [f"{number}.png"])
    tracemalloc.start()
    try:
        assert mean.interval is not None
        assert tracemalloc.get_traced_memory()[1] < 16 * count
    finally:
        tracemalloc.stop()


def test_few_or_equal_clusters_are_not_certain() -> None:
    assert Mean().score is None and Mean().interval is None
    assert mean((1.0, "a"), (0.0, "a"), (1.0, "a")).interval == (0.0, 1.0), "one image"
    assert mean((3.0, "a"), (5.0, "a")).interval is None, "one cluster of rewards"
    assert mean((0.3, "")).interval == (0.0, 1.0)
    all_right = mean(*((1.0, image) for image in "aabbccdd")).interval
    assert all_right == wilson(1.0, 4), "four images, not eight rows"
    rewards = mean((-3.0, ""), (5.0, "")).interval
    assert rewards is not None and rewards[0] < -3 and rewards[1] > 5


def test_intervals_of_shares_stay_within_0_and_1() -> None:
    chance = random.Random(0)
    for _ in range(200):
        rows = [
            (chance.choice([0.0, 0.3, 1.0]), chance.choice(["", "a", "b", "c"])) for _ in range(chance.randint(1, 9))
        ]
        made = mean(*rows)
        assert made.interval is not None and made.score is not None
        assert 0 <= made.interval[0] <= made.score <= made.interval[1] <= 1, rows


def test_the_order_of_shards_changes_nothing() -> None:
    chance = random.Random(1)
    records = [
        row(chance.random(), *chance.sample("abcdefgh", chance.randint(0, 2)), source=chance.choice("xyz"), index=n)
        for n in range(300)
    ]
    records += [several([chance.random() for _ in range(3)], "aab", index=n) for n in range(50)]
    records += [{"kind": "pair", "source": "p", "subset": chance.choice("st"), "images": chance.sample("abc", 1),
                 "scores": [chance.random(), chance.random()]} for _ in range(50)]  # fmt: skip
    wanted = json.dumps(summary(records).as_json(), sort_keys=True)
    for _ in range(3):
        chance.shuffle(records)
        assert json.dumps(summary(records).as_json(), sort_keys=True) == wanted
    exact = sum((Fraction(one["scores"][0]) for one in records if one.get("source") == "x"), Fraction(0))
    count = sum(one.get("source") == "x" for one in records)
    assert source(records, "x")["score"] == float(exact / count)


def test_pass_at_k_is_the_mean_over_all_choices_of_k() -> None:
    rows = [[1, 0, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1]]
    facts = source(several(map(float, values), "abcd") for values in rows)
    for k, value in facts["pass_at"].items():
        chances = [[any(chosen) for chosen in itertools.combinations(values, int(k))] for values in rows]
        assert value == pytest.approx(sum(sum(one) / len(one) for one in chances) / len(rows))
    assert list(facts["pass_at"]) == ["1", "2", "4"] and facts["pass_at"]["1"] == facts["score"]
    failed: Record = {"source": "a", "metric": "final", "error": "x"}
    assert source([several([1.0, 1.0], "aa"), failed])["pass_at"] == {"1": 0.5, "2": 0.5}
    assert "pass_at" not in source([row(1.0)])


def test_the_majority_votes_by_what_was_read() -> None:
    records = [
        several([1.0, 0.0, 1.0], ["4", "5", " 4 "]),  # right by two to one
        several([1.0, 0.0, 0.0], ["4", "5", "5"]),  # wrong by two to one
        several([0.0, 1.0], ["5", "4"]),  # a tie: the first
        several([1.0, 0.0, 0.0], ["4", None, None], kinds=["right", "unparsed", "unparsed"]),  # no vote for nothing
        several([0.0, 0.0], [None, None], kinds=["unparsed", "timeout"]),
    ]
    assert source(records)["majority"] == {"score": 2 / 5, "ties": 1}
    by_text = several([1.0, 0.0, 1.0], [None, None, None], predictions=["A cat", "dog", "a  cat"])
    assert source([by_text])["majority"]["score"] == 1.0


def test_overall_is_by_rows_and_macro_by_sources() -> None:
    records = [*(row(1.0, source="a") for _ in range(9)), row(0.0, source="b"), row(0.0, better="lower", source="c")]
    facts = summary(records).as_json()
    assert facts["n"] == 11 and facts["overall"]["n"] == 10 and facts["overall"]["score"] == 0.9
    assert facts["macro"] == {"sources": 2, "score": 0.5}, "a source where lower is better has no part"
    assert {name: one["n"] for name, one in facts["by_source"].items()} == {"a": 9, "b": 1, "c": 1}
    rewards = [row(3.0, source="a", metric="one"), row(-3.0, source="b", metric="two")]
    assert summary(rewards).as_json()["overall"]["score"] is None, "rewards of two models have no common mean"
    assert summary(r | {"metric": "one"} for r in rewards).as_json()["overall"]["score"] == 0.0
    twice = [row(1.0, metric="exact"), row(0.0, metric="anls")]
    assert list(summary(twice).as_json()["by_source"]) == ["a (anls)", "a (exact)"]
    empty = summary([]).as_json()
    assert (empty["n"], empty["overall"]["score"], empty["macro"]["score"]) == (0, None, None)


def pair(*scores: float | None, subset: str = "", source: str = "p", **more: Any) -> Record:
    return {"kind": "pair", "source": source, "scores": list(scores), "subset": subset, **more}


def test_pairs_are_right_where_the_first_is_greater_and_ties_count_half() -> None:
    records = [
        pair(2.0, 1.0),
        pair(1.0, 2.0),
        pair(1.0, 1.0),
        pair(3.0, 1.0, 2.0),
        pair(2.0, 1.0, 3.0),
        pair(2.0, 2.0, 1.0),
    ]
    facts = summary(records).as_json()["pairs"]["p"]
    assert (facts["n"], facts["score"], facts["ties"], facts["failed"]) == (6, 0.5, 2, 0)
    broken = summary([pair(1.0, 0.0), pair(None, 0.0), pair(1.0), pair(), pair(1.0, 0.0, error="x")]).as_json()[
        "pairs"
    ]["p"]
    assert (broken["n"], broken["score"], broken["failed"]) == (5, 0.2, 4)


def test_reward_bench_weighs_its_categories_alike_and_leaves_prior_sets_out() -> None:
    parts = {"alpacaeval-easy": (3, 1), "mt-bench-med": (1, 0), "llmbar-adver-GPTInst": (2, 2), "donotanswer": (2, 1),
             "math-prm": (447, 447), "hep-python": (984, 0), "shp": (5, 5), "anthropic_hhh": (5, 0)}  # fmt: skip
    records = [
        pair(1.0, 0.0 if n < right else 2.0, subset=subset)
        for subset, (count, right) in parts.items()
        for n in range(count)
    ]
    facts = summary(records).as_json()["pairs"]["p"]
    scores = {name: one["score"] for name, one in facts["categories"].items()}
    assert scores == {"Chat": 0.25, "Chat Hard": 1.0, "Safety": 0.5, "Reasoning": 0.5, "Prior Sets": 0.5}
    assert facts["macro"] == pytest.approx((0.25 + 1.0 + 0.5 + 0.5) / 4)
    assert facts["subsets"]["math-prm"]["n"] == 447


def test_vl_reward_bench_and_unknown_subsets() -> None:
    parts = {
        "wildvision-battle": (183, 100),
        "povid": (700, 300),
        "RLHF-V": (49, 49),
        "mathverse": (200, 100),
        "mmmu_pro": (118, 59),
    }
    records = [
        pair(1.0, 0.0 if n < right else 1.5, subset=subset)
        for subset, (count, right) in parts.items()
        for n in range(count)
    ]
    facts = summary(records).as_json()["pairs"]["p"]
    assert {name: one["n"] for name, one in facts["categories"].items()} == {
        "general": 183, "hallucination": 749, "reasoning": 318,
    }  # fmt: skip
    assert facts["score"] == pytest.approx(608 / 1250)
    assert facts["macro"] == pytest.approx((100 / 183 + 349 / 749 + 1 / 2) / 3)
    own = summary([*records, pair(1.0, 0.0, subset="Our Own")]).as_json()["pairs"]["p"]
    assert own["categories"]["Our Own"] == {"n": 1, "score": 1.0} and categories.of_subset("Our Own") is None


def test_win_rates() -> None:
    records: list[Record] = [
        {"kind": "versus", "source": "v", "images": [image], "scores": scores}
        for image, scores in [("a", [2, 1]), ("a", [1, 1]), ("b", [0, 1]), ("c", [3, 2]), ("d", [None, 1]), ("d", [])]
    ]
    facts = summary(records).as_json()["versus"]["v"]
    assert (facts["wins"], facts["ties"], facts["losses"], facts["failed"]) == (2, 1, 1, 2)
    assert facts["n"] == 4 and facts["score"] == 2.5 / 4
    wanted = mean((1.0, "a"), (0.5, "a"), (0.0, "b"), (1.0, "c")).interval
    assert (facts["low"], facts["high"]) == wanted


def test_tables_show_counts_and_both_means() -> None:
    records = [row(1.0, source="a"), row(0.0, source="b", kind="unparsed"), pair(1.0, 0.0, subset="shp"),
               several([1.0, 0.0], "ab"), {"kind": "versus", "source": "v", "scores": [1, 0]}]  # fmt: skip
    shown = {table.title: table for table in tables(summary(records))}
    assert list(shown) == ["scores", "several answers", "pairs", "pairs of p", "wins"]
    assert all(len(line) == len(table.head) for table in shown.values() for line in table.rows)
    lines = {line[0]: line for line in shown["scores"].rows}
    assert lines["overall, by rows"][2:4] == ["3", "0.5000"] and lines["macro, by sources"][2:4] == [
        "3 sources",
        "0.5000",
    ]
    assert lines["b"][shown["scores"].head.index("unparsed")] == "1"
    assert tables(Evaluation()) == []


def test_a_subset_that_no_benchmark_has_is_one_line() -> None:
    table = tables(summary([pair(1.0, 0.0, subset="own"), pair(1.0, 0.0, subset="povid")]))[-1]
    assert [line[0] for line in table.rows] == ["hallucination", "  povid", "own", "macro, by categories"]
    assert table.rows[2] == ["own", "1", "1.0000", "0.2065 to 1.0000"]


def test_the_record_of_the_documentation_is_one() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "results.md").read_text()
    (text,) = re.findall(r"```json\n(.*?)\n```", page)
    facts = source([json.loads(text)], "chartqa")
    assert (facts["metric"], facts["n"], facts["score"]) == ("relaxed", 1, 1.0)
    assert not [
        name for name in json.loads(text) if name not in ("index", "id", "prompt", "truths") and f"`{name}`" not in page
    ]


def test_records_that_anybody_may_have_written() -> None:
    failed: list[Record] = [{}, {"scores": None}, {"scores": "1"}, {"images": None}, {"error": "why", "scores": [1]}]
    wrong: list[Record] = [{"scores": ["1"]}, {"scores": [10**400]}]
    right: list[Record] = [
        {"scores": [True]}, {"images": "a.png", "scores": [1]}, {"kinds": None, "scores": [1]},
        {"error": {}, "scores": [1]},
        {"images": ["\ud800"], "scores": [1.0], "kinds": ["right"] * 2, "extracted": "x"},
        {"source": None, "scores": [1]},
    ]  # fmt: skip
    facts = source([*failed, *wrong, *right], "all")
    assert (facts["n"], facts["failed"], facts["errors"], facts["score"]) == (13, 5, 2, 6 / 13)


def test_the_means_of_pairs_stand_under_their_headings() -> None:
    pairs = [{"kind": "pair", "source": "rb", "scores": scores} for scores in ([1, 0], [0, 1], [1, 0], [1, 0])]
    (table,) = tables(summary(pairs))
    overall = dict(zip(table.head, table.rows[-2], strict=True))
    macro = dict(zip(table.head, table.rows[-1], strict=True))
    assert (overall["pairs"], overall["accuracy"]) == ("4", "0.7500") and " to " in overall["95 %"]
    assert (macro["pairs"], macro["accuracy"]) == ("1 source", "0.7500")
