"""What tests of local runs share: none of their processes outlives them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmlaunch.run import ledger
from mmlaunch.schedulers import process


@pytest.fixture
def stop_all(own_home: Path) -> Iterator[None]:
    """No process of a test outlives it."""
    yield
    for events in (own_home / "runs").glob("[!.]*/events.jsonl"):
        for event in ledger.read(events).all("queued"):
            if process.alive(event):
                os.killpg(event["pid"], signal.SIGKILL)
