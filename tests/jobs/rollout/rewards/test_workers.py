"""Reward functions that misbehave, in real processes: each failure is a score without a value, and the others go on."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmjobs.rollout.rewards.score import Sample, Score
from mmjobs.rollout.rewards.workers import RewardWorkers, WorkersFailed
from mmlaunch.errors import BadInput
from mmlaunch.recipe.rewards import RewardSource
from mmlaunch.run.paths import RunPaths

Make = Callable[..., RewardWorkers]

CODE = """
import os, sys, time
from mmjobs.rollout.rewards import Verdict

print("loading prints too")

def reward(answer, truth):
    print("noise of", answer)
    os.write(1, b"raw noise")
    return BEHAVIOURS[answer]()

def deep(): return deep()
def leave(): sys.exit(3)
def fail(): raise ValueError("no digits\\nin this answer")
def eat():
    held = []
    while True: held.append(bytearray(1 << 28))
def double():
    if os.fork() == 0: return 0.25
    os.wait()
    return 0.5

BEHAVIOURS = {
    "good": lambda: 0.5, "yes": lambda: True, "no": lambda: False, "none": lambda: None,
    "judged": lambda: Verdict(2.0, "right"), "strange": lambda: Verdict(1, "perfect"),
    "hang": lambda: time.sleep(60), "fail": fail,
    "leave": leave, "exit": lambda: os._exit(7), "killed": lambda: os.kill(os.getpid(), 9), "nan": lambda: float("nan"),
    "inf": lambda: float("inf"), "text": lambda: "0.5", "list": lambda: [0.5], "object": lambda: object(),
    "deep": deep, "eat": eat, "huge": lambda: 10**400, "interrupt": lambda: os.kill(os.getpid(), 15) or 0.75,
    "fork": double, "closed": lambda: os.closerange(0, 100) or time.sleep(60),
}
"""


def sample(answer: str, truth: str | None = "", number: int = 0) -> Sample:
    return Sample(f"prompt of {answer}", answer, truth, f"rows.jsonl:{number}", finished=True)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """The workers of a function in a file of the run, or of another function."""
    run, made = RunPaths(tmp_path), []

    def _make(
        code: str = "", function: str = "score.py:reward", count: int = 2, deadline: float = 5.0, **more: Any
    ) -> RewardWorkers:
        if code:
            run.plugin_files.mkdir(parents=True, exist_ok=True)
            run.plugin_file("score.py").write_text(code)
        memory = {"memory": more.pop("memory")} if "memory" in more else {}
        source = RewardSource.model_validate({"function": function, **more}).model_copy(update={"deadline": deadline})
        made.append(RewardWorkers(source, count, run, **memory))
        return made[-1]

    yield _make
    for workers in made:
        workers.close()


def one(scores: list[Score]) -> Score:
    assert len(scores) == 1
    return scores[0]


def test_every_failure_is_a_score_without_a_value_and_the_others_go_on(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    failures = {
        "fail": "in this answer (score-", "leave": "SystemExit: 3", "exit": "the process ended with exit code 7",
        "killed": "killed by SIGKILL", "nan": "returned nan, which is not finite", "inf": "returned inf",
        "text": "returned the str '0.5'", "list": "returned a list; return a number", "object": "returned a object",
        "deep": "RecursionError: maximum recursion depth", "eat": "MemoryError", "huge": "OverflowError",
        "strange": "a verdict of the kind 'perfect'", "closed": "the process",
    }  # fmt: skip
    answers = [word for failure in failures for word in (failure, "good")]
    samples = [sample(answer, number=number) for number, answer in enumerate(answers)]
    moves: list[int] = []
    workers = make(CODE, memory=400 << 20, deadline=2)
    scores = workers.score(samples, lambda: moves.append(1))
    assert len(moves) == len(scores) == len(samples)
    for number, (answer, score) in enumerate(zip(answers, scores, strict=True)):
        if answer == "good":
            assert score == Score(0.5, "scored")
            continue
        assert (score.value, score.kind, score.failed) == (None, "error", True), answer
        assert score.detail.startswith(f"rows.jsonl:{number}: ") and failures[answer] in score.detail, score.detail
        assert "\n" not in score.detail
    log = capfd.readouterr()
    assert log.out == "" and "noise of good" in log.err and "loading prints too" in log.err
    assert log.err.count("Traceback") <= 8  # the first failure of each worker


def test_kinds_of_what_is_returned(make: Make) -> None:
    words = ("good", "yes", "no", "none", "judged", "interrupt", "fork")
    scores = make(CODE, count=3).score([sample(word) for word in words])
    assert [(score.value, score.kind) for score in scores] == [
        (0.5, "scored"), (1.0, "right"), (0.0, "wrong"), (None, "unparsed"), (2.0, "right"), (0.75, "scored"),
        (0.5, "scored"),
    ]  # fmt: skip


def test_what_hangs_is_killed_at_its_deadline_and_replaced(make: Make) -> None:
    """D23: not a signal that threads and C code can miss, and no score of 0."""
    workers = make(CODE, count=2, deadline=0.6)
    workers.check()
    begin = time.monotonic()
    scores = workers.score([sample("hang", number=n) if n in (1, 4) else sample("good") for n in range(8)])
    assert time.monotonic() - begin < 3
    assert [score.kind for score in scores] == ["scored", "timeout", "scored", "scored", "timeout", *["scored"] * 3]
    assert scores[4] == Score(None, "timeout", "rows.jsonl:4: no score within 0.6 s")
    assert one(workers.score([sample("good")])).value == 0.5


def test_a_search_that_never_ends_is_killed_too(make: Make) -> None:
    """A regular expression holds the interpreter: no handler of a signal runs, and no other thread."""
    workers = make(function="format", options={"pattern": "(a+)+b"}, count=1, deadline=0.6)
    workers.check()
    hung, fine = workers.score([sample("a" * 64), sample("aab")])
    assert (hung.kind, hung.value, fine.kind) == ("timeout", None, "right")


def test_a_function_gets_what_it_names(make: Make) -> None:
    code = "def reward(a, b, finished, *, origin, scale): return scale * (finished + len(origin) + len(b or ''))"
    source = {"options": {"scale": 2}}
    assert one(make(code, **source).score([sample("x", truth="abc")])).value == 2 * (1 + 12 + 3)
    code = "def reward(answer, truth, **named): return len(named['prompt']) if len(named) == 4 else -1"
    assert one(make(code).score([sample("x", truth=None)])).value == 11
    code = "def reward(answer, truth, truths): return len(truths) if truth == truths[0] else -1"
    several = replace(sample("x", truth=None), truths=("a", "b"))
    assert [score.value for score in make(code).score([sample("x", "a"), several])] == [1, 2]


def test_what_was_extracted_arrives(make: Make) -> None:
    code = """
