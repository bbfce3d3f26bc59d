"""Shards: each row has one record, the same whatever the shards, the ranks and the kills."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import signal
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.jobs.inference.conftest import Task
from transformers import AutoTokenizer

from mmjobs.data.formats.registry import parts
from mmjobs.inference.records import RecordFile
from mmjobs.model.toys import models as toys
from mmjobs.model.toys import tokenizers
from mmlaunch.errors import BadInput
from mmlaunch.recipe.data import Source
from mmlaunch.results.merge import NotWhole
from mmlaunch.run import shards
from mmlaunch.run.error_record import errors
from mmlaunch.run.paths import RunPaths

Make = Callable[..., Task]
Rows = Callable[..., dict[str, Any]]
SAMPLING = {"max_new_tokens": 6, "temperature": 0, "prompts": 4}
PREDICT = {"method": "predict", "window": 16, "sampling": SAMPLING}
SHAPES = {"format": "shapes", "limit": 50}


def drawn(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(buffer, "PNG")
    return buffer.getvalue()


def predict(**changes: Any) -> dict[str, Any]:
    return {**PREDICT, **changes}


@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param({}, id="greedy", marks=pytest.mark.nightly),
        pytest.param({"temperature": 1.0, "answers": 3}, id="sampled"),
    ],
)
def test_records_depend_on_neither_shards_nor_ranks(task: Make, sampling: dict[str, Any]) -> None:
    settings = {"sampling": {**SAMPLING, **sampling}}
    alone = task(predict(**settings), SHAPES).work()
    split = task(predict(shards=3, **settings), SHAPES).work(world=2)
    assert len(split.jobs) == 3
    assert split.merge().output.read_bytes() == alone.merge().output.read_bytes()
    records = alone.records()
    assert [record["index"] for record in records] == list(range(50))
    assert all(len(record["predictions"]) == settings["sampling"].get("answers", 1) for record in records)
    if sampling:
        assert any(len(set(record["predictions"])) > 1 for record in records)


def test_a_batch_of_one_says_the_same(task: Make) -> None:
    """Greedy answers to prompts of several lengths, with images: alone, and sixteen at a time."""
    one = task(predict(sampling={**SAMPLING, "prompts": 1}), SHAPES).work().records()
    many = task(predict(sampling={**SAMPLING, "prompts": 16}), SHAPES).work().records()
    assert [record["predictions"] for record in one] == [record["predictions"] for record in many]


def test_killed_anywhere_it_goes_on_to_the_same_bytes(task: Make) -> None:
    whole = task(predict(), SHAPES).work()
    broken = task(predict(), SHAPES)
    job, path = broken.jobs[0], shards.records(broken.jobs[0].paths)
    for size in (1, 6000, 12000):
        job.start(broken.recipe, 1)
        until = time.monotonic() + 60
        while not path.exists() or path.stat().st_size < size:
            assert time.monotonic() < until and job.ranks[0].is_alive(), job.log()
        pid = job.ranks[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        job.wait()
        with path.open("ab") as file:
            file.write(b'{"index": 7, "torn')
    broken.work()
    assert broken.merge().output.read_bytes() == whole.merge().output.read_bytes()


def test_told_to_stop_it_asks_for_another_attempt(task: Make) -> None:
    one = task(predict(sampling={**SAMPLING, "max_new_tokens": 64}), {"format": "shapes", "limit": 400})
    job = one.jobs[0]
    job.start(one.recipe, 2)
    until = time.monotonic() + 60
    while not shards.commits(job.paths).exists():
        assert time.monotonic() < until, job.log()
    pid = job.ranks[1].pid
    assert pid is not None
    os.kill(pid, signal.SIGUSR2)
    assert job.wait() == [90, 90]
    committed = job.events("records")[-1]
    assert 0 < committed["done"] < 400 and committed["new"] == committed["done"]
    assert job.events("signal")[-1]["name"] == "SIGUSR2"


def test_a_bad_row_costs_that_row_alone(task: Make, rows: Rows, tmp_path: Path) -> None:
    """A damaged image, a prompt that is too long, a row without a prompt, a row without an image, among fifty."""
    values: list[dict[str, Any]] = [
        {"id": f"q{number}", "prompt": "What? " * (number % 4 + 1), "image": "red", "mine": [number]}
        for number in range(50)
    ]
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    values[3] |= {"image": "broken.png"}
    values[9] |= {"prompt": "word " * 20_000}
    values[20] |= {"prompt": None}
    del values[30]["image"]
    done = task(predict(max_failed="10%"), rows(values, format="prompts")).work()
    records, merged = done.records(), done.merge()
    assert [record["index"] for record in records] == list(range(50))
    reasons = {record["index"]: record["error"]["reason"] for record in records if record["error"]}
    assert reasons == {3: "image", 9: "overlong", 20: "row"} and dict(merged.failed) == {
        "image": 1, "overlong": 1, "row": 1,
    }  # fmt: skip
    assert "broken.png" in records[3]["error"]["detail"] and not merged.too_many_failed
    assert all(record["id"] == f"q{record['index']}" and record["mine"] == [record["index"]] for record in records)
    assert records[30]["images"] == [] and len(records[30]["predictions"]) == 1


def test_fields_of_the_users_that_bear_our_names_are_kept(task: Make, rows: Rows) -> None:
    values = [{"prompt": "Hi", "index": 99, "error": "none", "tokens": 5, "predictions": ["old"], "extra": {"a": 1}}]
    (record,) = task(predict(), rows(values, format="prompts")).work().records()
    assert (record["input_index"], record["input_error"], record["input_tokens"]) == (99, "none", 5)
    assert record["input_predictions"] == ["old"] and record["extra"] == {"a": 1} and record["index"] == 0


def test_fields_of_other_tasks_are_not_taken_for_our_own(task: Make, rows: Rows) -> None:
    """What the user's rows count, made and scored is neither counted nor merged nor evaluated once more."""
    theirs = {"made": "by hand", "counts": {"pairs": 7}, "scores": [1.0], "metric": "exact", "kind": "easy"}
    one = task(predict(), rows([{"prompt": "Hi", **theirs}], format="prompts")).work()
    (record,) = one.records()
    assert {name: record[f"input_{name}"] for name in theirs} == theirs and not theirs.keys() & record.keys()
    assert not one.merge().notes


