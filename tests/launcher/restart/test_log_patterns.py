"""Clues in the ends of logs: excerpts as ranks, NCCL, the kernel and Slurm write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmlaunch.restart import log_patterns, policy
from mmlaunch.restart.policy import Ending
from mmlaunch.run.paths import AttemptPaths

STEP = "step 41/800  loss 1.330  9.8 examples/s  3m left\n"
CUDA = """\
Traceback (most recent call last):
  File "/runs/r/code/mmjobs/train/engine.py", line 88, in train_on
    loss.backward()
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.10 GiB. GPU 3 has a total capacity of 79.10 GiB of \
which 1.02 GiB is free.
"""
CGROUP = """\
slurmstepd: error: Detected 1 oom_kill event in StepId=4211773.0. Some of the step tasks have been OOM Killed.
"""
KERNEL = """\
[812345.6] python invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0
[812345.9] Out of memory: Killed process 40512 (python) total-vm:912345678kB, anon-rss:501234567kB
"""
POLLED = "slurmstepd: error: Step 4211773.0 exceeded memory limit (530841600 > 524288000), being killed\n"
POLLED_JOB = "slurmstepd: error: Exceeded job memory limit at some point.\n"
SRUN = "srun: error: gpu014: task 3: Out Of Memory\nsrun: Terminating StepId=4211773.0\n"
NCCL = """\
[rank3]:[E1121 14:20:11.001 ProcessGroupNCCL.cpp:632] [Rank 3] Watchdog caught collective operation timeout: \
WorkNCCL(SeqNum=8121, OpType=ALLREDUCE, NumelIn=16777216, NumelOut=16777216, Timeout(ms)=600000) ran for 600029 \
milliseconds before timing out.
terminate called after throwing an instance of 'c10::DistBackendError'
"""
XID = "[ 9123.4] NVRM: Xid (PCI:0000:c1:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n"
ECC = """\
Traceback (most recent call last):
  File "/runs/r/code/mmjobs/main.py", line 31, in run
torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered
"""
DEAD = """\
srun: error: Node failure on gpu014
srun: error: Aborting, step has failed
"""
DISK = """\
Traceback (most recent call last):
  File "/usr/lib/python3.11/shutil.py", line 269, in copyfile
OSError: [Errno 28] No space left on device: '/runs/r/checkpoints/.step-40.tmp/shard-3.pt'
"""
REFUSED = """\
[W1121 14:20:11.4 socket.cpp:767] [c10d] The client socket has failed to connect to [gpu013]:11417 (errno: 111 - \
Connection refused).
"""
RESET = """\
Traceback (most recent call last):
  File "/runs/r/code/mmjobs/train/ranks.py", line 41, in add
RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:31840
"""
STORE = """\
Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/torch/distributed/rendezvous.py", line 189, in _create_c10d_store
torch.distributed.DistNetworkError: The client socket has timed out after 600000ms while trying to connect to (g, 1).
"""
PYTHON = """\
Traceback (most recent call last):
  File "/runs/r/code/mmjobs/data/encode.py", line 71, in encode
    raise KeyError(name)
