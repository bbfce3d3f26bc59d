"""Configurations of InternVL: its shell scripts, and the same arguments as JSON or YAML."""

from __future__ import annotations

from typing import Any

from mmlaunch.load.imports import trainer
from mmlaunch.load.imports.configuration import Configuration, Machines, words_of
from mmlaunch.load.imports.draft import Draft, NoCounterpart, Nothing, Table, To, fill
from mmlaunch.load.imports.preference import put_terms
from mmlaunch.load.imports.trainer import Defaults

NAME = "InternVL"
MARKS = frozenset({
    "conv_style", "meta_path", "freeze_llm", "freeze_mlp", "freeze_backbone", "use_llm_lora", "use_backbone_lora",
    "force_image_size", "down_sample_ratio", "max_dynamic_patch", "min_dynamic_patch", "dynamic_image_size",
    "use_thumbnail", "ps_version", "vision_select_layer", "drop_path_rate", "unfreeze_vit_layers", "grad_checkpoint",
    "unfreeze_lm_head", "vision_path", "mlp_path", "pad2square", "sigmoid_loss_weight", "bco_pair_loss_weight",
})  # fmt: skip
DEFAULTS = Defaults(lr=5e-5)
CONVERTED = (
    "guess: its weights have to be in transformers' own format: OpenGVLab's names that end in -HF, or "
    "transformers' convert_internvl_weights_to_hf.py"
)
_MODEL = "the configuration and the processor of the converted model say so"
_PACKED = "rows are always packed, up to batch.tokens_per_gpu"


def _template(value: Any) -> str:
    return "processor"


def _none(value: Any) -> Any:
    raise NoCounterpart("there is no drop path") if value else NoCounterpart("there is none anyway")


TABLE: Table = {
    "conv_style": To("model.chat_template", _template),
    "max_seq_length": To("data.max_tokens"),
    "grad_checkpoint": To("model.activation_checkpointing", trainer.on_or_off),
    "unfreeze_lm_head": To("model.train.embeddings", bool),
    "drop_path_rate": To("", _none),
    "use_data_resampling": Nothing("rows are drawn alike; repeat in the meta file weighs data sets"),
    "force_image_size": Nothing(_MODEL),
    "down_sample_ratio": Nothing(_MODEL),
    "ps_version": Nothing(_MODEL),
    "vision_select_layer": Nothing(_MODEL),
    "pad2square": Nothing(_MODEL),
    "dynamic_image_size": Nothing(_MODEL),
    "use_thumbnail": Nothing(_MODEL),
    "min_dynamic_patch": Nothing(_MODEL),
    "normalize_type": Nothing(_MODEL),
    "use_fast_tokenizer": Nothing("the tokenizer of the converted model"),
    "use_liger": To("model.liger", bool),
    "use_custom_trainer": Nothing("optim.lrs gives single parts rates of their own"),
    "min_num_frame": Nothing("videos are not read"),
    "max_num_frame": Nothing("videos are not read"),
    "sampling_method": Nothing("videos are not read"),
    "use_packed_ds": Nothing(_PACKED),
    "num_images_expected": Nothing(_PACKED),
    "max_packed_tokens": Nothing("batch.tokens_per_gpu, in the place of batch.micro"),
    "max_buffer_size": Nothing(_PACKED),
    "log_freq": Nothing("log.every: 10"),
    "strict_mode": Nothing(_PACKED),
    "replacement": Nothing(_PACKED),
    "allow_overflow": Nothing(_PACKED),
    "loss_reduction": Nothing("the loss is the mean over all answer tokens of a global batch"),
    "loss_reduction_all_gather": Nothing("counts are always added up over ranks"),
}


def recognises(config: Configuration) -> int:
    """How strongly a configuration looks like one of InternVL."""
    return 20 * config.program.startswith("internvl_chat") + len(MARKS & config.arguments.keys())


