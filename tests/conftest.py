"""What all tests share: a home of their own, and the smallest recipe that is right."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import hypothesis
import pytest
from tests import stub_job
from tests.runs import submit

from mmlaunch.run.paths import RunPaths

ROOT = Path(__file__).resolve().parents[1]

SMALL = """\
name: small
model:
  vision: {random: {width: 32}}
  language: {random: {width: 32}}
data:
  train: {format: shapes, limit: 64}
  eval: {format: shapes, limit: 16, skip: 64}
objective: sft
optim: {lr: 1e-3}
batch: {global: 8}
steps: 4
precision: fp32
resources: {nodes: 1, gpus_per_node: 0, tasks_per_node: 2, time: 10m}
"""

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: several tests share the cores


hypothesis.settings.register_profile("any machine", deadline=None)  # several tests share the cores
hypothesis.settings.load_profile("any machine")


def examples(count: int) -> int:
    """How many examples a property test draws: `make test-all` draws ten times as many."""
    return 10 * count if os.environ.get("NIGHTLY") else count


signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever starts tests in the background has them ignore it


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees, or leaves anything in, the user's configuration or runs."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("MMLAUNCH_RUNS", str(home / "runs"))
    for name in ("MMLAUNCH_CLUSTER", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small recipe that trains in seconds."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file below the test's own folder."""

    def _write(text: str | bytes, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return _write


TOGETHER = ("tests/slurm/", "tests/launcher/cli/test_chain.py", "tests/test_house.py")
"""What shares a costly fixture (a cluster, a trained run, a wheel), and therefore one worker of pytest-xdist."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How tests are dealt out to the workers: one by one, but for those that stay together, which come first."""
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class Together(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
        def _split_scope(self, nodeid: str) -> str:
            return next((place for place in TOGETHER if nodeid.startswith(place)), nodeid)

    return Together(config, log)


class SubmitStub(Protocol):
    """Submit a run whose ranks do `stub_job` in place of training."""

    def __call__(
        self, *arguments: str | Path, cluster: str, fault: stub_job.Fault | None = None, **environment: str
    ) -> RunPaths: ...


@pytest.fixture(scope="session")
def stub_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH: the training side as it is, but for its `main.py`. The snapshot of a run copies it."""
    folder = tmp_path_factory.mktemp("stub")
    shutil.copytree(ROOT / "jobs" / "mmjobs", folder / "mmjobs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(stub_job.__file__, folder / "mmjobs" / "main.py")
    return folder


@pytest.fixture
def submit_stub(stub_code: Path) -> SubmitStub:
    def _submit(
        *arguments: str | Path, cluster: str, fault: stub_job.Fault | None = None, **environment: str
    ) -> RunPaths:
        environment |= {"PYTHONPATH": str(stub_code), "STUB_FAULT": fault.value if fault else ""}
        return submit(*arguments, cluster=cluster, **environment)

    return _submit
