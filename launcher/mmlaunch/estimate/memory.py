"""Memory of each GPU by component, for a recipe's precision, ZeRO stage, offload and trained parts.

A trained parameter has, in half precision under DeepSpeed, 2 bytes of weight, 2 of gradient and 12 of optimiser (a
copy in fp32 and AdamW's two averages); in fp32 4, 4 and 8. A frozen one has 2 or 4 bytes, by `model.weights`, or half a
byte where it is quantised. ZeRO divides the optimiser over all ranks from stage 1 on, gradients from stage 2 on, and
parameters in stage 3. A reference that is a copy is never divided: it would be gathered again for every row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from mmlaunch.estimate import activations
from mmlaunch.estimate.activations import Row, row_of
from mmlaunch.estimate.counts import Counts, counts
from mmlaunch.estimate.shapes.network import Network, network_of
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.reinforcement import Reinforcement

GIGA = 10**9
"""A GPU of 80 GB really has 85 of these. The rest is left for what allocators waste."""
_CONTEXT, _PROCESS = 1_500_000_000, 600_000_000
"""CUDA, its libraries and NCCL on a GPU; Python with torch and transformers where there is none."""
QUANTISED = (4 + 8 / 64 + 32 / 64 / 256) / 8
"""Bytes of a number in 4 bits: 64 share a scale of 8 bits, and 256 of those a scale of 32."""
_BUCKET, _LIVE = 500_000_000, 1_000_000_000
"""DeepSpeed's reduce_bucket_size and stage3_max_live_parameters, in numbers."""


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU."""

    parameters: int
    gradients: int
    optimiser: int
    reference: int
    activations: int
    logits: int
    framework: int
    host: int = 0
    """Bytes of CPU memory for each rank, where something is offloaded; not part of the total."""

    @property
    def components(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "host"}

    @property
    def total(self) -> int:
        return sum(self.components.values())


@dataclass(frozen=True)
class States:
    """The memory of a trained model without its activations."""

    parameters: int
    gradients: int
    optimiser: int
    host: int


@dataclass(frozen=True)
class Saved:
    """Bytes of a run on its disk, and in the memory of its nodes."""

    checkpoint: int
    frozen: int
    """The weights that no step changes, once in the run, if `checkpoint.keep_base` keeps them there."""
    memory_of_node: int
    """In /dev/shm of each node, with `checkpoint.memory_every`."""


@dataclass(frozen=True)
class Estimate:
    """The shapes and counts of a recipe, from which memory is computed."""

    recipe: Recipe
    network: Network
    counts: Counts
    row: Row

    def memory(self, checkpointing: bool) -> Memory:
        """The sum, with activation checkpointing or without."""
        recipe = self.recipe
        own = _policy(recipe, self.counts)
        critic = _critic(recipe, self.counts)
        return Memory(
            parameters=own.parameters + critic.parameters,
            gradients=own.gradients + critic.gradients,
            optimiser=own.optimiser + critic.optimiser,
            reference=self._frozen,
            activations=activations.activations(recipe, self.network, self.counts, self.row, checkpointing),
            logits=activations.logits(recipe, self.network.language, self.row),
            framework=_framework(recipe, self.counts),
            host=own.host + critic.host,
        )

    @property
    def saved(self) -> Saved:
        """What the run writes to its disk, and what its nodes keep in memory."""
        recipe, engines = self.recipe, 1
        if recipe.objective.critic_stage(recipe.deepspeed.stage) is not None:
            engines = 2  # with the critic's
        checkpoint = (
            engines * self.counts.trained * sum(bytes_of_trained(recipe.precision, recipe.deepspeed.optimizer_states))
        )
        frozen = engines * bytes_of_frozen(recipe, self.counts.frozen, self.counts)
        each_node = 0
        if recipe.checkpoint.memory_every is not None:
            each_node = 2 * checkpoint // recipe.resources.nodes  # the newest, and the one that is being written
        return Saved(checkpoint, frozen, each_node)

    @property
    def whole_generation(self) -> int:
        """Bytes of generation where each rank has gathered the whole policy."""
        objective = self.recipe.objective
        if not isinstance(objective, Reinforcement):
            return 0
        kept = activations.generation(self.recipe, objective.sampling, self.network)
        return kept + activations.gathered(self.recipe, self.counts)

    @property
    def _frozen(self) -> int:
        """Bytes of the models that are not trained; each is divided over the ranks at stage 3."""
        recipe, whole = self.recipe, (self.counts.total - self._adapters) * kept(self.recipe)
        stages = recipe.objective.frozen_stages(recipe.model.learns_adapter_alone, recipe.deepspeed.stage)
        return sum(_share(whole, stage == 3, recipe.trainers.world) for stage in stages)

    @property
    def _adapters(self) -> int:
        return self.counts.total - sum(weight.size for weight in self.network.weights)


def estimate(recipe: Recipe) -> Estimate:
    """Make the estimate of a recipe; raises `UnknownShapes` if its shapes are not known on this machine."""
    network = network_of(recipe.model)
    return Estimate(recipe, network, counts(network, recipe.model), row_of(recipe, network))


def kept(recipe: Recipe) -> int:
    """Bytes of a frozen number."""
    return activations.width_of(recipe.precision if recipe.model.weights == "auto" else recipe.model.weights)


def bytes_of_frozen(recipe: Recipe, frozen: int, table: Counts) -> int:
    """Bytes of so many frozen numbers, the quantised ones among them."""
    return (frozen - table.quantised) * kept(recipe) + round(table.quantised * QUANTISED)


def bytes_of_trained(precision: str, moments: str) -> tuple[int, int]:
    """Bytes of a trained number: its weight, and its optimiser with the master weight."""
    weight, optimiser = (4, 8) if precision == "fp32" else (2, 12)
    return weight, 6 if moments == "bf16" else optimiser


def states(
    trained: int,
    frozen: int,
    *,
    precision: str,
    stage: int = 0,
    offload: str = "none",
    moments: str = "fp32",
    world: int = 1,
) -> States:
    """Parameters, gradients and optimiser of a model on each of `world` ranks.

    `trained` counts numbers, `frozen` bytes.
    """
    weight, optimiser = bytes_of_trained(precision, moments)
    gradient = weight
    parameters = _share(trained * weight + frozen, stage >= 3, world)
    gradients = _share(trained * gradient, stage >= 2, world)
    averages = _share(trained * optimiser, stage >= 1, world)
    host = 0
    if offload != "none":
        host = averages + _share(trained * 4, True, world)  # the optimiser on the CPU needs gradients in fp32
        averages, gradients = 0, gradients if stage < 2 else 0
    if offload == "all":
        host, parameters = host + parameters, 0
    return States(parameters, gradients, averages, host)


def _share(size: int, divided: bool, world: int) -> int:
    return -(-size // world) if divided else size


def _policy(recipe: Recipe, table: Counts) -> States:
    trained, frozen = (0, table.total) if not recipe.trains else (table.trained, table.frozen)
    return _of(recipe, table, trained, frozen, recipe.deepspeed.stage)


def _critic(recipe: Recipe, table: Counts) -> States:
    """PPO's value model has the policy's shape and is trained as the policy is."""
    stage = recipe.objective.critic_stage(recipe.deepspeed.stage)
    if stage is None:
        return States(0, 0, 0, 0)
    offload = recipe.objective.critic_offload(recipe.deepspeed.offload)
    return _of(recipe, table, table.trained, table.frozen, stage, offload)


def _of(recipe: Recipe, table: Counts, trained: int, frozen: int, stage: int, offload: str | None = None) -> States:
    zero, world = recipe.deepspeed, recipe.trainers.world
    return states(
        trained,
        bytes_of_frozen(recipe, frozen, table),
        precision=recipe.precision,
        stage=stage,
        offload=offload or zero.offload,
        moments=zero.optimizer_states,
        world=world,
    )


def _framework(recipe: Recipe, table: Counts) -> int:
    if not recipe.resources.gpus_per_node:
        return _PROCESS
    width, stage = activations.width_of(recipe.precision), recipe.deepspeed.stage
    if not recipe.trains or (recipe.trainers.world == 1 and not stage):
        return _CONTEXT
    bucket = width * min(table.trained, _BUCKET)
    live = width * min(table.total, _LIVE) if stage == 3 else 0
    return _CONTEXT + bucket * (2 if stage in (1, 2) else 1) + live
