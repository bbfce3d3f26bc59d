"""Keeping frozen weights: all ranks together write them into the run directory, once, each its share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from mmjobs.model import frozen_weights, sharded
from mmjobs.model.frozen_weights import Contents
from mmjobs.rank.context import Context
from mmjobs.rank.disk import DiskFull, is_full
from mmlaunch.recipe import Recipe
from mmlaunch.run.paths import RunPaths, of_checkpoint


def contents(context: Context, share: Mapping[str, torch.Tensor]) -> Contents:
    """The contents of all frozen weights of a model, of which this rank has a share."""
    of_ranks = context.ranks.gather(frozen_weights.contents(share, context.ranks.watch.moved))
    return {name: content for one in of_ranks for name, content in one.items()}


def keep(
    context: Context,
    share: Mapping[str, torch.Tensor],
    model: Contents,
    fails: Callable[[Callable[[], None]], bool],
    source: str | None = None,
) -> bool:
    """Keep them, unless the run does already; False where the disk of a rank was full.

    `fails` does the writing of this rank, and says whether its disk was full. `source`: where the weights came from;
    those of the policy came from what its recipe names.
    """
    ranks, run, name = context.ranks, context.paths, frozen_weights.name_of(model)
    plans: list[str] = []
    full = ranks.any(ranks.first and fails(lambda: plans.append(_prepare(context.recipe, run, name, source))))
    plan = ranks.from_first(None if full or not ranks.first else plans[0])
    if plan == "nothing":
        return True
    if not full:
        staged = share if plan == "files" else {}
        full = ranks.any(fails(partial(frozen_weights.write, frozen_weights.staging(run, name), ranks.rank, staged)))
    if ranks.first and not full:
        full = fails(partial(frozen_weights.seal, run, name, model, kept=plan != "index"))
    full = ranks.any(full)  # nobody reads before it is sealed
    if ranks.first and full:
        shutil.rmtree(frozen_weights.staging(run, name), ignore_errors=True)
    return not full


def keep_network(context: Context, network: nn.Module, what: str, source: str | None = None) -> str:
    """Keep all weights of a model that learns nothing, which is `what`; returns their name. All ranks together."""
    ranks = context.ranks
    share = sharded.share(dict(network.named_parameters()), ranks.rank, ranks.world, ranks.watch.moved)
    model = contents(context, share)
    if not keep(context, share, model, is_too_full, source):
        raise DiskFull(f"no room for {what}; make room in {context.paths.frozen}, and resume the run")
    return frozen_weights.name_of(model)


def load(context: Context, network: nn.Module, name: str) -> bool:
    """Give a model the weights that the run keeps under this name; False where they are lost. All ranks together."""
    folder, ranks = context.paths.frozen_weights(name), context.ranks
    if not ranks.from_first(
        frozen_weights.is_whole(folder) and frozen_weights.is_kept(folder) if ranks.first else None
    ):
        return False
    with frozen_weights.opened(folder) as read:
        for key, value in network.named_parameters():
            ranks.watch.moved()
            with torch.no_grad(), sharded.whole([value]):
                value.copy_(read(key))
    return True


def is_too_full(write: Callable[[], None]) -> bool:
    """Write, and say whether the disk was too full for that."""
    try:
        write()
    except OSError as error:
        if not is_full(error):
            raise
        return True
    return False


def _prepare(recipe: Recipe, run: RunPaths, name: str, source: str | None) -> str:
    """What is left to write: the "files" of all ranks, the "index" alone, "links" that exist, or "nothing"."""
    folder, staging = run.frozen_weights(name), frozen_weights.staging(run, name)
    copied, source = _keeps(recipe, source), source or recipe.model.init_from
    if frozen_weights.is_whole(folder) and (frozen_weights.is_kept(folder) or not copied):
        return "nothing"
    run.frozen.mkdir(exist_ok=True)
    shutil.rmtree(staging, ignore_errors=True)
    if not copied:
        return "index"
    begun = of_checkpoint(Path(source)) if source else None
    if begun is not None and frozen_weights.link(begun[0], run, name):
        return "links"
    shutil.rmtree(staging, ignore_errors=True)  # some of the files may be linked
    staging.mkdir()
    return "files"


def copies(context: Context, source: str | None = None) -> bool:
    """Whether this run has copies of what is frozen in the policy, or of all that comes from this source.

    The same for all ranks: what one node may write, another may only read.
    """
    copied: bool = context.ranks.from_first(_keeps(context.recipe, source) if context.ranks.first else None)
    return copied


def _keeps(recipe: Recipe, source: str | None) -> bool:
    if source is None:
        return keeps_base(recipe)
    setting = recipe.checkpoint.keep_base
    return setting == "always" or (setting == "auto" and not _stays(source))


def keeps_base(recipe: Recipe) -> bool:
    """Whether a run has copies of the frozen weights: with `auto`, unless they stay where they came from."""
    setting, model = recipe.checkpoint.keep_base, recipe.model
    if setting != "auto":
        return setting == "always"
    parts = [part for part in (model.vision, model.language) if part is not None]
    if model.init_from is None and any(part.path is None for part in parts):
        return True  # random weights come from nowhere
    return not all(_stays(name) for name in sources(recipe).values())


def sources(recipe: Recipe) -> dict[str, str]:
    """Where the weights of a model come from, by the fields of its recipe."""
    model = recipe.model
    if model.init_from is not None:
        return {"model.init_from": model.init_from}
    if model.pretrained is not None:
        return {"model.pretrained": model.pretrained}
    parts = {"model.vision": model.vision, "model.language": model.language}
    return {f"{name}.path": part.path for name, part in parts.items() if part is not None and part.path is not None}


def _stays(name: str) -> bool:
    """Whether this is a model of the hub, or in a folder that nobody changes."""
    folder = Path(name).expanduser()
    if not folder.exists():
        return not folder.is_absolute()
    return not any(os.access(path, os.W_OK) for path in (folder, *folder.glob("*.safetensors")))
