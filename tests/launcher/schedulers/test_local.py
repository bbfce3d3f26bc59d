"""Runs on this machine, from the command line to the last event: real processes, real kills, and training where it
matters."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests import stub_job
from tests.conftest import SubmitStub
from tests.runs import at_step, before_the_resume, ended, losses, mmlaunch, saved_at, submit, wait_for
from tests.stub_job import losses_of, runs

from mmlaunch.load import load_recipe
from mmlaunch.run import ledger, manifest
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import process
from mmlaunch.schedulers.local import scheduler

SECRET = "canary-4f1c9e77a0"
ROOT = Path(__file__).resolve().parents[3]
LONG = ["-s", "steps=100000", "-s", "checkpoint.every=5", "-s", "log.every=1"]


def rank_pids(run: RunPaths) -> list[int]:
    """The ranks of a run, in their order."""
    found: dict[str, int] = {}
    for proc in sorted(
        Path("/proc").glob("[0-9]*"), key=lambda path: -int(path.name)
    ):  # a rank is older than its workers
        command, variables = _bytes(proc / "cmdline").split(b"\0"), _bytes(proc / "environ").decode(errors="replace")
        rank = re.search(r"\0SUBMITIT_LOCAL_GLOBALID=(\d+)\0", variables)
        if rank and b"mmlaunch.schedulers.rank" in command and str(run.job).encode() in command:
            found[rank.group(1)] = int(proc.name)
    return [found[key] for key in sorted(found)]


@pytest.mark.usefixtures("stop_all")
def test_a_run_from_render_to_the_end(small: Path, own_home: Path) -> None:
    options: list[str | Path] = [small, "-s", "log.every=1"]
    rendered = mmlaunch("render", "--cluster", "local", *options)
    deepspeed = mmlaunch("render", "--cluster", "local", "--what", "deepspeed", *options)
    done = mmlaunch("submit", "--cluster", "local", "--follow", *options)
    assert done.returncode == 0, done.stderr
    assert "step 4/4" in done.stdout and ": done eval/loss" in done.stdout

    (events_file,) = (own_home / "runs").glob("[!.]*/events.jsonl")
    run = RunPaths(events_file.parent)
    assert run.attempt(1).script.read_text() == rendered.stdout
    assert run.attempt(1).deepspeed.read_text() == deepspeed.stdout
    events = list(ledger.read(run.events))
    kinds = [event["event"] for event in events]
    assert kinds[:3] == ["submitted", "queued", "started"] and kinds[-1] == "ended"
    assert events[-1]["state"] == "done" and events[-1]["exit_code"] == 0
    assert manifest.newest(run.checkpoints)[0] is not None
    status = json.loads(mmlaunch("status", "--json", run.name).stdout)[0]
    assert (status["state"], status["step"], status["steps"], status["attempt"]) == ("done", 4, 4, 1)
    logs = mmlaunch("logs", run.name)
    assert re.search(r"^\[0\] ", logs.stdout, re.M) and re.search(r"^\[1\] ", logs.stdout, re.M)
    assert "[0]" not in mmlaunch("logs", run.name, "--rank", "1").stdout
    assert len(json.loads(mmlaunch("runs", "--json").stdout)) == 1
    check_readable_by_others(run)


def check_readable_by_others(run: RunPaths) -> None:
    for path in [run.root, *run.root.rglob("*")]:
        mode = path.stat().st_mode
        if path.parent != run.job and "code" not in path.parts:
            assert mode & 0o004, f"{path} cannot be read by others"
        if path.is_dir():
            assert mode & 0o001, path
    assert run.resolved.stat().st_mode & 0o222 == 0


@pytest.mark.usefixtures("stop_all")
def test_secrets_are_nowhere(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, submit_stub: SubmitStub
) -> None:
    with small.open("a") as file:
        file.write(f"env: [WANDB_API_KEY, PLAIN=visible]\n# a comment with {SECRET}\n")
    repository = small.parent
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(repository), *command], check=True)
    (repository / "small.yaml").write_text(small.read_text() + f"# dirty {SECRET}\n")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    dry = mmlaunch("render", "--cluster", "local", small)
    run = submit_stub(small, "-s", "resources.tasks_per_node=1", cluster="local")
    seen_in_argv = [p for p in Path("/proc").glob("[0-9]*") if SECRET.encode() in _bytes(p / "cmdline")]
    wait_for(run, ended)
    assert SECRET not in dry.stdout + dry.stderr and "export PLAIN=visible" in dry.stdout
    assert seen_in_argv == []
    found = [path for path in run.root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert found == []
    assert "<WANDB_API_KEY>" in run.recipe.read_text() and "<WANDB_API_KEY>" in run.environment.read_text()
    for shown in (mmlaunch("logs", run.name), mmlaunch("status", "--json", run.name)):
        assert SECRET not in shown.stdout + shown.stderr


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_secret_that_would_stand_in_the_script_is_refused(small: Path, own_home: Path) -> None:
    with small.open("a") as file:
        file.write(f"env: [MY_VALUE, OTHER={SECRET}]\n")
    for command in ("submit", "render"):
        done = mmlaunch(command, "--cluster", "local", small, MY_VALUE=SECRET)
        assert done.returncode == 2 and "would hold the value of MY_VALUE" in done.stderr and SECRET not in done.stderr
    assert not list((own_home / "runs").glob("*"))


def test_a_variable_that_is_not_set(small: Path, own_home: Path) -> None:
    done = mmlaunch("submit", "--cluster", "local", small, "-s", "env=[NOT_SET_ANYWHERE]")
    assert done.returncode == 2 and "NOT_SET_ANYWHERE is not set in your shell; export" in done.stderr
    assert not list((own_home / "runs").glob("*"))


@pytest.mark.usefixtures("stop_all")
def test_a_killed_rank_is_restarted_and_nothing_is_lost(small: Path, submit_stub: SubmitStub) -> None:
    options = ["-s", "steps=100", "-s", "checkpoint.every=5", "-s", "log.every=1"]
    run = submit_stub(small, *options, cluster="local")
    wait_for(run, saved_at(12))
    os.kill(rank_pids(run)[1], signal.SIGKILL)
    events = wait_for(run, ended)
    assert [e["event"] for e in events if e["event"] in ("failed", "requeued", "resumed")] == [
        "failed",
        "requeued",
        "resumed",
    ]
    assert events[-1]["state"] == "done"
    assert next(e for e in events if e["event"] == "failed")["cause"] == "crash"
    assert losses(events) == losses_of(100)
    assert (run.attempt(2).script.read_bytes(), run.attempt(2).deepspeed.read_bytes()) == (
        run.attempt(1).script.read_bytes(), run.attempt(1).deepspeed.read_bytes())  # fmt: skip


@pytest.mark.nightly  # twenty seconds, mostly of waiting; on Slurm it is tried every day
@pytest.mark.usefixtures("stop_all")
def test_a_time_limit_costs_nothing(small: Path, submit_stub: SubmitStub) -> None:
    """The ranks are warned 10 s before the limit of 20 s: they save, leave with 90, and go on in another attempt."""
    profile = small.parent / "brisk.yaml"
    profile.write_text("executor: local\nsignal: {lead: 10s}\n")
    run = submit_stub(small, *LONG, "-s", "resources.time=20s", cluster=str(profile))
    events = wait_for(run, lambda events: any(e["event"] == "resumed" for e in events))
    assert next(e for e in events if e["event"] == "requeued")["cause"] == "saved"
    step, saved, done = before_the_resume(events)
    assert step == saved[-1] == done[-1]
    assert mmlaunch("cancel", run.name).returncode == 0


@pytest.mark.usefixtures("stop_all")
def test_cancel_saves_and_leaves_a_clean_ledger(small: Path, submit_stub: SubmitStub) -> None:
    run = submit_stub(small, *LONG, cluster="local")
    wait_for(run, at_step(3))
    pids = rank_pids(run)
    done = mmlaunch("cancel", run.name)
    assert done.returncode == 0 and "cancelled; its newest checkpoint is step" in done.stdout
    events = list(ledger.read(run.events))
    assert [e["event"] for e in events][-1] == "ended" and events[-1]["state"] == "cancelled"
    assert sum(e["event"] == "ended" for e in events) == 1 and ledger.read(run.events).torn == 0
    assert len(pids) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert manifest.newest(run.checkpoints)[0] is not None
    assert "was cancelled already" in mmlaunch("cancel", run.name).stdout


@pytest.mark.usefixtures("stop_all")
def test_cancel_now_and_cancel_at_once(small: Path, submit_stub: SubmitStub) -> None:
    for wait in (at_step(1), lambda events: True):
        run = submit_stub(small, *LONG, "-s", f"seed={id(wait) % 1000}", cluster="local")
        wait_for(run, wait)
        assert mmlaunch("cancel", "--now", run.name).returncode == 0
        assert json.loads(mmlaunch("status", "--json", run.name).stdout)[0]["state"] == "cancelled"
        assert rank_pids(run) == []


@pytest.mark.usefixtures("stop_all")
def test_a_batch_script_that_is_killed_takes_its_ranks_along(small: Path, submit_stub: SubmitStub) -> None:
    run = submit_stub(small, *LONG, cluster="local")
    events = wait_for(run, at_step(1))
    batch = next(e for e in events if e["event"] == "queued")
    os.kill(batch["pid"], signal.SIGKILL)
    until = time.monotonic() + 30
    while process.members(batch) and time.monotonic() < until:
        time.sleep(0.2)
    assert process.members(batch) == []
    status = json.loads(mmlaunch("status", "--json", run.name).stdout)[0]
    assert status["state"] == "lost" and "left no word" in status["reason"]


@pytest.mark.usefixtures("stop_all")
def test_a_rank_starter_that_is_killed_takes_its_ranks_along(small: Path, submit_stub: SubmitStub) -> None:
    run = submit_stub(small, *LONG, cluster="local")
    wait_for(run, saved_at(6))
    old = rank_pids(run)
    starter = int(Path(f"/proc/{old[0]}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(starter, signal.SIGKILL)
    wait_for(run, lambda events: any(e["event"] == "resumed" for e in events))
    assert not any(runs(pid) for pid in old)
    assert mmlaunch("cancel", "--now", run.name).returncode == 0


@pytest.mark.usefixtures("stop_all")
def test_a_recipe_that_is_found_bad_in_the_job_runs_once(small: Path) -> None:
    run = submit(small, "-s", "resources.tasks_per_node=1")
    run.resolved.chmod(0o644)
    run.resolved.write_text(run.resolved.read_text().replace("method: sft", "method: stf"))
    events = wait_for(run, ended)
    assert sum(e["event"] == "started" for e in events) == 1
    failed = next(e for e in events if e["event"] == "failed")
    assert failed["cause"] == "bad input" and "did you mean sft?" in failed["evidence"]
    assert (events[-1]["state"], events[-1]["exit_code"]) == ("failed", 94)


@pytest.mark.usefixtures("stop_all")
def test_edited_code_does_not_change_a_run(small: Path, tmp_path: Path) -> None:
    for root, package in (("launcher", "mmlaunch"), ("jobs", "mmjobs")):
        shutil.copytree(ROOT / root / package, tmp_path / "checkout" / package)
    for data in ("templates", "recipes"):
        shutil.copytree(ROOT / data, tmp_path / "checkout" / "mmlaunch" / data)
    shutil.copyfile(stub_job.__file__, tmp_path / "checkout" / "mmjobs" / "main.py")
    run = submit(small, "-s", "resources.tasks_per_node=1", PYTHONPATH=str(tmp_path / "checkout"))
    for path in (tmp_path / "checkout").rglob("*.py"):
        path.write_text("raise SystemExit('edited')\n")
    assert wait_for(run, ended)[-1]["state"] == "done"
    assert "edited" not in "".join(path.read_text() for path in run.root.rglob("*.out"))


@pytest.mark.usefixtures("stop_all")
def test_who_stops_following_leaves_the_run_alone(small: Path, own_home: Path, stub_code: Path) -> None:
    command = [sys.executable, "-m", "mmlaunch", "submit", "--cluster", "local", "--follow", str(small), *LONG]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(stub_code)}
    ) as following:
        while not (found := list((own_home / "runs").glob("[!.]*/events.jsonl"))):
            time.sleep(0.1)
        run = RunPaths(found[0].parent)
        wait_for(run, at_step(2))
        following.send_signal(signal.SIGINT)
        output, _ = following.communicate(timeout=60)
    assert following.returncode == 130, "it has not seen the end"
    assert f"the run goes on. next: mmlaunch status {run.name}" in output
    assert json.loads(mmlaunch("status", "--json", run.name).stdout)[0]["state"] == "running"


@pytest.mark.usefixtures("stop_all")
def test_follow_has_the_exit_code_of_the_run(small: Path, own_home: Path, stub_code: Path) -> None:
    options = [small, *LONG, "-s", "restarts.crash=0"]
    command = [sys.executable, "-m", "mmlaunch", "submit", "--cluster", "local", "--follow", *map(str, options)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(stub_code)},
    ) as following:
        while not (found := list((own_home / "runs").glob("[!.]*/events.jsonl"))):
            time.sleep(0.1)
        run = RunPaths(found[0].parent)
        wait_for(run, at_step(2))
        os.kill(rank_pids(run)[0], signal.SIGKILL)
        output, _ = following.communicate(timeout=60)
    assert following.returncode == 137
    assert f"{run.name}: failed" in output and "crash: a rank was killed (signal 9)" in output
    assert "not restarted: the budget for this cause is used up (restarts.crash: 0)" in output


def test_broken_recipes_write_nothing(small: Path, own_home: Path) -> None:
    for change in ("optim.lr=fast", "batch.global=7", "data.train[0].format=lava", "qqqq=1"):
        done = mmlaunch("submit", "--cluster", "local", small, "-s", change)
        assert done.returncode == 2 and "Traceback" not in done.stderr and "1 error" in done.stderr
    assert not (own_home / "runs").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl is empty (0 bytes); write or copy it again"),
        ("a.parquet", b"PAR1" + b"x" * 100, "is no whole parquet file: it does not begin and end as one"),
    ],
)
def test_files_that_are_not_whole_are_refused_at_submission(
    small: Path, own_home: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    done = mmlaunch("submit", "--cluster", "local", small, "-s", f"data.train={{path: {tmp_path / name}, format: trl}}")
    assert done.returncode == 2 and message in done.stderr, done
    assert not (own_home / "runs").exists()


def test_a_package_that_is_missing_here_is_named(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(
        small, ["log.trackers=wandb", "model.lora={quantise: nf4}", "model.train.language=lora"]
    ).recipe
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "torch" else None)
    problems = scheduler.SCHEDULER.missing_here(recipe)
    assert [(one.dotted, one.right) for one in problems] == [
        ("model.lora.quantise", "pip install 'mmlaunch[qlora]'"), ("log.trackers[0]", "pip install 'mmlaunch[wandb]'"),
    ]  # fmt: skip


def test_what_cannot_be_run_is_refused_at_submission(small: Path, own_home: Path) -> None:
    options = ["-s", "checkpoint.best=eval/beauty", "-s", "data.eval={format: shapes, limit: 8}"]
    done = mmlaunch("submit", "--cluster", "local", small, *options)
    assert done.returncode == 2 and "is nothing that an evaluation measures" in done.stderr
    assert not (own_home / "runs").exists()


def test_a_full_disk_leaves_nothing_half_made(small: Path, own_home: Path) -> None:
    code = (
        "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\nfrom mmlaunch.cli import main\nmain(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, "submit", "--cluster", "local", str(small)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (
        done.returncode == 4 and "cannot create the run directory: " in done.stderr and "File too large" in done.stderr
    ), done.stderr
    assert list((own_home / "runs").iterdir()) == []


def test_a_folder_that_refuses(small: Path) -> None:
    done = mmlaunch("submit", "--cluster", "local", small, MMLAUNCH_RUNS="/proc/runs")
    assert done.returncode == 4 and "cannot create the run directory" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.usefixtures("stop_all")
def test_many_submissions_at_once_get_names_of_their_own(small: Path, stub_code: Path) -> None:
    command = [sys.executable, "-m", "mmlaunch", "submit", "--cluster", "local", "--json", str(small), "-s", "steps=1"]
    environment = {**os.environ, "PYTHONPATH": str(stub_code)}
    submissions = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(4)]
    records: list[dict[str, Any]] = [json.loads(submission.communicate()[0]) for submission in submissions]
    assert len({record["run"] for record in records}) == 4
    for record in records:
        assert wait_for(RunPaths(Path(record["directory"])), ended)[-1]["state"] == "done"


@pytest.mark.usefixtures("stop_all")
def test_resume_trains_on(small: Path, submit_stub: SubmitStub) -> None:
    run = submit_stub(small, "-s", "log.every=1", cluster="local")
    wait_for(run, ended)
    for override, right in (
        ([], "is done; to train on: mmlaunch resume"),
        (["-s", "steps=2"], f"steps: 2, and {run.name} has done 4; to train on:"),
        (["-s", "resources.tasks_per_node=1"], f"steps: 4, and {run.name} has done 4; to train on:"),
        (["-s", "model.language.random.width=64", "-s", "steps=8"], "the weights of"),
    ):
        refused = mmlaunch("resume", run.name, *override)
        assert refused.returncode == 2 and right in refused.stderr
    assert json.loads(mmlaunch("status", "--json", run.name).stdout)[0]["state"] == "done"
    done = mmlaunch("resume", run.name, "-s", "steps=8", "--follow")
    assert done.returncode == 0 and "step 8/8" in done.stdout and "step 4/4" not in done.stdout
    events = list(ledger.read(run.events))
    kinds = [e["event"] for e in events if e["event"] in ("submitted", "resumed", "ended")]
    assert kinds == ["submitted", "ended", "submitted", "resumed", "ended"]
    report = json.loads(mmlaunch("report", "--json", run.name).stdout)
    assert len(report["attempts"]) == 2 and report["lost_steps"] == 0 and 0 < report["goodput"] <= 1
    assert "Complete after 2 attempts, at step 8" in mmlaunch("why", run.name).stdout
    assert (run.root / "recipe.resolved.1.yaml").exists()


def test_one_damaged_run_does_not_hide_the_others(own_home: Path) -> None:
    runs = own_home / "runs"
    for name, text in (("good", '{"time":1,"event":"submitted"}\n{"time":2,"event":"ended","state":"done"}\n'),
                       ("odd", '{"time":"x","event":"ended"}\n')):  # fmt: skip
        (runs / name).mkdir(parents=True)
        (runs / name / "recipe.resolved.yaml").write_text("name: x\n")
        (runs / name / "events.jsonl").write_text(text)
    (runs / "closed").mkdir()
    (runs / "closed" / "recipe.resolved.yaml").write_text("name: x\n")
    (runs / "closed" / "events.jsonl").mkdir()  # even root cannot read this as a file
    done = mmlaunch("status", "--json")
    states = {one["run"]: one["state"] for one in json.loads(done.stdout)}
    assert states == {"good": "done", "odd": "unknown", "closed": "unknown"}
    assert mmlaunch("runs").returncode == 0


def test_a_secret_of_several_lines_and_one_that_was_not_named(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, submit_stub: SubmitStub
) -> None:
    monkeypatch.chdir(tmp_path)  # outside of any repository that may quote this test
    key = "-----BEGIN KEY-----\nPRIVATEPARTAAA\nPRIVATEPARTBBB\n-----END KEY-----"
    with small.open("a") as file:
        file.write("env: [KEYFILE]\n# " + key.replace("\n", "\n# ") + "\n# other-secret-value-77\n")
    monkeypatch.setenv("KEYFILE", key)
    monkeypatch.setenv("OTHER_TOKEN", "other-secret-value-77")
    run = submit_stub(small, "-s", "steps=1", cluster="local")
    for path in run.root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"PRIVATEPART" not in content and b"other-secret-value-77" not in content, path
    mmlaunch("cancel", "--now", run.name)
