"""The whole recipe, and the rules that need more than one of its sections."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from mmlaunch.recipe.batch import Batch, neighbours, split
from mmlaunch.recipe.checkpoint import Checkpoint, Evaluate, Log
from mmlaunch.recipe.compared import Compared
from mmlaunch.recipe.data import Data, Source, names
from mmlaunch.recipe.deepspeed import DeepSpeed
from mmlaunch.recipe.environment import Env, passed
from mmlaunch.recipe.method import Method
from mmlaunch.recipe.model import Model
from mmlaunch.recipe.notify import Notify
from mmlaunch.recipe.objective import SECTIONS, Objective, section_name
from mmlaunch.recipe.optim import Optim, PartRates
from mmlaunch.recipe.parts import training_of
from mmlaunch.recipe.profile import Profile
from mmlaunch.recipe.push_to import PushTo
from mmlaunch.recipe.reinforcement import Ppo, Reinforcement
from mmlaunch.recipe.resources import Resources, Restarts
from mmlaunch.recipe.scalars import Count, OneOrMore, Positive, use_default_for_none
from mmlaunch.recipe.section import Mistake, Section, mistake, rule
from mmlaunch.recipe.stop import Stop
from mmlaunch.recipe.suggest import closest
from mmlaunch.recipe.trackers import TRACKERS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def _name(value: Any) -> Any:
    if isinstance(value, str) and not _NAME.fullmatch(value):
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", value).strip("-._")[:79]
        right = f"use letters, digits, '.', '_' and '-'{f', e.g. {slug}' if slug else ''}"
        raise mistake(f"{value[:60]!r} cannot be the name of a run", right)
    return value


def completed(data: Any) -> Any:
    """A task that does not train needs no optimiser and no batch of examples, and reads its data once; one that scores
    answers reads the models of its rewards, and none of its own."""
    section = SECTIONS[section_name(data.get("objective"))] if isinstance(data, dict) else Method
    if section.TASK == "train":
        return data
    length = {} if data.get("steps") is not None else {"epochs": 1}
    unread = {} if section.READS_MODEL else {"model": {"language": {"random": {"width": 32}}}}
    return {"optim": {"lr": 1e-6}, "batch": {"global": 1}, **unread, **length, **data}


class Recipe(Section):
    """Everything that a user may write."""

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "loss": "objective", "method": "objective", "algorithm": "objective", "optimizer": "optim",
        "optimiser": "optim", "dataset": "data", "datasets": "data", "num_train_epochs": "epochs",
        "max_steps": "steps", "slurm": "resources", "checkpoints": "checkpoint", "evaluation": "evaluate",
        "eval": "evaluate", "logging": "log", "environment": "env", "dtype": "precision", "run_name": "name",
        "zero": "deepspeed", "retries": "restarts", "early_stopping": "stop", "notifications": "notify",
        "webhook": "notify", "slack": "notify", "push_to_hub": "push_to", "hub_model_id": "push_to",
    }  # fmt: skip

    name: Annotated[str, BeforeValidator(_name), Field(examples=["dpo-llama3-8b"])]
    """The name of the run; its directory is called after it."""
    model: Model
    """The model: its parts, how they are joined, which are trained."""
    data: Data
    """Where examples come from."""
    objective: Annotated[Objective, Field(examples=["dpo"])]
    """What the run learns: a method's name, or a mapping with its options."""
    optim: Optim
    """AdamW and its schedule."""
    batch: Batch
    """How many examples make a step, and how they are spread over ranks."""
    epochs: Annotated[Positive | None, Field(examples=[1])] = None
    """How often the training data are read."""
    steps: Annotated[Count | None, Field(examples=[1000])] = None
    """How many optimiser steps, instead of epochs."""
    stop_at: Count | None = None
    """Train to this step only, on the schedule of all steps; a resume with a later one goes on from there."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """The arithmetic of forward and backward passes."""
    deepspeed: Annotated[DeepSpeed, BeforeValidator(use_default_for_none)] = Field(default_factory=DeepSpeed)
    """The ZeRO stage and what is kept in CPU memory."""
    checkpoint: Annotated[Checkpoint, BeforeValidator(use_default_for_none)] = Field(default_factory=Checkpoint)
    """When the run is saved, and what is kept."""
    evaluate: Annotated[Evaluate, BeforeValidator(use_default_for_none)] = Field(default_factory=Evaluate)
    """When it is evaluated."""
    log: Annotated[Log, BeforeValidator(use_default_for_none)] = Field(default_factory=Log)
    """What is written down."""
    resources: Annotated[Resources, BeforeValidator(use_default_for_none)] = Field(default_factory=Resources)
    """The machines and the time that it needs."""
    stop: Stop | None = None
    """End before the last step where evaluations get no better (early stopping)."""
    push_to: PushTo | None = None
    """The repository of the Hugging Face hub that the trained model is sent to."""
    profile: Profile | None = None
    """Steps that the profiler traces."""
    notify: Annotated[list[Notify], OneOrMore(), Field(examples=[["SLACK_WEBHOOK"]])] = []
    """Webhooks and commands that get a message when the run ends."""
    restarts: Annotated[Restarts, BeforeValidator(use_default_for_none)] = Field(default_factory=Restarts)
    """How often it may be restarted, by cause."""
    env: Annotated[Env, BeforeValidator(use_default_for_none)] = []
    """Environment variables of the job: names whose values come from your shell, or NAME=value."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides order, random weights and dropout."""

    @model_validator(mode="before")
    @classmethod
    def _completed(cls, data: Any) -> Any:
        return completed(data)

    @property
    def trains(self) -> bool:
        """Whether a model is trained."""
        return self.objective.TASK == "train"

    @property
    def trainers(self) -> Resources:
        """The resources of the ranks: nodes that generate answers for them have none."""
        engine = self.objective.served_by
        serving = 0 if engine is None else engine.nodes
        return self.resources.model_copy(update={"nodes": max(1, self.resources.nodes - serving)})

    @rule
    def _engine_fits(self) -> Iterator[Mistake]:
        engine, model = self.objective.served_by, self.model
        if engine is None:
            return
        for path, value, error in engine.misfits(self.resources):
            yield ("objective", "engine", *path), value, error
        if model.pretrained is None and (model.attention != "plain" or model.projector.kind != "mlp"):
            own = "attention: mmca" if model.attention != "plain" else f"projector: {model.projector.kind}"
            what = f"no engine knows a model with {own}"
            yield ("objective", "engine"), None, mistake(what, "remove engine: then the trainer generates the answers")

    @rule
    def _data_are_somewhere(self) -> Iterator[Mistake]:
        data = self.data
        if self.trains and data.input:
            what = f"{self.objective.method} trains, and this is read by tasks without training"
            yield ("data", "input"), None, mistake(what, "write train")
        elif self.trains and not data.train:
            yield ("data", "train"), None, mistake("is missing", "add train: {path: data/train.jsonl}")
        elif not self.trains and data.input and data.train:
            yield ("data", "train"), None, mistake("both input and train say what is read", "keep input")
        elif not data.inputs:
            yield ("data", "input"), None, mistake("is missing", "add input: {path: data/questions.jsonl}")

    @rule
    def _inputs_are_read_once(self) -> Iterator[Mistake]:
        group = "input" if self.data.input else "train"
        for index, source in enumerate([] if self.trains else self.data.inputs):
            for key, usual in (("repeat", 1.0), ("augment", "none")):
                if getattr(source, key) != usual:
                    what = f"{self.objective.method} reads each row once, as it is"
                    yield ("data", group, index, key), getattr(source, key), mistake(what, "remove it")

    @rule
    def _metrics_are_of_sources(self) -> Iterator[Mistake]:
        task, sources = self.objective, names(self.data.inputs)
        if not isinstance(task, Compared):
            return
        within = any(source.format == "predictions" for source in self.data.inputs)  # known when its rows are counted
        for path, value, error in [*(() if within else task.unknown(sources)), *task.without(sources)]:
            yield ("objective", *path), value, error

    @rule
    def _length(self) -> Iterator[Mistake]:
        if self.epochs is not None and self.steps is not None:
            yield ("steps",), self.steps, mistake("both epochs and steps say how long to train", "keep one of the two")
        if self.epochs is None and self.steps is None:
            yield (), None, mistake("nothing says how long to train", "add epochs: 1 or steps: 1000")

    @rule
    def _batch_over_ranks(self) -> Iterator[Mistake]:
        if not self.trains:
            return
        world, examples = self.trainers.world, self.batch.examples
        if examples % world:
            what = f"{examples} examples do not divide over {self.trainers.describe_world()}"
            yield ("batch", "global"), examples, mistake(what, f"{neighbours(examples, world)} would")
        elif split(examples, world, self.batch.micro) is None:
            share, micro = examples // world, self.batch.micro
            fitting = [n for n in range(1, share + 1) if share % n == 0]
            what = f"{micro} does not divide the {share} examples that each of {world} ranks has of {examples}"
            yield ("batch", "micro"), micro, mistake(what, f"{', '.join(map(str, fitting[-4:]))} would")

    @rule
    def _whole_rollouts(self) -> Iterator[Mistake]:
        """A step is learnt from whole groups of answers, and a rollout is whole steps."""
        learnt = self.objective
        if not isinstance(learnt, Reinforcement):
            return
        examples, answers, micro = self.batch.examples, learnt.sampling.answers, self.batch.micro
        groups = f"answers are not whole groups of objective.sampling.answers ({answers})"
        if examples % answers:
            right = f"{neighbours(examples, answers)} would"
            yield ("batch", "global"), examples, mistake(f"{examples} {groups}", right)
        elif micro is not None and micro % answers:
            yield ("batch", "micro"), micro, mistake(f"{micro} {groups}", f"{neighbours(micro, answers)} would")
        if learnt.rollouts % examples:
            what = f"a rollout of {learnt.rollouts} answers is not whole batches of batch.global ({examples})"
            right = f"{neighbours(learnt.rollouts, examples)} would"
            yield ("objective", "rollouts"), learnt.rollouts, mistake(what, right)
        on_policy = learnt.epochs == 1 and learnt.rollouts == examples
        if learnt.kl.used and learnt.kl.place == "loss" and learnt.kl.form == "k2" and not on_policy:
            what = "the gradient of k2 is that of the KL divergence only in the first step after a rollout"
            right = "write k3, or epochs: 1 and as many rollouts as batch.global"
            yield ("objective", "kl", "form"), "k2", mistake(what, right)

    @rule
    def _answers_fit(self) -> Iterator[Mistake]:
        learnt, longest = self.objective, self.data.max_tokens
        if isinstance(learnt, Reinforcement) and learnt.sampling.max_new_tokens >= longest:
            tokens = learnt.sampling.max_new_tokens
            what = f"answers of {tokens} tokens leave no room for a prompt in data.max_tokens ({longest})"
            right = "write fewer, or raise data.max_tokens"
            yield ("objective", "sampling", "max_new_tokens"), tokens, mistake(what, right)

    @rule
    def _ratios_without_dropout(self) -> Iterator[Mistake]:
        """With dropout, the policy that learns would not be the one that answered."""
        if not isinstance(self.objective, Reinforcement):
            return
        what = f"{self.objective.method} compares the policy with itself, and dropout makes it another one each time"
        if self.model.dropout:
            yield ("model", "dropout"), self.model.dropout, mistake(what, "remove it")
        if self.model.lora is not None and self.model.lora.dropout:
            yield ("model", "lora", "dropout"), self.model.lora.dropout, mistake(what, "remove it")
        if self.precision == "fp16":
            yield ("precision",), "fp16", mistake("two engines cannot skip the same steps", "write bf16 or fp32")

    @rule
    def _trains_what_it_sends(self) -> Iterator[Mistake]:
        if self.push_to is not None and not self.trains:
            yield ("push_to",), None, mistake(f"{self.objective.method} trains no model to send", "remove it")

    @rule
    def _quantised_weights_stay_whole(self) -> Iterator[Mistake]:
        lora = self.model.lora
        if lora is not None and lora.quantise != "none" and self.deepspeed.stage == 3:
            what = "ZeRO stage 3 divides weights over the ranks, and quantised ones stay whole"
            yield ("deepspeed", "stage"), 3, mistake(what, "write stage: 2, or remove model.lora.quantise")

    @rule
    def _critic_shares_what_stays(self) -> Iterator[Mistake]:
        learnt = self.objective
        if not isinstance(learnt, Ppo) or not learnt.critic.shares_reward_model:
            return
        place, full = ("objective", "critic", "shares_reward_model"), self.model.learnt_in_full
        if not self.model.learns_adapter_alone:
            why = "it has no adapter" if self.model.lora is None else f"it learns {', '.join(full)} in full"
            what = f"the critic without its adapter is not the reward model: {why}"
            yield place, True, mistake(what, "train with LoRA alone, or remove it")

    @rule
    def _row_holds_example(self) -> Iterator[Mistake]:
        row, longest = self.batch.tokens_per_gpu, self.data.max_tokens
        if row is not None and row < longest:
            what = f"a row of {row} tokens cannot hold an example of data.max_tokens ({longest})"
            right = f"write at least {longest}, or lower data.max_tokens"
            yield ("batch", "tokens_per_gpu"), None, mistake(what, right)

    @rule
    def _best_needs_evaluation(self) -> Iterator[Mistake]:
        if self.checkpoint.best is not None and self.checkpoint.best.startswith("eval") and not self.data.eval:
            what = f"{self.checkpoint.best!r} is never measured: there are no evaluation data"
            yield ("checkpoint", "best"), None, mistake(what, "add data.eval, or remove best")

    @rule
    def _metrics_are_measured(self) -> Iterator[Mistake]:
        if not (self.trains and self.data.eval):
            return
        named = {("checkpoint", "best"): self.checkpoint.best}
        named |= {("stop", "metric"): self.stop.metric} if self.stop is not None else {}
        measured = self.objective.evaluation_metrics
        for place, metric in named.items():
            if metric is not None and metric not in measured:
                near = closest(metric, measured)
                right = f"did you mean {near}? {self.objective.measures}" if near else self.objective.measures
                yield place, metric, mistake(f"{metric!r} is nothing that an evaluation measures", right)

    @rule
    def _ranks_of_profile_exist(self) -> Iterator[Mistake]:
        world = self.trainers.world
        if self.profile is not None and self.steps is not None and self.profile.first > self.steps:
            what = f"the run has {self.steps} steps: none of these is traced"
            yield ("profile", "steps"), self.profile.steps, mistake(what, "write earlier ones")
        for index, rank in enumerate(self.profile.ranks if self.profile is not None else ()):
            if rank >= world:
                what = f"there is no rank {rank}: the run has ranks 0 to {world - 1}"
                yield ("profile", "ranks", index), rank, mistake(what, "write one of these")

    @rule
    def _only_training_has_steps(self) -> Iterator[Mistake]:
        if self.trains:
            return
        if self.profile is not None:
            yield ("profile",), None, mistake("nothing is trained, so there are no steps to trace", "remove it")
        if self.log.trackers:
            yield ("log", "trackers"), None, mistake("nothing is trained, so there are no curves", "remove it")

    @rule
    def _stop_needs_evaluations(self) -> Iterator[Mistake]:
        if self.stop is None:
            return
        if not self.trains:
            yield ("stop",), None, mistake("nothing is trained, so nothing gets better", "remove it")
        elif not self.data.eval:
            yield ("stop",), None, mistake("nothing is measured: there are no evaluation data", "add data.eval")
        elif self.evaluate.every is None:
            what = "the run is evaluated at its end only, when there is nothing left to stop"
            yield ("stop",), None, mistake(what, "add evaluate: {every: 500 steps}")

    @property
    def packages(self) -> dict[tuple[str | int, ...], tuple[str, str]]:
        """The packages that the ranks need beside those that all runs need, by the field that asks for them: its name,
        and the extra of mmlaunch that brings it."""
        lora, packages = self.model.lora, dict[tuple[str | int, ...], tuple[str, str]]()
        if lora is not None and lora.quantise != "none":
            packages["model", "lora", "quantise"] = "bitsandbytes", "qlora"
        if self.model.liger and self.resources.gpus_per_node:
            packages["model", "liger"] = "liger_kernel", "liger"
        for index, tracker in enumerate(self.log.trackers):
            if tracker.kind in TRACKERS:
                packages["log", "trackers", index] = tracker.kind, tracker.kind
        return packages

    @property
    def passed(self) -> list[str]:
        """The environment variables whose values come from the shell."""
        return list(dict.fromkeys([*passed(self.env), *(one.url for one in self.notify if one.url is not None)]))

    @rule
    def _adapter_off_needs_adapter(self) -> Iterator[Mistake]:
        if self.objective.reference_source != "adapter off":
            return
        learnt, right = self.model.learnt_in_full, "copy" if self.objective.ROLLOUTS else "precomputed"
        if self.model.lora is None:
            what = "there is no adapter to switch off"
            yield ("objective", "reference"), None, mistake(what, f"write reference: {right}, or train with LoRA")
        elif learnt:
            what = f"without its adapter the model still has what it learns in full: {', '.join(learnt)}"
            yield ("objective", "reference"), None, mistake(what, f"write reference: {right}")

    @rule
    def _only_whole_copies_move(self) -> Iterator[Mistake]:
        copy = self.objective.reference_copy
        if copy is None or copy.sync is None:
            return
        if 3 in (self.deepspeed.stage, copy.stage):
            what = "a copy that is divided over the ranks cannot follow"
            yield ("objective", "reference_sync"), None, mistake(what, "write stage 2, or remove it")
        if self.model.lora is not None:
            what = "the mean of two adapters is not the adapter of the mean"
            yield ("objective", "reference_sync"), None, mistake(what, "remove it, or train in full")

    @rule
    def _images_need_vision(self) -> Iterator[Mistake]:
        if self.objective.requirements.corrupted and not self.model.pretrained and not self.model.vision:
            what = "image_conditional compares images, and the model has no vision encoder"
            yield ("objective", "terms"), None, mistake(what, "add model.vision, or leave the term out")

    @rule
    def _scores_need_source(self) -> Iterator[Mistake]:
        for index, source in enumerate(self.data.train if self.objective.requirements.scores else ()):
            if not source.kind_of_rows.scores:
                what = f"the objective needs scores, and rows of the {source.format} format have none"
                right = "use ultrafeedback, shp, llava or trl data"
                yield ("data", "train", index, "format"), source.format, mistake(what, right)

    @rule
    def _answers_are_somewhere(self) -> Iterator[Mistake]:
        for group, index, source in self._sources() if self.objective.requirements.least else ():
            if not source.kind_of_rows.answers:
                what = f"rows of the {source.format} format have no answers to learn from"
                right = "use llava, trl or rlaif_v data"
                yield ("data", group, index, "format"), source.format, mistake(what, right)

    @rule
    def _tiles_are_cut(self) -> Iterator[Mistake]:
        tiling = self.model.tiling
        for group, index, source in self._sources() if self.model.pretrained is None else ():
            path = ("data", group, index, "max_tiles")
            if source.max_tiles is None:
                continue
            if tiling.kind != "dynamic":
                what = f"an image is one square where the kind of model.tiling is {tiling.kind}, this would do nothing"
                yield path, source.max_tiles, mistake(what, "remove it, or write model.tiling: {kind: dynamic}")
            elif source.max_tiles > tiling.max_tiles:
                what = f"model.tiling cuts at most {tiling.max_tiles} tiles, a larger number would do nothing"
                yield path, source.max_tiles, mistake(what, f"write at most {tiling.max_tiles}")

    @rule
    def _rates_are_of_what_is_trained(self) -> Iterator[Mistake]:
        named = [part for part in PartRates.model_fields if getattr(self.optim.lrs, part) is not None]
        scores = self.objective.has_scoring_head or self.objective.critic_stage(0) is not None
        for part in named:
            value = getattr(self.optim.lrs, part)
            if part == "head" and not scores:
                what = f"{self.objective.method} has no scoring head, this rate would do nothing"
                yield ("optim", "lrs", part), value, mistake(what, "remove it")
            elif training_of(part, self.model) == "frozen":
                what = f"{part} is frozen, this rate would do nothing"
                yield ("optim", "lrs", part), value, mistake(what, f"remove it, or train {part}")

    def _sources(self) -> Iterator[tuple[str, int, Source]]:
        """All sources, with the list and the place that they stand at."""
        for group, sources in (("train", self.data.train), ("input", self.data.input), ("eval", self.data.eval)):
            for index, source in enumerate(sources):
                yield group, index, source

    @rule
    def _half_precision_on_cpu(self) -> Iterator[Mistake]:
        if self.precision == "fp16" and not self.resources.gpus_per_node:
            right = "write fp32 or bf16, or ask for gpus_per_node"
            yield ("precision",), self.precision, mistake("fp16 needs a GPU", right)

    @rule
    def _half_precision_keeps_masters(self) -> Iterator[Mistake]:
        """DeepSpeed's own optimiser for fp16 without ZeRO clips wrongly: its first update is not that of fp32."""
        if self.precision == "fp16" and not self.deepspeed.stage:
            what = "fp16 needs the full-precision weights that ZeRO keeps"
            yield ("precision",), self.precision, mistake(what, "write deepspeed: {stage: 1}, or precision: bf16")

    @rule
    def _states_in_half_precision(self) -> Iterator[Mistake]:
        """DeepSpeed's own conditions."""
        own = self.deepspeed
        if own.optimizer_states == "fp32":
            return
        place, wrong = ("deepspeed", "optimizer_states"), own.optimizer_states
        if self.precision != "bf16":
            yield place, wrong, mistake(f"bf16 states do not go with precision {self.precision}", "write fp32")
        elif not own.stage or own.offload != "none":
            what = "bf16 states need ZeRO stage 1 to 3 without offload"
            yield place, wrong, mistake(what, "write stage: 1 and offload: none, or optimizer_states: fp32")

    @rule
    def _weights_fit_the_arithmetic(self) -> Iterator[Mistake]:
        """At stage 0, autocast works with fp32 weights. In all other cases every weight has one and the same type."""
        whole = self.precision == "bf16" and not self.deepspeed.stage and self.model.weights == "fp32"
        if self.model.weights not in ("auto", self.precision) and not whole:
            at = f" at ZeRO stage {self.deepspeed.stage}" if self.model.weights == "fp32" else ""
            what = f"weights in {self.model.weights} do not go with precision {self.precision}{at}"
            yield ("model", "weights"), self.model.weights, mistake(what, "write auto, or remove it")

    @rule
    def _shapes_are_images(self) -> Iterator[Mistake]:
        if self.model.vision is not None or self.model.pretrained is not None:
            return
        for group, index, source in self._sources():
            if source.kind_of_rows.generated:
                what = mistake("shapes are images, and the model has no vision encoder", "add model.vision")
                yield ("data", group, index, "format"), source.format, what

    @rule
    def _measured_on_something(self) -> Iterator[Mistake]:
        if self.evaluate.every is not None and not self.data.eval:
            yield ("evaluate", "every"), None, mistake("there are no evaluation data", "add data.eval, or remove every")

    @rule
    def _warmup_ends(self) -> Iterator[Mistake]:
        steps, warmup = self.steps, self.optim.warmup.steps
        if steps is not None and warmup is not None and warmup > steps:
            what = f"a warm-up of {warmup} steps is longer than the run ({steps})"
            yield ("optim", "warmup"), None, mistake(what, "write 3%, or fewer steps")

    @rule
    def _one_way_to_fill_rows(self) -> Iterator[Mistake]:
        if self.batch.micro is not None and self.batch.tokens_per_gpu is not None:
            what = "both micro and tokens_per_gpu say what a rank works on at a time"
            yield ("batch", "micro"), self.batch.micro, mistake(what, "keep one of the two")
