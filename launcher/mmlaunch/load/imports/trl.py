"""Configurations of TRL: `trl dpo --config dpo.yaml`, its example scripts, and its `...Config` classes."""

from __future__ import annotations

import re

from mmlaunch.errors import UserError
from mmlaunch.load.imports import trainer, trl_grpo
from mmlaunch.load.imports.configuration import Configuration, Machines, words_of
from mmlaunch.load.imports.draft import Draft, Nothing, Table, To, fill
from mmlaunch.load.imports.preference import put_terms
from mmlaunch.load.imports.trainer import Defaults, copied, put_model, quantised, sees, targets

NAME = "TRL"
METHODS = ("sft", "reward", "dpo", "kto", "grpo")
MARKS_OF_METHODS: dict[str, tuple[str, ...]] = {
    "grpo": (
        "reward_funcs", "num_generations", "max_completion_length", "scale_rewards", "epsilon", "epsilon_high",
        "num_iterations", "vllm_mode", "use_vllm", "steps_per_generation",
    ),
    "kto": ("desirable_weight", "undesirable_weight"),
    "reward": ("center_rewards_coefficient",),
    "dpo": (
        "loss_type", "loss_weights", "precompute_ref_log_probs", "rpo_alpha", "ld_alpha", "f_divergence_type",
        "use_weighting", "sync_ref_model", "discopop_tau", "truncation_mode", "beta", "label_smoothing",
    ),
    "sft": (
        "packing", "packing_strategy", "assistant_only_loss", "completion_only_loss", "dataset_text_field",
        "max_seq_length", "eval_packing", "padding_free",
    ),
}  # fmt: skip
"""Arguments by which a method is recognised where nothing names it; the first method with one of them is meant."""
MARKS = frozenset(name for names in MARKS_OF_METHODS.values() for name in names) | {
    "dataset_name", "datasets", "use_peft", "lora_r", "lora_target_modules", "dataset_train_split",
    "dataset_test_split", "dataset_config", "max_prompt_length", "model_revision", "max_length",
}  # fmt: skip
PROGRAM = re.compile(
    r"trl (sft|dpo|kto|grpo|reward)|(sft|dpo|kto|grpo|reward|mpo)(?:_\w+)?\.py|(SFT|DPO|KTO|GRPO|Reward)Config",
    re.IGNORECASE,
)
DEFAULTS = {
    "dpo": Defaults(lr=1e-6, precision="bf16"), "sft": Defaults(lr=2e-5, precision="bf16"),
    "grpo": Defaults(lr=1e-6, precision="bf16"), "kto": Defaults(lr=1e-6, precision="bf16"),
    "reward": Defaults(lr=1e-4, precision="bf16"),
}  # fmt: skip
DIVERGENCES = {
    "reverse_kl": "reverse_kl",
    "forward_kl": "forward_kl",
    "js_divergence": "js",
    "alpha_divergence": "alpha",
}

TABLE: Table = {
    "lora_r": To("model.lora.rank"),
    "lora_alpha": To("model.lora.alpha"),
    "lora_dropout": To("model.lora.dropout"),
    "lora_target_modules": To("model.lora.targets", targets),
    "use_rslora": To("model.lora.rslora"),
    "use_dora": To("model.lora.dora"),
    "center_rewards_coefficient": To("objective.centre"),
    "lora_task_type": Nothing("the objective decides it"),
    "lora_modules_to_save": Nothing("model.train says which parts are trained in full"),
    "load_in_4bit": To("model.lora.quantise", quantised),
    "load_in_8bit": Nothing("the only quantised weights have 4 bits: model.lora.quantise: nf4"),
    "bnb_4bit_quant_type": Nothing("the type of model.lora.quantise is nf4"),
    "use_bnb_nested_quant": Nothing("model.lora.quantise always quantises the scales too"),
    "model_revision": Nothing("name a local copy of this revision in model.pretrained"),
    "dataset_config": Nothing("a data set of the hub: config: NAME in its source"),
    "dataset_streaming": Nothing("a data set of the hub: streaming: true in its source, and data.shuffle: shards"),
    "dataset_text_field": Nothing("a format reads the columns that it knows: mmlaunch data --formats"),
    "dataset_kwargs": Nothing("a format reads the columns that it knows: mmlaunch data --formats"),
    "packing": Nothing("rows are always packed, up to batch.tokens_per_gpu"),
    "packing_strategy": Nothing("rows are always packed, up to batch.tokens_per_gpu"),
    "eval_packing": Nothing("rows are always packed"),
    "padding_free": Nothing("rows are always packed, without padding"),
    "assistant_only_loss": Nothing("only answers are learnt from"),
    "completion_only_loss": Nothing("only answers are learnt from"),
    "truncation_mode": Nothing("data.overlong: cut takes the end of an answer away"),
    "precompute_ref_log_probs": Nothing("the reference is precomputed, unless objective.reference says otherwise"),
    "disable_dropout": Nothing("there is no dropout, unless model.dropout says otherwise"),
    "use_liger_loss": Nothing("the logits of a whole batch never exist here"),
    "model_init_kwargs": Nothing("what a recipe knows of a model stands in its model section"),
    "chat_template_path": Nothing("the template of the model; another: model.chat_template"),
    "use_vllm": Nothing("the trainer generates; servers of vLLM on nodes of their own: objective.engine"),
    "vllm_mode": Nothing("objective.engine"),
    "vllm_gpu_memory_utilization": Nothing("objective.engine.options"),
    "vllm_tensor_parallel_size": Nothing("objective.engine.gpus_per_server"),
    "log_completions": Nothing("evaluate.samples says how many answers are logged"),
    "mask_truncated_completions": Nothing("objective.shaping.no_end says what an unfinished answer gets"),
    "importance_sampling_level": Nothing("objective.loss: gspo is the ratio of whole answers"),
    "repetition_penalty": Nothing("answers are learnt from as they are drawn"),
}


