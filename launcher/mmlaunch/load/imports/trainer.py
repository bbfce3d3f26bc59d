"""The arguments that all these tools share: those of the Trainer of transformers (`TrainingArguments`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmlaunch.load.imports import deepspeed_files
from mmlaunch.load.imports.configuration import Configuration, Machines, words_of
from mmlaunch.load.imports.draft import Draft, NoCounterpart, Nothing, Table, To, fill
from mmlaunch.recipe.scalars import HUB_NAME
from mmlaunch.recipe.trackers import TRACKERS

USUAL_GPUS = 8


@dataclass(frozen=True)
class Defaults:
    """What a tool uses where a configuration says nothing."""

    lr: float
    epochs: float = 3.0
    micro: int = 8
    precision: str = "fp32"


def number_of_steps(value: Any) -> Any:
    if not _is_number(value):
        raise NoCounterpart("is no number of steps")
    if value < 1:
        raise NoCounterpart("a share of all steps; write a number of steps")
    return int(value)


def on_or_off(value: Any) -> str:
    return "on" if value else "off"


TABLE: Table = {
    "learning_rate": To("optim.lr"),
    "weight_decay": To("optim.weight_decay"),
    "max_grad_norm": To("optim.clip"),
    "adam_epsilon": To("optim.eps"),
    "seed": To("seed"),
    "save_total_limit": To("checkpoint.keep"),
    "dataloader_num_workers": To("data.workers"),
    "gradient_checkpointing": To("model.activation_checkpointing", on_or_off),
    "logging_steps": To("log.every", number_of_steps),
    "output_dir": Nothing("runs stand in ./runs, or in $MMLAUNCH_RUNS"),
    "run_name": Nothing("the recipe has a name"),
    "logging_dir": Nothing("each run has its own curves: mmlaunch board"),
    "plot_loss": Nothing("mmlaunch report RUN --html draws it"),
    "overwrite_output_dir": Nothing("each submission has a run directory of its own"),
    "resume_from_checkpoint": Nothing("a run goes on by itself after each restart; mmlaunch resume RUN"),
    "ignore_data_skip": Nothing("a run that goes on continues with the next examples"),
    "save_only_model": Nothing("checkpoints hold what an exact restart needs; mmlaunch export writes the model alone"),
    "save_strategy": Nothing("checkpoint.every: 500 steps, or 30m"),
    "save_safetensors": Nothing("always"),
    "do_train": Nothing("the objective trains"),
    "do_eval": Nothing("evaluate"),
    "per_device_eval_batch_size": Nothing("evaluation uses the rows of training"),
    "data_seed": Nothing("seed decides the order too"),
    "ddp_timeout": Nothing("a hang is noticed by heartbeats: restarts.hang"),
    "ddp_find_unused_parameters": Nothing("DeepSpeed has no such choice"),
    "gradient_checkpointing_kwargs": Nothing("model.activation_checkpointing: on, off or auto"),
    "group_by_length": Nothing("rows are packed, and shared out over ranks by their length"),
    "remove_unused_columns": Nothing("a format reads the columns that it knows"),
    "preprocessing_num_workers": Nothing("rows are tokenised while training: data.workers"),
    "dataset_num_proc": Nothing("rows are tokenised while training: data.workers"),
    "dataloader_pin_memory": Nothing("always"),
    "overwrite_cache": Nothing("what is kept of the data is named by their content"),
    "logging_first_step": Nothing("the first step is always logged"),
    "logging_strategy": Nothing("log.every: 10"),
    "attn_implementation": Nothing("mmlaunch has its own packed attention"),
    "use_liger_kernel": To("model.liger", bool),
    "torch_compile": Nothing("models are not compiled"),
    "tf32": Nothing("matrices are multiplied in the precision of the recipe"),
    "neftune_noise_alpha": Nothing("noise in embeddings is not offered"),
    "push_to_hub": Nothing("push_to: ORG/NAME sends the model when the run is done"),
    "hub_token": Nothing("env: [HF_TOKEN] passes it on from your shell"),
    "hub_model_id": Nothing("mmlaunch export RUN writes a Hugging Face directory"),
    "trust_remote_code": Nothing("if you trust it: model.remote_code: run what the checkpoint ships"),
    "load_best_model_at_end": Nothing("the best checkpoint is kept: checkpoint.best"),
    "torch_dtype": Nothing("model.weights: auto follows the precision"),
    "dtype": Nothing("model.weights: auto follows the precision"),
}


def convert(config: Configuration, draft: Draft, defaults: Defaults, machines: Machines) -> None:
    """Take over the arguments of the Trainer; the tool has put its own before."""
    draft.put("name", _name(config))
    draft.default("optim.lr", defaults.lr)
    _schedule(config, draft)
    _length(config, draft, defaults)
    _precision(config, draft, defaults)
    deepspeed_files.convert(config, draft)
    _saving(config, draft)
    _reports(config, draft)
    _batch(config, draft, defaults, machines)
    fill(draft, config, TABLE)


def machines_of(config: Configuration, nodes: int | None, gpus: int | None) -> Machines:
    """The machines that the user names, or those of the configuration's own launcher, or 1 node of 8 GPUs."""
    own = config.launcher
    per_node = gpus or _count(own, "nproc_per_node", "nproc-per-node", "ntasks-per-node", "num_gpus")
    processes = _count(own, "ntasks", "num_processes")
    whole = nodes or _count(own, "nodes", "nnodes", "num_machines", "num_nodes")
    if per_node is None and processes is not None:
        per_node = max(1, processes // (whole or 1))
    if whole is None and processes is not None and per_node is not None:
        whole = max(1, processes // per_node)
    return Machines(whole or 1, per_node or USUAL_GPUS, known=per_node is not None)


def _count(options: dict[str, Any], *names: str) -> int | None:
    return next((options[name] for name in names if isinstance(options.get(name), int) and options[name] > 0), None)


def _name(config: Configuration) -> str:
    """After the run, the folder or the file of the configuration."""
    folder = str(config.arguments.get("output_dir") or "").rstrip("/").rpartition("/")[2]
    wanted = next(
        text
        for text in (str(config.arguments.get("run_name") or ""), folder, config.path.stem, "imported")
        if re.search("[A-Za-z0-9]", text) and "$" not in text
    )
    return re.sub(r"[^A-Za-z0-9._-]+", "-", wanted).strip("-._")[:79].lower()


def _schedule(config: Configuration, draft: Draft) -> None:
    kind = str(config.take("lr_scheduler_type", default="linear"))
    more = config.take("lr_scheduler_kwargs", default={})
    known = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}
    if (
        kind == "cosine_with_min_lr"
        and isinstance(more, dict)
        and _is_number(more.get("min_lr_rate", more.get("min_lr")))
    ):
        draft.put("optim.schedule", "cosine")
        rate = config.number("learning_rate", default=1)
        draft.put("optim.lr", rate)
        draft.put("optim.final_lr", more["min_lr_rate"] if "min_lr_rate" in more else float(more["min_lr"]) / rate)
    elif kind not in known:
        draft.guess("optim.schedule", "cosine", f"there is no schedule {kind}")
    elif config.has("lr_scheduler_type"):
        draft.put("optim.schedule", known[kind])
    else:
        draft.default("optim.schedule", "linear")
    steps, share = config.number("warmup_steps"), config.number("warmup_ratio")
    if 0 < steps < 1:  # newer releases of transformers read a share here
        steps, share = 0, steps
    if steps or share:
        draft.put("optim.warmup", f"{steps:g} steps" if steps else f"{share * 100:g}%")
    else:
        draft.default("optim.warmup", "0%")
    betas = [config.take("adam_beta1", default=0.9), config.take("adam_beta2", default=0.999)]
    if {"adam_beta1", "adam_beta2"} & config.arguments.keys():
        draft.put("optim.betas", betas)
    draft.default("optim.betas", betas)
    name = str(config.take("optim", default="adamw_torch"))
    if "adamw" not in name or "8bit" in name or "paged" in name:
        draft.leave("optim", name, "AdamW with 32-bit states is the only optimiser")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _length(config: Configuration, draft: Draft, defaults: Defaults) -> None:
    steps, epochs = config.whole("max_steps", default=-1), config.take("num_train_epochs")
    if steps > 0:
        draft.put("steps", steps)
    elif epochs is not None:
        draft.put("epochs", epochs)
    else:
        draft.default("epochs", defaults.epochs)


def _precision(config: Configuration, draft: Draft, defaults: Defaults) -> None:
    bf16, fp16 = config.take("bf16", "pure_bf16"), config.take("fp16")
    if bf16 is None and fp16 is None:
        draft.default("precision", defaults.precision)
    elif bf16 or fp16:
        draft.put("precision", "bf16" if bf16 else "fp16")
    else:
        draft.put("precision", "fp32")


def _saving(config: Configuration, draft: Draft) -> None:
    steps, strategy = config.number("save_steps"), config.arguments.get("save_strategy", "steps")
    if steps > 0 and strategy == "steps":
        if steps < 1:
            draft.leave("save_steps", steps, "a share of all steps; write checkpoint.every: 500 steps")
        else:
            draft.put("checkpoint.every", f"{int(steps)} steps")
        config.take("save_strategy")
    evaluates = draft.get("data.eval") is not None
    every, when = config.number("eval_steps"), config.take("eval_strategy", "evaluation_strategy", default="no")
    if every > 0 and when == "steps" and evaluates:
        if every < 1:
            draft.leave("eval_steps", every, "a share of all steps; write evaluate.every: 500 steps")
        else:
            draft.put("evaluate.every", f"{int(every)} steps")
    elif when not in ("no", False) and not evaluates:
        draft.leave("eval_strategy", when, "there are no evaluation data; add data.eval")
    elif when == "epoch":
        draft.leave("eval_strategy", when, "a run is evaluated at its end; more often: evaluate.every: 500 steps")
    metric, larger = config.take("metric_for_best_model"), config.take("greater_is_better", default=False)
    if metric is not None and evaluates:
        draft.guess("checkpoint.best", f"eval/{str(metric).removeprefix('eval_')}", "the metric may have another name")
        draft.put("checkpoint.best_is", "highest" if larger else "lowest")
    elif metric is not None:
        draft.leave("metric_for_best_model", metric, "there are no evaluation data; add data.eval")


def _reports(config: Configuration, draft: Draft) -> None:
    names = words_of(config.take("report_to"))
    trackers = [name for name in names if name in TRACKERS]
    if trackers:
        draft.put("log.trackers", trackers)
    others = [name for name in names if name not in ("tensorboard", "none", "all", *TRACKERS)]
    if others:
        draft.leave("report_to", ", ".join(others), "curves are written for TensorBoard: mmlaunch board RUN")
    if names == ["none"]:
        draft.put("log.tensorboard", False)


def _batch(config: Configuration, draft: Draft, defaults: Defaults, machines: Machines) -> None:
    micro = config.whole("per_device_train_batch_size", default=defaults.micro)
    passes = config.whole("gradient_accumulation_steps", default=1)
    total, gpus = micro * passes * machines.world, machines.world
    text = f"{micro} on each of {gpus} GPU{'s' if gpus > 1 else ''}, {passes} times"
    draft.put("batch.global", total, f"{text} accumulated" if passes > 1 else text.removesuffix(", 1 times"))
    draft.put("batch.micro", micro)
    why = "" if machines.known else "guess: the configuration does not say on how many GPUs; --nodes, --gpus"
    draft.put("resources.nodes", machines.nodes)
    draft.put("resources.gpus_per_node", machines.gpus_per_node, why)
    partition = config.launcher.get("partition")
    if isinstance(partition, str) and "$" not in partition:
        draft.put("resources.partition", partition)


def put_model(draft: Draft, name: Any) -> None:
    """A whole model, by its name on the hub or its folder."""
    if name is None or "$" in str(name):
        draft.guess("model.pretrained", "models/NAME", "the configuration names no model")
    else:
        draft.put("model.pretrained", str(name))


_SEES = re.compile(
    r"[-_]?vl\b|vl[-_0-9]|llava|idefics|internvl|smolvlm|paligemma|pixtral|vision|gemma-?3-(?!1b)|minicpm-v|bunny|mllama",
    re.IGNORECASE,
)


def sees(name: Any) -> bool:
    """Whether a model's name is that of an image-text model."""
    return bool(_SEES.search(str(name)))


def copied(name: str) -> tuple[str, str]:
    """Where a data set is looked for, and a comment: one of the hub has to be copied to a folder first."""
    if HUB_NAME.fullmatch(name) and not Path(name).exists():
        folder = f"data/{name.rpartition('/')[2]}"
        return folder, f"guess: a copy of {name}: hf download --repo-type dataset {name} --local-dir {folder}"
    return name, ""


def quantised(value: Any) -> str | None:
    """How frozen weights are quantised: for `load_in_4bit: true` or 4 bits; None for not at all."""
    if value is True or value == 4:
        return "nf4"
    if value:
        raise NoCounterpart("the only quantised weights have 4 bits: model.lora.quantise: nf4")
    return None


def targets(value: Any) -> str:
    """The layers of adapters: all-linear, or a regular expression for the names in a list."""
    names = words_of(value)
    if not names or names in (["all-linear"], ["all"]):
        return "all-linear"
    return f"({'|'.join(re.escape(name) for name in names)})$" if len(names) > 1 else f"{re.escape(names[0])}$"