KeyError: 'conversations'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/runs/r/code/mmjobs/main.py", line 31, in run
ValueError: row 812 has no turns
"""
SEGFAULT = "Fatal Python error: Segmentation fault\n\nCurrent thread 0x00007f1 (most recent call first):\n"

TABLE: dict[str, tuple[str, str, str]] = {
    "cuda": (CUDA, "out of memory", "rank 0: torch.OutOfMemoryError: CUDA out of memory"),
    "cgroup": (CGROUP, "out of memory", "rank 0: slurmstepd: error: Detected 1 oom_kill event"),
    "kernel": (KERNEL, "out of memory", "rank 0: [812345.6] python invoked oom-killer"),
    "polled": (POLLED, "out of memory", "rank 0: slurmstepd: error: Step 4211773.0 exceeded memory limit"),
    "polled job": (POLLED_JOB, "out of memory", "rank 0: slurmstepd: error: Exceeded job memory limit"),
    "srun": (SRUN, "out of memory", "rank 0: srun: error: gpu014: task 3: Out Of Memory"),
    "nccl": (NCCL, "hang", "rank 0: [rank3]:[E1121 14:20:11.001 ProcessGroupNCCL.cpp:632] [Rank 3] Watchdog"),
    "xid": (XID, "node", "rank 0: [ 9123.4] NVRM: Xid (PCI:0000:c1:00): 79"),
    "ecc": (ECC, "node", "rank 0: torch.AcceleratorError: CUDA error: uncorrectable ECC"),
    "dead": (DEAD, "node", "rank 0 (gpu014): srun: error: Node failure on gpu014"),
    "disk": (DISK, "disk full", "rank 0: OSError: [Errno 28] No space left on device"),
    "refused": (REFUSED, "crash", "rank 0: [W1121 14:20:11.4 socket.cpp:767] [c10d] The client socket has failed"),
    "reset": (RESET, "crash", "rank 0: RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:534]"),
    "store": (STORE, "crash", "rank 0: torch.distributed.DistNetworkError: The client socket has timed out"),
    "python": (PYTHON, "program error", "rank 0: ValueError: row 812 has no turns"),
    "segfault": (SEGFAULT, "crash", "a rank ended with exit code 1"),
    "nothing": ("", "crash", "a rank ended with exit code 1"),
    "warning": (
        "UserWarning: this may run out of memory; no timeout is set\n",
        "crash",
        "a rank ended with exit code 1",
    ),
}


def attempt(folder: Path, **logs: str) -> AttemptPaths:
    """Logs whose ranks fell silent in the order in which they stand here."""
    paths = AttemptPaths(folder / "1")
    paths.logs.mkdir(parents=True)
    for age, (name, text) in enumerate(logs.items()):
        log = paths.logs / f"{name.replace('_', '-')}.out"
        log.write_text(text)
        os.utime(log, (1_800_000_000 + age,) * 2)
    return paths


@pytest.mark.parametrize("name", TABLE)
def test_an_excerpt(tmp_path: Path, name: str) -> None:
    text, cause, evidence = TABLE[name]
    ending = policy.classify(1, attempt(tmp_path, rank_0=STEP + text + STEP), [{"event": "submitted"}])
    assert ending.cause == cause and ending.evidence.startswith(evidence)


def test_a_cause_with_a_name_outweighs_what_it_made_of_the_other_ranks(tmp_path: Path) -> None:
    logs = attempt(tmp_path, rank_0=RESET, rank_2=PYTHON, rank_1=STORE, srun=SRUN)
    assert (found := log_patterns.weigh(logs)) and found.cause == "out of memory"
    assert str(found) == "srun: error: gpu014: task 3: Out Of Memory [srun.out:1]"


def test_the_first_rank_that_failed_is_the_one_that_counts(tmp_path: Path) -> None:
    logs = attempt(tmp_path, rank_0=RESET, rank_7=PYTHON, rank_1=PYTHON.replace("row 812", "row 1"))
    assert str(log_patterns.weigh(logs)) == "rank 7: ValueError: row 812 has no turns [rank-7.out:10]"


def test_a_dead_node_outweighs_the_signal_that_it_brought(tmp_path: Path) -> None:
    logs = attempt(tmp_path, rank_0=STEP + RESET, srun=DEAD)
    assert policy.classify(143, logs, [{"event": "submitted"}]).cause == "node"
    ending = policy.classify(143, attempt(tmp_path / "b", rank_0=STEP + RESET), [{"event": "submitted"}])
    assert ending == Ending("time limit", 143, "signal 15 came before a rank could save")


@pytest.mark.parametrize(
    "words", [RESET, "Traceback (most recent call last):\n  msg = conn.recv()\n[rank0]: EOFError\n"]
)
def test_a_lost_connection_tells_less_than_a_signal(tmp_path: Path, words: str) -> None:
    """The second one is what a helper of rank 0 says, which it has left behind."""
    ending = policy.classify(137, attempt(tmp_path, rank_0=STEP + words), [{"event": "submitted"}])
    assert ending.evidence.startswith("a rank was killed (signal 9)")


def test_the_first_task_to_end_is_the_one_that_counts(tmp_path: Path) -> None:
    """srun's code is the highest: here that of a rank which srun itself ended after another one was killed."""
    ends = (
        "srun: error: gpu014: task 3: Killed\nsrun: Terminating StepId=7.0\nsrun: error: gpu013: task 0: Terminated\n"
    )
    ending = policy.classify(143, attempt(tmp_path / "a", srun=ends), [{"event": "submitted"}])
    assert ending.cause == "crash" and ending.evidence.endswith("; task 3 on gpu014")
    ends = "srun: error: gpu013: tasks 0-7: Terminated\nsrun: error: gpu014: task 3: Killed\n"
    assert policy.classify(143, attempt(tmp_path / "b", srun=ends), [{"event": "submitted"}]).cause == "time limit"


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ("(Core pid=17) ERROR 09-28 15:47:24 [core.py:7] ValueError: the prompt is too long", "program error"),
        ("ValueError: free memory (3.2/79.1 GiB) is less than desired", "out of memory"),
        ("RuntimeError: CUDA error: No kernel image is available for execution on the device", "import"),
        ("RuntimeError: CUDA error: GPU requires reset, call to cudaMalloc failed", "node"),
    ],
)
def test_words_of_helpers_and_other_versions(tmp_path: Path, lines: str, cause: str) -> None:
    after = "RuntimeError: Engine core initialization failed. See root cause above."
    assert policy.classify(1, attempt(tmp_path, **{"rank-0": f"{lines}\n{after}\n"}), []).cause == cause
