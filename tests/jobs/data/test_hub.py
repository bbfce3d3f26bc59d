"""Data sets of the hub: read from its cache, as one that was fetched leaves it; without network, said what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mmjobs.data.formats.registry import parts
from mmjobs.data.readers import hub
from mmjobs.data.readers.saved import write
from mmlaunch.errors import BadInput, RecipeError
from mmlaunch.load import load_recipe
from mmlaunch.recipe.data import HUB_DATA, Source

COMMIT, OLDER = "c" * 40, "a" * 40
RECIPES = Path(__file__).resolve().parents[3] / "recipes"


def row(number: int) -> dict[str, str]:
    return {"prompt": f"What is {number}?", "chosen": f"It is {number}.", "rejected": "No."}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with a data set in two revisions, and no network."""
    import huggingface_hub.constants as constants

    repository = tmp_path / "hub" / "datasets--lab--pairs"
    for commit, count in ((COMMIT, 3), (OLDER, 2)):
        snapshot = repository / "snapshots" / commit
        write([row(number) for number in range(count)], snapshot / "data" / "train-00000-of-00001.parquet")
        write([row(number) for number in range(9)], snapshot / "data" / "test-00000-of-00001.parquet")
        (snapshot / "more.jsonl").write_text("".join(json.dumps(row(number)) + "\n" for number in range(5)))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "v1").write_text(OLDER)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.fetched.cache_clear()
    hub.fetched_files.cache_clear()
    return repository


def count(path: str, split: str | None = None) -> int:
    return sum(len(part.rows) for part in parts(Source(path=path, format="trl", split=split)))


def test_splits_revisions_and_files() -> None:
    name = "hf://datasets/lab/pairs"
    assert (count(name, "train"), count(name, "test"), count(f"{name}@v1", "train")) == (3, 9, 2)
    assert count(f"{name}@{OLDER}/data", "train") == 2 and count(f"{name}/more.jsonl") == 5
    (part,) = parts(Source(path=f"{name}/more.jsonl", format="auto"))
    assert part.rows[4].prompt[-1].text == "What is 4?" and part.name == f"{name}/more.jsonl"


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("hf://datasets/lab/others", "fetched: .*; where there is network: hf download lab/others --repo-type dataset"),
        ("hf://datasets/lab/pairs@v7", "cannot be fetched"),
        ("hf://datasets/lab/pairs/rows.json", r"lab/pairs has no rows.json; it has data, more.jsonl"),
    ],
)
def test_what_is_not_there(path: str, right: str) -> None:
    with pytest.raises(BadInput, match=right):
        count(path)


def test_configurations_of_the_card(cache: Path) -> None:
    snapshot = cache / "snapshots" / COMMIT
    (snapshot / "README.md").write_text(
        """---
license: mit
configs:
- config_name: plain
  data_files: more.jsonl
- config_name: images
  data_dir: data
  data_files:
  - split: train
    path: train-*.parquet
  - split: test
    path: [test-*.parquet]
- config_name: lost
  data_files: {train: lost/**}
---
# Pairs
"""
    )

    def rows(config: str, split: str | None = None) -> int:
        source = Source(path="hf://datasets/lab/pairs", format="trl", config=config, split=split)
        return sum(len(part.rows) for part in parts(source))

    assert (rows("plain"), rows("plain", "train"), rows("images", "train"), rows("images", "test")) == (5, 5, 3, 9)
    for config, said in {
        "images": "lab/pairs, images: has the splits train, test; choose one: split: test",
        "others": "README.md names no configuration others; it names plain, images, lost",
        "lost": r"lost has no files: none is called lost/\*\*",
    }.items():
        with pytest.raises(BadInput, match=said):
            rows(config)
    with pytest.raises(RecipeError, match="a configuration is one of a whole data set of the hub"):
        load_recipe(RECIPES / "dpo_llama3.yaml", ["data.train={path: data/rows, format: rlaif_v, config: plain}"])


def test_names() -> None:
    found = HUB_DATA.fullmatch("hf://datasets/openbmb/RLAIF-V-Dataset@refs-1/data/a b.parquet")
    assert found is not None and found.groups() == ("openbmb/RLAIF-V-Dataset", "refs-1", "data/a b.parquet")
    for wrong in ("hf://openbmb/RLAIF-V", "hf://datasets/RLAIF-V", "hf:openbmb/RLAIF-V"):
        with pytest.raises(RecipeError, match=re.escape("write hf://datasets/ORG/NAME")):
            load_recipe(RECIPES / "dpo_llama3.yaml", [f"data.train={{path: {wrong}, format: rlaif_v}}"])
