"""mmlaunch from Python: the README's own lines, and what a run says of itself."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mmlaunch import api
from mmlaunch.errors import RecipeError, RunNotFound, UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.usefixtures("stop_all")
def test_the_lines_of_the_readme_run_as_they_stand(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert sum(bool(line.strip()) for line in block.splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    recipe = small.read_text().replace("tasks_per_node: 2", "tasks_per_node: 1")
    (tmp_path / "recipes" / "quickstart.yaml").write_text(recipe)
    exec(block, {})
    *steps, last = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in steps] == [1, *range(10, 101, 10)]
    assert all(float(line.split()[1]) > 0 for line in steps)
    run = api.find("last")
    assert last == f"{run.directory} done 100" and run.status().final
    again = run.resume("steps=101")  # what a run is told after its end counts from the new submission on
    assert again == run and again.wait().state == "done"
    kinds = [event["event"] for event in again.events(follow=True)]
    assert kinds.count("ended") == 2 and kinds[-1] == "ended" and len(list(again.events())) == len(kinds)


@pytest.mark.usefixtures("stop_all")
def test_cancelling_from_another_thread_ends_the_wait(small: Path) -> None:
    run = api.submit(api.load(small, "steps=100000", "resources.tasks_per_node=1"), cluster="local")
    assert [one.name for one in api.runs()] == [run.name]
    for event in run.events(follow=True):
        if event["event"] == "step":
            threading.Thread(target=run.cancel, kwargs={"now": True}).start()
            break
    status = run.wait()
    assert (status.state, status.run) == ("cancelled", run.name)
    assert "was cancelled already" in run.cancel()


def test_mistakes_are_exceptions_that_say_all(small: Path, own_home: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        api.load(small, "optim.lr=fast", "sed=1")
    assert [problem.dotted for problem in caught.value.problems] == ["optim.lr", "sed"]
    with pytest.raises(RunNotFound, match="no run 'nowhere'"):
        api.find("nowhere")
    with pytest.raises(UserError, match="did you mean local"):
        api.submit(small, cluster="locl")
    assert api.runs() == [] and not (own_home / "runs").exists()


def test_importing_it_takes_no_torch_and_no_submitit() -> None:
    code = "import sys, mmlaunch.api; print([m for m in ('torch', 'numpy', 'submitit', 'click') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
