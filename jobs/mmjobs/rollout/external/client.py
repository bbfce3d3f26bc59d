"""The client of one server: its requests, and how long a server that says nothing is waited for."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as NoReply
from dataclasses import dataclass
from typing import Any, TypeVar

from mmjobs.rollout.external import messages
from mmjobs.rollout.external.messages import Answers, Health, Load, Loaded, Questions
from mmlaunch.errors import BadInput
from mmlaunch.recipe.engine import VLLM, Engine
from mmlaunch.run.paths import RunPaths

LOOK = 1.0
"""Seconds between two looks at a server that works."""
GRACE = 5.0
"""Seconds that whoever watches over a server has to end one that hangs, and to start another in its place."""
T = TypeVar("T")


class EngineFailed(RuntimeError):
    """A server of the external engine failed; the trainer is not to blame."""


class ServerLost(EngineFailed):
    """A server died, or hangs: another one may take its place."""


class Stale(Exception):
    """The server has other weights than the questions are for."""


@dataclass(frozen=True)
class Address:
    """Where a server is, as whoever watches over it has written down."""

    attempt: int
    host: str
    port: int
    key: str
    starts: int
    """How often it was started in this attempt."""
    failed: str = ""
    """Why it is not started any more."""


class Client:
    """One server of this attempt, whatever process and port it has at the moment. Safe to use from several threads."""

    def __init__(self, number: int, paths: RunPaths, attempt: int, settings: Engine) -> None:
        self._path, self._attempt, self._settings = paths.server(number), attempt, settings
        self.name = f"the engine's server {number}"
        self._asked = 0
        """The start of the server that was asked last."""
        self._log = paths.attempt(attempt).server_log(number).relative_to(paths.root)

    def address(self) -> Address | None:
        """Its address in this attempt; None until it was started."""
        try:
            found = Address(**json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return found if found.attempt == self._attempt else None

    def wait(self, seconds: float) -> Health:
        """Wait until it answers; raises `EngineFailed` after so many seconds, or once it is not started any more."""
        until = time.monotonic() + seconds
        while True:
            address = self.address()
            if address is not None and address.failed:
                raise EngineFailed(f"{self.name} does not start: {address.failed}; see {self._log}")
            if address is not None:
                try:
                    return self._checked(messages.read(Health, self._call(address, "GET", "/health", None, LOOK)))
                except (OSError, http.client.HTTPException, ServerLost):
                    pass  # it is not ready
            if time.monotonic() > until:
                what = "is not there" if address is None else "does not answer"
                raise EngineFailed(f"{self.name} {what} after {seconds:.0f} s; see {self._log}")
            time.sleep(LOOK / 5)

    def started_again(self, seconds: float) -> bool:
        """Whether it is started again within so many seconds of a request that got no reply."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            address = self.address()
            if address is not None and address.starts > self._asked:
                return True
            if self.given_up():
                return False
            time.sleep(LOOK / 5)
        return False

    def given_up(self) -> bool:
        """Whether it is not started any more."""
        address = self.address()
        return address is not None and bool(address.failed)

    def load(self, request: Load) -> Loaded:
        """Have it take weights."""
        return messages.read(Loaded, self._work("/load", messages.plain(request)))

    def generate(self, request: Questions) -> Answers:
        """Have prompts answered; raises `Stale` where it has other weights."""
        return messages.read(Answers, self._work("/generate", messages.plain(request)))

    def _checked(self, health: Health) -> Health:
        if health.protocol != messages.PROTOCOL:
            what = f"speaks version {health.protocol} of the protocol, and the trainer version {messages.PROTOCOL}"
            raise BadInput(f"objective.engine: {self.name} {what}; run both from the same mmlaunch")
        if health.engine == "vllm":
            release = tuple(int(part) for part in re.findall(r"\d+", health.release)[:2])
            if not VLLM[0] <= release < VLLM[1]:
                low, high = (".".join(map(str, one)) for one in VLLM)
                what = f"{self.name} is vLLM {health.release}, and its way to take weights is known of >={low},<{high}"
                raise BadInput(f"objective.engine: {what}; pip install 'mmlaunch[vllm]' where it runs")
        return health

    def _work(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request that takes its time; the server must move on meanwhile."""
        address = self.address()
        if address is None:
            raise ServerLost(f"{self.name} is not there")
        self._asked = address.starts
        reply = in_thread(lambda: self._call(address, "POST", path, body, None))
        progress, moved, patience = -1, time.monotonic(), self._settings.timeout + GRACE
        while not wait([reply], LOOK).done and not self._has_ended(address):
            now = self._progress(address)
            if now is not None and now != progress:
                progress, moved = now, time.monotonic()
            elif time.monotonic() - moved > patience:
                raise ServerLost(f"{self.name} hangs: no progress in {patience:.0f} s; see {self._log}")
        try:
            return reply.result(LOOK)
        except (OSError, http.client.HTTPException, NoReply) as error:
            raise ServerLost(f"{self.name} died: {error or 'it was started again'}; see {self._log}") from error

    def _has_ended(self, address: Address) -> bool:
        now = self.address()
        return now is not None and (now.starts != address.starts or bool(now.failed))

    def _progress(self, address: Address) -> int | None:
        try:
            return messages.read(Health, self._call(address, "GET", "/health", None, LOOK * 5)).progress
        except (OSError, http.client.HTTPException, EngineFailed):
            return None

    def _call(
        self, address: Address, method: str, path: str, body: dict[str, Any] | None, timeout: float | None
    ) -> dict[str, Any]:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=timeout)
        try:
            content = None if body is None else json.dumps(body).encode()
            connection.request(method, path, content, {messages.HEADER: address.key})
            reply = connection.getresponse()
            value = json.loads(reply.read())
        finally:
            connection.close()
        if reply.status == messages.STALE:
            raise Stale(value["error"])
        if reply.status != http.client.OK:
            raise EngineFailed(f"{self.name} refuses {path}: {value.get('error', reply.status)}")
        return dict(value)


def in_thread(work: Callable[[], T]) -> Future[T]:
    """The result of a function in a thread that no end of the process waits for."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  it is raised in the thread that waits
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
