"""What each task makes of its rows: verified answers, scores, pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.conftest import Job
from tests.jobs.inference.conftest import Task

from mmjobs.data.example import Example, Origin, Turn
from mmjobs.data.formats.registry import parts
from mmjobs.inference.correctness import drawn
from mmjobs.inference.dropout_ntp import begun
from mmjobs.inference.evaluate import instructed
from mmjobs.inference.inputs import InputRows, measured
from mmjobs.inference.work import record
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.compared import INSTRUCTIONS
from mmlaunch.recipe.data import Source
from mmlaunch.results.summary import summary

Make = Callable[..., Task]
Rows = Callable[..., dict[str, Any]]
SHORT = {"max_new_tokens": 6, "temperature": 0}
DRAWN = {"max_new_tokens": 6, "temperature": 1.0, "prompts": 4}


def test_evaluate(task: Make, rows: Rows, tmp_path: Path) -> None:
    """Functions by source; failed rows are there and count as wrong."""
    first = rows([{"prompt": f"{n}?", "answer": "yes", "image": "red"} for n in range(12)], "easy", format="prompts")
    second = rows([{"prompt": "Say.", "answers": ["a", "b"]} for _ in range(4)], "open", format="prompts")
    (tmp_path / "gone.png").write_bytes(b"no image")
    bad: list[dict[str, Any]] = [
        {"prompt": "?", "image": "gone.png"},
        {"prompt": "?", "image": "nowhere.png"},
        {"prompt": None},
    ]
    bad += [{"prompt": "word " * 5000}]
    broken = rows([{"answer": "yes", **one} for one in bad], "broken", format="prompts")
    metric = {"all": "exact", "easy": {"function": "format", "options": {"pattern": ".*"}}}
    objective = {"method": "evaluate", "window": 16, "sampling": SHORT, "metric": metric, "max_failed": "50%"}
    records = task(objective, [first, second, broken]).work().records()
    assert [record["source"] for record in records] == ["easy"] * 12 + ["open"] * 4 + ["broken"] * 4
    assert {record["metric"] for record in records[:12]} == {"format"} and records[12]["truths"] == ["a", "b"]
    assert all(record["scores"] == [1.0] and record["kinds"] == ["right"] for record in records[:12])
    assert [one["error"]["reason"] for one in records[16:]] == ["image", "image", "row", "overlong"]
    facts = summary(records).as_json()
    assert {name: one["score"] for name, one in facts["by_source"].items()} == {"easy": 1, "open": 0, "broken": 0}
    assert facts["by_source"]["broken"]["n"] == facts["by_source"]["broken"]["failed"] == 4
    assert facts["overall"]["n"] == 20 and facts["overall"]["score"] == pytest.approx(12 / 20)
    assert facts["macro"]["score"] == pytest.approx(1 / 3)


def test_instructions_stand_around_the_question() -> None:
    def asked(*content: Any, asks: str = INSTRUCTIONS["boxed"], remove: tuple[str, ...] = ()) -> str:
        example = Example((), (Turn("user", content),), (), Origin("here", 1))
        return instructed(example, asks, remove).prompt[-1].text

    assert asked("How many?") == "How many?\nThink step by step, and put your result into \\boxed{}."
    own = "Answer briefly.\nHow many? Answer briefly."
    assert asked(own, asks="Q: {question} A:", remove=("Answer briefly.",)) == "Q: Answer briefly.\nHow many? A:"
    assert asked("How many?", asks=INSTRUCTIONS["none"]) == "How many?"


@pytest.mark.parametrize(
    ("answer", "ratio", "prefix"),
    [
        ("The cat sits on the mat.", 0.5, "The cat sits"),
        ("The cat  sits\non the mat.", 0.67, "The cat  sits\non"),
        ("One.", 0.5, ""),
        ("\u732b\u5750\u5728\u57ab\u5b50\u4e0a", 0.5, "\u732b\u5750\u5728"),
        ("The cat", 0.0, ""),
    ],
)
def test_where_an_answer_is_cut(answer: str, ratio: float, prefix: str) -> None:
    assert begun(answer, ratio) == prefix


def test_dropout_ntp_pairs_differ_behind_the_cut_alone(task: Make, rows: Rows, trained: Path) -> None:
    chosen = "red circle top left and so on"
    values = [{"prompt": "What?", "image": "red", "completion": chosen} for _ in range(12)]
    objective = {"method": "dropout_ntp", "window": 16, "sampling": {**DRAWN, "answers": 4, "max_new_tokens": 40}}
    one = task(objective, rows(values, format="trl"), model__init_from=str(trained)).work()
    pairs, (record, *_) = one.made(), one.records()
    assert record["begun"] == "red circle top" and "made" not in record
    assert pairs and all(pair["chosen"][0]["content"] == chosen for pair in pairs)
    rejected = [pair["rejected"][0]["content"] for pair in pairs]
    assert all(text.startswith("red circle top") and text != chosen for text in rejected)
    counts = one.merge().notes
    assert counts["rows"] == 12 and counts["pairs"] == len(pairs)
    assert sum(count for name, count in counts.items() if name != "rows") == 48
    made = one.merge().made
    (part,) = parts(Source(path=str(made)))
    assert [answer.text for answer in part.rows[0].answers] == [chosen, rejected[0]] and len(part.rows[0].images) == 1
    blind, seeing = (
        one.records(),
        task({**objective, "image": "keep"}, rows(values, format="trl"), model__init_from=str(trained))
        .work()
        .records(),
    )
    assert blind[0]["tokens"]["image"] == 0 and seeing[0]["tokens"]["image"] > 0


def test_correctness_pairs(task: Make, trained: Path) -> None:
    """Pairs of right and wrong answers; everything that was generated is counted; the seed decides."""
    objective = {
        "method": "correctness", "metric": "exact", "instruction": "none", "window": 16, "pairs_per_question": 2,
        "sampling": {**DRAWN, "answers": 6, "max_new_tokens": 16},
    }  # fmt: skip
    one = task(objective, {"format": "shapes", "limit": 60}, model__init_from=str(trained)).work()
    pairs, counts = one.made(), one.merge().notes
    assert pairs and counts["pairs"] == len(pairs) and counts["answers"] == 360 and counts["questions"] == 60
    judged = sum(counts[name] for name in ("right answers", "wrong answers", "unparsed answers"))
    assert judged + sum(count for name, count in counts.items() if name.startswith("answers dropped")) == 360
    for pair in pairs:
        assert pair["chosen"][0]["content"].strip() == pair["truth"] != pair["rejected"][0]["content"].strip()
    per_question = [sum(pair["index"] == number for pair in pairs) for number in range(60)]
    assert max(per_question) == 2
    split = task({**objective, "shards": 3}, {"format": "shapes", "limit": 60}, model__init_from=str(trained))
    assert split.work().made() == pairs


def test_format_pairs_take_what_is_left_of_the_most() -> None:
    """Pairs of right and wrong answers first; both kinds together are no more than `pairs_per_question`."""

    def kinds(most: int, wrong: Sequence[str] = ("3", "4"), unread: Sequence[str] = ("hm", "well")) -> dict[str, int]:
        pairs = drawn(("2", "two"), wrong, unread, most, 0, 7)
        assert len(set(pairs)) == len(pairs) and all(better in ("2", "two") for _, better, _ in pairs)
        assert all((worse in unread) == (why == "format") for why, _, worse in pairs)
        return dict(Counter(why for why, *_ in pairs))

    assert kinds(15) == {"correctness": 4, "format": 4}
    assert kinds(6) == {"correctness": 4, "format": 2}
    assert kinds(3) == {"correctness": 3}
    assert kinds(3, wrong=()) == {"format": 3} and kinds(9, unread=()) == {"correctness": 4}
    assert drawn(("2",), ("3",), ("hm",), 1, 0, 7) == [("correctness", "2", "3")]


def test_score_by_functions_selects(task: Make, rows: Rows) -> None:
    """Answers of a model to one question: which are right, pairs with margins, the best, all that are right."""
    values = [
        {"index": 0, "source": "s", "prompt": "1 + 1?", "images": [], "truths": ["2"],
         "predictions": ["3", "2", "two", "2"], "finish": ["eos", "eos", "eos", "length"], "error": None},
    ]  # fmt: skip
    source = rows(values, format="predictions")
    scored = {"method": "score", "rewards": "numeric", "window": 16}

    def made(**choice: Any) -> list[dict[str, Any]]:
        return task({**scored, **choice}, source).work().made()

    (record,) = task(scored, source).work().records()
    assert record["scores"] == [0.0, 1.0, 0.0, 1.0] and record["kinds"] == ["wrong", "right", "unparsed", "right"]
    facts = summary([record]).as_json()["by_source"]["s"]  # each answer that was drawn counts
    assert (facts["score"], facts["truncated"], facts["pass_at"]["4"]) == (0.5, 1, 1)
    pairs = made(select="pairs")
    assert {(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in pairs} == {
        ("2", "3"),
        ("2", "two"),
    }
    assert {(pair["score_chosen"], pair["score_rejected"]) for pair in pairs} == {(1.0, 0.0)}
    assert len(made(select="pairs", pairs_per_row=1)) == 1
    assert [row["completion"][0]["content"] for row in made(select="best")] == ["2"]
    assert [row["completion"][0]["content"] for row in made(select="all", least=1)] == ["2"]
    assert made(select="best", least=2) == []


def test_a_sum_of_scores_has_no_single_verdict(task: Make, rows: Rows) -> None:
    """`numeric` reads nothing in "two": the sum is that of `length` all the same. A weight of 0 costs nothing."""
    values = [{"index": 0, "prompt": "Q", "truths": ["2"], "predictions": ["two"], "finish": ["eos"], "error": None}]
    source = rows(values, format="predictions")
    length = {"function": "length", "options": {"most": 3}, "weight": 0.5}
    rewards = [length, {"function": "numeric"}]
    (record,) = task({"method": "score", "rewards": rewards, "window": 16}, source).work().records()
    assert record["scores"] == [0.5] and summary([record]).as_json()["by_source"]["rows"]["score"] == 0.5
    source = rows([{**values[0], "truths": []}], format="predictions")
    rewards = [length, {"function": "numeric", "weight": 0}]
    (record,) = task({"method": "score", "rewards": rewards, "window": 16}, source).work().records()
    assert record["scores"] == [0.5] and record["kinds"] == ["scored"]


def test_a_row_that_cannot_be_scored_is_counted_among_its_like(task: Make, rows: Rows) -> None:
    """A pair that cannot be read is a wrong pair; a row that one of two models has not answered is left out."""
    good = {"question": "Q", "chosen": "aa", "rejected": "a"}
    pairs = rows([good, {"question": "Q"}, good, good], "pairs", format="rlaif_v")
    scored = {"method": "score", "rewards": {"function": "length", "options": {"target": 2}}, "max_failed": "75%"}
    facts = summary(task({**scored, "window": 16}, pairs).work().records()).as_json()
    assert (facts["pairs"]["pairs"]["n"], facts["pairs"]["pairs"]["failed"], facts["overall"]["score"]) == (4, 1, 0.75)
    assert not facts["by_source"]
    answers = [{"prompt": "Q", "images": [], "truths": [], "predictions": ["a"], "finish": ["eos"], "error": None}] * 3
    first = rows([*answers, {**answers[0], "predictions": []}], "first", format="predictions")
    second = rows([*answers, answers[0]], "second", format="predictions")
    versus = task({**scored, "window": 16, "against": second["path"]}, first).work().records()
    facts = summary(versus).as_json()["versus"]["first"]
    assert (facts["n"], facts["ties"], facts["failed"]) == (3, 3, 1)


def test_answers_to_other_images_are_not_compared(task: Make, rows: Rows) -> None:
    """Two models answered the same words about images in another order: no row is compared."""
    images = ["/data/a.png", "/data/b.png"]
    answers = [
        {
            "prompt": "<image>Q",
            "images": [image],
            "truths": ["a"],
            "predictions": ["a"],
            "finish": ["eos"],
            "error": None,
        }
        for image in images
    ]
    first = rows(answers, "first", format="predictions")
    moved = [{**one, "images": [f"/other/{Path(image).name}"]} for one, image in zip(answers, images, strict=True)]
    second = rows(moved, "second", format="predictions")
    scored = {"method": "score", "rewards": "exact", "window": 16}
    assert not any(one["error"] for one in task({**scored, "against": second["path"]}, first).work().records())
    turned = rows(moved[::-1], "turned", format="predictions")
    one = task({**scored, "against": turned["path"]}, first).work()
    assert one.merge().too_many_failed and summary(one.records()).as_json()["versus"]["first"]["failed"] == 2
    assert "turned.jsonl:1 answers another prompt, or has other images" in one.records()[0]["error"]["detail"]


def test_a_reward_run_judges_pairs_and_models(
    task: Make, rows: Rows, job: Callable[[str], Job], tiny: Callable[..., Recipe]
) -> None:
    """Scores of a reward run: those of its own evaluation; accuracy over pairs; which of two models it prefers."""
    reward = job("rm")
    recipe = tiny(objective="reward", steps=40, data__train={"format": "shapes", "limit": 400}, optim={"lr": 1e-2})
    assert reward.run(recipe) == [0]
    objective = {"method": "score", "rewards": [str(reward.paths.root / "checkpoints" / "step-40")], "window": 16}
    scored = task(objective, {"format": "shapes", "skip": 1000, "limit": 40}).work(world=2)
    records = scored.records()
    assert all(record["kind"] == "pair" and len(record["scores"]) == 3 for record in records)
    accuracy = summary(records).as_json()["pairs"]["shapes"]["score"]
    right = sum(record["scores"][0] > max(record["scores"][1:]) for record in records)
    assert accuracy == pytest.approx(right / 40) and accuracy > 1 / 3

    def predictions(name: str, place: int) -> dict[str, Any]:
        values = [
            {"prompt": record["prompt"].replace("<image>", ""), "images": [], "truths": [], "finish": ["eos"],
             "predictions": [record["scored"][place]], "error": None}
            for record in records
        ]  # fmt: skip
        return rows(values, name, format="predictions", images="none")

    first, second = predictions("first", 0), predictions("second", 1)
    versus = task({**objective, "against": second["path"]}, first).work().records()
    assert all(record["kind"] == "versus" and len(record["scores"]) == 2 for record in versus)
    rate = summary(versus).as_json()["versus"]["first"]
    wins = sum(record["scores"][0] > record["scores"][1] for record in versus)
    ties = sum(record["scores"][0] == record["scores"][1] for record in versus)
    assert rate["score"] == pytest.approx((wins + ties / 2) / 40)


def test_a_file_of_predictions_is_whole(rows: Rows) -> None:
    """Rows that are there twice or missing are refused; a file without numbers is taken as it is."""

    def source(*numbers: int | None) -> Source:
        values = [
            {"prompt": "Q", "truths": ["a"], "predictions": ["a"]} | ({} if one is None else {"index": one})
            for one in numbers
        ]
        return Source(**rows(values, format="predictions"))

    for accepted in ((0, 1, 2), (2, 0, 1), (None, None)):
        assert measured([source(*accepted)])[0].rows == len(accepted)
    twice, gone = "row is twice in this file of predictions: 1", "row is missing in this file of predictions: "
    for refused, says in (((0, 1, 1, 2), twice), ((0, 2, 3), f"{gone}1"), ((1,), f"{gone}0")):
        with pytest.raises(BadInput, match=says):
            measured([source(*refused)])
    assert measured([source(0, 2, 3).model_copy(update={"limit": 2})])[0].rows == 2


def test_predictions_are_counted_under_their_own_sources(rows: Rows) -> None:
    """Scored or evaluated again, each keeps its source, also one that failed; a user's `source` is not one."""
    ours = {"index": 0, "source": "chartqa", "prompt": "Q", "images": [], "truths": ["a"], "predictions": ["a"]}
    failed = {**ours, "index": 1, "source": "docvqa", "predictions": [], "error": {"reason": "image"}}
    users = {"index": 2, "source": "web", "prompt": "Q", "truths": ["a"]}
    read = InputRows([Source(**rows([ours, failed, users, {**ours, "source": None}], format="predictions"))])
    made = [record(row, {"predictions": ["b"]}) for row in read]
    assert [one["source"] for one in made] == ["chartqa", "docvqa", "rows", "rows"]
    assert "input_source" not in made[0] and made[0]["input_predictions"] == ["a"]
    assert made[2]["input_source"] == "web"


