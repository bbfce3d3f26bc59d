"""A run of another version is resumed by the launcher in its own snapshot."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.conftest import SubmitStub
from tests.runs import ended, mmlaunch, wait_for

from mmlaunch import __version__, api
from mmlaunch.errors import MachineError
from mmlaunch.run import ledger
from mmlaunch.run.paths import RunPaths

pytestmark = pytest.mark.usefixtures("stop_all")
OTHER = "0.0.7"


@pytest.fixture
def old_run(small: Path, submit_stub: SubmitStub) -> RunPaths:
    """A run that is done, whose snapshot says that it is of another version and signs what it submits."""
    run = submit_stub(small, "-s", "log.every=1", "-s", "resources.tasks_per_node=1", cluster="local")
    wait_for(run, ended)
    run.launcher.write_text(run.launcher.read_text().replace(__version__, OTHER))
    plan = run.code / "mmlaunch" / "submit" / "plan.py"
    plan.write_text(plan.read_text().replace('"name": self.recipe.name,', '"name": "by the old launcher",'))
    return run


def submissions(run: RunPaths) -> list[str]:
    return [event["name"] for event in ledger.read(run.events).all("submitted")]


def test_its_own_launcher_resumes_it(old_run: RunPaths) -> None:
    done = mmlaunch("resume", old_run.name, "-s", "steps=8", "-s", "log.every=2", "--follow")
    assert done.returncode == 0, done.stderr
    line = f"{old_run.name} is a run of mmlaunch {OTHER}: the launcher in its own snapshot resumes it"
    assert done.stdout.splitlines()[0] == line and "step 8/8" in done.stdout
    assert submissions(old_run) == ["small", "by the old launcher"]
    assert "steps: 8" in old_run.resolved.read_text() and "every: 2" in old_run.resolved.read_text()
    refused = mmlaunch("resume", old_run.name, "-s", "steps=4")
    assert refused.returncode == 2 and "steps: 4, and" in refused.stderr, "its exit code and its words come through"


def test_from_python_too(old_run: RunPaths) -> None:
    run = api.find(old_run.root)
    assert run.resume("steps=6").wait().step == 6
    assert submissions(old_run) == ["small", "by the old launcher"]
    with pytest.raises(Exception, match=rf"mmlaunch {OTHER}: .*is done; to train on"):
        run.resume()


def test_a_snapshot_that_cannot_run_is_a_sentence(old_run: RunPaths) -> None:
    (old_run.code / "mmlaunch" / "cli" / "__init__.py").write_text("import a_package_of_old_times\n")
    done = mmlaunch("resume", old_run.name, "-s", "steps=8")
    assert done.returncode == 4 and "Traceback" not in done.stderr
    assert f"mmlaunch {OTHER}, and the launcher in its snapshot does not run here" in done.stderr
    assert "No module named 'a_package_of_old_times'" in done.stderr
    assert f"mmlaunch submit {old_run.recipe} -s model.init_from={old_run.root}" in done.stderr
    shutil.rmtree(old_run.code / "mmlaunch")
    with pytest.raises(MachineError, match="has no launcher in its snapshot"):
        api.find(old_run.root).resume("steps=8")
    assert submissions(old_run) == ["small"], "nothing was started"


def test_a_run_of_this_version_is_resumed_here(small: Path, submit_stub: SubmitStub) -> None:
    run = submit_stub(small, "-s", "resources.tasks_per_node=1", cluster="local")
    wait_for(run, ended)
    done = mmlaunch("resume", run.name, "-s", "steps=6")
    assert done.returncode == 0 and "snapshot" not in done.stdout
    wait_for(run, lambda events: sum(event["event"] == "ended" for event in events) == 2)
