"""How a program ends: one JSON object, and the exit code that README's table gives to its mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mmjobs.tasks import compare, export, inspect_data
from mmlaunch.recipe import Recipe, resolved
from mmlaunch.run.paths import RunPaths


@pytest.fixture
def run(tmp_path: Path, tiny: Callable[..., Recipe]) -> RunPaths:
    """A run that has saved nothing, and whose data are gone."""
    paths = RunPaths(tmp_path / "run")
    paths.root.mkdir()
    recipe = tiny(data__train={"path": str(tmp_path / "gone.jsonl"), "format": "trl"})
    paths.resolved.write_text(resolved.text_of(recipe))
    return paths


@pytest.mark.parametrize(
    ("main", "arguments", "says"),
    [
        (export.main, ["{run}", "{out}"], "run has no valid checkpoint (none was ever saved)"),
        (export.main, ["{run}", "{out}", "--checkpoint", "7"], "no checkpoint of step 7; there are: none"),
        (inspect_data.main, ["{run}/recipe.resolved.yaml"], "gone.jsonl"),
        (compare.main, ["{run}", "{run}", "[]"], "run has no valid checkpoint (none was ever saved)"),
        (compare.main, ["{run}", "{run}", '[{"format": "shapes"}]'], "shapes never end"),
    ],
)
def test_a_mistake_of_the_user_ends_with_2(
    run: RunPaths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    main: Callable[[], int], arguments: list[str], says: str,
) -> None:  # fmt: skip
    named = [one.replace("{run}", str(run.root)).replace("{out}", str(run.root / "out")) for one in arguments]
    monkeypatch.setattr("sys.argv", ["program", *named])
    assert main() == 2
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == 2 and says in told["error"]
    assert not (run.root / "out").exists()
