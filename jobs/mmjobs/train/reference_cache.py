"""The cache of reference log-probabilities: its key, its files, and what runs beside this one have computed already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mmjobs.data.loader import Examples
from mmjobs.engine.engine import Engine
from mmjobs.model import sharded
from mmjobs.model.parts import ADAPTER
from mmjobs.rank.ranks import Ranks
from mmjobs.rank.shared_files import link_or_copy
from mmlaunch.run.paths import RunPaths


def key_of(engine: Engine, examples: Examples, ranks: Ranks, dora: bool) -> str:
    """The same for the same weights and the same arithmetic; all ranks together. Adapters add nothing yet."""
    network: Any = engine.network
    digests = {}
    named = [(name, value) for name, value in network.named_parameters() if ADAPTER not in name]
    for number, (name, parameter) in enumerate(named):
        ranks.watch.moved()
        with sharded.whole([parameter]):
            if number % ranks.world == ranks.rank:
                content = parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy()
                digests[name.replace(".base_layer.", ".")] = hashlib.blake2b(content, digest_size=16).hexdigest()
    weights = {name: digest for of_rank in ranks.gather(digests) for name, digest in of_rank.items()}
    config = _content_of(network.config.to_dict())
    pixels = examples.processor.pixels  # some pass on bytes, and normalise them in the network
    colours = [getattr(pixels, name, None) for name in ("mean", "std")]
    arithmetic = [engine.layout["precision"], *(["dora"] if dora else [])]
    text = json.dumps([weights, config, arithmetic, colours], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def scope_of(datasets: Sequence[Examples], places: Sequence[list[int]]) -> str:
    """The same for the same examples, read in the same way."""
    content = [
        [one.mixture.digest, repr(one.processor.requirements), one.processor.longest, one.processor.overlong, one.seed,
         one.corruption_seed, [[part.augment, part.max_tiles] for part in one.mixture.survey.parts], len(some)]
        for one, some in zip(datasets, places, strict=True)
    ]  # fmt: skip
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


def _content_of(config: Any) -> Any:
    """A configuration without what is no part of it: where it was read from, for one."""
    if not isinstance(config, dict):
        return config
    return {name: _content_of(value) for name, value in config.items() if not str(name).startswith("_")}


def take_over(paths: RunPaths, folder: Path) -> None:
    """Link what runs beside this one have computed with the same weights; on rank 0."""
    for other in sorted(paths.root.parent.glob(f"*/{paths.reference.name}/{folder.name}")):
        if other.parent != paths.reference:
            _link_pieces(other, folder)


def _link_pieces(other: Path, folder: Path) -> None:
    """Link or copy the pieces that are missing here. That all are there says nothing: it may be for other examples."""
    for path in other.glob("[!.]*.safetensors"):
        if not (folder / path.name).exists():
            link_or_copy(path, folder / path.name)
