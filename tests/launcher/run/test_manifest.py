"""Checkpoints: one without a valid manifest does not exist."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mmlaunch.run import manifest


def checkpoint(folder: Path, step: int) -> Path:
    staging = manifest.staging(folder, step)
    (staging / "deep").mkdir(parents=True)
    (staging / "weights.bin").write_bytes(bytes(range(256)) * 20)
    (staging / "deep" / "rng.bin").write_bytes(b"seed %d" % step)
    manifest.seal(staging, folder / f"step-{step}", step, world=2)
    return folder / f"step-{step}"


def _replaced(folder: Path, make: Callable[[Path], object]) -> None:
    (folder / "MANIFEST.json").unlink()
    make(folder / "MANIFEST.json")


def test_a_sealed_checkpoint_is_valid(tmp_path: Path) -> None:
    found = manifest.validate(checkpoint(tmp_path, 7))
    assert (found.step, found.world, found.bytes) == (7, 2, 5120 + 6)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda c: (c / "MANIFEST.json").unlink(), "never finished"),
        (lambda c: (c / "MANIFEST.json").write_text("{"), "damaged"),
        (lambda c: (c / "MANIFEST.json").write_text("[]"), "damaged"),
        (
            lambda c: (c / "MANIFEST.json").write_text('{"format": 2, "world": 2, "files": {}, "step": 1e999}'),
            "damaged",
        ),
        (lambda c: (c / "MANIFEST.json").write_text("[" * 100_000), "damaged"),
        (lambda c: _replaced(c, lambda path: os.mkfifo(path)), "no regular file"),
        (lambda c: _replaced(c, lambda path: path.symlink_to("/dev/zero")), "no regular file"),
        (lambda c: (c / "weights.bin").unlink(), "missing"),
        (lambda c: (c / "weights.bin").write_bytes(b""), "0 bytes"),
        (lambda c: (c / "weights.bin").write_bytes((c / "weights.bin").read_bytes()[:-1]), "bytes instead"),
        (lambda c: (c / "weights.bin").write_bytes(bytes(5120)), "not what was saved"),
        (lambda c: (c / "deep" / "rng.bin").write_bytes(b"seed 8"), "not what was saved"),
    ],
)
def test_damage_is_found_and_the_previous_one_is_used(
    tmp_path: Path, damage: Callable[[Path], object], word: str
) -> None:
    checkpoint(tmp_path, 3)
    bad = checkpoint(tmp_path, 7)
    damage(bad)
    found, rejected = manifest.newest(tmp_path)
    assert found is not None and found.step == 3
    assert len(rejected) == 1 and word in rejected[0] and "step-7" in rejected[0]


def test_a_file_too_many_is_no_part_of_a_checkpoint(tmp_path: Path) -> None:
    checkpoint(tmp_path, 3)
    (checkpoint(tmp_path, 7) / "deep" / "rank-2.bin").write_bytes(b"somebody else's")
    found, rejected = manifest.newest(tmp_path)
    assert found is not None and found.step == 3
    assert rejected == ["step-7/deep/rank-2.bin: is not in the manifest"]


def test_what_was_written_has_to_be_there_when_it_is_sealed(tmp_path: Path) -> None:
    """Where another machine wrote it, the file system may not know it yet, or have lost it."""
    staging = manifest.staging(tmp_path, 1)
    staging.mkdir()
    (staging / "rank-0.bin").write_bytes(b"mine")
    four: manifest.Entry = {"bytes": 4, "sha256": hashlib.sha256(b"mine").hexdigest()}
    with pytest.raises(FileNotFoundError, match=r"rank-1\.bin"):
        manifest.seal(staging, tmp_path / "step-1", 1, 2, {"rank-0.bin": four, "rank-1.bin": four})
    with pytest.raises(OSError, match=r"4 bytes instead of 5"):
        manifest.seal(staging, tmp_path / "step-1", 1, 2, {"rank-0.bin": {**four, "bytes": 5}})
    (tmp_path / "step-1").write_text("a file of this name is in the way")
    assert manifest.seal(staging, tmp_path / "step-1", 1, 2, {"rank-0.bin": four}).bytes == 4
    assert manifest.validate(tmp_path / "step-1").files == {"rank-0.bin": four}


def test_what_cannot_be_read_is_rejected(tmp_path: Path) -> None:
    checkpoint(tmp_path, 3)
    weights = checkpoint(tmp_path, 7) / "weights.bin"
    weights.unlink()
    weights.symlink_to("/proc/self/mem")  # it opens, and reading it is an error
    found, rejected = manifest.newest(tmp_path)
    assert found is not None and found.step == 3 and "step-7" in rejected[0]


def test_every_truncation_is_found(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 1)
    data = (folder / "weights.bin").read_bytes()
    for size in range(0, len(data), 97):
        (folder / "weights.bin").write_bytes(data[:size])
        with pytest.raises(manifest.InvalidCheckpoint):
            manifest.validate(folder)


def test_every_flipped_bit_of_the_manifest_is_found(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 1)
    data = (folder / manifest.NAME).read_bytes()
    for place in range(len(data) - 1):  # what stands after the last brace says nothing
        for bit in range(8):
            (folder / manifest.NAME).write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            with pytest.raises(manifest.InvalidCheckpoint):
                manifest.validate(folder, contents=False)


def test_a_swapped_folder_is_found(tmp_path: Path) -> None:
    checkpoint(tmp_path, 1).rename(tmp_path / "step-2")
    with pytest.raises(manifest.InvalidCheckpoint, match="that of step 1"):
        manifest.validate(tmp_path / "step-2")


def test_a_half_written_one_does_not_exist(tmp_path: Path) -> None:
    staging = manifest.staging(tmp_path, 9)
    staging.mkdir()
    (staging / "weights.bin").write_bytes(b"half")
    assert manifest.newest(tmp_path) == (None, [])
    assert manifest.steps(tmp_path) == []
    manifest.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_newer_format_is_not_guessed_at(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 1)
    record = json.loads((folder / "MANIFEST.json").read_text())
    newer = {key: value for key, value in record.items() if key != "sha256"} | {"format": 99}
    digest = hashlib.sha256(json.dumps(newer, sort_keys=True).encode()).hexdigest()
    (folder / "MANIFEST.json").write_text(json.dumps({**newer, "sha256": digest}))
    with pytest.raises(manifest.InvalidCheckpoint, match="format 99"):
        manifest.validate(folder)
