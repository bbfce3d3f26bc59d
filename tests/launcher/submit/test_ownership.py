"""Who owns a run, and a way out of every state that a run can be in."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.conftest import SubmitStub
from tests.runs import ended, mmlaunch, submit, wait_for

from mmlaunch.cli import group
from mmlaunch.errors import MmlaunchError
from mmlaunch.monitor import status
from mmlaunch.restart import attempt
from mmlaunch.run import heartbeats, ledger, owner
from mmlaunch.run.heartbeats import Heartbeat
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import process
from mmlaunch.schedulers.slurm import commands
from mmlaunch.submit import cancel

BOOT = "0c2b1a1e-0000-4000-8000-000000000000 pid:[1]"


def test_one_of_many_takes_a_number(tmp_path: Path) -> None:
    run = RunPaths(tmp_path)
    taken = [owner.take(run, 1, by=name) for name in ("ada", "bob", "eve")]
    assert taken == [True, False, False] and owner.read(run, 1) == {"by": "ada"}
    owner.check(run, 1)
    assert owner.take(run, 2, by="bob", host="login2")
    with pytest.raises(owner.NotTheOwner, match="submitted again by bob on login2"):
        owner.check(run, 1)
    owner.check(run, 0)  # a job script of the user's own that does not pass the number on
    assert [path.name for path in run.owners.iterdir()] == ["1.json", "2.json"]


def test_an_attempt_ends_where_a_later_one_has_begun(tmp_path: Path) -> None:
    """Its node was lost to the scheduler, and its processes live."""
    run = RunPaths(tmp_path)
    assert owner.take(run, 1, by="ada")
    owner.write(run, 1, attempt=2)
    owner.check(run, 1, 2)
    with pytest.raises(owner.NotTheOwner, match="has begun: attempt 1 ends here"):
        owner.check(run, 1, 1)


@pytest.mark.usefixtures("stop_all")
def test_of_two_resumes_one_starts(small: Path, submit_stub: SubmitStub) -> None:
    run = submit_stub(small, cluster="local")
    wait_for(run, ended)
    command = [sys.executable, "-m", "mmlaunch", "resume", run.name, "-s", "steps=8"]
    tries = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [one.communicate(timeout=60)[1] for one in tries]
    assert sorted(one.returncode for one in tries) == [0, 2], errors
    events = wait_for(run, lambda events: sum(e["event"] == "ended" for e in events) == 2)
    assert sum(e["event"] == "started" for e in events) == 2 and owner.newest(run) == 2
    assert owner.read(run, 2)["attempt"] == 2


@pytest.mark.usefixtures("stop_all")
def test_a_resume_that_was_killed_blocks_nobody(small: Path, submit_stub: SubmitStub) -> None:
    """It had taken its number and died; while it lives, it is left alone."""
    run = submit_stub(small, cluster="local")
    wait_for(run, ended)
    owner.take(run, 2, by="ada", time=time.time(), **process.identity(os.getpid()))
    refused = mmlaunch("resume", run.name, "-s", "steps=8")
    assert refused.returncode == 2 and "is being resumed by ada" in refused.stderr
    owner.write(run, 2, began=1)  # the process of that number is another one now
    assert mmlaunch("resume", run.name, "-s", "steps=8", "--follow").returncode == 0
    assert owner.newest(run) == 3


def test_a_job_of_an_ended_run_comes_too_late(small: Path, submit_stub: SubmitStub) -> None:
    run = submit_stub(small, cluster="local")
    before = wait_for(run, ended)
    with pytest.raises(MmlaunchError, match=r"has ended \(done\)"):
        attempt.begin(run, run.attempt(1).script, 1)
    assert list(ledger.read(run.events)) == before


def test_a_job_that_slurm_has_requeued_itself_is_in_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/bash\necho "Job is pending execution for job 7" >&2; exit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(commands, "ODD_LIMIT", 0.0)
    before = signal.getsignal(signal.SIGTERM)
    try:
        commands.requeue("7")
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_job_asks_again_while_the_controller_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "scontrol"
    program.write_text(
        f'#!/bin/bash\necho "$@" >>{tmp_path}/asked\n'
        f"[ $(wc -l <{tmp_path}/asked) -gt 2 ] && exit 0\n"
        'echo "slurm_requeue: Unable to contact slurm controller" >&2; exit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert commands.patiently(lambda: commands.call("scontrol", "requeue", "7")) == ""
    assert (tmp_path / "asked").read_text().count("requeue 7") == 3
    assert "Unable to contact slurm controller; next try in 2 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("record", "is_here"),
    [
        ({"host": "renamed"}, True),
        ({"machine": BOOT}, False),  # this host, booted again
        ({"machine": BOOT, "host": "another"}, None),
        ({"machine": process.machine().replace("pid:[", "pid:[9")}, None),  # another container of this machine
        ({"machine": "", "host": "another"}, None),  # an older version's event
        ({"machine": ""}, True),
    ],
)
def test_a_machine_is_known_by_its_boot(record: dict[str, str], is_here: bool | None) -> None:
    assert process.here({**process.identity(os.getpid()), **record}) is is_here


def _submitted(run: RunPaths, executor: str = "local") -> None:
    ledger.append(run.events, "submitted", executor=executor, steps=100, submission=1)


def _started(run: RunPaths, **facts: Any) -> None:
    _submitted(run)
    ledger.append(run.events, "queued", job="1", **facts)
    ledger.append(run.events, "started", attempt=1, job="1", **facts)


def _running(run: RunPaths) -> None:
    script = "sleep 300 >/dev/null 2>&1 & echo $!"
    pid = subprocess.run(["setsid", "bash", "-c", script], capture_output=True, text=True, check=True).stdout
    leader = os.getsid(int(pid))  # it has ended; what it started goes on, as ranks do
    _started(run, **process.identity(int(pid)) | {"pid": leader})
    ledger.append(run.events, "step", step=3, steps=100, attempt=1)


def _lost(run: RunPaths) -> None:
    _started(run, **process.identity(os.getpid()) | {"began": 1, "pid": 1 << 22})


def _elsewhere(run: RunPaths) -> None:
    _started(run, **process.identity(os.getpid()) | {"host": "gpu014", "machine": BOOT})
    Heartbeat("training", 3, False, 1.0, 1.0, rank=0).write(run.attempt(1))


def _ended(state: str) -> Callable[[RunPaths], None]:
    def make(run: RunPaths) -> None:
        _lost(run)
        ledger.append(run.events, "ended", state=state, exit_code=1)
        ledger.append(run.events, "step", step=4, steps=100, attempt=1)  # of a rank that was slow to die

    return make


def _unconfirmed(run: RunPaths) -> None:
    _submitted(run, "slurm")
    ledger.append(run.events, "unconfirmed", reason="sbatch said nothing")


def _damaged(run: RunPaths) -> None:
    run.events.write_bytes(b"\0" * 100 + b'\n{"event": 3}\n')


STATES: dict[str, Callable[[RunPaths], None]] = {
    "submitted": _submitted, "running": _running, "lost": _lost, "unknown": _elsewhere, "done": _ended("done"),
    "failed": _ended("failed"), "cancelled": _ended("cancelled"),
    "perhaps submitted": _unconfirmed, "damaged": _damaged,
}  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory as a submission makes it, without its ledger."""
    folder = tmp_path_factory.mktemp("template")
    recipe = folder / "small.yaml"
    from tests.conftest import SMALL

    recipe.write_text(SMALL)
    run = submit(recipe, MMLAUNCH_RUNS=str(folder / "runs"))
    assert "cancelled" in mmlaunch("cancel", "--now", str(run.root)).stdout
    run.events.unlink()
    return run.root


