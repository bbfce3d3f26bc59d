"""What the kind of an exception says about a restart: of data, of a slip, of a machine; before and after a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmlaunch.restart import policy
from mmlaunch.restart.exceptions import Raised, comes_again
from mmlaunch.run.ledger import Event
from mmlaunch.run.paths import AttemptPaths

BEFORE, AFTER, UNKNOWN = False, True, None
EVER = {BEFORE: True, UNKNOWN: True, AFTER: True}
NEVER = dict.fromkeys(EVER, False)
START = {BEFORE: True, UNKNOWN: True, AFTER: False}
KNOWN_START = {BEFORE: True, UNKNOWN: False, AFTER: False}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ValueError: the prompt of row 88 has 9012 tokens", EVER),
        ("AssertionError: mixture weights sum to 1.2", EVER),
        ("my.errors.SetupProblem: <img> is no single token", EVER),
        ("OSError: [Errno 36] File name too long: 'x'", EVER),
        ("ray.exceptions.RayTaskError(ValueError): no such reward", EVER),
        ("TypeError: string indices must be integers, not 'str'", START),
        ("AttributeError: 'Config' object has no attribute 'rope'", START),
        ("RuntimeError: FlashAttention only supports Ampere GPUs or newer.", START),
        ("OSError: Can't load tokenizer for 'x'.", START),
        ("NameError: name 'x' is not defined", KNOWN_START),
        ("KeyError: 'answer'", KNOWN_START),
        ("AssertionError", KNOWN_START),
        ("AttributeError: 'NoneType' object has no attribute 'shape'", KNOWN_START),
        ("RuntimeError: cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", NEVER),
        ("RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn", KNOWN_START),
        ("ValueError: no answer of rank 0: connection lost", NEVER),
        ("OSError: [Errno 11] Resource temporarily unavailable", NEVER),
        ("redis.exceptions.ConnectionError: Error 111 connecting to kv:6379.", NEVER),
        ("botocore.exceptions.ClientError: An error occurred (SlowDown) when calling PutObject", NEVER),
    ],
)
def test_an_exception(text: str, expected: dict[bool | None, bool]) -> None:
    assert {trained: comes_again(Raised([text], trained=trained)) for trained in EVER} == expected


def test_what_is_around_an_exception() -> None:
    worker = 'File "ds.py", line 3, in __getitem__\n    row["x"]'
    assert comes_again(Raised(["KeyError: 'x'"], worker, trained=True)), "the same row comes again"
    assert not comes_again(Raised(["ValueError: no rows", "TimeoutError: timed out"])), "it came from one that may pass"


def attempt(folder: Path, record: dict[str, Any], srun: str = "") -> AttemptPaths:
    paths = AttemptPaths(folder / "1")
    paths.logs.mkdir(parents=True)
    paths.starter_log.write_text(srun)
    paths.rank_error(0).write_text(json.dumps({"rank": 0, "time": 1.0, **record}))
    return paths


def test_the_ledger_knows_whether_a_step_was_done(tmp_path: Path) -> None:
    paths = attempt(tmp_path, {"type": "NameError", "message": "name 'x' is not defined", "step": 1})
    started: Event = {"event": "started", "attempt": 1}
    assert policy.classify(1, paths, [started]).cause == "program error"
    assert policy.classify(1, paths, [started, {"event": "step", "attempt": 1, "step": 1}]).cause == "crash"
    assert policy.classify(1, paths, [{**started, "attempt": 2}]).cause == "crash", "nobody knows"


def test_a_signal_explains_what_the_other_ranks_raise(tmp_path: Path) -> None:
    died = (
        "srun: error: n2: task 9: Segmentation fault (core dumped)\nsrun: error: n1: task 0: Exited with exit code 1\n"
    )
    ending = policy.classify(1, attempt(tmp_path, {"type": "ValueError", "message": "15 of 16"}, died), [])
    assert ending.cause == "crash" and ending.evidence.endswith("task 9 on n2: Segmentation fault (core dumped)")


def test_last_words_without_an_exception(tmp_path: Path) -> None:
    paths = attempt(tmp_path, {"type": "PeerLost", "message": "another rank went away"})
    paths.rank_log(0).write_text("loading\nNo training rows left after the language filter\n")
    ending = policy.classify(1, paths, [])
    assert ending.cause == "program error" and "No training rows left" in ending.evidence
    paths.rank_log(0).write_text("ERROR: lost the connection to the reward server\n")
    assert policy.classify(1, paths, []).cause == "crash"
