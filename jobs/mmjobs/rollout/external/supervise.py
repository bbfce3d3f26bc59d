"""`python -m mmjobs.rollout.external.supervise RUN [NUMBER]`: keeps one server of the external engine alive.

It starts the server, writes down where it is, and starts it again if it ends or hangs; it ends with the attempt.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from mmjobs.data.parent import end_with_parent
from mmjobs.rollout.external.client import LOOK, Address
from mmjobs.rollout.external.messages import HEADER, KEY
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe, resolved
from mmlaunch.recipe.engine import Engine
from mmlaunch.recipe.reinforcement import Reinforcement
from mmlaunch.run.exits import WARNINGS
from mmlaunch.run.files import publish
from mmlaunch.run.paths import SERVED, RunPaths

_STARTS = 3
"""So many starts in a row that come to nothing end it."""
_TYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
VLLM = [sys.executable, "-m", "mmjobs.rollout.external.vllm_server"]


class Supervisor:
    """One server: its process, and what is known of it."""

    def __init__(self, run: RunPaths, number: int, attempt: int) -> None:
        self._run, self._number, self._attempt = run, number, attempt
        self._recipe = resolved.read(run.resolved)
        assert isinstance(self._recipe.objective, Reinforcement) and self._recipe.objective.engine is not None
        self._engine = self._recipe.objective.engine
        self._process: subprocess.Popen[bytes] | None = None
        self._address = Address(attempt, _own_host(), 0, secrets.token_hex(16), starts=0)

    def run(self) -> int:
        """Until the attempt ends; 1 where the server does not start."""
        try:
            own = devices(self._engine, self._recipe)
        except BadInput as error:
            print(f"server {self._number}: {error}", flush=True)
            self._write(dataclasses.replace(self._address, failed=str(error)))
            return 1
        while not (self._run.served / SERVED).is_file():  # the trainer writes it before its first rollout
            if self._over():
                return 0
            time.sleep(LOOK)
        failures = 0
        while failures < _STARTS:
            self._start(own)
            began, healthy = time.monotonic(), False
            progress, moved = -1, began
            while not self._over():
                time.sleep(LOOK / 2)
                if self._ended():
                    break
                health, now = self._health(), time.monotonic()
                if health is not None and (not health["busy"] or health["progress"] != progress):
                    healthy, failures, progress, moved = True, 0, health["progress"], now
                if now - moved > (self._engine.timeout if healthy else self._engine.start):
                    print(f"server {self._number} makes no progress: it is ended", flush=True)
                    break
            else:
                self._end()
                return 0
            self._end()
            failures += not healthy
        last = f"it has ended {_STARTS} times in a row before it was ready"
        self._write(dataclasses.replace(self._address, failed=last))
        return 1

    def _start(self, own: dict[str, str]) -> None:
        """`own`: the variable that names its GPUs."""
        port = _free_port()
        command = [*command_of(self._recipe, self._engine, self._run.served), "--host", "0.0.0.0", "--port", str(port)]
        environment = {**os.environ, KEY: self._address.key, **own}
        log = self._run.attempt(self._attempt).server_log(self._number)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # vLLM has processes of its own, which are ended together
                preexec_fn=partial(end_with_parent, os.getpid()),
            )
        self._write(dataclasses.replace(self._address, port=port, starts=self._address.starts + 1))

    def _write(self, address: Address) -> None:
        self._address = address
        self._run.servers.mkdir(exist_ok=True)
        publish(self._run.server(self._number), json.dumps(dataclasses.asdict(address)), mode=0o600)  # it has the key

    def _ended(self) -> bool:
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            print(f"server {self._number} has ended with {code}", flush=True)
        return code is not None

    def _health(self) -> dict[str, Any] | None:
        connection = http.client.HTTPConnection("127.0.0.1", self._address.port, timeout=LOOK * 5)
        try:
            connection.request("GET", "/health", headers={HEADER: self._address.key})
            return dict(json.loads(connection.getresponse().read()))
        except (OSError, ValueError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _end(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _over(self) -> bool:
        return self._run.servers_over(self._attempt).exists()


def command_of(recipe: Recipe, engine: Engine, model: Path) -> list[str]:
    """The command of a server without its address."""
    assert isinstance(recipe.objective, Reinforcement)
    gpus = min(recipe.resources.gpus_per_node, engine.gpus_per_server or recipe.resources.gpus_per_node)
    return [
        *(engine.command or VLLM), "--model", str(model), "--gpus", str(gpus), "--dtype", _TYPES[recipe.precision],
        "--temperature", str(recipe.objective.sampling.temperature), "--options", json.dumps(engine.options),
    ]  # fmt: skip


def devices(engine: Engine, recipe: Recipe) -> dict[str, str]:
    """The GPUs of this server, where several share a node. Slurm shows each server its own, or all of them; raises
    `BadInput` where these do not do."""
    several, each = engine.servers_per_node(recipe.resources.gpus_per_node), engine.gpus_per_server
    if several == 1 or each is None:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(number) for number in range(several * each)] if visible is None else visible.split(",")
    if len(gpus) >= several * each:
        first = int(os.environ.get("SLURM_LOCALID", "0")) * each
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[first : first + each])}
    if len(gpus) == each and visible:
        return {}
    what = f"{several} servers of {each} GPUs need {several * each} GPUs of a node"
    raise BadInput(f"objective.engine.gpus_per_server: {what}, and CUDA_VISIBLE_DEVICES={visible} names fewer")


def _free_port() -> int:
    """One that nobody listens on, and that the kernel gives to no connection until the server takes it."""
    while True:
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("", port))
            return port


def _own_host() -> str:
    """The address of this machine in the network where the trainer is; some sites have names that nobody resolves."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asks:
        asks.connect((os.environ.get("MASTER_ADDR", "127.0.0.1"), 9))
        return str(asks.getsockname()[0])


def main() -> int:
    """Supervise one server; signals are for the ranks, which still need it."""
    end_with_parent()
    for one in WARNINGS:
        signal.signal(one, signal.SIG_IGN)
    number = int(sys.argv[2] if len(sys.argv) > 2 else os.environ.get("SLURM_PROCID", "0"))
    return Supervisor(RunPaths(Path(sys.argv[1])), number, int(os.environ["MMLAUNCH_ATTEMPT"])).run()


if __name__ == "__main__":
    sys.exit(main())
