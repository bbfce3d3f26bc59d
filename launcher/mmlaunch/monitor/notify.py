"""Notifications: a webhook or a command hears how a run ended, in the words of `mmlaunch why`.

The last act of a job sends them when everything else is done, and `mmlaunch watch` those that no job can send. Each is
sent once for a submission. Whatever goes wrong is said in the log of the job and delays nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mmlaunch.errors import MmlaunchError
from mmlaunch.monitor import pipeline as pipelines
from mmlaunch.monitor import why
from mmlaunch.monitor.state import Status
from mmlaunch.monitor.why import Story
from mmlaunch.recipe import Recipe, resolved
from mmlaunch.recipe.environment import hide_secrets
from mmlaunch.recipe.notify import Event, Notify
from mmlaunch.run import ledger, pipeline, shards
from mmlaunch.run.files import publish
from mmlaunch.run.paths import RunPaths

PATIENCE = 8.0
"""Seconds for all webhooks and commands together; the job ends meanwhile."""
_EVENTS: dict[str, Event] = {"done": "end", "failed": "failure", "lost": "failure", "held": "stuck"}


@dataclass(frozen=True)
class Message:
    """What is sent."""

    event: Event
    title: str
    story: Story
    name: str
    """Of the run, the task or the pipeline."""

    @property
    def text(self) -> str:
        """The title, what ended it, what shows that, and what to type next."""
        lines = [self.title, f"{self.story.what}.", self.story.evidence, self.story.done]
        lines += [f"next: {self.story.next}"] if self.story.next else []
        return hide_secrets("\n".join(line for line in lines if line)) + "\n"

    def body(self, kind: str) -> tuple[str, str]:
        """The content type and the body that a webhook gets."""
        if kind == "plain":
            return "text/plain; charset=utf-8", self.text
        facts = {"run": self.name, "event": self.event, "state": self.story.state, "what": self.story.what}
        more = {"evidence": self.story.evidence, "next": self.story.next} if kind == "json" else {}
        return "application/json", json.dumps({"text": self.text, **(facts | more if kind == "json" else {})})


def after_attempt(run: RunPaths) -> None:
    """Send what the end of an attempt is worth; called by the last act of a job, behind everything else."""
    with suppress(MmlaunchError, OSError, ValueError):  # no notification is worth the end of a job
        settings = settings_of(run)
        if settings:
            send(run, messages(run), settings)


def settings_of(run: RunPaths) -> Sequence[Notify]:
    """Who hears of a run."""
    whole = shards.task_of(run) or run
    recipe: Recipe | None = resolved.read(whole.resolved) if whole.resolved.exists() else None
    return recipe.notify if recipe is not None else []


def messages(run: RunPaths) -> list[Message]:
    """What there is to say of a run as it is now, and of the pipeline that it completes."""
    subject = shards.task_of(run) or run
    story = why.of(subject)
    event = _EVENTS.get(story.state)
    member = pipeline.membership(subject)
    if event is None:
        return []
    if member is None:
        return [_message(event, subject.name, story)]
    stage = "stage" if event == "end" else event
    said = [_message(stage, subject.name, story)]
    view = pipelines.of(RunPaths(Path(member.pipeline)))
    if event == "end" and view.whole.state == "done":
        said.append(_message("end", view.whole.run, why.of_pipeline(RunPaths(Path(member.pipeline)))))
    return said


def of_status(run: RunPaths, now: Status) -> list[Message]:
    """What a watcher has to say of a run: what no job can say itself."""
    if now.state in ("lost", "held"):
        return messages(run)
    if now.state in ("running", "starting") and (now.silent or now.reason):
        return [_message("stuck", run.name, why.of(run))]
    return []


def send(run: RunPaths, said: Sequence[Message], settings: Sequence[Notify]) -> list[str]:
    """Send each message once to everyone who wants it, all at the same time; returns what went wrong."""
    wrong: list[str] = []
    works = []
    for message in said:
        wanted = [one for one in settings if message.event in one.when]
        if wanted and _is_new(run, message):
            works += [partial(_deliver, one, message, wrong) for one in wanted]
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    wrong += ["a notification took too long, and was given up"] * sum(thread.is_alive() for thread in threads)
    for what in wrong:
        print(f"mmlaunch: {what}", file=sys.stderr, flush=True)
    return wrong


def _message(event: Event, name: str, story: Story) -> Message:
    words = {"end": "is done", "stage": "is done", "failure": "has failed", "stuck": "needs a look"}
    return Message(event, f"mmlaunch: {name} {words[event]}", story, name)


def _is_new(run: RunPaths, message: Message) -> bool:
    """Whether nobody has sent this message of this submission yet; from now on somebody has."""
    submission = len(ledger.skim(run.events).all("submitted"))
    mark = run.notified / f"{submission}-{message.event}-{message.name.rpartition('/')[2]}"
    if mark.exists():
        return False
    with suppress(OSError):  # then it may come twice
        run.notified.mkdir(exist_ok=True)
        publish(mark, "")
    return True


def _deliver(one: Notify, message: Message, wrong: list[str]) -> None:
    name = one.url or "the command of notify"
    try:
        deliver: Callable[[Notify, Message], None] = _post if one.url is not None else _call
        deliver(one, message)
    except KeyError:
        wrong.append(f"notify: {one.url} is not set here, so nobody hears of this")
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        wrong.append(hide_secrets(f"notify: {name}: {type(error).__name__}: {error}"))


def _post(one: Notify, message: Message) -> None:
    kind, body = message.body(one.body)
    address = os.environ[str(one.url)]
    if not address.startswith(("https://", "http://")):
        raise ValueError("the value of the variable is no web address")
    request = urllib.request.Request(address, body.encode(), {"Content-Type": kind, "User-Agent": "mmlaunch"})
    with urllib.request.urlopen(request, timeout=PATIENCE):  # whatever it answers
        pass


def _call(one: Notify, message: Message) -> None:
    environment = {**os.environ, "MMLAUNCH_TITLE": message.title, "MMLAUNCH_EVENT": message.event}
    done = subprocess.run(
        ["/bin/sh", "-c", str(one.command)], input=message.text, text=True, capture_output=True, timeout=PATIENCE,
        check=False, env=environment,
    )  # fmt: skip
    if done.returncode:
        raise ValueError(f"exit code {done.returncode}: {done.stderr.strip()[:200]}")