def test_too_many_failed_rows_cost_no_others(task: Make, rows: Rows) -> None:
    """Above the budget all rows still have their records; `results` and the exit code say that too many failed."""
    values = [{"prompt": "word " * 5000 if number < 7 else "Hi"} for number in range(40)]
    merged = task(predict(), rows(values, format="prompts")).work().merge()
    assert merged.rows == 40 and merged.failed == {"overlong": 7} and merged.too_many_failed


def test_rows_that_mostly_fail_end_the_shard(task: Make, rows: Rows) -> None:
    source = rows([{"prompt": "word " * 5000, "id": number} for number in range(40)], format="prompts")
    one = task(predict(), source)
    assert one.jobs[0].run(one.recipe) == [94]
    assert (
        "most rows have failed, and more than objective.max_failed (1.0%)" in one.jobs[0].log()
        and "16 x overlong" in one.jobs[0].log()
    )
    assert "tokens, more than data.max_tokens" in one.jobs[0].log()
    assert [error.type for error in errors(one.jobs[0].paths.attempt(1))] == ["TooManyFailed"]


def test_a_changed_input_is_refused(task: Make, rows: Rows) -> None:
    source = rows([{"prompt": f"Question {number}"} for number in range(20)], format="prompts")
    one = task(predict(), source)
    path = Path(source["path"])
    path.write_text(path.read_text().replace("Question 7", "Question 8"))
    assert one.jobs[0].run(one.recipe) == [94]
    assert f"{path} has changed since the task was submitted" in one.jobs[0].log()
    assert [error.type for error in errors(one.jobs[0].paths.attempt(1))] == ["InputChanged"]


def test_the_merge_refuses_what_is_not_whole(task: Make) -> None:
    one = task(predict(shards=2), SHAPES)
    one.jobs[0].run(one.recipe)
    with pytest.raises(NotWhole, match=rf"1 of 2 shards are not whole: {one.run.name}/1"):
        one.merge()
    one.jobs[1].run(one.recipe)
    output = one.merge().output.read_bytes()
    path = shards.records(one.jobs[1].paths)
    records = path.read_bytes().splitlines(keepends=True)
    for wrong, message in (
        ([*records, records[0]], "double: "),
        (records[1:], "missing: "),
        ([*records, b'{"index": 1}\n'], "of other rows: 1"),
        ([records[0].replace(b'"error": null', b'"error": nul1'), *records[1:]], "is no record"),
        ([records[0].replace(b"shapes", b"shaped"), *records[1:]], "was changed after it was written"),
    ):
        path.write_bytes(b"".join(wrong))
        with pytest.raises(BadInput, match=message):
            one.merge()
        assert (one.run.root / "predictions.jsonl").read_bytes() == output, "nothing is overwritten"
    path.write_bytes(b"".join(records))
    assert one.merge().output.read_bytes() == output


