"""Which tiny model stands for a model that a recipe names: one of the same family, with the same kind of tokenizer."""

from __future__ import annotations

import re
from typing import Any

from mmlaunch.errors import Problem, UserError
from mmlaunch.estimate.shapes.configs import config_of
from mmlaunch.recipe.model import Model

Place = tuple[str | int, ...]
BY_NAME = (
    ("internvl", "internvl"), ("qwen25vl", "qwen2_5_vl"), ("qwen2vl", "qwen2_vl"),
    ("llavaonevision", "llava_onevision"), ("llavav16", "llava_next"), ("llavanext", "llava_next"),
    ("llava", "llava"), ("idefics2", "idefics2"),
    ("paligemma", "paligemma"), ("gemma3(?!b)", "gemma3"), ("gemma2(?!b)", "gemma2"), ("gemma", "gemma"),
    ("clip", "clip"),
    ("llama", "llama"), ("vicuna", "llama"), ("mistral", "mistral"), ("qwen3", "qwen3"), ("qwen2", "qwen2"),
)  # fmt: skip
"""What a name without a config.json is taken for: the first of these that its letters and digits match."""
LARGE = 100_000
"""Llama-2's vocabulary is smaller, that of Llama-3 larger."""
FEWEST_LAYERS = 3
BLIND = ("gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3")


class Unknown(Exception):
    """A model whose class nothing tells."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.what)
        self.problem = problem


def pieces(model: Model) -> list[tuple[Place, str, dict[str, Any]]]:
    """The fields of a model that name one, what they name, and the toy of each."""
    named: list[tuple[Place, str, dict[str, Any]]] = []
    if model.vision is not None and model.vision.path is not None:
        layer = model.vision.feature_layer
        layers = max(FEWEST_LAYERS, layer, -layer, model.train.vision_layers or 0)
        toy = _piece(("model", "vision"), model.vision.path, model, {"layers": layers})
        named.append((("model", "vision", "path"), model.vision.path, toy))
    if model.language is not None and model.language.path is not None:
        toy = _piece(("model", "language"), model.language.path, model, {})
        named.append((("model", "language", "path"), model.language.path, toy))
    if model.pretrained is not None:
        toy = _piece(("model", "pretrained"), model.pretrained, model, {})
        named.append((("model", "pretrained"), model.pretrained, toy))
    return named


def sees(model: Model) -> bool:
    """Whether a model reads images, as far as its name tells."""
    if model.pretrained is None:
        return model.vision is not None
    config = _config(model.pretrained)
    return "vision_config" in config if config else _by_name(model.pretrained) not in BLIND


def _piece(place: Place, name: str, model: Model, options: dict[str, Any]) -> dict[str, Any]:
    config = _config(name)
    family = str(config["model_type"]) if "model_type" in config else _by_name(name)
    if family is None:
        field = ".".join(map(str, place))
        what = f"no toy can be made of {name}: nothing here tells its class"
        right = f"put its config.json into a folder and write {field}: that folder"
        raise Unknown(Problem(place, what, right))
    if place[-1] == "vision":
        family = "clip" if family == "clip_vision_model" else family  # the hub has both towers in one folder
    words = (config.get("text_config") or config).get("vocab_size", 0)
    large = words >= LARGE or model.chat_template == "llama-3" or "llama3" in _plain(name)
    vocabulary = "llama-3" if large else "llama-2"
    return {"kind": "model", "title": family, "family": family, "vocabulary": vocabulary, "options": options}


def _config(name: str) -> dict[str, Any]:
    try:
        return dict(config_of(name, "model"))
    except UserError:
        return {}


def _by_name(name: str) -> str | None:
    plain = _plain(name)
    return next((family for word, family in BY_NAME if re.search(word, plain)), None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
