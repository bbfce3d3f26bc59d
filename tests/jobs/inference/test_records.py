"""The records of a shard: whatever stands behind the last whole commit is gone when the file is opened again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmjobs.inference.records import RecordFile
from mmlaunch.errors import BadInput
from mmlaunch.run import shards
from mmlaunch.run.paths import RunPaths


def batch(number: int) -> dict[int, list[dict[str, Any]]]:
    return {number: [{"index": 2 * number + place, "error": None} for place in range(2)]}


def test_a_torn_commit_takes_its_records_with_it(tmp_path: Path) -> None:
    shard = RunPaths(tmp_path)
    file = RecordFile(shard)
    for number in range(3):
        file.append(batch(number), 0.0)
    whole, commits = shards.records(shard).read_bytes(), shards.commits(shard).read_bytes()
    shards.commits(shard).write_bytes(commits[:-7])
    again = RecordFile(shard)
    assert again.rows == 4 and again.done == {0, 1}
    again.append(batch(2), 0.0)
    assert shards.records(shard).read_bytes() == whole and shards.commits(shard).read_bytes() == commits


def test_a_damaged_commit_is_refused(tmp_path: Path) -> None:
    shard = RunPaths(tmp_path)
    file = RecordFile(shard)
    file.append(batch(0), 0.0)
    file.append(batch(1), 0.0)
    shards.commits(shard).write_bytes(shards.commits(shard).read_bytes().replace(b'"rows"', b'"rows', 1))
    with pytest.raises(BadInput, match=r"commits.jsonl: is damaged"):
        RecordFile(shard)
