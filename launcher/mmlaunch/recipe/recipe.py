"""The whole recipe, and the rules that need more than one of its sections."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from mmlaunch.recipe.batch import Batch, neighbours, split
from mmlaunch.recipe.checkpoint import Checkpoint, Evaluate, Log
from mmlaunch.recipe.data import Data
from mmlaunch.recipe.deepspeed import DeepSpeed
from mmlaunch.recipe.environment import Env
from mmlaunch.recipe.model import Model
from mmlaunch.recipe.objective import Objective, Preference, Reward, objective_method
from mmlaunch.recipe.optim import Optim
from mmlaunch.recipe.resources import Resources, Restarts
from mmlaunch.recipe.scalars import Count, Positive, use_default_for_none
from mmlaunch.recipe.section import Path, Section, mistake, refuse

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def _name(value: Any) -> Any:
    if isinstance(value, str) and not _NAME.fullmatch(value):
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", value).strip("-._")[:79]
        right = f"use letters, digits, '.', '_' and '-'{f', e.g. {slug}' if slug else ''}"
        raise mistake(f"{value[:60]!r} cannot be the name of a run", right)
    return value


class Recipe(Section):
    """Everything that a user may write."""

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "loss": "objective", "method": "objective", "algorithm": "objective", "optimizer": "optim",
        "optimiser": "optim", "dataset": "data", "datasets": "data", "num_train_epochs": "epochs",
        "max_steps": "steps", "slurm": "resources", "checkpoints": "checkpoint", "evaluation": "evaluate",
        "eval": "evaluate", "logging": "log", "environment": "env", "dtype": "precision", "run_name": "name",
        "zero": "deepspeed", "retries": "restarts",
    }  # fmt: skip

    name: Annotated[str, BeforeValidator(_name), Field(examples=["dpo-llama3-8b"])]
    model: Model
    data: Data
    objective: Annotated[Objective, Field(examples=["dpo"])]
    optim: Optim
    batch: Batch
    epochs: Annotated[Positive | None, Field(examples=[1])] = None
    steps: Annotated[Count | None, Field(examples=[1000])] = None
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    deepspeed: Annotated[DeepSpeed, BeforeValidator(use_default_for_none)] = Field(default_factory=DeepSpeed)
    checkpoint: Annotated[Checkpoint, BeforeValidator(use_default_for_none)] = Field(default_factory=Checkpoint)
    evaluate: Annotated[Evaluate, BeforeValidator(use_default_for_none)] = Field(default_factory=Evaluate)
    log: Annotated[Log, BeforeValidator(use_default_for_none)] = Field(default_factory=Log)
    resources: Annotated[Resources, BeforeValidator(use_default_for_none)] = Field(default_factory=Resources)
    restarts: Annotated[Restarts, BeforeValidator(use_default_for_none)] = Field(default_factory=Restarts)
    env: Annotated[Env, BeforeValidator(use_default_for_none)] = []
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="before")
    @classmethod
    def _prediction_trains_nothing(cls, data: Any) -> Any:
        """One pass and no optimiser: what training needs to be told, prediction need not be."""
        if isinstance(data, dict) and objective_method(data.get("objective")) == "predict":
            length = {} if data.get("steps") is not None else {"epochs": 1}
            return {"optim": {"lr": 1e-6}, **length, **data}
        return data

    @model_validator(mode="after")
    def _rules(self) -> "Recipe":
        refuse("recipe", broken_rules({name: getattr(self, name) for name in type(self).model_fields}))
        return self


Mistake = tuple[Path, Any, PydanticCustomError]
Rule = Callable[..., Iterator[Mistake]]


def broken_rules(parts: Mapping[str, Any], broken: Collection[object] = ()) -> Iterator[Mistake]:
    """Apply each rule that reads nothing `broken`, so that one mistake neither hides another nor makes one up."""
    for rule, reads in RULES.items():
        sections = list(dict.fromkeys(read.partition(".")[0] for read in reads))
        if all(name in parts for name in sections) and not any(read in broken for read in (*reads, *sections)):
            yield from rule(*(parts[name] for name in sections))


def _length(epochs: float | None, steps: int | None) -> Iterator[Mistake]:
    if epochs is not None and steps is not None:
        yield ("steps",), steps, mistake("both epochs and steps say how long to train", "keep one of the two")
    if epochs is None and steps is None:
        yield (), None, mistake("nothing says how long to train", "add epochs: 1 or steps: 1000")


def _batch_over_ranks(batch: Batch, resources: Resources) -> Iterator[Mistake]:
    world = resources.world
    if batch.examples % world:
        what = f"{batch.examples} examples do not divide over {resources.describe_world()}"
        yield ("batch", "global"), batch.examples, mistake(what, f"{neighbours(batch.examples, world)} would")
    elif split(batch.examples, world, batch.micro) is None:
        share = batch.examples // world
        fitting = [n for n in range(1, share + 1) if share % n == 0]
        what = f"{batch.micro} does not divide the {share} examples that each of {world} ranks has of {batch.examples}"
        right = f"{', '.join(map(str, fitting[-4:]))} would"
        yield ("batch", "micro"), batch.micro, mistake(what, right)


def _row_holds_example(batch: Batch, data: Data) -> Iterator[Mistake]:
    if batch.tokens_per_gpu is not None and batch.tokens_per_gpu < data.max_tokens:
        what = f"a row of {batch.tokens_per_gpu} tokens cannot hold an example of data.max_tokens ({data.max_tokens})"
        yield (
            ("batch", "tokens_per_gpu"),
            None,
            mistake(what, f"write at least {data.max_tokens}, or lower data.max_tokens"),
        )


def _best_needs_evaluation(checkpoint: Checkpoint, data: Data) -> Iterator[Mistake]:
    if checkpoint.best is not None and checkpoint.best.startswith("eval") and not data.eval:
        what = f"{checkpoint.best!r} is never measured: there are no evaluation data"
        yield ("checkpoint", "best"), None, mistake(what, "add data.eval, or remove best")


def _adapter_off_needs_adapter(objective: Any, model: Model) -> Iterator[Mistake]:
    if isinstance(objective, Preference) and objective.reference == "adapter off" and model.lora is None:
        yield (
            ("objective", "reference"),
            None,
            mistake("there is no adapter to switch off", "write reference: precomputed, or train with LoRA"),
        )
    elif isinstance(objective, Preference) and objective.reference == "adapter off":
        train = model.train
        parts = [part for part in ("vision", "projector", "language") if getattr(train, part) == "full"]
        if parts + (["embeddings"] if train.embeddings else []):
            what = f"without its adapter the model still has what it learns in full: {', '.join(parts) or 'embeddings'}"
            yield ("objective", "reference"), None, mistake(what, "write reference: precomputed")


def _only_whole_copies_move(objective: Any, deepspeed: DeepSpeed, model: Model) -> Iterator[Mistake]:
    if not isinstance(objective, Preference) or objective.reference_sync is None:
        return
    if deepspeed.stage == 3 or objective.reference_stage == 3:
        what = "a copy that is divided over the ranks cannot follow"
        yield ("objective", "reference_sync"), None, mistake(what, "write stage 2, or remove it")
    if model.lora is not None:
        what = "the mean of two adapters is not the adapter of the mean"
        yield ("objective", "reference_sync"), None, mistake(what, "remove it, or train in full")


def _images_need_vision(objective: Any, model: Model) -> Iterator[Mistake]:
    if (
        isinstance(objective, Preference)
        and objective.terms.image_conditional
        and not model.pretrained
        and not model.vision
    ):
        right = "add model.vision, or leave the term out"
        yield (
            ("objective", "terms"),
            None,
            mistake("image_conditional compares images, and the model has no vision encoder", right),
        )


def _scores_need_source(objective: Any, data: Data) -> Iterator[Mistake]:
    wants = isinstance(objective, Preference) and objective.terms.margin is not None
    if isinstance(objective, Reward):
        wants = objective.margin or objective.soft_labels is not None or objective.loss == "regression"
    unscored = ("rlaif_v", "mdpo", "prompts")
    for index, source in enumerate(data.train):
        if wants and source.format in unscored:
            what = f"the objective needs scores, and rows of the {source.format} format have none"
            yield (
                ("data", "train", index, "format"),
                source.format,
                mistake(what, "use ultrafeedback, shp, llava or trl data"),
            )


def _half_precision_on_cpu(precision: str, resources: Resources) -> Iterator[Mistake]:
    if precision == "fp16" and not resources.gpus_per_node:
        yield ("precision",), precision, mistake("fp16 needs a GPU", "write fp32 or bf16, or ask for gpus_per_node")


def _half_precision_keeps_masters(precision: str, deepspeed: DeepSpeed) -> Iterator[Mistake]:
    """DeepSpeed's own optimiser for fp16 without ZeRO clips wrongly: its first update is not that of fp32."""
    if precision == "fp16" and not deepspeed.stage:
        what = "fp16 needs the full-precision weights that ZeRO keeps"
        yield ("precision",), precision, mistake(what, "write deepspeed: {stage: 1}, or precision: bf16")