def test_the_merge_holds_a_few_bytes_for_each_row(task: Make) -> None:
    """Records in another order than the rows, as ranks commit them; the second merge is measured, with all loaded."""
    count = 20_000
    one = task(predict(), {"format": "shapes", "limit": count})
    lines = [b'{"index": %d, "error": null}\n' % (index ^ 1) for index in range(count)]
    path = shards.records(one.jobs[0].paths)
    path.write_bytes(b"".join(lines))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    shards.footer(one.jobs[0].paths).write_text(json.dumps({"rows": count, "sha256": digest}))
    del lines
    assert one.records()[:2] == [{"index": 0, "error": None}, {"index": 1, "error": None}]
    tracemalloc.start()
    try:
        one.merge()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000 + 32 * count, f"{peak / count:.0f} bytes a row"


def test_damaged_records_are_not_gone_on_with(task: Make) -> None:
    one = task(predict(), SHAPES).work()
    path = shards.records(one.jobs[0].paths)
    path.write_bytes(path.read_bytes().replace(b"shapes", b"shaped", 1))
    shards.footer(one.jobs[0].paths).unlink()
    assert one.jobs[0].run(one.recipe) == [94]
    assert "its records are not those that were committed" in one.jobs[0].log()


def test_what_ran_stands_beside_the_output(task: Make) -> None:
    one = task(predict(), SHAPES, seed=5).work()
    merged = one.merge()
    about = json.loads(merged.output.with_suffix(".about.json").read_text())
    assert (about["rows"], about["seed"], about["method"], about["shards"]) == (50, 5, "predict", 1)
    assert about["inputs"][0]["name"] == "shapes" and about["content"] == {}
    assert about["recipe"]["objective"]["sampling"]["max_new_tokens"] == 6


def test_several_turns(task: Make, rows: Rows) -> None:
    source = rows(
        [
            {"question_id": 81, "category": "writing", "turns": ["Write a line.", "Now another.", "And a last one."]},
            {"question_id": 82, "category": "math", "turns": ["What is 1 + 1?"]},
        ],
        format="mt_bench",
    )
    first, second = task(predict(), source).work().records()
    said = first["turn_predictions"]
    assert len(said) == 3 and said[0] == first["predictions"] and "turn_predictions" not in second
    alone = task(predict(), rows([{"prompt": "Write a line."}], "alone", format="prompts")).work().records()
    assert alone[0]["predictions"] == first["predictions"]


def test_a_model_that_is_divided_over_the_ranks_of_a_shard(task: Make, trained: Path) -> None:
    """At ZeRO stage 3 all ranks answer together, layer by layer, also when one of them has no batch left."""
    source = {"format": "shapes", "limit": 20}
    whole = task(predict(), source, model__init_from=str(trained)).work().records()
    divided = task(
        predict(),
        source,
        model__init_from=str(trained),
        deepspeed={"stage": 3},
        batch={"global": 2},
        resources__tasks_per_node=2,
    )
    records = divided.work(world=2).records()
    assert [record["predictions"] for record in records] == [record["predictions"] for record in whole]


def test_a_row_that_can_be_read_in_one_attempt_alone_has_no_second_record(tmp_path: Path) -> None:
    """An image that comes between two attempts shifts the batches of its window: no row is written twice."""
    shard = RunPaths(tmp_path)
    RecordFile(shard).append({0: [{"index": 1}, {"index": 2}, {"index": 0, "error": {"reason": "image"}}]}, 1.0)
    again = RecordFile(shard)
    with pytest.raises(BadInput, match=r"row 2 has a record already.*delete .*records\.jsonl and commits\.jsonl"):
        again.append({1: [{"index": 2}, {"index": 3}]}, 1.0)
    again.append({1: [{"index": 3}]}, 1.0)
    assert RecordFile(shard).rows == 4


def test_images_that_stand_in_their_rows_get_files_beside_the_output(task: Make, rows: Rows, tmp_path: Path) -> None:
    """A record names the file, which a later task reads; rows that are made of it are a source as they stand."""
    data = [base64.b64encode(drawn(colour)).decode() for colour in ("red", "blue")]
    table = "index\timage\tquestion\tanswer\n" + "".join(f"{n}\t{one}\tWhat?\ta {n}\n" for n, one in enumerate(data))
    (tmp_path / "bench.tsv").write_text(table)
    source = {"path": str(tmp_path / "bench.tsv"), "format": "vlmevalkit"}
    one = task(predict(shards=2, window=4), source).work()
    records = one.records()
    assert [len(record["images"]) for record in records] == [1, 1]
    for record, content in zip(records, data, strict=True):
        assert (one.run.root / record["images"][0]).read_bytes() == base64.b64decode(content)
    output = one.merge().output
    (part,) = parts(Source(path=str(output), format="predictions"))
    assert [example.images[0].read() for example in part.rows] == [base64.b64decode(content) for content in data]
    scored = {"method": "score", "rewards": "length", "window": 16, "select": "best"}
    scored["rewards"] = {"function": "length", "options": {"most": 400}}
    best = task(scored, {"path": str(output), "format": "predictions"}).work()
    (made,) = parts(Source(path=str(best.merge().made)))
    assert made.rows[1].images[0].read() == base64.b64decode(data[1])


