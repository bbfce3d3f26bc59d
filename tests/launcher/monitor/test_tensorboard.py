"""`mmlaunch board`: a real TensorBoard on a real run, seen by a real browser, and what stands in its way."""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.runs import ended, losses, mmlaunch, submit, wait_for

from mmlaunch.errors import MachineError
from mmlaunch.monitor import tensorboard
from mmlaunch.run import ledger, manifest
from mmlaunch.run.paths import RunPaths


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command while it serves, and the address that it prints."""
    command = [sys.executable, "-m", "mmlaunch", "board", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.match(r"(http://\S+/)   ", line)
            assert found, line + process.stdout.read()
            yield process, found.group(1)
        finally:
            process.kill()


def asked(url: str, path: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{url}{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
        return json.load(answer)


def points(url: str, run: RunPaths, tag: str) -> list[tuple[int, float]]:
    """A curve as TensorBoard has it: (step, value); it reads the files a moment after it answers."""
    until = time.monotonic() + 30
    while tag not in asked(url, "data/plugin/scalars/tags").get(run.name, {}) and time.monotonic() < until:
        time.sleep(0.2)
    return [(step, value) for _, step, value in asked(url, "data/plugin/scalars/scalars", run=run.name, tag=tag)]


def curves(url: str, run: RunPaths, tag: str, folder: Path) -> list[list[float]]:
    """The curves that a browser draws for a tag of a run: how far to the right each point is.

    Without 3D, TensorBoard draws them as SVG. The browser's clock runs ahead while the page waits for its data: on a
    busy machine the page may be read before it is ready, so it is looked at again.
    """
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-3d-apis", "--dump-dom"]
    command += ["--window-size=1400,1000", f"--user-data-dir={folder}", "--virtual-time-budget=30000"]
    command.append(f"{url}?{urllib.parse.urlencode({'tagFilter': tag})}#timeseries")
    home = {**os.environ, "HOME": str(folder)}
    for _ in range(5):
        dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=home).stdout
        drawn = re.findall(r'<path d="M([^"]+)" style="fill: none; stroke: rgb', dom)
        if f'title="{tag}"' in dom and run.name in dom and drawn:
            return [[float(point.partition(",")[0]) for point in curve.split("L")] for curve in drawn]
    raise AssertionError(f"no curve {tag} of {run.name} on the page: {re.sub(r'<[^>]*>', ' ', dom)[-3000:]}")


def two_attempts(recipe: Path) -> RunPaths:
    """A run of 8 steps whose newest checkpoint is lost: it goes on from step 4, and does 5 to 8 again."""
    options = ["log.every=1", "steps=8", "checkpoint.every=4", "evaluate.every=3", "resources.tasks_per_node=1"]
    run = submit(recipe, *(word for option in options for word in ("-s", option)))
    wait_for(run, ended)
    (run.checkpoint(8) / manifest.NAME).write_text("{}")
    assert mmlaunch("resume", run.name, "-s", "steps=13").returncode == 0
    events = wait_for(run, lambda events: sum(e["event"] == "ended" for e in events) == 2)
    assert next(e for e in events if e["event"] == "resumed")["step"] == 4 and events[-1]["state"] == "done"
    return run


@pytest.mark.nightly  # what the event files hold, and that a page opens in a browser, other tests say as well
@pytest.mark.usefixtures("stop_all")
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium; apt-get install chromium")
def test_a_browser_sees_one_curve_over_two_attempts(small: Path, tmp_path: Path) -> None:
    run = two_attempts(small)
    with serving(run.name, "--port", "0") as (process, url):
        assert asked(url, "data/runs") == [run.name]
        measured = losses(list(ledger.read(run.events)))
        drawn_losses = points(url, run, "train/loss")
        assert [step for step, _ in drawn_losses] == list(range(1, 14))
        assert dict(drawn_losses) == pytest.approx(measured)
        # the first attempt measured 3, 6 and 8, its last one; the second one has no 8
        assert [step for step, _ in points(url, run, "eval/loss")] == [3, 6, 9, 12, 13]
        drawn = curves(url, run, "train/loss", tmp_path / "browser")
        assert len(drawn) == 2  # as it was measured, and smoothed
        for across in drawn:
            assert len(across) == 13 and across == sorted(set(across))
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, "closed\n")
    with pytest.raises(OSError):
        asked(url, "data/runs")


def pretend(recipe: Path, folder: Path, name: str, *, curves: bool = True, tensorboard: bool = True) -> RunPaths:
    """As much of a run as the command looks at."""
    run = RunPaths(folder / name)
    run.tensorboard.mkdir(parents=True)
    run.resolved.write_text(f"{recipe.read_text()}log: {{tensorboard: {tensorboard}}}\n")
    if curves:
        (run.tensorboard / "events.out.tfevents.1.host.2.0").touch()
    return run


def test_all_runs_are_shown_and_new_ones_join_in(small: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 5000 10.0.0.2 22")
    pretend(small, own_home / "runs", "first")
    with serving() as (process, url):
        port = urllib.parse.urlparse(url).port
        assert port is not None and port >= tensorboard.FIRST_PORT and url == f"http://localhost:{port}/"
        assert process.stdout is not None
        assert f"ssh -N -L {port}:localhost:{port} " in process.stdout.readline()
        folder = Path(asked(url, "data/environment")["data_location"])
        assert [link.name for link in folder.iterdir()] == ["first"]
        second = pretend(small, own_home / "runs", "second", curves=False)
        until = time.monotonic() + 3 * tensorboard.LOOK_AGAIN
        while len(list(folder.iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.2)
        assert (folder / "second").resolve() == second.tensorboard
        process.terminate()
        assert process.wait(20) == 0
    assert not folder.exists()


def test_what_stands_in_the_way_is_said(small: Path, own_home: Path) -> None:
    runs = own_home / "runs"
    nothing = mmlaunch("board")
    assert nothing.returncode == 1 and f"no run in {runs} has curves yet; next: mmlaunch " in nothing.stderr
    pretend(small, runs, "early", curves=False)
    pretend(small, runs, "silent", curves=False, tensorboard=False)
    pretend(small, runs, "good")
    for arguments, code, says in (
        (["nowhere"], 3, "no run 'nowhere'"),
        (["early"], 1, "early has no curves yet; next: mmlaunch status early"),
        (["silent"], 1, "silent draws no curves: its recipe says log.tensorboard: false"),
        (["good", "--host", "no.such.host.invalid"], 2, "--host: this machine is not 'no.such.host.invalid'"),
        (["good", "--host", "192.0.2.1"], 2, "--host: this machine is not '192.0.2.1'"),
    ):
        done = mmlaunch("board", *arguments)
        assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (code, "", False) and says in done.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = mmlaunch("board", "good", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 4 and "Address already in use; leave --port away" in done.stderr


def test_without_tensorboard_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="pip install tensorboard"), tensorboard.serving(list, "localhost", None):
        pass


def test_a_taken_port_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(tensorboard, "FIRST_PORT", taken.getsockname()[1])
        assert (
            tensorboard.FIRST_PORT
            < tensorboard.port_for("localhost", None)
            <= tensorboard.FIRST_PORT + tensorboard.PORTS
        )


def test_the_tunnel_of_a_node_goes_over_the_login_node(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSH_CONNECTION", "SLURM_JOB_ID", "SLURM_SUBMIT_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(socket, "gethostname", lambda: "node7")
    assert tensorboard.tunnel(6007) == ""
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_SUBMIT_HOST", "login1")
    assert tensorboard.tunnel(6007) == "ssh -N -J ada@login1 -L 6007:localhost:6007 ada@node7"


def test_runs_of_one_name_in_two_folders_keep_apart(tmp_path: Path) -> None:
    runs = [RunPaths(tmp_path / folder / "dpo") for folder in ("a", "b")]
    (tmp_path / "links").mkdir()
    for _ in range(2):
        tensorboard._link(tmp_path / "links", lambda: runs)
    found = {link.name: link.readlink() for link in (tmp_path / "links").iterdir()}
    assert found == {"dpo": runs[0].tensorboard, "dpo-2": runs[1].tensorboard}
