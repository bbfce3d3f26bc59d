"""One real cluster for all tests of this folder, found by the client commands through SLURM_CONF."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.slurm.cluster import INSTALL, SlurmCluster, missing, running


@pytest.fixture(scope="session")
def cluster() -> Iterator[SlurmCluster]:
    lacking = missing()
    if lacking or os.geteuid() != 0:
        reason = f"needs root and {', '.join(lacking) or 'nothing else'}; to enable: sudo {INSTALL}"
        if os.environ.get("CI"):
            pytest.fail(f"these tests must run in CI: {reason}")
        pytest.skip(reason)
    with running() as started:
        yield started


@pytest.fixture
def slurm(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    """The cluster, with this process as one of its clients."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.environment[name])
    return cluster


@pytest.fixture(autouse=True)
def empty_queue(slurm: SlurmCluster) -> Iterator[None]:
    """No job of a test outlives it."""
    yield
    slurm.run("scancel", "--user=root", check=False)