def recognises(config: Configuration) -> int:
    """How strongly a configuration looks like one of TRL."""
    return 20 * bool(PROGRAM.fullmatch(config.program)) + len(MARKS & config.arguments.keys())


def convert(config: Configuration, draft: Draft, machines: Machines, method: str | None) -> str:
    """Fill the draft; returns what the configuration is of: `trl dpo`."""
    method, certain = (method, True) if method else _method(config)
    _model(config, draft)
    _data(config, draft, method)
    {"sft": _sft, "reward": _reward, "dpo": _dpo, "kto": _kto, "grpo": trl_grpo.convert}[method](config, draft)
    if not certain:
        path = "objective.terms" if draft.get("objective.terms") else "objective.method"
        more = f"; {draft.comments[path]}" if path in draft.comments else ""
        why = "the file does not name its method; another one: --method NAME"
        draft.guess(path, draft.get(path), f"{why}{more}")
    fill(draft, config, TABLE)
    trainer.convert(config, draft, DEFAULTS[method], machines)
    if method == "grpo":
        trl_grpo.put_rollouts(config, draft)
    return f"trl {method}"


def _method(config: Configuration) -> tuple[str, bool]:
    """The method, and whether the configuration names it."""
    if named := PROGRAM.fullmatch(config.program):
        word = next(group for group in named.groups() if group).lower()
        return ("dpo" if word == "mpo" else word), True
    for method, marks in MARKS_OF_METHODS.items():
        if any(config.has(mark) for mark in marks):
            return method, False
    words = f"{config.path.stem} {config.arguments.get('output_dir', '')}".lower()
    if named := re.search("|".join(METHODS), words):
        return named.group(), False
    raise UserError(f"{config.path}: does not say what is trained; add --method with one of {', '.join(METHODS)}")


def _model(config: Configuration, draft: Draft) -> None:
    name = config.take("model_name_or_path")
    put_model(draft, name)
    if not config.take("use_peft", default=False):
        parts = ("vision", "projector", "language") if sees(name) else ("language",)
        draft.put("model.train", dict.fromkeys(parts, "full"))
        for key in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"):
            if config.has(key):
                draft.leave(key, config.take(key), "use_peft is not set")
        return
    layers = targets(config.arguments.get("lora_target_modules"))
    both = sees(name) and layers == "all-linear"
    train = {"vision": "lora" if both else "frozen", "projector": "frozen", "language": "lora"}
    if sees(name):
        draft.guess("model.train", train, "TRL also puts adapters beside layers of the frozen parts whose names fit")
    else:
        draft.put("model.train", train)
    for path, value in (("rank", 16), ("alpha", 32), ("dropout", 0.05)):
        draft.default(f"model.lora.{path}", value)
    if not config.has("lora_target_modules"):
        draft.guess("model.lora.targets", "all-linear", "the configuration leaves it to peft")


