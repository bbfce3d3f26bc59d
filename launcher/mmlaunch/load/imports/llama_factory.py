"""Configurations of LLaMA-Factory: `llamafactory-cli train examples/train_lora/llama3_lora_dpo.yaml`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmlaunch.errors import UserError
from mmlaunch.load.imports import trainer
from mmlaunch.load.imports.configuration import Configuration, Machines, words_of
from mmlaunch.load.imports.draft import Draft, Nothing, Table, To, fill
from mmlaunch.load.imports.preference import put_terms
from mmlaunch.load.imports.trainer import Defaults, put_model, quantised, sees, targets

NAME = "LLaMA-Factory"
METHODS = {"sft": "sft", "rm": "reward", "ppo": "ppo", "dpo": "dpo", "kto": "kto"}
"""Its stages, and the methods of the same name here."""
MARKS = frozenset({
    "stage", "finetuning_type", "template", "cutoff_len", "dataset", "dataset_dir", "lora_rank", "lora_target",
    "pref_loss", "pref_beta", "pref_ftx", "val_size", "media_dir", "freeze_vision_tower", "image_max_pixels",
    "freeze_multi_modal_projector", "quantization_bit", "mask_history", "train_on_prompt", "flash_attn",
})  # fmt: skip
DEFAULTS = Defaults(lr=5e-5)
TEMPLATES = {"llama3": "llama-3", "llama2": "llama-2", "vicuna": "vicuna", "llava": "vicuna"}
"""Its templates, and those of the same text that come with mmlaunch."""

_PIXELS = "the processor of the model says how large images are"
_PACKED = "rows are always packed, up to batch.tokens_per_gpu, and examples never see each other"

TABLE: Table = {
    "cutoff_len": To("data.max_tokens"),
    "additional_target": Nothing("model.train says which parts are trained in full"),
    "use_rslora": To("model.lora.rslora"),
    "use_dora": To("model.lora.dora"),
    "loraplus_lr_ratio": Nothing("both matrices of an adapter have one rate"),
    "pissa_init": Nothing("adapters begin with nothing added"),
    "create_new_adapter": Nothing("name the export of the first run in model.init_from"),
    "adapter_name_or_path": Nothing("merge it (llamafactory-cli export), and name the result in model.pretrained"),
    "quantization_bit": To("model.lora.quantise", quantised),
    "quantization_method": Nothing("model.lora.quantise is done by bitsandbytes"),
    "double_quantization": Nothing("model.lora.quantise always quantises the scales too"),
    "image_max_pixels": Nothing(_PIXELS),
    "image_min_pixels": Nothing(_PIXELS),
    "video_max_pixels": Nothing("videos are not read"),
    "video_maxlen": Nothing("videos are not read"),
    "packing": Nothing(_PACKED),
    "neat_packing": Nothing(_PACKED),
    "mask_history": Nothing("only the last answer is learnt from, unless the format marks others"),
    "train_on_prompt": Nothing("prompts are not learnt from"),
    "val_size": Nothing("cut it off once: mmlaunch split DATA parts --parts train=95,test=5; then data.eval"),
    "streaming": Nothing("a data set of the hub: streaming: true in its source, and data.shuffle: shards"),
    "mix_strategy": Nothing("the sources of data.train are mixed by their rows; repeat weighs them"),
    "interleave_probs": Nothing("the sources of data.train are mixed by their rows; repeat weighs them"),
    "tokenized_path": Nothing("what is known of the data is kept in the run"),
    "flash_attn": Nothing("mmlaunch has its own packed attention"),
    "enable_liger_kernel": To("model.liger", bool),
    "use_unsloth": Nothing("mmlaunch has its own packed attention and chunked logits"),
    "use_galore": Nothing("AdamW is the only optimiser"),
    "use_badam": Nothing("AdamW is the only optimiser"),
    "rope_scaling": Nothing("write it into config.json of a local copy of the model"),
    "resize_vocab": Nothing("the vocabulary of the model stays"),
    "ref_model": Nothing("the reference is the model that training begins with"),
    "ref_model_adapters": Nothing("the reference is the model that training begins with"),
    "reward_model_type": Nothing("a reward run is read with the adapters that it has"),
    "ppo_epochs": To("objective.epochs"),
    "ppo_target": To("objective.kl.target_per_sequence"),
    "ppo_score_norm": To("objective.shaping.normalise"),
    "ppo_whiten_rewards": Nothing("advantages are whitened; objective.shaping says what becomes of scores"),
    "predict_with_generate": Nothing("mmlaunch submit a recipe with objective: predict"),
    "do_predict": Nothing("mmlaunch submit a recipe with objective: predict"),
    "compute_accuracy": Nothing("token accuracy is always measured"),
    "use_swanlab": Nothing("curves are written for TensorBoard: mmlaunch board RUN"),
    "ray_run_name": Nothing("ranks are started by Slurm, or on this machine"),
    "disable_gradient_checkpointing": To("model.activation_checkpointing", lambda value: "off" if value else "auto"),
    "moe_aux_loss_coef": Nothing("experts have no loss of their own"),
    "upcast_layernorm": Nothing("norms are computed in fp32"),
    "include_num_input_tokens_seen": Nothing("tokens are always counted"),
}


def recognises(config: Configuration) -> int:
    """How strongly a configuration looks like one of LLaMA-Factory."""
    return 20 * config.program.startswith("llamafactory-cli") + len(MARKS & config.arguments.keys())


def convert(config: Configuration, draft: Draft, machines: Machines, method: str | None) -> str:
    """Fill the draft; returns what the configuration is of: `stage: dpo`."""
    stage = str(config.take("stage", default="sft"))
    if stage not in METHODS:
        known = ", ".join(METHODS)
        raise UserError(f"{config.path}: stage: {stage} has no counterpart; those that have: {known}")
    _model(config, draft)
    _data(config, draft)
    _objective(config, draft, METHODS[stage])
    fill(draft, config, TABLE)
    draft.default("data.max_tokens", 2048)
    draft.put("data.overlong", "cut")
    trainer.convert(config, draft, DEFAULTS, machines)
    if stage == "ppo":
        rounds = config.whole("ppo_buffer_size", default=1)
        draft.put("objective.rollouts", draft.get("batch.global") * rounds)
    return f"stage: {stage}"


def _model(config: Configuration, draft: Draft) -> None:
    name = config.take("model_name_or_path")
    put_model(draft, name)
    way = str(config.take("finetuning_type", default="lora"))
    if way == "freeze":
        draft.leave("finetuning_type", way, "a part is trained as a whole, with LoRA, or not at all")
        for key in ("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules"):
            if config.has(key):
                draft.leave(key, config.take(key), "a part is trained as a whole, with LoRA, or not at all")
    elif way not in ("lora", "full"):
        draft.leave("finetuning_type", way, "a part is trained with LoRA or in full")
    way = "lora" if way == "lora" else "full"
    frozen = {
        "vision": config.take("freeze_vision_tower", default=True),
        "projector": config.take("freeze_multi_modal_projector", default=True),
        "language": config.take("freeze_language_model", default=False),
    }
    train = {part: "frozen" if frozen[part] else way for part in frozen}
    if train["projector"] == "lora":
        train["projector"] = "frozen"
        draft.leave(
            "freeze_multi_modal_projector",
            False,
            "a projector is trained in full, or not at all: model.train.projector",
        )
    draft.put("model.train", train if sees(name) or way == "lora" else {"language": way})
    _lora(config, draft, "lora" in train.values())
    template = str(config.take("template", default=""))
    if template in TEMPLATES:
        draft.put("model.chat_template", TEMPLATES[template], f"template: {template}")
    elif template:
        draft.put(
            "model.chat_template", "processor", f"template: {template}; this is the one that comes with the model"
        )


def _lora(config: Configuration, draft: Draft, used: bool) -> None:
    rank = config.whole("lora_rank", default=8)
    alpha, dropout = config.take("lora_alpha", default=2 * rank), config.take("lora_dropout", default=0.0)
    layers = targets(config.take("lora_target", default="all"))
    if used:
        draft.put("model.lora", {"rank": rank, "alpha": alpha, "dropout": dropout, "targets": layers})


def _data(config: Configuration, draft: Draft) -> None:
    limit = config.take("max_samples")
    folder, media = str(config.take("dataset_dir", default="data")), config.take("media_dir")
    more = {**({"images": str(media)} if media else {}), **({"limit": limit} if limit else {})}
    comments: dict[str, str] = {}
    for group, names in (("train", words_of(config.take("dataset"))), ("eval", words_of(config.take("eval_dataset")))):
        sources = []
        for index, name in enumerate(names):
            path, comment = _place_of(config, folder, name)
            sources.append({"path": path, **more})
            if comment:
                comments[f"data.{group}[{index}]"] = comment
        if sources:
            draft.put(f"data.{group}", sources)
    if not draft.get("data.train"):
        draft.put("data.train", [{"path": "data/train.json"}])
        comments["data.train[0]"] = "guess: the configuration names no data"
    draft.comments.update(comments)


def _place_of(config: Configuration, folder: str, name: str) -> tuple[str, str]:
    """The file of a data set, as dataset_info.json says, and a comment."""
    table = config.file(f"{folder}/dataset_info.json")
    entry = _entry(table, name) if table else None
    if table is not None and entry and "file_name" in entry:
        return f"{folder}/{entry['file_name']}", f"{name} in {folder}/dataset_info.json"
    if entry and "hf_hub_url" in entry:
        path, comment = trainer.copied(str(entry["hf_hub_url"]))
        return path, comment
    why = f"{folder}/dataset_info.json does not name {name}" if table else f"{folder}/dataset_info.json is not here"
    return f"{folder}/{name}.json", f"guess: {why}"


def _entry(table: Path, name: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(table.read_text(encoding="utf-8"))[name]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return entry if isinstance(entry, dict) else None


def _objective(config: Configuration, draft: Draft, method: str) -> None:
    {"sft": _plain, "reward": _plain, "ppo": _ppo, "dpo": _dpo, "kto": _kto}[method](config, draft, method)


def _plain(config: Configuration, draft: Draft, method: str) -> None:
    draft.put("objective.method", method)


def _dpo(config: Configuration, draft: Draft, method: str) -> None:
    loss, beta = str(config.take("pref_loss", default="sigmoid")), config.number("pref_beta", "dpo_beta", default=0.1)
    names, weights = [loss], [1.0]
    if loss == "orpo":
        names, weights = ["sft", "orpo"], [1.0, beta]
    elif ftx := config.number("pref_ftx", "dpo_ftx"):
        names, weights = [loss, "sft"], [1.0, ftx]
    gamma = config.take("simpo_gamma", default=0.5)
    options = {"simpo": {"gamma": gamma}} if loss == "simpo" else {}
    put_terms(draft, names, weights, options, config.number("dpo_label_smoothing"))
    if loss != "orpo":
        draft.put("objective.beta", beta)
    if (weight := config.take("pref_bco_weight")) is not None:
        draft.leave("pref_bco_weight", weight, "add bco to objective.terms with this weight")


def _kto(config: Configuration, draft: Draft, method: str) -> None:
    draft.put("objective.method", "kto")
    weights = {"desirable": config.take("kto_chosen_weight"), "undesirable": config.take("kto_rejected_weight")}
    if written := {key: value for key, value in weights.items() if value is not None}:
        draft.put("objective.terms", {"kto": written})
    draft.put("objective.beta", config.take("pref_beta", default=0.1))


def _ppo(config: Configuration, draft: Draft, method: str) -> None:
    draft.put("objective.method", "ppo")
    name = str(config.take("reward_model", default="runs/rm"))
    draft.put("objective.rewards", [{"path": name}])
    draft.comments["objective.rewards[0]"] = (
        "guess: a reward run of mmlaunch, or its export; adapters alone are not enough"
    )
    length = config.take("max_new_tokens", default=1024)
    draft.put("objective.sampling", {"max_new_tokens": length, "temperature": config.take("temperature", default=0.95)})
    for key in ("top_p", "top_k"):
        if config.has(key):
            draft.leave(key, config.take(key), "PPO learns from the whole distribution that answers are drawn from")
