"""Notifications: a webhook or a command gets a message about the end of a run, in the words of `mmlaunch why`.

The last act of a job sends them when everything else is done, and `mmlaunch watch` those that no job can send. Each is
sent once for a submission. Whatever goes wrong is said in the log of the job and delays nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
    subject: RunPaths
    """The run, the task or the pipeline."""

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
        facts = {"run": self.subject.name, "event": self.event, "state": self.story.state, "what": self.story.what}
        more = {"evidence": self.story.evidence, "next": self.story.next} if kind == "json" else {}
        return "application/json", json.dumps({"text": self.text, **(facts | more if kind == "json" else {})})


def after_attempt(run: RunPaths) -> None:
    """Send what the end of an attempt is worth; called by the last act of a job, behind everything else."""
    with suppress(MmlaunchError, OSError, ValueError):  # no notification is worth the end of a job
        settings = settings_of(run)
        if settings:
            send(messages(run), settings)


def settings_of(run: RunPaths) -> Sequence[Notify]:
    """Where the notifications of a run go."""
    whole = shards.task_of(run) or run
    recipe: Recipe | None = resolved.read(whole.resolved) if whole.resolved.exists() else None
    return recipe.notify if recipe is not None else []


def messages(run: RunPaths) -> list[Message]:
    """What there is to say of a run as it is now, and of the pipeline that it completes."""
    subject = shards.task_of(run) or run
    story = why.of(subject)
    event = _EVENTS.get(story.state)
    if event is None:
        return []
    member = pipeline.membership(subject)
    if member is None:
        return [_message(event, subject, story)]
    result = [_message("stage" if event == "end" else event, subject, story)]
    parent = RunPaths(Path(member.pipeline))
    view = pipelines.of(parent)
    if event == "end" and view.whole.state == "done":
        result.append(_message("end", parent, why.of_pipeline(parent)))
    return result


def of_status(run: RunPaths, now: Status) -> list[Message]:
    """What a watcher has to say of a run: what its job could not, or did not, send."""
    if now.state in _EVENTS:
        return messages(run)
    return [_message("stuck", run, why.of(run))] if now.silent or now.stands_still else []


def of_pipeline(run: RunPaths) -> list[Message]:
    """The same of a pipeline as a whole: it waits for a human."""
    return [_message("stuck", run, why.of_pipeline(run))] if pipelines.of(run).whole.state == "held" else []


def send(new: Sequence[Message], settings: Sequence[Notify]) -> list[str]:
    """Send each message once to everyone who wants it, all at the same time; returns what went wrong."""
    problems: list[str] = []
    threads = []
    for message in new:
        for number, one in enumerate(settings):
            mark = _claim(message, number) if message.event in one.when else None
            if mark is not None:
                threads.append(threading.Thread(target=_deliver, args=(one, message, mark, problems), daemon=True))
    until = time.monotonic() + PATIENCE
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    result = list(problems)  # those that are given up may add to it later
    result += ["notify: a notification took too long, and was given up"] * sum(one.is_alive() for one in threads)
    for problem in result:
        print(f"mmlaunch: {problem}", file=sys.stderr, flush=True)
    return result


def _message(event: Event, subject: RunPaths, story: Story) -> Message:
    words = {"end": "is done", "stage": "is done", "failure": "has failed", "stuck": "needs attention"}
    return Message(event, f"mmlaunch: {subject.name} {words[event]}", story, subject)


def _claim(message: Message, receiver: int) -> Path | None:
    """A mark that a receiver gets this message of this submission; None if it has got it already, or just gets it."""
    run = message.subject
    submission = len(ledger.skim(run.events).all("submitted"))
    mark = run.notified / f"{submission}-{message.event}-{receiver}"
    try:
        run.notified.mkdir(exist_ok=True)
        mark.touch(exist_ok=False)
    except FileExistsError:
        return None
    except OSError:  # then it may come twice
        return mark
    return mark


def _deliver(one: Notify, message: Message, mark: Path, problems: list[str]) -> None:
    """Send one message. If that fails, `mmlaunch watch` may try again."""
    name = one.url or "the command"
    try:
        deliver: Callable[[Notify, Message], None] = _post if one.url is not None else _call
        deliver(one, message)
    except Exception as error:  # noqa: BLE001  whatever a server, the network and a command do
        what = " is not set here" if isinstance(error, KeyError) else f": {type(error).__name__}: {error}"
        problems.append(hide_secrets(f"notify: {name}{what}"))
        with suppress(OSError):
            mark.unlink(missing_ok=True)


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