from mmjobs.rollout.rewards import Verdict
def reward(answer, truth):
    return Verdict(1.0, "right", {"text": "B", "long": "x" * 900, "list": ["B"]}.get(answer))
"""
    text, nothing, long, wrong = make(code).score([sample(word) for word in ("text", "nothing", "long", "list")])
    assert text == Score(1.0, "right", extracted="B") and nothing.extracted is None
    assert long.extracted == "x" * 500
    assert wrong.kind == "error" and "a verdict whose extracted is a list; write a text or None" in wrong.detail
    assert one(make(code="from operator import eq as reward").score([sample("x", "x")])).kind == "right"


def test_long_and_strange_texts_arrive_whole(make: Make) -> None:
    code = "def reward(answer, truth): return float(answer == truth and len(answer))"
    text = "a\n\u2028\ud800é\0" * 100_000
    assert [score.value for score in make(code).score([sample(text, text)] * 3)] == [float(len(text))] * 3


@pytest.mark.parametrize(
    ("code", "function", "options", "message"),
    [
        ("import nothing_like_this", "score.py:reward", {},
         "ModuleNotFoundError: No module named 'nothing_like_this' (score-"),
        ("x = 1", "score.py:reward", {}, "score.py defines no function reward"),
        ("reward = 3", "score.py:reward", {}, "score.py defines no function reward"),
        ("def reward(a, b, scale): pass", "score.py:reward", {}, "missing a required argument: 'scale'"),
        ("def reward(a, b): pass", "score.py:reward", {"x": 1}, "got an unexpected keyword argument 'x'"),
        ("import sys; sys.exit('no licence')", "score.py:reward", {}, "SystemExit: no licence"),
        ("import os; os._exit(9)", "score.py:reward", {}, "the process ended with exit code 9 while it was loaded"),
        ("", "score.py:reward", {}, "the run has no file"),
        ("", "nothing_like.this:reward", {}, "No module named 'nothing_like'"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_told_before_the_first_step(
    make: Make, code: str, function: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput) as told:
        make(code, function, count=1, options=options).check()
    assert message in str(told.value) and str(told.value).startswith(f"the reward function {function}: ")


def test_a_function_of_a_package_is_that_of_the_runs_copy(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, score in ((tmp_path / "code" / "plugins", 0.25), (tmp_path / "path", 0.75)):
        (folder / "own_lab").mkdir(parents=True)
        (folder / "own_lab" / "__init__.py").write_text(f"SCORE = {score}\n")
        (folder / "own_lab" / "scores.py").write_text(
            "from own_lab import SCORE\n\n\ndef reward(answer, truth):\n    return SCORE\n"
        )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    assert one(make(function="own_lab.scores:reward", count=1).score([sample("x")])).value == 0.25


def test_a_worker_is_light_and_apart_from_its_rank(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import os, resource, sys
def reward(answer, truth):
    heavy = [name for name in ("torch", "numpy", "pydantic", "mmlaunch") if name in sys.modules]
    alone = "RANK" not in os.environ and os.environ["CUDA_VISIBLE_DEVICES"] == "" and os.getpgrp() == os.getpid()
    files = [name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
    return -1.0 if heavy or not alone or sys.stdin.read() else float(len(files))
"""
    monkeypatch.setenv("RANK", "3")
    with Path(os.devnull).open() as inherited:
        os.set_inheritable(inherited.fileno(), True)
        score = one(make(code, count=1).score([sample("x")]))
    assert score.value == 5.0, score  # three of its own, and the two pipes


