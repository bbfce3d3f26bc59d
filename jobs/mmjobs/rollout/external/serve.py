"""A server: answers the requests of trainers over HTTP with one engine, which works in the thread that calls `run`."""

from __future__ import annotations

import argparse
import json
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

from mmjobs.rollout.external import messages
from mmjobs.rollout.external.messages import Answer, Answered, Answers, Health, Load, Loaded, Question, Settings

_PAUSE = 0.2
"""Seconds that an idle server waits for work at a time."""


class Backend(Protocol):
    """An engine. All but the names are called from one thread."""

    name: str
    release: str

    def load(self, folder: Path, moved: Callable[[], None]) -> dict[str, list[int]]:
        """Take the weights of a folder and forget every cache; the checksums of the tensors. `moved` tells progress."""

    def add(self, key: str, prompt: Question, seed: int, settings: Settings) -> None:
        """Begin with an answer; raises `ValueError` for a prompt that cannot be answered."""

    def step(self) -> list[tuple[str, list[int], Answer]]:
        """Go on a little with all answers: the key, the prompt as it was read, and the answer of those that ended."""


class Refused(Exception):
    """A request that is answered by an error."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


@dataclass
class _Job:
    """A request, and the future of its reply; `prompts` fill with answers by their place."""

    request: Load | messages.Questions
    reply: Future[Any]
    prompts: list[tuple[list[int], dict[int, Answer]]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        wanted = self.request.prompts if isinstance(self.request, messages.Questions) else []
        return all(len(made) == len(one.seeds) for (_, made), one in zip(self.prompts, wanted, strict=True))


class Service:
    """One engine and its requests. Weights change only while nothing is generated."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self._waiting = backend, queue.Queue[_Job]()
        self._open: dict[int, _Job] = {}
        self._held: list[_Job] = []
        """Loads that wait for the end of what is generated, and all requests behind them."""
        self._count, self._progress, self._loaded = 0, 0, Loaded("", {})

    @property
    def health(self) -> Health:
        busy = bool(self._open or self._held or not self._waiting.empty())
        return Health(
            self._backend.name, self._backend.release, version=self._loaded.version, busy=busy, progress=self._progress
        )

    def ask(self, request: Load | messages.Questions) -> Future[Any]:
        """The reply to a request, once there is one."""
        job = _Job(request, Future())
        self._waiting.put(job)
        return job.reply

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Work; an error of the engine itself ends it, and the process is to be started again."""
        while not until():
            with suppress(queue.Empty):
                self._held.append(self._waiting.get(block=not (self._open or self._held), timeout=_PAUSE))
            while self._held and not (self._open and isinstance(self._held[0].request, Load)):
                self._begin(self._held.pop(0))
            if self._open:
                self._go_on()

    def _begin(self, job: _Job) -> None:
        try:
            if isinstance(job.request, Load):
                job.reply.set_result(self._load(job.request))
            else:
                self._add(job, job.request)
        except Refused as error:
            job.reply.set_exception(error)

    def _load(self, wanted: Load) -> Loaded:
        if wanted.version != self._loaded.version:
            self._loaded = Loaded("", {})
            try:
                checksums = self._backend.load(Path(wanted.folder), self._moved)
            except (OSError, ValueError) as error:
                raise Refused(500, f"the weights in {wanted.folder} cannot be read: {error}") from error
            self._loaded = Loaded(wanted.version, checksums)
        return self._loaded

    def _add(self, job: _Job, request: messages.Questions) -> None:
        if request.version != self._loaded.version:
            raise Refused(messages.STALE, f"the weights here are of version {self._loaded.version or 'none'}")
        self._count += 1
        job.prompts = [([], {}) for _ in request.prompts]
        for place, prompt in enumerate(request.prompts):
            self._moved()
            for number, seed in enumerate(prompt.seeds):
                try:
                    self._backend.add(f"{self._count}/{place}/{number}", prompt, seed, request.settings)
                except ValueError as error:
                    job.reply.set_exception(Refused(400, f"prompt {place}: {error}"))
                    return  # what was added already is answered, for nobody
        self._open[self._count] = job
        self._finish()

    def _go_on(self) -> None:
        for key, prompt, answer in self._backend.step():
            number, place, answered = map(int, key.split("/"))
            if (job := self._open.get(number)) is not None:
                job.prompts[place] = (prompt, {**job.prompts[place][1], answered: answer})
        self._moved()
        self._finish()

    def _finish(self) -> None:
        for number, job in list(self._open.items()):
            if job.done:
                del self._open[number]
                made = [Answered(prompt, [of[n] for n in sorted(of)]) for prompt, of in job.prompts]
                job.reply.set_result(Answers(self._loaded.version, made))

    def _moved(self) -> None:
        self._progress += 1


class _Handler(BaseHTTPRequestHandler):
    """Each connection has a thread of its own, so a busy engine still says that it lives."""

    service: Service
    key: str

    def do_GET(self) -> None:
        self._reply(lambda: self.service.health if self.path == "/health" else self._nothing_here())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind: Any = {"/load": Load, "/generate": messages.Questions}.get(self.path)
        if kind is None:
            self._reply(self._nothing_here)
            return
        self._reply(lambda: self.service.ask(messages.read(kind, json.loads(body))).result())

    def _reply(self, made: Callable[[], Any]) -> None:
        status, value = 200, {}
        try:
            if self.headers.get(messages.HEADER) != self.key:
                raise Refused(403, "this key is not the one of this server")
            value = messages.plain(made())
        except Refused as error:
            status, value = error.status, {"error": str(error)}
        except ValueError as error:
            status, value = 400, {"error": str(error)}
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with suppress(ConnectionError):  # whoever asked is gone
            self.wfile.write(content)

    def _nothing_here(self) -> Any:
        raise Refused(404, f"nothing is at {self.path}")

    def log_message(self, format: str, *values: Any) -> None:
        """Nothing: every few seconds somebody looks whether it lives."""


def arguments() -> argparse.Namespace:
    """What every server is called with, whatever its engine."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder with the first weights")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--gpus", type=int, required=True, help="how many GPUs share the model; 0: none")
    parser.add_argument("--dtype", required=True, choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--temperature", type=float, required=True, help="of the answers that are learnt from")
    parser.add_argument("--options", type=json.loads, default={}, help="more arguments of the engine, as JSON")
    return parser.parse_args()


def serve(build: Callable[[], Backend], host: str, port: int, until: Callable[[], bool] = lambda: False) -> None:
    """Answer requests with the engine that `build` returns. It may take minutes, so the port is taken before."""
    handler: Any = type("Handler", (_Handler,), {"key": os.environ.get(messages.KEY, "")})
    with ThreadingHTTPServer((host, port), handler) as server:
        server.daemon_threads = True
        service = handler.service = Service(build())
        threading.Thread(target=server.serve_forever, args=(_PAUSE / 10,), daemon=True).start()
        try:
            service.run(until)
        finally:
            server.shutdown()