@pytest.fixture
def run_in(template: Path, own_home: Path) -> Callable[[str], RunPaths]:
    def make(state: str) -> RunPaths:
        run = RunPaths(own_home / "runs" / template.name)
        shutil.rmtree(run.root, ignore_errors=True)
        shutil.copytree(template, run.root)
        STATES[state](run)
        return run

    return make


@pytest.mark.usefixtures("stop_all")
@pytest.mark.parametrize("state", STATES)
def test_every_state_has_a_way_out(
    state: str, run_in: Callable[[str], RunPaths], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command answers in every state; after `cancel --now` the state is final, and `resume` may be typed."""
    monkeypatch.setenv("PATH", os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if "sbin" not in p))
    empty_queue(tmp_path, monkeypatch)
    for command in (["status"], ["why"], ["report"], ["logs"], ["resume", "-s", "nonsense=1"], ["cancel", "--now"]):
        run = run_in(state)
        shown = status.of(run).state
        assert shown == ("unknown" if state == "damaged" else "lost" if state == "perhaps submitted" else state)
        result = CliRunner().invoke(group, [command[0], run.name, *command[1:]])
        assert result.exception is None or isinstance(result.exception, (MmlaunchError, SystemExit)), result.exception
    assert status.of(run).final
    refused = CliRunner().invoke(group, ["resume", run.name, "-s", "nonsense=1"])
    assert "nonsense" in str(getattr(refused.exception, "problems", "")), refused.exception  # nothing else is wrong


def empty_queue(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Slurm that has no job."""
    for name in ("squeue", "sacct", "scancel"):
        (folder / name).write_text("#!/bin/bash\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_run_on_a_machine_that_is_gone_can_be_given_up(run_in: Callable[[str], RunPaths]) -> None:
    run = run_in("unknown")
    Heartbeat("training", 3, False, 1.0, time.time() - 30, rank=0).write(run.attempt(1))
    with pytest.raises(MmlaunchError, match="runs on gpu014; cancel it there"):
        cancel.cancel(run, now=True)
    Heartbeat("training", 3, False, 1.0, time.time() - cancel.STALE - 1, rank=0).write(run.attempt(1))
    with pytest.raises(MmlaunchError, match="--now"):
        cancel.cancel(run, now=False)
    assert heartbeats.newest(run) and "cancelled" in cancel.cancel(run, now=True)
