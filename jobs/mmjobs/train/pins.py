"""Pins: what a run began with. Every later attempt must begin with the same, or say what is different.

The weights that a recipe starts from, its base models with their tokenizers and processors, and the reference model are
read anew by every attempt. If one of them changed in between, the run would go on against another reference, or with
other tokens, and nobody would notice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmjobs.data.readers import hub
from mmjobs.model import frozen_weights
from mmjobs.model.weights import FILE as WEIGHTS
from mmjobs.rank.context import Context
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.data import Source
from mmlaunch.recipe.rewards import RewardSource
from mmlaunch.run import manifest
from mmlaunch.run.files import publish
from mmlaunch.run.paths import CheckpointPaths

_SAMPLE = 1 << 20
"""Bytes at the beginning and at the end of a large file that stand for its content."""
_STARTS = ("model.init_from", "model.pretrained", "model.vision", "model.language")
"""The fields that name weights which a model starts with."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json")
REFERENCE, REFERENCE_WEIGHTS = "reference", "reference weights"
KEPT = "kept"
"""Beside the content of a folder: under which name the run keeps weights that came from it."""


def check(context: Context) -> None:
    """Pin what the recipe names, in the first attempt; afterwards raise `BadInput` for what has changed. All ranks."""
    wrong = _wrong(context) if context.ranks.first else None
    if wrong := context.ranks.from_first(wrong):
        raise BadInput(wrong)


def pin(context: Context, name: str, value: str) -> None:
    """The same for one value that is known later. All ranks."""
    before = context.ranks.from_first(pinned(context, name) if context.ranks.first else None)
    if before not in (None, value):
        what = f"the {name} of this run is no longer the one that it began with ({before}, now {value})"
        raise BadInput(f"{what}: a file of its model has changed; put it back, or start a new run")
    if context.ranks.first:
        _write(context, _read(context) | {name: value})


def at_commits(context: Context, sources: Sequence[Source]) -> list[Source]:
    """These sources, each that is streamed at the commit which the first attempt found. All ranks."""
    paths: dict[str, str] = context.ranks.from_first(_commits(context, sources) if context.ranks.first else None)
    return [source.model_copy(update={"path": paths.get(str(source.path), source.path)}) for source in sources]


def _commits(context: Context, sources: Sequence[Source]) -> dict[str, str]:
    """The paths of streamed sources with their commits. On rank 0."""
    pins = _read(context)
    paths = {path: f"commit of {path}" for source in sources if source.streaming and (path := str(source.path))}
    for path, name in paths.items():
        if name not in pins:
            pins[name] = hub.pinned(path)
    _write(context, pins)
    return {path: str(pins[name]) for path, name in paths.items()}


def pinned(context: Context, name: str) -> str | None:
    """What is pinned under a name."""
    value = _read(context).get(name)
    return str(value) if value is not None else None


def facts(context: Context, field: str) -> dict[str, Any]:
    """What is pinned of the folder that a field names. All ranks."""
    known = _read(context).get(field) if context.ranks.first else None
    known = context.ranks.from_first(known)
    return known if isinstance(known, dict) else {}


def add(context: Context, field: str, **known: Any) -> None:
    """Pin more of the folder that a field names, if it is pinned."""
    if context.ranks.first and (pins := _read(context)).get(field):
        _write(context, pins | {field: {**pins[field], **known}})


def contents(context: Context) -> dict[str, str]:
    """The digest of everything that is pinned, by the field of the recipe that names it."""
    return {name: str(pin["content"]) for name, pin in _read(context).items() if isinstance(pin, dict)}


def lost_source(context: Context) -> str | None:
    """What is lost of the weights to start from, where a checkpoint of the run's own stands in for them. All ranks."""
    lost: str | None = context.ranks.from_first(_lost(context) if context.ranks.first else None)
    return lost


def lost_reward(context: Context, field: str) -> str | None:
    """What is lost of a reward model whose weights the run has kept. All ranks."""
    lost: str | None = context.ranks.from_first(_lost_reward(context, field) if context.ranks.first else None)
    return lost


