"""Slurm's words: every one has a meaning, and none that is unknown means that a job is over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlaunch.schedulers.base import Job, JobState
from mmlaunch.schedulers.slurm import commands, queue, states
from mmlaunch.schedulers.slurm.states import meaning

WORDS = [word for words in states._WORDS.values() for word in words]


def test_every_word_of_the_manual() -> None:
    base = """BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PENDING PREEMPTED RUNNING SUSPENDED
    TIMEOUT"""
    flags = """COMPLETING CONFIGURING EXPEDITING LAUNCH_FAILED POWER_UP_NODE RECONFIG_FAIL REQUEUED REQUEUE_FED
    REQUEUE_HOLD RESIZING RESV_DEL_HOLD REVOKED SIGNALING SPECIAL_EXIT STAGE_OUT STOPPED UPDATE_DB"""
    assert set(WORDS) == set(base.split()) | set(flags.split())
    assert all(meaning(word) != JobState.UNKNOWN for word in WORDS)


FORMS = {
    "CANCELLED by 1000": JobState.OVER, "CANCELLED+": JobState.OVER, "COMPLETI+": JobState.LIVE,
    "COMPLET": JobState.UNKNOWN, "running": JobState.LIVE, "": JobState.UNKNOWN, "BRAND_NEW": JobState.UNKNOWN,
    "REQUEUE_H+": JobState.STUCK,
}  # fmt: skip


@pytest.mark.parametrize("word", FORMS)
def test_forms(word: str) -> None:
    assert meaning(word) == FORMS[word]


@given(st.text())
def test_it_is_total(word: str) -> None:
    assert isinstance(meaning(word), JobState)


@given(st.sampled_from(WORDS), st.integers(4, 20))
def test_a_truncated_word_never_means_another(word: str, length: int) -> None:
    assert meaning(word[:length] + "+") in (meaning(word), JobState.UNKNOWN)


def test_advice_is_for_those_who_wait_for_ever() -> None:
    assert states.advice("7", "JobHeldUser") == "you hold it: scontrol release 7"
    assert "sinfo -R" in states.advice("7", "ReqNodeNotAvail, UnavailableNodes:node1")
    assert states.advice("7", "Priority") == states.advice("7", "Resources") == ""


@pytest.mark.parametrize(
    ("job", "nodes", "stays"),
    [("RUNNING", "allocated allocated", True), ("RUNNING", "mixed- allocated+", True), ("RUNNING", "", False),
     ("RUNNING", "allocated draining", False), ("RUNNING", "allocated* allocated", False), ("", "idle", False),
     ("COMPLETING", "allocated", False), ("RUNNING", "down", False), ("RUNNING", "allocated@", False)],
)  # fmt: skip
def test_a_job_keeps_nodes_that_are_in_service(
    job: str, nodes: str, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"squeue": job, "sinfo": "\n".join(nodes.split())}
    monkeypatch.setattr(commands, "call", lambda program, *_: answers[program] + "\n")
    assert queue.runs_on("7", "node[1-2]") is stays


def test_no_answer_keeps_no_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str) -> str:
        raise commands.SlurmError("down")

    monkeypatch.setattr(commands, "call", refuse)
    assert not queue.runs_on("7", "node1")


@pytest.mark.parametrize("word", ["RUNNING", "COMPLETING", "SUSPENDED"])
def test_a_hold_stops_no_job_that_runs(word: str) -> None:
    """`scontrol hold` of a running job only keeps it from starting again."""
    assert queue._job("7", word, "JobHeldUser") == Job(JobState.LIVE)
    assert queue._job("7", "PENDING", "JobHeldUser").state == JobState.STUCK
    assert queue._job("7", "REQUEUE_HOLD", "job_requeued_in_held_state").state == JobState.STUCK
