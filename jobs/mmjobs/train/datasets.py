"""The datasets of a run: training and evaluation examples, and which of them a rank works on at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from mmjobs.data.encode import Processor
from mmjobs.data.fetch_ahead import StreamedFiles, check_windows
from mmjobs.data.loader import Examples
from mmjobs.data.mixture import Mixture, mixture
from mmjobs.data.reference_store import ReferenceStore
from mmjobs.data.sampler import MicroBatches, equal_batches, one_each, packed_batches, split_over_ranks
from mmjobs.data.shuffle import ShardOrder, order_of
from mmjobs.model.build import BuiltModel
from mmjobs.rank.context import Context
from mmjobs.rank.ranks import Ranks
from mmjobs.rank.watchdog import Phase
from mmjobs.train import skipped_rows
from mmjobs.train.survey_cache import surveyed
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.batch import Batch as BatchSize
from mmlaunch.recipe.batch import split
from mmlaunch.recipe.requirements import Requirements

EXAMPLES_AT_A_TIME = 8
"""Examples of a batch, where nothing else says how many."""


@dataclass(frozen=True)
class Datasets:
    """Both mixtures as the loader reads them, and the micro-batches of this rank."""

    training: Examples
    evaluation: Examples
    micro_batches: MicroBatches
    longer_than_row: int = 0
    """How many training examples are longer than a row; each has a row of its own, which is as long."""

    def with_reference(self, store: ReferenceStore) -> Datasets:
        """Every example with the log-probabilities of the reference model."""
        training, evaluation = (replace(one, reference=store) for one in (self.training, self.evaluation))
        return replace(self, training=training, evaluation=evaluation)


def build_datasets(context: Context, built: BuiltModel, requirements: Requirements | None = None) -> Datasets:
    """Look at all rows, all ranks together, and arrange them into micro-batches.

    `requirements`: others than those of the objective, for a loss beside it.
    """
    recipe, ranks = context.recipe, context.ranks
    requirements = requirements or recipe.objective.requirements
    ranks.watch.enter(Phase.START)
    longest = built.longest(recipe.data.max_tokens)
    if built.same_up_to is not None and longest > built.same_up_to:
        what = (
            f"with more than {built.same_up_to} tokens in a batch, this model reads its shorter examples otherwise too"
        )
        raise BadInput(f"data.max_tokens: {what} (longrope); write at most {built.same_up_to}")
    if not built.pixels.tiled and any(one.max_tiles for one in (*recipe.data.train, *recipe.data.eval)):
        raise BadInput("data: max_tiles: the processor of this model cuts no tiles; remove it")
    processor = Processor(built.chat, built.pixels, longest, recipe.data.overlong, requirements)
    train, held_out = _surveyed(context, processor)
    if requirements.corrupted and not train.has_images:
        raise BadInput("objective.terms: image_conditional compares images, and no training row has one; remove it")
    place_of = order_of(train, recipe.data, recipe.seed)
    if isinstance(place_of, ShardOrder):
        check_windows(StreamedFiles.of(train, place_of))
    examples = partial(
        Examples, processor=processor, tolerant=recipe.data.on_bad == "skip", corruption_seed=recipe.seed,
        packed=shares_rows(recipe, built, requirements),
    )  # fmt: skip
    training = examples(train, place_of=place_of, seed=recipe.seed, fixed_pixels=recipe.objective.uses_reference)
    row = recipe.batch.tokens_per_gpu
    longer = int((train.lengths(requirements) > row).sum()) if row else 0
    micro_batches = _micro_batches(recipe, built, ranks, training, place_of)
    return Datasets(training, examples(held_out), micro_batches, longer)


def shares_rows(recipe: Recipe, built: BuiltModel, requirements: Requirements) -> bool:
    """Whether the examples of a micro-batch are packed side by side in one row; otherwise each answer has its own."""
    if requirements.most == 1:
        return recipe.batch.tokens_per_gpu is not None
    return built.branches


def batches_of_rank(examples: Examples, places: Iterable[int], size: BatchSize, ranks: Ranks) -> list[list[int]]:
    """These places of a mixture in batches of this rank, as large as those that are trained on."""
    if size.tokens_per_gpu and examples.packed:
        return split_over_ranks(list(places), examples.tokens, size.tokens_per_gpu, ranks.rank, ranks.world)
    return split_over_ranks(list(places), one_each, size.micro or EXAMPLES_AT_A_TIME, ranks.rank, ranks.world)


def _surveyed(context: Context, processor: Processor) -> tuple[Mixture, Mixture]:
    """The mixtures for training and evaluation."""
    recipe, watch = context.recipe, context.ranks.watch
    tolerant = recipe.data.on_bad == "skip"
    watch.doing("reads the evaluation data", "rows")
    held_out = surveyed(context, recipe.data.eval, processor)
    watch.enter(Phase.START)
    watch.doing("reads the training data", "rows")
    questions = held_out.questions if recipe.data.deduplicate else set()
    train = surveyed(context, recipe.data.train, processor, questions)
    if context.ranks.first:
        skipped_rows.write(context.paths, [*train.left_out, *held_out.left_out])
    return mixture(train, recipe.seed, tolerant), mixture(held_out, recipe.seed, tolerant)


def _micro_batches(
    recipe: Recipe, built: BuiltModel, ranks: Ranks, training: Examples, place_of: Callable[[int], int]
) -> MicroBatches:
    """What a rank works on at a time: rows up to a token budget, or a fixed number of examples."""
    size, budget = recipe.batch.examples, recipe.batch.tokens_per_gpu
    if budget is not None:
        what = built.cannot_pack
        if not built.branches and recipe.objective.requirements.most != 1:
            what = what or "the attention of this model cannot branch, and each answer has a row of its own"
        if what:
            raise BadInput(f"batch.tokens_per_gpu: {what}; write batch.micro: 1 instead")
        return packed_batches(size, ranks.rank, ranks.world, budget, lambda index: training.tokens(place_of(index)))
    shares = split(size, ranks.world, recipe.batch.micro)
    if shares is None:
        raise BadInput(f"batch.global: {size} examples do not divide over {ranks.world} ranks")
    micro, _ = shares
    return equal_batches(size, ranks.rank, ranks.world, micro)