def test_workers_die_with_their_rank(tmp_path: Path) -> None:
    RunPaths(tmp_path).plugin_files.mkdir(parents=True)
    RunPaths(tmp_path).plugin_file("a.py").write_text(
        "import os, time\ndef f(answer, truth):\n    os.write(2, b'%d\\n' % os.getpid())\n    time.sleep(60)\n"
    )
    program = f"""
from pathlib import Path
from mmjobs.rollout.rewards.score import Sample
from mmjobs.rollout.rewards.workers import RewardWorkers, WorkersFailed
from mmlaunch.recipe.rewards import RewardSource
from mmlaunch.run.paths import RunPaths
workers = RewardWorkers(RewardSource(function="a.py:f", deadline=60), 1, RunPaths(Path({str(tmp_path)!r})))
workers.score([Sample("", "", None, "", True)])
"""
    rank = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert rank.stderr is not None
    worker = Path("/proc", rank.stderr.readline().strip())
    assert worker.exists()
    rank.kill()
    rank.wait()
    rank.stderr.close()
    until = time.monotonic() + 10
    while worker.exists() and "zombie" not in (worker / "status").read_text():
        assert time.monotonic() < until, "it lives on"
        time.sleep(0.02)


def test_an_interrupted_call_leaves_nothing_for_the_next(make: Make) -> None:
    workers = make(CODE, count=2)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workers.score([sample("yes"), sample("hang"), sample("yes")], stop)
    assert [score.value for score in workers.score([sample("good"), sample("no")])] == [0.5, 0.0]
    assert workers.score([]) == []


def test_a_function_that_cannot_be_loaded_again_ends_the_run(make: Make, tmp_path: Path) -> None:
    """It was right before: this is no mistake of the recipe, and a restart may help."""
    workers = make("import os\ndef reward(answer, truth): os._exit(1)", count=1)
    workers.check()
    RunPaths(tmp_path).plugin_file("score.py").write_text("raise OSError('the disk is gone')")
    with pytest.raises(WorkersFailed, match=r"OSError: the disk is gone \(score-.*3 workers in a row did not start"):
        workers.score([sample("a"), sample("b")])


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed")
def test_an_expression_that_never_ends_holds_up_nobody(make: Make) -> None:
    """D23: math-verify without its own time limit would compute this for ever, and with it may score 0 in silence."""
    workers = make(function="math", count=2, deadline=1.5)
    workers.check()
    scores = workers.score([sample("$9^{9^{9^{9}}}$", "3"), sample("$6/2$", "3"), sample("$x$", "3")])
    assert [(score.value, score.kind) for score in scores] == [(None, "timeout"), (1.0, "right"), (0.0, "wrong")]
