"""Translates every word that Slurm has for the state of a job into one of five.

The table is total: flags that hide the base state, truncations (`CANCELLED+`), `CANCELLED by 1000` and words that a
newer Slurm brings all have an answer. A word that nobody knows never means that a job is over.
"""

from __future__ import annotations

import re

from mmlaunch.schedulers.base import JobState

_WORDS = {
    JobState.WAITING: ("PENDING", "REQUEUED", "REQUEUE_FED", "EXPEDITING"),
    JobState.LIVE: (
        "RUNNING", "CONFIGURING", "COMPLETING", "POWER_UP_NODE", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED",
        "SUSPENDED", "UPDATE_DB",
    ),
    JobState.OVER: (
        "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE",
        "BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL", "REVOKED",
    ),
    JobState.STUCK: ("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"),
}  # fmt: skip
_TABLE = {word: state for state, words in _WORDS.items() for word in words}

NEEDS_A_HUMAN = {
    "JobHeldUser": "you hold it: scontrol release {job}",
    "JobHeldAdmin": "an administrator holds it: ask them",
    "JobHoldMaxRequeue": "it was requeued too often: scontrol release {job}",
    "DependencyNeverSatisfied": "what it depends on failed: scancel {job}",
    "BadConstraints": "no node fits what it asks for: scancel {job} and change resources",
    "PartitionTimeLimit": "it asks for more time than its partition gives: scancel {job} and lower resources.time",
    "PartitionNodeLimit": "it asks for more nodes than its partition gives: scancel {job} and lower resources.nodes",
    "AccountNotAllowed": "its account may not use this partition: scancel {job} and change resources.account",
    "QOSNotAllowed": "its qos may not be used here: scancel {job} and change resources.qos",
    "InvalidAccount": "there is no such account: scancel {job} and change resources.account",
    "InvalidQOS": "there is no such qos: scancel {job} and change resources.qos",
    "ReqNodeNotAvail": "a node that it needs is down or reserved: sinfo -R",
}
"""Reasons for which a pending job waits until a human does something, and what to do."""

IN_SERVICE = frozenset(("allocated", "mixed", "idle", "completing", "reserved", "planned"))
"""What sinfo calls a node that works; `*` behind it: it does not respond. One that is draining takes no new attempt."""

ENDED_WITHOUT_POLICY = {
    "OUT_OF_MEMORY": "it used more memory than it asked for (resources.memory)",
    "NODE_FAIL": "a node went down",
    "BOOT_FAIL": "its nodes did not boot",
    "LAUNCH_FAILED": "its nodes could not start it",
    "TIMEOUT": "its time limit came and its ranks did not leave in time",
    "DEADLINE": "it could not end before its deadline",
    "PREEMPTED": "it was preempted, and is not requeued here",
    "CANCELLED": "it was cancelled without mmlaunch",
}
"""How a job ended whose job script could not ask the restart policy."""


def meaning(word: str) -> JobState:
    """The state that a word of squeue or sacct stands for."""
    token = word.strip().upper().partition(" ")[0].rstrip("+*~#$@^-%!")
    if token in _TABLE:
        return _TABLE[token]
    cut = [state for known, state in _TABLE.items() if len(token) >= 4 and known.startswith(token)]
    return cut[0] if cut and all(state == cut[0] for state in cut) else JobState.UNKNOWN


def advice(job: str, reason: str) -> str:
    """What a human would do about a pending job, or nothing if it only waits its turn."""
    key = re.split(r"[,( ]", reason, maxsplit=1)[0]
    return NEEDS_A_HUMAN[key].format(job=job) if key in NEEDS_A_HUMAN else ""
