"""The reference's values are found by their keys, whatever the files that they are in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmjobs.data.reference_store import ReferenceStore, write

KEYS = st.one_of(st.binary(min_size=16, max_size=16), st.binary(max_size=16).map(lambda some: some.ljust(16, b"\0")))
PIECES = st.lists(st.dictionaries(KEYS, st.integers(1, 5), min_size=1, max_size=6), max_size=5)


def piece(number: int, lengths: dict[bytes, int]) -> dict[bytes, torch.Tensor]:
    return {key: torch.full((length,), number + 0.25) for key, length in lengths.items()}


@given(pieces=PIECES, strange=KEYS)
def test_it_knows_what_a_dictionary_would(
    pieces: list[dict[bytes, int]], strange: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Pieces are computed here, or read; of a key that is in several, the newest values count."""
    folder = tmp_path_factory.mktemp("pieces")
    store, known = ReferenceStore(), dict[bytes, torch.Tensor]()
    for number, lengths in enumerate(pieces):
        values = piece(number, lengths)
        if number % 2:
            store.add(values)
        else:
            write(folder / f"{number}.safetensors", values)
            assert not store.take([folder / f"{number}.safetensors"])
        known |= values
        assert all(key in store for key in known), "also between the pieces"
    assert len(store) == len(known) and (strange in store) == (strange in known)
    for key, wanted in known.items():
        value = store.get(key)
        assert value is not None and torch.equal(value, wanted)


def test_only_files_that_somebody_needs_are_named(tmp_path: Path) -> None:
    store, keys = ReferenceStore(), [bytes([number]) * 16 for number in range(3)]
    for number, key in enumerate(keys):
        write(tmp_path / f"{number}.safetensors", {key: torch.ones(2)})
    store.take(sorted(tmp_path.iterdir()))
    store.add({b"x" * 16: torch.ones(1)})
    assert store.used == set() and b"y" * 16 not in store and store.get(b"x" * 16) is not None
    assert store.get(keys[1]) is not None and keys[2] in store
    assert store.used == {"1.safetensors", "2.safetensors"}


def private() -> int:
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Private_Dirty")))


def test_an_example_costs_a_rank_less_than_64_bytes(tmp_path: Path) -> None:
    """Its values, which are as many as its answers have tokens, are mapped."""
    count = 200_000
    write(tmp_path / "all.safetensors", {number.to_bytes(16, "big"): torch.ones(20) for number in range(count)})
    before, store = private(), ReferenceStore()
    assert not store.take([tmp_path / "all.safetensors"]) and len(store) == count
    assert (7).to_bytes(16, "big") in store and (private() - before) / count < 64
