"""The card of a data set of the hub, its README.md: which files are of a configuration and of a split of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from yaml import YAMLError

from mmjobs.data.readers import splits
from mmlaunch.errors import BadInput

NAME = "README.md"


def metadata(path: Path) -> Mapping[str, Any]:
    """What stands in the YAML at the head of a card."""
    from huggingface_hub import metadata_load

    try:
        return metadata_load(path) or {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, YAMLError) as error:
        raise BadInput(f"{path}: its head cannot be read as YAML: {str(error).splitlines()[0]}") from None


def patterns(where: object, card: Mapping[str, Any], config: str, split: str | None) -> list[str]:
    """The patterns of the files of a configuration, as `datasets` reads them from the card; raises `BadInput`."""
    known = {str(one.get("config_name", "default")): one for one in card.get("configs") or [] if isinstance(one, dict)}
    if config not in known:
        has = f"it names {', '.join(known)}" if known else "it names none; remove config"
        raise BadInput(f"{where}: its {NAME} names no configuration {config}; {has}")
    base, files = str(known[config].get("data_dir") or ""), known[config].get("data_files") or "**"
    of_split = _by_split(files)
    chosen = splits.chosen(f"{where}, {config}", list(of_split), split)
    return [str(PurePosixPath(base, pattern)) for pattern in of_split[chosen]]


def matching(names: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """The names that one of these patterns fits; `*` stays within a folder, `**` does not."""
    from fsspec.utils import glob_translate

    fits = [re.compile(glob_translate(pattern)) for pattern in wanted]
    return [name for name in names if any(one.match(name) for one in fits)]


def _by_split(files: Any) -> dict[str, list[str]]:
    """`data_files` is a pattern, a list of them, or says for each split which are its."""
    if isinstance(files, dict):
        return {str(split): _listed(path) for split, path in files.items()}
    if isinstance(files, list) and all(isinstance(one, dict) for one in files):
        return {str(one.get("split", "train")): _listed(one.get("path")) for one in files}
    return {"train": _listed(files)}


def _listed(patterns: Any) -> list[str]:
    return [str(one) for one in patterns] if isinstance(patterns, list) else [str(patterns)]
