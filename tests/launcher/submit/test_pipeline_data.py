"""A pipeline whose data are made in it: answers are drawn, scored, paired by their scores, and learnt."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import SMALL
from tests.runs import submit, until

from mmlaunch.monitor import pipeline as monitor
from mmlaunch.run import pipeline, shards

CHAIN = """\
name: chain
shared: {precision: fp32, resources: {nodes: 1, gpus_per_node: 0, tasks_per_node: 1, time: 20m}}
stages:
  sft: {extends: small.yaml, steps: 30}
  predict:
    model: {init_from: stage:sft}
    data: {input: {format: shapes, limit: 40, skip: 5000}}
    objective: {method: predict, shards: 2, window: 16, sampling: {answers: 4, temperature: 1.0, max_new_tokens: 12}}
  score:
    data: {input: {path: stage:predict, format: predictions}}
    objective:
      {method: score, rewards: [{function: length, options: {target: 4}}], select: pairs, shards: 4, window: 16}
  mmpo:
    extends: small.yaml
    model: {init_from: stage:sft}
    data: {train: {path: stage:score, format: auto, limit: null}, eval: [], on_bad: skip}
    objective: {method: mmpo}
    batch: {global: 4}
"""


@pytest.mark.nightly  # a minute and a half
@pytest.mark.usefixtures("stop_all")
def test_rows_are_split_when_they_are_there(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "chain.yaml").write_text(CHAIN)
    whole = submit(tmp_path / "chain.yaml")
    score = pipeline.read(whole).named("score")
    assert score is not None and shards.read(score.paths).open
    until(lambda: monitor.of(whole).whole.state in ("done", "failed"), seconds=400)
    assert monitor.of(whole).whole.state == "done"
    definition = shards.read(score.paths)
    assert not definition.open and definition.rows == 40
    assert definition.ranges == ((0, 16), (16, 32), (32, 40), (40, 40)), "there are only three windows of rows"
    images = list((pipeline.read(whole).stages[1].paths.root / "images").glob("*.png"))
    assert len(images) == 40, "drawings have files, so that others can read them"
