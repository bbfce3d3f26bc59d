"""The material of a run: what it learns from and what it is measured on, in the pieces of this rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from mmjobs.data.encode import Processor
from mmjobs.data.formats.registry import parts as parts_of
from mmjobs.data.loader import Examples
from mmjobs.data.mixture import Mixture, mixture
from mmjobs.data.reference_store import ReferenceStore
from mmjobs.data.requirements import of as wants_of
from mmjobs.data.sampler import Batches, equal_batches, packed_batches, position
from mmjobs.data.survey import survey
from mmjobs.model.build import Built
from mmjobs.rank.ranks import Ranks
from mmjobs.rank.watchdog import Phase
from mmjobs.train import skipped_rows
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.batch import split
from mmlaunch.recipe.objective import Preference, Sft
from mmlaunch.run.paths import RunPaths


@dataclass(frozen=True)
class Datasets:
    """Both mixtures as the loader wants them, and what a rank works on at a time."""

    training: Examples
    held: Examples
    micro_batches: Batches
    longer: int = 0
    """How many training examples are longer than a row; each has one of its own, which is as long."""

    def referring(self, store: ReferenceStore) -> Datasets:
        """Every example with what a reference has said of it."""
        return replace(self, training=replace(self.training, reference=store), held=replace(self.held, reference=store))


def material(recipe: Recipe, built: Built, ranks: Ranks, paths: RunPaths) -> Datasets:
    """Look at all rows, all ranks together, and arrange them."""
    longest = min(recipe.data.max_tokens, built.positions)
    if built.alike is not None and longest > built.alike:
        what = f"with more than {built.alike} tokens in a batch, this model reads its shorter examples otherwise too"
        raise BadInput(f"data.max_tokens: {what} (longrope); write at most {built.alike}")
    processor = Processor(built.chat, built.pixels, longest, recipe.data.overlong, wants_of(recipe.objective))
    train, held = _looked_at(recipe, processor, ranks, paths)
    place_of = partial(position, count=len(train), seed=recipe.seed)
    both = partial(
        Examples, processor=processor, tolerant=recipe.data.on_bad == "skip", corruption_seed=recipe.seed,
        packed=packs(recipe, built),
    )  # fmt: skip
    if processor.requirements.corrupted and not train.has_images:
        raise BadInput("objective.terms: image_conditional compares images, and no training row has one; remove it")
    steady = isinstance(recipe.objective, Preference) and recipe.objective.refers
    training = both(train, place_of=place_of, seed=recipe.seed, steady=steady)
    row = recipe.batch.tokens_per_gpu
    longer = sum(training.tokens(place) > row for place in range(len(train))) if row else 0
    return Datasets(training, both(held), _micro_batches(recipe, built, ranks, training, place_of), longer)


def packs(recipe: Recipe, built: Built) -> bool:
    """Whether the examples of a micro-batch stand side by side in one row; otherwise each answer has its own."""
    if isinstance(recipe.objective, Sft):
        return recipe.batch.tokens_per_gpu is not None
    return built.branches


def _looked_at(recipe: Recipe, processor: Processor, ranks: Ranks, paths: RunPaths) -> tuple[Mixture, Mixture]:
    """What is trained on and what is held out; each rank looks at its share of the rows."""
    tolerant = recipe.data.on_bad == "skip"
    look = partial(
        survey, processor=processor, share=(ranks.rank, ranks.world), gather=ranks.gather, moved=ranks.watch.moved
    )
    held = look(sum((parts_of(source) for source in recipe.data.eval), ()))
    ranks.watch.enter(Phase.START)
    asked = held.questions if recipe.data.deduplicate else set()
    train = look(sum((parts_of(source) for source in recipe.data.train), ()), held_out=asked)
    if ranks.first:
        skipped_rows.write(paths, [*train.left, *held.left])
    return mixture(train, recipe.seed, tolerant), mixture(held, recipe.seed, tolerant)


def _micro_batches(
    recipe: Recipe, built: Built, ranks: Ranks, training: Examples, place_of: Callable[[int], int]
) -> Batches:
    """What a rank works on at a time: rows up to a token budget, or a fixed number of examples."""
    size, budget = recipe.batch.examples, recipe.batch.tokens_per_gpu
    if budget is not None:
        what = built.apart
        if not built.branches and not isinstance(recipe.objective, Sft):
            what = what or "the attention of this model cannot branch, and each answer has a row of its own"
        if what:
            raise BadInput(f"batch.tokens_per_gpu: {what}; write batch.micro: 1 instead")
        return packed_batches(size, ranks.rank, ranks.world, budget, lambda index: training.tokens(place_of(index)))
    found = split(size, ranks.world, recipe.batch.micro)
    if found is None:
        raise BadInput(f"batch.global: {size} examples do not divide over {ranks.world} ranks")
    return equal_batches(size, ranks.rank, ranks.world, found[0])
