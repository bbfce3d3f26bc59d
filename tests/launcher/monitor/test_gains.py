"""What a run has gained, in a few words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmlaunch.monitor import gains
from mmlaunch.run.paths import RunPaths


@pytest.mark.parametrize(
    ("metrics", "score", "shown"),
    [
        (["exact", "relaxed"], 0.875, "right 87.5%"),
        (["score"], -0.1753, "score -0.1753"),  # of a reward model: no share of right answers
        (["chair"], 0.25, "chair 0.25"),  # lower is better
        (["length"], 0.5682, "length 0.5682"),  # compares with no truth
        (["exact", "chair"], 0.5, "score 0.5"),
    ],
)
def test_only_a_share_of_right_answers_is_called_right(
    tmp_path: Path, metrics: list[str], score: float, shown: str
) -> None:
    run = RunPaths(tmp_path)
    by_source = {f"source{place}": {"metric": metric} for place, metric in enumerate(metrics)}
    run.evaluation.write_text(json.dumps({"by_source": by_source, "overall": {"score": score}}))
    assert gains.of(run) == shown