def test_a_changed_file_behind_a_meta_file_and_a_second_file_are_noticed(
    task: Make, rows: Rows, tmp_path: Path
) -> None:
    values = [{"image": "red", "question": "What?", "chosen": "a", "rejected": "b"}] * 4
    annotation = Path(rows(values, "annotation")["path"])
    (tmp_path / "meta.json").write_text(json.dumps({"mine": {"root": str(tmp_path), "annotation": str(annotation)}}))
    meta = {"path": str(tmp_path / "meta.json"), "format": "internvl"}
    one = task({"method": "score", "rewards": "exact", "window": 16}, meta)
    annotation.write_text(annotation.read_text().replace('"a"', '"c"', 1))
    assert one.jobs[0].run(one.recipe) == [94] and "has changed since the task was submitted" in one.jobs[0].log()


def test_a_later_turn_that_does_not_fit_is_told(task: Make, rows: Rows) -> None:
    turns = ["Hi.", "word " * 90]
    source = rows([{"question_id": 1, "category": "c", "turns": turns}], format="mt_bench")
    (record,) = task(predict(max_failed="100%"), source).work().records()
    assert record["error"]["reason"] == "overlong" and record["error"]["detail"].startswith("turn 2: ")
    assert len(record["predictions"]) == 1


def test_a_row_whose_logits_are_not_finite_fails_alone(task: Make, rows: Rows, tmp_path: Path) -> None:
    """One word's embedding is NaN: the rows that use it say so, and the others have the answers of a whole model."""
    words = [f"Say {number}." for number in range(12)]
    source = rows([{"prompt": f"{text}~" if text[4] == "7" else text} for text in words], format="prompts")
    folder = toys.llama(tmp_path / "model", tokenizers.llama3_tokenizer())
    model = {"pretrained": str(folder), "chat_template": "llama-3"}
    whole = task(predict(), source, model=model).work().records()
    _lose(folder, "~")
    done = task(predict(max_failed="10%", sampling={**SAMPLING, "answers": 2}), source, model=model).work()
    records, merged = done.records(), done.merge()
    assert dict(merged.failed) == {"nonfinite": 1} and not merged.too_many_failed
    detail = "the logits of token 1 of an answer are not finite"
    assert records[7]["error"] == {"reason": "nonfinite", "detail": f"{source['path']}:8: {detail}"}
    assert records[7]["predictions"] == [] and not whole[7]["error"]
    for number in range(12):
        assert number == 7 or records[number]["predictions"] == whole[number]["predictions"] * 2


def test_an_answer_whose_score_is_not_finite_fails_its_row_alone(task: Make, rows: Rows, tmp_path: Path) -> None:
    pairs = [{"question": "Q", "chosen": f"a {number}", "rejected": "b"} for number in range(8)]
    pairs[5]["rejected"] = "b~"
    source = rows(pairs, format="rlaif_v")
    folder = toys.llama(tmp_path / "model", tokenizers.llama3_tokenizer(), scores=True)
    _lose(folder, "~")
    model = {"pretrained": str(folder), "chat_template": "llama-3"}
    objective = {"method": "score", "rewards": [str(folder)], "window": 16, "max_failed": "20%"}
    records = task(objective, source, model=model).work().records()
    assert [bool(one["error"]) for one in records] == [number == 5 for number in range(8)]
    assert records[5]["error"] == {"reason": "nonfinite", "detail": f"{source['path']}:6: a score is not finite"}
    assert all(math.isfinite(score) for one in records for score in one["scores"])


def _lose(folder: Path, word: str) -> None:
    """Make the embedding of a word of a model no number."""
    (token,) = AutoTokenizer.from_pretrained(folder)(word, add_special_tokens=False)["input_ids"]
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if name.endswith("embed_tokens.weight"):
                tensor[token] = math.nan
        save_file(tensors, file, {"format": "pt"})
