"""The benchmark of a GPU as a toy on the CPU: what nobody runs until there is a GPU must not rot."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import preference_gpu
from benchmarks.preference_trainers import recipe_for

from mmlaunch.recipe.check import recipe_of


@pytest.mark.nightly  # half a minute each
@pytest.mark.parametrize("regime", ["LoRA", "full"])
def test_the_rows_of_a_gpu_as_a_toy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], regime: str
) -> None:
    """One set of options in a process of its own, with a worker, and its profile."""
    regimes = {
        name: preference_gpu.Regime(one.both, one.ours[:1], one.theirs[:1])
        for name, one in preference_gpu.REGIMES.items()
    }
    monkeypatch.setattr(preference_gpu, "REGIMES", regimes)
    monkeypatch.setattr(preference_gpu, "has_peer", lambda: False)
    profiles = tmp_path / "profiles"
    preference_gpu.compare(tmp_path, profiles, toy=True, only=[regime])
    rows = [line for line in capsys.readouterr().out.splitlines() if "mmlaunch | pairs" in line]
    assert len(rows) == 1 and "pairs 8, tokens 8192" in rows[0]
    (profile,) = profiles.iterdir()
    assert "of these 3 steps took" in profile.read_text() and "aten::" in profile.read_text()


@pytest.mark.parametrize("regime", preference_gpu.REGIMES)
def test_the_recipes_of_a_gpu_are_sound(regime: str) -> None:
    """Those of mmlaunch, as its process makes them, but for the GPU that only its machine has."""
    for options in preference_gpu.REGIMES[regime].ours:
        recipe = recipe_of(recipe_for(Path("data"), preference_gpu.REGIMES[regime].both | options | {"gpu": True}))
        assert recipe.precision == "bf16" and recipe.batch.examples == options["pairs"]