def convert(config: Configuration, draft: Draft, machines: Machines, method: str | None) -> str:
    """Fill the draft; returns what the configuration is of: `internvl_chat_mpo.py`."""
    _model(config, draft)
    _data(config, draft)
    prefers = config.has("loss_type") or any(word in config.program for word in ("mpo", "dpo"))
    if prefers:
        _preference(config, draft)
    else:
        draft.put("objective.method", "sft")
    fill(draft, config, TABLE)
    draft.default("data.max_tokens", 8192 if prefers else 2048)
    trainer.convert(config, draft, DEFAULTS, machines)
    if "model.chat_template" in draft.values:
        style = config.arguments["conv_style"]
        draft.put("model.chat_template", "processor", f"conv_style: {style}; the converted model has its template")
    return config.program or ("preference optimisation" if prefers else "supervised fine-tuning")


def _model(config: Configuration, draft: Draft) -> None:
    name, vision, language = config.take("model_name_or_path"), config.take("vision_path"), config.take("llm_path")
    if name is None and vision is not None and language is not None:
        draft.put("model.vision", {"path": str(vision)})
        draft.comments["model.vision"] = "guess: only CLIP encoders are joined with a language model; InternViT is none"
        draft.put("model.language", str(language))
        draft.put("model.projector", "pixel_shuffle")
        _tiles(config, draft)
        if (projector := config.take("mlp_path")) is not None:
            draft.leave("mlp_path", projector, "name a run whose projector is trained in model.init_from")
    else:
        name = name or "models/NAME"
        draft.put("model.pretrained", str(name), "" if str(name).endswith("-HF") else CONVERTED)
    _parts(config, draft)


def _tiles(config: Configuration, draft: Draft) -> None:
    """How images are cut, where no processor of a whole model decides it."""
    if config.take("dynamic_image_size", default=False):
        most, fewest = config.take("max_dynamic_patch", default=12), config.take("min_dynamic_patch", default=1)
        thumbnail = bool(config.take("use_thumbnail", default=False))
        draft.put("model.tiling", {"kind": "dynamic", "min_tiles": fewest, "max_tiles": most, "thumbnail": thumbnail})
    elif config.take("pad2square", default=False):
        draft.put("model.tiling", "pad")


def _parts(config: Configuration, draft: Draft) -> None:
    ranks = {
        "vision": config.whole("use_backbone_lora"),
        "language": config.whole("use_llm_lora"),
    }
    frozen = {
        "vision": config.take("freeze_backbone", default=False),
        "projector": config.take("freeze_mlp", default=False),
        "language": config.take("freeze_llm", default=False),
    }
    layers = config.whole("unfreeze_vit_layers")
    for part in ("vision", "projector", "language"):
        adapted = ranks.get(part, 0) > 0
        draft.put(f"model.train.{part}", "lora" if adapted else "frozen" if frozen[part] else "full")
    if layers:
        draft.put("model.train.vision", "full")
        draft.put("model.train.vision_layers", abs(layers))
    if rank := max(ranks.values()):
        draft.put("model.lora", {"rank": rank, "alpha": 2 * rank, "dropout": 0.05})
        both = min(ranks.values()) not in (0, rank)
        why = (
            "the two ranks differ, and here there is one" if both else "InternVL names the layers; here all linear ones"
        )
        draft.comments["model.lora"] = f"guess: {why}"


def _data(config: Configuration, draft: Draft) -> None:
    path = config.take("meta_path", "meta_file")
    source: dict[str, Any] = {"path": str(path or "data/meta.json"), "format": "internvl"}
    tiles = config.take("max_dynamic_patch")
    if tiles is not None:
        source["max_tiles"] = tiles
    draft.put("data.train", [source])
    if path is None:
        draft.comments["data.train[0]"] = "guess: the configuration names no data"
    draft.put("data.on_bad", "skip", "as InternVL does")


def _preference(config: Configuration, draft: Draft) -> None:
    names = words_of(config.take("loss_type", default="sigmoid"))
    weights = [config.number(f"{name}_loss_weight", default=1.0) for name in names]
    if (sft := config.number("rpo_alpha")) > 0:
        names, weights = [*names, "sft"], [*weights, sft]
    if dict(zip(names, weights, strict=True)) == {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}:
        draft.put("objective.method", "mpo", "0.8 sigmoid + 0.2 bco + 1.0 sft")
    else:
        put_terms(draft, names, weights, {}, config.number("label_smoothing"))
    if config.has("beta"):
        draft.put("objective.beta", config.take("beta"))
    else:
        draft.default("objective.beta", 0.1)
