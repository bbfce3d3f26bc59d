"""Reads config.json: in a folder, in the Hugging Face cache on this disk, or from the list of well-known names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmlaunch.errors import UserError
from mmlaunch.estimate.shapes.known import KNOWN

Config = Mapping[str, Any]

IMAGE = "<image>"
_PADS = ("<|finetune_right_pad_id|>", "<pad>", "<PAD>", "[PAD]")
_ROWS = 64  # embeddings grow to a multiple of this


class UnknownShapes(UserError):
    """A model whose shapes cannot be known without the network."""


def config_of(name: str, field: str) -> Config:
    """The config.json of a model: a file on this disk comes before the list of well-known names."""
    if folder := folder_of(name):
        return _read(folder / "config.json", field)
    if name in KNOWN:
        return KNOWN[name]
    target = f"models/{name.rpartition('/')[2]}"
    raise UnknownShapes(
        f"{field}: the shapes of {name} are not known here; put its config.json into a folder"
        f" (hf download {name} config.json --local-dir {target}) and write {field}: {target}"
    )


def folder_of(name: str) -> Path | None:
    """The folder that holds a model's config.json, if there is one on this disk."""
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return path
    if path.is_dir():
        raise UnknownShapes(f"{path} holds no config.json; a model's folder has one beside its weights")
    cached = _hub() / f"models--{name.replace('/', '--')}"
    snapshots = sorted(cached.glob("snapshots/*/config.json"), key=lambda file: file.stat().st_mtime)
    try:
        main = cached / "snapshots" / (cached / "refs" / "main").read_text().strip()
    except OSError:
        return snapshots[-1].parent if snapshots else None
    return main if main / "config.json" in snapshots else snapshots[-1].parent if snapshots else None


def grown(rows: int, name: str) -> int:
    """The rows of the embeddings once the tokenizer has a token for images and one for padding.

    Rows beyond the tokenizer's words serve first; where they do not suffice, the matrix grows to a multiple of 64.
    """
    wanted = _words(name, rows)
    return rows if wanted <= rows else -(-wanted // _ROWS) * _ROWS


def _words(name: str, rows: int) -> int:
    """The tokens of a tokenizer after it was completed; one that is not on this disk is as long as its matrix."""
    folder = folder_of(name)
    if folder is None or not (folder / "tokenizer.json").is_file():
        return int(KNOWN.get(name, {}).get("tokenizer_words", rows)) + 2
    field = "model.language"
    tokenizer, config = _read(folder / "tokenizer.json", field), {}
    if (folder / "tokenizer_config.json").is_file():
        config = dict(_read(folder / "tokenizer_config.json", field))
    vocabulary = tokenizer["model"]["vocab"]
    words = set(vocabulary) if isinstance(vocabulary, dict) else {word for word, _ in vocabulary}
    words |= {token["content"] for token in tokenizer.get("added_tokens") or ()}
    words |= {token["content"] for token in (config.get("added_tokens_decoder") or {}).values()}
    pads = config.get("pad_token") is not None or any(word in words for word in _PADS)
    return len(words) + (IMAGE not in words) + (not pads)


def _read(file: Path, field: str) -> Config:
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UnknownShapes(f"{field}: {file} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UnknownShapes(f"{field}: {file} holds no mapping; a model's config.json does")
    return value


def _hub() -> Path:
    """The cache, by the same variables that huggingface_hub reads."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if folder := os.environ.get(name):
            return Path(folder).expanduser()
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(home).expanduser() / "hub"
