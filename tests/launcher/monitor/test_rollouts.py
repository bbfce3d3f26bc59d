"""Rollouts in the report: reward against KL, what looks wrong, answers to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mmlaunch.cli import group
from mmlaunch.monitor import rollouts
from mmlaunch.run import ledger
from mmlaunch.run.paths import RunPaths

SAMPLE = {"question": "What is it?", "truth": "red", "answer": "red\x1b[31m\nand more", "score": 1.0, "origin": "a:1"}


def written(folder: Path, metrics: list[dict[str, Any]], held_out: dict[int, float] | None = None) -> RunPaths:
    """A run whose rollouts have these metrics, four steps apart."""
    run = RunPaths(folder / "ppo-1128-abcd")
    run.root.mkdir()
    run.resolved.write_text("name: ppo\n")
    ledger.append(run.events, "submitted", executor="local", name="ppo", ranks=2)
    ledger.append(run.events, "started", attempt=1)
    for number, measured in enumerate(metrics):
        ledger.append(run.events, "rollout", attempt=1, step=4 * number, metrics=measured, samples=[SAMPLE])
        if held_out and number in held_out:
            ledger.append(run.events, "evaluated", step=4 * number + 2, metrics={"eval/reward": held_out[number]})
    return run


def curve(**ends: tuple[float, float]) -> list[dict[str, float]]:
    """Eight rollouts whose numbers go evenly from one value to the other."""
    return [{name: a + (b - a) * n / 7 for name, (a, b) in ends.items()} for n in range(8)]


def test_reward_and_kl_stand_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMLAUNCH_RUNS", str(tmp_path))
    written(tmp_path, curve(reward=(0.0, 0.7), kl_sequence=(0.0, 14.0), length=(10, 12), truncated=(0, 0.25)), {1: 0.2})
    done = CliRunner().invoke(group, ["report", "ppo"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    head = next(line for line in lines if line.startswith("step"))
    assert head.split() == ["step", "reward", "held", "out", "KL", "length", "cut"]
    rows = [line.split() for line in lines[lines.index(head) + 1 : lines.index(head) + 9]]
    assert rows[0] == ["0", "0", "0", "10", "0%"] and rows[-1] == ["28", "0.7", "14", "12", "25%"]
    assert rows[2][:3] == ["8", "0.2", "0.2"], "the evaluation stands with the rollout that follows it"
    assert "look:" not in done.output
    assert "a:1  score 1.0" in done.output and "answer   red [31m and more" in done.output
    made = json.loads(CliRunner().invoke(group, ["report", "ppo", "--json"]).output)
    assert [one["step"] for one in made["rollouts"]] == [4 * n for n in range(8)] and made["warnings"] == []


@pytest.mark.parametrize(
    ("metrics", "held_out", "words"),
    [
        (curve(reward=(0, 1), length=(10, 40)), {}, "pay for length"),
        (curve(reward=(0, 1), right=(0.7, 0.3)), {}, "is being cheated"),
        (curve(reward=(0, 1)), dict.fromkeys(range(8), 0.1), "learnt by heart"),
        (curve(reward=(0, 0), truncated=(0.2, 0.9)), {}, "90% of the answers never end"),
        (curve(reward=(0, 0), reward_missing=(0, 0.3)), {}, "30% of the answers have no score"),
        (curve(reward=(0, 0), flat_groups=(0.5, 1.0)), {}, "100% of the groups have equal scores"),
        (curve(reward=(0, 0), generation_outside=(0, 0.1)), {}, "10% of the tokens have quite another probability"),
    ],
)
def test_what_looks_wrong_is_told(
    tmp_path: Path, metrics: list[dict[str, Any]], held_out: dict[int, float], words: str
) -> None:
    made = rollouts.of(written(tmp_path, metrics, held_out))
    assert made is not None
    (warning,) = made.warnings()
    assert words in warning


def test_a_rollout_that_was_made_twice_counts_once(tmp_path: Path) -> None:
    run = written(tmp_path, curve(reward=(0, 1)))
    ledger.append(run.events, "rollout", attempt=2, step=28, metrics={"reward": 5.0})
    ledger.append(run.events, "rollout", attempt=2, step=32, metrics={"reward": "nan", "length": None})
    made = rollouts.of(run)
    assert made is not None and made.steps == tuple(range(0, 36, 4)) and made.metrics[7]["reward"] == 5.0
    assert made.rows()[1][-1] == ["32", ""]


def test_a_run_without_rollouts_shows_none(tmp_path: Path) -> None:
    assert rollouts.of(written(tmp_path, [])) is None