def _data(config: Configuration, draft: Draft, method: str) -> None:
    split, held_out = config.take("dataset_train_split"), config.take("dataset_test_split")
    mixture = config.take("datasets")
    mixture = mixture if isinstance(mixture, list) else []
    name = config.take("dataset_name")
    sources = [item for item in mixture if isinstance(item, dict)] or ([{"path": name}] if name else [])
    train = []
    for index, item in enumerate(sources):
        path, comment = copied(str(item.get("path")))
        own = item.get("split") or split
        train.append({"path": path, **({"split": own} if own else {})})
        if comment:
            draft.comments[f"data.train[{index}]"] = comment
        for key in item.keys() - {"path", "split"}:
            draft.leave(f"datasets[{index}].{key}", item[key], "copy these rows to a file of their own")
    if not train:
        train = [{"path": "data/train.jsonl"}]
        draft.comments["data.train[0]"] = "guess: the configuration names no data"
    comments = {key: text for key, text in draft.comments.items() if key.startswith("data.")}
    draft.put("data.train", train)
    wants = config.arguments.get("eval_strategy", config.arguments.get("evaluation_strategy", "no")) not in (
        "no",
        False,
    )
    if name and (held_out or wants):
        draft.put("data.eval", [{"path": train[0]["path"], "split": held_out or "test"}])
    draft.comments.update(comments)
    longest = config.take("max_length", "max_seq_length")
    if method == "grpo":
        answer = config.whole("max_completion_length", default=trl_grpo.ANSWER)
        longest = config.whole("max_prompt_length", default=512) + answer
    elif config.has("max_prompt_length"):
        draft.leave(
            "max_prompt_length", config.take("max_prompt_length"), "data.max_tokens counts prompt and answer together"
        )
    if longest is None and {"max_length", "max_seq_length"} & config.arguments.keys():
        draft.guess("data.max_tokens", 8192, "the configuration sets no limit")
    elif longest is None:
        draft.default("data.max_tokens", 1024)
    else:
        draft.put("data.max_tokens", longest)
    if method in ("sft", "dpo", "kto"):
        draft.put("data.overlong", "cut")


def _sft(config: Configuration, draft: Draft) -> None:
    draft.put("objective.method", "sft")
    if (loss := config.take("loss_type")) not in (None, "nll"):
        draft.leave("loss_type", loss, "supervised fine-tuning has one loss")


def _reward(config: Configuration, draft: Draft) -> None:
    draft.put("objective.method", "reward")


def _dpo(config: Configuration, draft: Draft) -> None:
    names = words_of(config.take("loss_type", default="sigmoid"))
    weights = config.numbers("loss_weights", len(names), "losses")
    if (sft := config.number("rpo_alpha")) > 0:
        names, weights = [*names, "sft"], [*weights, sft]
    tau = config.take("discopop_tau")
    options = {"discopop": {"tau": tau}} if tau is not None else {}
    put_terms(draft, names, weights, options, config.number("label_smoothing"))
    _put_or_default(config, draft, "beta", 0.1)
    if (kind := config.take("f_divergence_type")) not in (None, "reverse_kl"):
        draft.put("objective.divergence", DIVERGENCES.get(str(kind), kind))
        draft.put("objective.divergence_alpha", config.take("f_alpha_divergence_coef", default=0.5))
    if config.take("use_weighting"):
        draft.put("objective.wpo", True)
    if (alpha := config.take("ld_alpha")) is not None:
        draft.put("objective.ld_alpha", alpha)
    if config.take("reference_free"):
        draft.put("objective.reference", "none")
    if config.take("sync_ref_model"):
        every, mix = config.take("ref_model_sync_steps", default=512), config.take("ref_model_mixup_alpha", default=0.6)
        draft.put("objective.reference", "copy")
        draft.put("objective.reference_sync", {"every": every, "mix": mix})


def _kto(config: Configuration, draft: Draft) -> None:
    loss = config.take("loss_type", default="kto")
    if loss != "kto":
        draft.leave("loss_type", loss, "of single answers there is kto alone; apo_zero and others need pairs")
    weights = {"desirable": config.take("desirable_weight"), "undesirable": config.take("undesirable_weight")}
    draft.put("objective.method", "kto")
    if written := {key: value for key, value in weights.items() if value is not None}:
        draft.put("objective.terms", {"kto": written})
    _put_or_default(config, draft, "beta", 0.1)


def _put_or_default(config: Configuration, draft: Draft, name: str, value: float) -> None:
    if config.has(name):
        draft.put(f"objective.{name}", config.take(name))
    else:
        draft.default(f"objective.{name}", value)