def test_each_source_inside_a_file_has_its_own_metric(task: Make, rows: Rows) -> None:
    """Also a row that failed; a row of another source, and a field of the user's, have the metric of the rest."""
    ours = {"prompt": "Q", "images": [], "truths": ["a"], "predictions": ["a"], "finish": ["eos"], "error": None}
    names = enumerate(("chartqa", "docvqa", "chartqa", "other"))
    values: list[dict[str, Any]] = [{"index": number, "source": name, **ours} for number, name in names]
    values[2]["prompt"] = "word " * 5000
    values += [{"index": 4, "source": "chartqa", "prompt": "Q", "truths": ["a"]}]
    metric = {"all": "exact", "chartqa": {"function": "format", "options": {"pattern": ".*"}}, "docvqa": "anls"}
    objective = {"method": "evaluate", "window": 16, "sampling": SHORT, "metric": metric, "max_failed": "50%"}
    records = task(objective, rows(values, format="predictions")).work().records()
    assert [one["metric"] for one in records] == ["format", "anls", "format", "exact", "exact"]
    assert records[0]["scores"] == [1.0] and records[2]["error"]["reason"] == "overlong"


def test_answers_are_no_truths_of_themselves(task: Make, rows: Rows) -> None:
    """What a model said, or the better answer of a pair, is compared with the row's truths alone, now and later."""
    values = [{"prompt": "Q", "images": [], "truths": [], "predictions": ["a"], "finish": ["eos"], "error": None}]
    scored = {"method": "score", "rewards": "exact", "window": 16}
    for source in (
        rows(values, "said", format="predictions"),
        rows([{"question": "Q", "chosen": "a", "rejected": "b"}], "pair", format="rlaif_v"),
    ):
        (record,) = task(scored, source).work().records()
        assert set(record["scores"]) == {None} and set(record["kinds"]) == {"error"}
        assert record["truths"] == ([] if "predictions" in record else ["a"])
    again = {"method": "evaluate", "metric": "exact", "window": 16, "sampling": SHORT}
    (record,) = task(again, rows(values, "said", format="predictions")).work().records()
    assert record["truths"] == [] and record["kinds"] == ["error"]
