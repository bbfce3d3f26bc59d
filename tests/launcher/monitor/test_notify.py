"""Notifications: a webhook hears how runs end, also those that die at once; a dead one delays nothing."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.runs import ended, mmlaunch, submit, until, wait_for, write_conversations

from mmlaunch.errors import RecipeError
from mmlaunch.load import load_recipe
from mmlaunch.monitor import notify, status
from mmlaunch.monitor.why import Story
from mmlaunch.recipe.notify import Notify
from mmlaunch.run import ledger
from mmlaunch.run.paths import RunPaths

RECIPE = """\
name: heard
model:
  language: {random: {width: 16, layers: 1, heads: 2}}
data: {train: {path: rows.json, format: llava, images: none}, workers: 0}
objective: sft
optim: {lr: 1e-3}
batch: {global: 4}
steps: 2
precision: fp32
log: {every: 1, tensorboard: false}
resources: {nodes: 1, gpus_per_node: 0, tasks_per_node: 1, cpus_per_rank: 1}
notify:
  - {url: LAB_WEBHOOK, when: [end, failure]}
  - {url: LAB_WEBHOOK, body: json, when: failure}
  - {command: 'cat > heard.txt; echo "$MMLAUNCH_TITLE" >> heard.txt'}
"""


@dataclass
class Webhook:
    """A server that keeps what it gets."""

    address: str = ""
    bodies: list[Any] = field(default_factory=list)


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    kept = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            kept.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    kept.address = f"http://127.0.0.1:{server.server_port}/services/T000/secret"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield kept
    server.shutdown()
    server.server_close()


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_conversations(tmp_path / "rows.json")
    path = tmp_path / "heard.yaml"
    path.write_text(RECIPE)
    return path


def test_a_webhook_hears_of_the_end_once(recipe: Path, webhook: Webhook) -> None:
    run = submit(recipe, LAB_WEBHOOK=webhook.address)
    wait_for(run, ended)
    (body,) = until(lambda: webhook.bodies)
    assert body["text"].splitlines()[:2] == [
        f"mmlaunch: {run.name} is done", "Complete after 1 attempt, at step 2.",
    ]  # fmt: skip
    heard = until(lambda: (recipe.parent / "heard.txt").read_text() if (recipe.parent / "heard.txt").exists() else "")
    title = f"mmlaunch: {run.name} is done"
    assert heard.startswith(f"{title}\n") and heard.endswith(f"\n{title}\n")
    said = mmlaunch("watch", run.name, "--once", LAB_WEBHOOK=webhook.address)
    assert said.returncode == 0 and f"{run.name}  done (the run is complete), step 2" in said.stdout, said
    assert len(webhook.bodies) == 1
    for path in run.root.rglob("*"):
        assert not path.is_file() or b"services/T000" not in path.read_bytes(), f"{path} holds the address"


def test_a_webhook_hears_of_a_run_that_dies_at_once(recipe: Path, webhook: Webhook) -> None:
    (recipe.parent / "rows.json").write_text("[{")
    run = submit(recipe, LAB_WEBHOOK=webhook.address)
    wait_for(run, ended)
    until(lambda: len(webhook.bodies) > 1)
    slack, facts = sorted(webhook.bodies, key=len)
    assert slack["text"].startswith(f"mmlaunch: {run.name} has failed\n") and "rows.json" in slack["text"]
    assert (facts["run"], facts["event"], facts["state"]) == (run.name, "failure", "failed")
    assert f"{run.name}: {facts['what']}." in mmlaunch("why", run.name).stdout


def test_a_variable_that_is_not_set_is_said_at_submit(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAB_WEBHOOK", raising=False)
    refused = mmlaunch("submit", recipe, "--cluster", "local")
    assert refused.returncode != 0 and "LAB_WEBHOOK is not set in your shell" in refused.stderr


def done_run(folder: Path, name: str = "run-1129-abcd") -> RunPaths:
    run = RunPaths(folder / name)
    run.root.mkdir()
    ledger.append(run.events, "submitted", executor="local", submission=1)
    return run


def message(run: RunPaths, event: Any = "end") -> notify.Message:
    story = Story("run", "done", "Complete", "", "", "", "mmlaunch export run")
    return notify.Message(event, "mmlaunch: run is done", story, run)


def test_dead_webhooks_delay_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "PATIENCE", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        addresses = {
            "SILENT": f"http://127.0.0.1:{silent.getsockname()[1]}", "REFUSED": "http://127.0.0.1:9", "ODD": "ftp://x",
        }  # fmt: skip
        for name, value in addresses.items():
            monkeypatch.setenv(name, value)
        settings = [Notify(url=name) for name in (*addresses, "UNSET")]
        settings += [Notify(command="sleep 30"), Notify(command="echo wrong >&2; exit 3")]
        run, began = done_run(tmp_path), time.monotonic()
        wrong = notify.send([message(run)], settings)
        assert time.monotonic() - began < 5
    text = "\n".join(wrong)
    assert "UNSET is not set here" in text and "exit code 3: wrong" in text and "no web address" in text
    assert "notify: REFUSED" in text and len(wrong) in (5, 6), "one may have ended while the others were counted"
    settings[-1] = Notify(command=f"cat > {tmp_path}/heard")
    notify.send([message(run)], settings)
    assert (tmp_path / "heard").read_text().startswith("mmlaunch: run is done"), "whoever has not got it may try again"


def test_a_message_is_sent_once_for_a_submission(tmp_path: Path) -> None:
    run, settings = done_run(tmp_path), [Notify(command=f"cat >> {tmp_path}/heard")]
    for _ in range(3):
        assert notify.send([message(run), message(run, "stuck")], settings) == []
    assert (tmp_path / "heard").read_text().count("mmlaunch: run is done") == 2, "its end, and that it was stuck"
    ledger.append(run.events, "submitted", executor="local", submission=2)
    notify.send([message(run)], settings)
    assert (tmp_path / "heard").read_text().count("mmlaunch: run is done") == 3
    notify.send([message(run, "failure")], [Notify(command=f"cat >> {tmp_path}/heard", when=["end"])])
    assert (tmp_path / "heard").read_text().count("mmlaunch: run is done") == 3


@pytest.mark.parametrize(
    ("override", "right"),
    [
        ("notify=https://hooks.slack.com/services/T0/B0/x", "the address of a webhook is a secret"),
        ("notify={url: A, command: b}", "both a webhook and a command"),
        ("notify={when: end}", "neither a webhook nor a command"),
        ("notify={url: A, when: [ends]}", "did you mean end?"),
        ("notify={command: 'curl https://hooks.slack.com/services/T0/B0/xyz'}", "looks like a secret"),
        ("log.trackers={kind: wandb, options: {api_key: abcdefgh}}", "api_key looks like a secret"),
        ("log.trackers=[wandb, {kind: wandb, project: p}]", "wandb stands here twice"),
        ("notify=PATH", "would change how the job script itself runs"),
    ],
)
def test_what_cannot_be_meant(recipe: Path, override: str, right: str) -> None:
    with pytest.raises(RecipeError, match=right.replace("?", r"\?")):
        load_recipe(recipe, [override])


def test_a_watcher_sends_what_a_job_could_not(recipe: Path, webhook: Webhook) -> None:
    """A compute node without network: the job sends nothing, and the watcher does. A healthy run is no news."""
    run = submit(recipe, LAB_WEBHOOK="http://127.0.0.1:9")
    wait_for(run, ended)
    until(lambda: "notify: LAB_WEBHOOK" in "".join(path.read_text() for path in run.root.rglob("*.out")) or None)
    for _ in range(2):
        assert mmlaunch("watch", run.name, "--once", LAB_WEBHOOK=webhook.address).returncode == 0
    assert [body["text"].splitlines()[0] for body in webhook.bodies] == [f"mmlaunch: {run.name} is done"]
    now = status.of(run)
    assert [one.event for one in notify.of_status(run, replace(now, state="running", stands_still=True))] == ["stuck"]
    assert not notify.of_status(run, replace(now, state="running", reason="2 shards: 1 running, 1 submitted"))


def test_one_word_is_a_variable(recipe: Path) -> None:
    one = load_recipe(recipe, ["notify=SLACK_WEBHOOK", "env=[SLACK_WEBHOOK, OTHER]"]).recipe
    assert one.notify == [Notify(url="SLACK_WEBHOOK")] and one.passed == ["SLACK_WEBHOOK", "OTHER"]