def _lost_reward(context: Context, field: str) -> str | None:
    known = _read(context).get(field)
    if not isinstance(known, dict) or KEPT not in known or not _has_checkpoint(context):
        return None
    folder = dict(_folders(context.recipe)).get(field)
    if folder is None:
        return f"{field}: {known['path']} is gone"
    return None if known["content"] == _digest(folder) else f"{field}: {folder} has changed since the run began"


def _has_checkpoint(context: Context) -> bool:
    return manifest.newest(context.paths.checkpoints, contents=False)[0] is not None


def _lost(context: Context) -> str | None:
    """`model.init_from: /runs/sft is gone`: weights that another folder has, or none. Tokenizers have to stay."""
    if not _has_checkpoint(context):
        return None
    source, pins = context.recipe.model.init_from, _read(context)
    if source is not None and Path(source).is_absolute() and not Path(source).is_dir():
        return f"model.init_from: {source} is gone"
    for field, folder in _folders(context.recipe):
        before = pins.get(field)
        if before is None or field not in (_STARTS if source is None else _STARTS[:1]):
            continue
        weights_alone = field == _STARTS[0] or before.get("beside") == _digest(folder, weights=False)
        if weights_alone and before["content"] != _digest(folder):
            return f"{field}: {folder} has changed since the run began"
    return None


def _wrong(context: Context) -> str | None:
    """What keeps this attempt from beginning as the first one did; None if nothing does. On rank 0."""
    source, pins = context.recipe.model.init_from, _read(context)
    if source and (Path(source) / manifest.NAME).is_file() and "model.init_from" not in pins:
        try:
            manifest.validate(Path(source))
        except manifest.InvalidCheckpoint as error:
            return f"model.init_from: {source} is damaged ({error}); start from another checkpoint"
        if damage := frozen_weights.damage(CheckpointPaths(Path(source)).engine("model") / WEIGHTS):
            return f"model.init_from: {source} cannot be read: {damage}; start from another checkpoint"
    lost = _lost(context) or ""
    for field, folder in _folders(context.recipe):
        if lost.startswith(f"{field}:") or _lost_reward(context, field):
            continue
        now = {"path": str(folder), "content": _digest(folder), "beside": _digest(folder, weights=False)}
        before = pins.setdefault(field, now)
        if before["content"] != now["content"]:
            moved = f"{before['path']}, now {folder}" if before["path"] != str(folder) else str(folder)
            right = "put it back as it was, or start a new run"
            return f"{field}: {moved}: its content is not what this run began with; {right}"
    _write(context, pins)
    return None


def _folders(recipe: Recipe) -> Iterator[tuple[str, Path]]:
    """The folders that models are read from. What has only a name of the hub cannot be pinned by its files."""
    model = recipe.model
    names = {
        "model.init_from": model.init_from,
        "model.pretrained": model.pretrained,
        "model.vision": model.vision.path if model.vision else None,
        "model.language": model.language.path if model.language else None,
        **{reward_field(recipe, source): source.path for source in recipe.objective.reward_sources},
    }
    for field, name in names.items():
        if name is not None and (folder := Path(name).expanduser()).is_dir():
            yield field, folder.absolute()


def reward_field(recipe: Recipe, source: RewardSource) -> str:
    """The field of the recipe that names a reward model."""
    return f"objective.rewards.{list(recipe.objective.reward_sources).index(source)}.path"


def _digest(folder: Path, weights: bool = True) -> str:
    """A digest of a model's files: a checkpoint's manifest, or the names, the sizes and the content of all, with or
    without the weights."""
    digest = hashlib.blake2b(digest_size=16)
    if (folder / manifest.NAME).is_file():
        digest.update((folder / manifest.NAME).read_bytes())
        return digest.hexdigest()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not _is_prose(path)):
        if not weights and path.name.endswith(_WEIGHTS):
            continue
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE))
            file.seek(max(_SAMPLE, size - _SAMPLE))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _is_prose(path: Path) -> bool:
    return path.name.startswith(".") or (path.suffix in (".md", ".txt", ".lock") and path.name != "merges.txt")


def _read(context: Context) -> dict[str, Any]:
    try:
        return dict(json.loads(context.paths.pins.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{context.paths.pins} cannot be read ({error}); restore it, or start a new run") from None


def _write(context: Context, pins: dict[str, Any]) -> None:
    if pins != _read(context):
        publish(context.paths.pins, json.dumps(pins, indent=1) + "\n")
