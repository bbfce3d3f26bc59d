"""All servers of an attempt: each gets the weights of every version, and one that dies is waited for."""

from __future__ import annotations

from collections.abc import Callable

from mmjobs.rollout.external.client import GRACE, Client, EngineFailed, ServerLost, Stale, in_thread
from mmjobs.rollout.external.messages import Answers, Load, Loaded, Questions
from mmlaunch.recipe.engine import Engine
from mmlaunch.run.paths import RunPaths

_TRIES = 3
"""How often in a row the same prompts may cost a server its life."""


class Servers:
    """The servers of one attempt, and the version of the policy that they have to answer with."""

    def __init__(self, paths: RunPaths, attempt: int, engine: Engine, count: int) -> None:
        self._engine, self._folder = engine, paths.served
        self._clients = [Client(number, paths, attempt, engine) for number in range(count)]
        self.version, self._checksums = "", dict[str, list[int]]()

    def expect(self, version: str, checksums: dict[str, list[int]]) -> None:
        """From now on this version answers; `checksums` are those of its tensors as they were written."""
        self.version, self._checksums = version, checksums

    def load_all(self) -> None:
        """Have all servers read the weights, side by side, once they are ready; what one says wrong is raised."""
        for future in [in_thread(self._beginning(client)) for client in self._clients]:
            future.result()

    def answer(self, number: int, request: Questions) -> Answers:
        """The answers of one server; one that dies is asked again when it was started again."""
        client = self._clients[number % len(self._clients)]
        for _ in range(_TRIES):
            try:
                return client.generate(request)
            except Stale:  # it was started again while nobody asked it
                self._load(client)
            except ServerLost as error:
                self._revive(client, error)
        raise EngineFailed(f"{client.name} has died {_TRIES} times in a row over the same prompts")

    def _beginning(self, client: Client) -> Callable[[], None]:
        def begin() -> None:
            client.wait(self._engine.start)
            try:
                self._load(client)
            except ServerLost as error:
                self._revive(client, error)

        return begin

    def _revive(self, client: Client, error: ServerLost) -> None:
        """Wait for whoever watches over a server to start it again."""
        if not client.started_again(GRACE) and not client.given_up():
            raise error
        client.wait(self._engine.start)  # which says why it is not started any more, if it is not
        self._load(client)

    def _load(self, client: Client) -> None:
        loaded = client.load(Load(str(self._folder), self.version))
        if what := self._difference(loaded):
            raise EngineFailed(f"{client.name} has other weights than the trainer: {what}")

    def _difference(self, loaded: Loaded) -> str:
        """What a server has not read as it was written: bytes may be old, missing or of another file."""
        written, read = self._checksums, loaded.checksums
        if loaded.version != self.version:
            return f"it still has version {loaded.version or 'none'} of the policy, and {self.version} was written"
        if missing := sorted(set(written) ^ set(read)):
            return f"{len(missing)} tensors are not on both sides, e.g. {missing[0]}"
        different = sorted(name for name, value in written.items() if read[name] != value)
        return f"{len(different)} of {len(written)} tensors differ, e.g. {different[0]}" if different else ""
