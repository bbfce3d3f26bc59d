"""Data sets of the Hugging Face hub, `hf://datasets/ORG/NAME[@REVISION][/FOLDER]`: in its cache, or fetched into it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from mmlaunch.errors import BadInput
from mmlaunch.recipe.data import HUB_DATA


def is_hub(path: str) -> bool:
    """Whether a source's path names a data set of the hub."""
    return HUB_DATA.fullmatch(path) is not None


@cache
def fetched(path: str) -> Path:
    """The folder or file in the hub's cache. What is not there yet is fetched; ranks wait for each other.

    HF_HUB_OFFLINE, HF_HOME and HF_TOKEN mean what they mean everywhere.
    """
    from huggingface_hub import snapshot_download  # only who names the hub waits for it

    match = HUB_DATA.fullmatch(path)
    assert match is not None, path
    name, revision, inside = match["name"], match["revision"], match["inside"]
    patterns = [inside, f"{inside}/*"] if inside else None
    try:
        folder = snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns)
    except (OSError, ValueError) as error:  # all errors of the hub are one of these
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        right = f"where there is network: hf download {name} --repo-type dataset"
        raise BadInput(f"{path}: cannot be fetched: {reason}; {right}") from None
    file = Path(folder, inside or "")
    if not file.exists():
        there = ", ".join(sorted(entry.name for entry in Path(folder).iterdir())[:5])
        raise BadInput(f"{path}: {name} has no {inside}; it has {there or 'nothing'}")
    return file