def _weights_fit_the_arithmetic(precision: str, model: Model, deepspeed: DeepSpeed) -> Iterator[Mistake]:
    """Autocast at stage 0 takes whole weights along; elsewhere one type is all that there is."""
    whole = precision == "bf16" and not deepspeed.stage and model.weights == "fp32"
    if model.weights not in ("auto", precision) and not whole:
        at = f" at ZeRO stage {deepspeed.stage}" if model.weights == "fp32" else ""
        what = f"weights in {model.weights} do not go with precision {precision}{at}"
        yield ("model", "weights"), model.weights, mistake(what, "write auto, or remove it")


def _shapes_are_images(data: Data, model: Model) -> Iterator[Mistake]:
    if model.vision is not None or model.pretrained is not None:
        return
    for group in ("train", "eval"):
        for index, source in enumerate(getattr(data, group)):
            if source.format == "shapes":
                what = mistake("shapes are images, and the model has no vision encoder", "add model.vision")
                yield ("data", group, index, "format"), source.format, what


def _measured_on_something(evaluate: Evaluate, data: Data) -> Iterator[Mistake]:
    if evaluate.every is not None and not data.eval:
        yield ("evaluate", "every"), None, mistake("there are no evaluation data", "add data.eval, or remove every")


def _warmup_ends(optim: Optim, steps: int | None) -> Iterator[Mistake]:
    if steps is not None and optim.warmup.steps is not None and optim.warmup.steps > steps:
        what = f"a warm-up of {optim.warmup.steps} steps is longer than the run ({steps})"
        yield ("optim", "warmup"), None, mistake(what, "write 3%, or fewer steps")


