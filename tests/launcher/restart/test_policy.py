"""The restart policy: causes from what an attempt left behind, budgets by cause, no endless loops."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from mmlaunch.recipe.resources import Restarts
from mmlaunch.restart import policy
from mmlaunch.restart.policy import Ending
from mmlaunch.run.exits import JobExit
from mmlaunch.run.ledger import Event, Events
from mmlaunch.run.paths import AttemptPaths

SUBMITTED: Event = {"event": "submitted", "time": 0}


def attempt(
    folder: Path, logs: dict[str, str] | None = None, errors: list[dict[str, Any]] | None = None
) -> AttemptPaths:
    paths = AttemptPaths(folder / "1")
    paths.logs.mkdir(parents=True)
    for name, text in (logs or {}).items():
        (paths.logs / name).write_text(text)
    for error in errors or []:
        paths.rank_error(error["rank"]).write_text(json.dumps(error))
    return paths


@pytest.mark.parametrize(
    ("code", "cause"),
    [(0, "done"), (90, "saved"), (91, "node"), (92, "hang"), (93, "stop"), (94, "bad input"), (124, "time limit"),
     (138, "time limit"), (140, "time limit"), (143, "time limit"),
     (1, "crash"), (137, "crash"), (139, "crash")],
)  # fmt: skip
def test_causes_by_exit_code(tmp_path: Path, code: int, cause: str) -> None:
    assert policy.classify(code, attempt(tmp_path), [SUBMITTED]).cause == cause


NODE_LOST = {"srun.out": "srun: error: Node failure on node1\n"}
WARNED: Event = {"event": "signal", "attempt": 1, "name": "SIGUSR2", "step": 7}
SAVED: Event = {"event": "checkpoint", "attempt": 1, "step": 7}
SAVED_BEFORE: Event = {**SAVED, "step": 5}


@pytest.mark.parametrize(
    ("code", "logs", "events", "cause"),
    [
        (0, NODE_LOST, [], "node"),  # srun hears no more of the ranks there, which live
        (137, {"srun.out": "srun: error: n1: task 0: Exited with exit code 90\n"}, [WARNED], "saved"),
        (137, {"srun.out": "srun: error: n1: task 1: Killed\n"}, [WARNED, SAVED], "saved"),
        (137, {"srun.out": "srun: error: n1: task 1: Out Of Memory\n"}, [WARNED], "out of memory"),
        (137, {"srun.out": "srun: error: n1: task 1: Killed\n"}, [WARNED, SAVED_BEFORE], "crash"),
        (139, {"srun.out": "srun: error: n1: task 1: Segmentation fault\n"}, [SAVED_BEFORE, WARNED], "crash"),
        (124, {"srun.out": "srun: error: n1: task 1: Killed\n"}, [WARNED], "time limit"),
    ],
)  # fmt: skip
def test_what_ranks_that_were_told_to_end_have_done(
    tmp_path: Path, code: int, logs: dict[str, str], events: list[Event], cause: str
) -> None:
    run = attempt(tmp_path, logs)
    assert policy.classify(code, run, [SUBMITTED, *events]).cause == cause


def test_the_first_error_is_the_one_that_counts(tmp_path: Path) -> None:
    errors = [
        {"rank": 0, "type": "RuntimeError", "message": "connection closed by peer", "time": 20.0},
        {"rank": 1, "type": "ZeroDivisionError", "message": "oops", "time": 10.0, "step": 7, "sample": "a.json:12"},
    ]
    ending = policy.classify(1, attempt(tmp_path, errors=errors), [SUBMITTED])
    assert ending == Ending("crash", 1, "rank 1 in step 7 (a.json:12): ZeroDivisionError: oops")


@pytest.mark.parametrize(
    ("kind", "cause"), [("ModuleNotFoundError", "import"), ("OutOfMemoryError", "out of memory"), ("KeyError", "crash")]
)
def test_causes_by_error_record(tmp_path: Path, kind: str, cause: str) -> None:
    errors = [{"rank": 0, "type": kind, "message": "m", "time": 1.0}]
    assert policy.classify(1, attempt(tmp_path, errors=errors), [SUBMITTED]).cause == cause


@pytest.mark.parametrize("code", [92, 137])
def test_a_hang_names_the_rank_that_kept_the_others(tmp_path: Path, code: int) -> None:
    """Of the exit codes of all ranks Slurm passes on the highest: 137, where it had to kill the silent one."""
    paths = attempt(tmp_path, errors=[{"rank": 0, "type": "Hang", "message": "no progress", "time": 1.0}])
    paths.heartbeats.mkdir()
    for rank, alive in ((0, 100.0), (1, 70.0)):
        beat = {"phase": "training", "step": 7, "waiting": False, "time": 69.0, "alive": alive}
        (paths.heartbeats / f"rank-{rank}.json").write_text(json.dumps(beat))
    said = "rank 0: Hang: no progress; rank 1 stopped first (training, step 7)"
    assert policy.classify(code, paths, [SUBMITTED]) == Ending("hang", code, said)


@pytest.mark.parametrize(
    ("kind", "message", "cause"),
    [
        ("AcceleratorError", "CUDA error: uncorrectable ECC error encountered", "node"),
        (
            "DistBackendError",
            "NCCL communicator was aborted on rank 3: Watchdog caught collective operation timeout",
            "hang",
        ),
        ("OSError", "[Errno 28] No space left on device: '/runs/r/checkpoints'", "disk full"),
        ("RuntimeError", "CUDA error: device-side assert triggered", "crash"),
    ],
)
def test_causes_by_the_words_of_a_record(tmp_path: Path, kind: str, message: str, cause: str) -> None:
    errors = [{"rank": 3, "type": kind, "message": message, "time": 1.0}]
    assert policy.classify(1, attempt(tmp_path, errors=errors), [SUBMITTED]) == Ending(
        cause, 1, f"rank 3: {kind}: {message}"
    )


def test_a_full_disk_has_a_name_of_its_own(tmp_path: Path) -> None:
    errors = [{"rank": 0, "type": "DiskFull", "message": "make room", "time": 1.0}]
    ending = policy.classify(JobExit.STOP, attempt(tmp_path, errors=errors), [SUBMITTED])
    assert ending.cause == "disk full" and not policy.decide(ending, [SUBMITTED], Restarts()).again


@pytest.mark.parametrize(
    ("word", "cause"), [("NODE_FAIL", "node"), ("BOOT_FAIL", "node"), ("PREEMPTED", "preempted"), ("", "preempted")]
)
def test_what_slurm_took_away(word: str, cause: str) -> None:
    assert policy.taken(word).cause == cause


def test_a_torn_error_record_is_no_obstacle(tmp_path: Path) -> None:
    paths = attempt(tmp_path)
    paths.rank_error(0).write_text('{"rank": 0, "ty')
    assert policy.classify(1, paths, [SUBMITTED]).cause == "crash"


def requeued(cause: str) -> Event:
    return {"event": "requeued", "cause": cause}


def checkpoint(step: int) -> Event:
    return {"event": "checkpoint", "step": step}


def again(cause: str, *events: Event, **budgets: Any) -> bool:
    return policy.decide(Ending(cause, 1), [SUBMITTED, *events], Restarts(**budgets)).again


@pytest.mark.parametrize("cause", ["stop", "bad input", "out of memory", "disk full", "import", "done", "cancelled"])
def test_some_endings_are_final(cause: str) -> None:
    assert not again(cause)


def test_budgets_are_by_cause() -> None:
    crashes = [requeued("crash"), checkpoint(1), requeued("crash"), checkpoint(2)]
    assert again("crash", *crashes[:2], crash=2)
    assert not again("crash", *crashes, crash=2)
    assert again("node", *crashes, crash=2)
    assert again("hang", *crashes, crash=2)
    assert not again("crash", crash=0)


def test_preemption_never_uses_up_another_budget() -> None:
    events = [e for step in range(50) for e in (checkpoint(step + 1), requeued("saved"))]
    assert again("saved", *events)
    assert again("crash", *events, crash=1)


def test_no_progress_ends_every_loop() -> None:
    stuck = [requeued("saved")] * 3
    assert not again("saved", checkpoint(10), *stuck)
    assert again("saved", checkpoint(10), *stuck[:2])
    assert again("saved", checkpoint(10), *stuck, checkpoint(11))
    assert not again("saved", checkpoint(10), *stuck, checkpoint(10))  # the same step again is no progress
    measured = {"event": "reference", "done": 9, "total": 99}
    assert again("saved", *stuck, {**measured, "new": 9}) and not again("saved", *stuck, {**measured, "new": 0})


def stays(ending: Ending, *events: Event, left: float = 3600.0, pause: int = 0, **budgets: Any) -> bool:
    verdict = policy.Verdict(True, "", pause)
    return policy.stays_in_job(ending, verdict, [SUBMITTED, *events], Restarts(**budgets), left)


def test_a_rank_that_failed_by_itself_is_restarted_in_its_job() -> None:
    crash, hang = Ending("crash", 1), Ending("hang", 92)
    assert stays(crash) and stays(hang, checkpoint(3))
    assert not stays(crash, in_job=False)
    assert (
        not stays(Ending("crash", 1, "", "gpu014")) and not stays(Ending("node", 91)) and not stays(Ending("saved", 90))
    )
    assert not stays(crash, checkpoint(3), requeued("crash")), "the same nodes have not helped"
    assert stays(crash, checkpoint(3), requeued("crash"), checkpoint(6))
    in_memory: Event = {"event": "resumed", "step": 5, "tier": "memory"}
    assert stays(crash, checkpoint(3), requeued("crash"), in_memory), "what it had saved in memory is progress"
    assert not stays(crash, checkpoint(3), requeued("crash"), in_memory, requeued("crash"), in_memory)
    assert not stays(crash, checkpoint(3), requeued("crash"), {**in_memory, "tier": "disk"})
    assert stays(crash, pause=120) and not stays(crash, pause=121)


def test_a_job_that_would_soon_end_starts_no_other_attempt() -> None:
    """It needs the time of a start-up twice, beside the pause."""
    began = time.time() - 500
    slow: list[Event] = [{"event": "started", "time": began}, {"event": "started_up", "time": began + 100}]
    crash = Ending("crash", 1)
    assert stays(crash, *slow, left=210) and not stays(crash, *slow, left=190)
    assert not stays(crash, *slow, left=210, pause=30)
    assert not stays(crash, slow[0], left=990), "it never came to its first step: its whole life counts"
    again: Event = {"event": "started", "time": began + 450}
    assert stays(crash, *slow, again, left=110), "the newest attempt counts"


def test_a_new_submission_starts_with_fresh_budgets() -> None:
    before = Events((SUBMITTED, requeued("crash"), requeued("crash"), SUBMITTED))
    assert not again("crash", *before.events, crash=2)
    assert again("crash", *before.of_this_submission.events, crash=2)


def test_the_same_crash_twice_is_final() -> None:
    failed: Event = {"event": "failed", "cause": "crash", "evidence": "rank 0 in step 3: ValueError: no"}
    same = Ending("crash", 137, "rank 0 in step 3: ValueError: no")
    assert not policy.decide(same, [SUBMITTED, failed, requeued("crash")], Restarts(crash=5)).again
    other = Ending("crash", 1, "rank 0 in step 4: ValueError: no")
    assert policy.decide(other, [SUBMITTED, failed, requeued("crash")], Restarts(crash=5)).again
    killed = Ending("crash", 137, "a rank was killed (signal 9)")
    assert policy.decide(killed, [SUBMITTED, {**failed, "evidence": killed.evidence}], Restarts(crash=5)).again


def test_a_peer_that_only_lost_its_peer_is_no_witness(tmp_path: Path) -> None:
    lost = {"rank": 1, "type": "PeerLost", "message": "another rank went away", "time": 1.0}
    ending = policy.classify(137, attempt(tmp_path / "a", errors=[lost]), [SUBMITTED])
    assert ending.evidence.startswith("a rank was killed (signal 9)")
    cause = {"rank": 0, "type": "OutOfMemoryError", "message": "CUDA out of memory", "time": 2.0}
    assert policy.classify(137, attempt(tmp_path / "b", errors=[lost, cause]), [SUBMITTED]).cause == "out of memory"


def test_an_unfit_node_is_named(tmp_path: Path) -> None:
    record = {"rank": 3, "type": "UnfitNode", "message": "node gpu014: 7 of 8 GPUs", "node": "gpu014", "time": 1.0}
    ending = policy.classify(91, attempt(tmp_path, errors=[record]), [SUBMITTED])
    assert (ending.cause, ending.node) == ("node", "gpu014")


def test_the_pause_grows_and_has_an_end() -> None:
    def pause(count: int) -> int:
        events = [SUBMITTED, *(e for step in range(count) for e in (requeued("crash"), checkpoint(step + 1)))]
        return policy.decide(Ending("crash", 1), events, Restarts(crash=99, backoff=30)).pause

    assert [pause(n) for n in range(7)] == [0, 30, 60, 120, 240, 480, 600]


def test_a_cancelled_run_stays_cancelled(tmp_path: Path) -> None:
    events = [SUBMITTED, {"event": "cancelling"}]
    for code, state in ((1, "cancelled"), (137, "cancelled"), (JobExit.AGAIN, "cancelled"), (0, "done")):
        verdict = policy.decide(policy.classify(code, attempt(tmp_path / str(code)), events), events, Restarts())
        assert (verdict.again, verdict.state) == (False, state)