def _one_way_to_fill_rows(batch: Batch) -> Iterator[Mistake]:
    if batch.micro is not None and batch.tokens_per_gpu is not None:
        what = "both micro and tokens_per_gpu say what a rank works on at a time"
        yield ("batch", "micro"), batch.micro, mistake(what, "keep one of the two")


RULES: dict[Rule, tuple[str, ...]] = {  # each with what it reads; its sections are its arguments
    _length: ("epochs", "steps"),
    _batch_over_ranks: (
        "batch.global", "batch.micro", "resources.nodes", "resources.gpus_per_node", "resources.tasks_per_node",
    ),
    _row_holds_example: ("batch.tokens_per_gpu", "data.max_tokens"),
    _best_needs_evaluation: ("checkpoint.best", "data.eval"),
    _adapter_off_needs_adapter: ("objective.reference", "model.lora", "model.train"),
    _only_whole_copies_move: ("objective.reference_sync", "deepspeed.stage", "model.lora"),
    _images_need_vision: ("objective.terms", "model.pretrained", "model.vision"),
    _scores_need_source: ("objective.terms", "objective.loss", "data.train"),
    _shapes_are_images: ("data.train", "data.eval", "model.vision", "model.pretrained"),
    _measured_on_something: ("evaluate.every", "data.eval"),
    _warmup_ends: ("optim.warmup", "steps"),
    _one_way_to_fill_rows: ("batch.micro", "batch.tokens_per_gpu"),
    _half_precision_on_cpu: ("precision", "resources.gpus_per_node"),
    _half_precision_keeps_masters: ("precision", "deepspeed.stage"),
    _weights_fit_the_arithmetic: ("precision", "model.weights", "deepspeed.stage"),
}  # fmt: skip
