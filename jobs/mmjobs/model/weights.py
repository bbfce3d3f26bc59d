"""Weights to start from: those of an earlier run, of one of its checkpoints, or of a Hugging Face directory."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Protocol

import safetensors
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
)

from mmjobs.data.sampler import seed_of
from mmjobs.model import frozen_weights
from mmjobs.model.adapters import add_saved, together
from mmjobs.model.heads import SCORE
from mmjobs.model.names import on_disk, opening, weights
from mmjobs.model.parts import ADAPTER
from mmjobs.model.pretrained import sees_images
from mmjobs.model.quantised import dense_state
from mmjobs.model.sharded import Reader, shape, undivided, whole
from mmlaunch.errors import BadInput
from mmlaunch.recipe import resolved
from mmlaunch.recipe.model import Lora, Model
from mmlaunch.run import manifest
from mmlaunch.run.paths import CheckpointPaths, RunPaths, run_of_checkpoint

FILE = "model.safetensors"


class Build(Protocol):
    """Builds the model that a run began with: its frozen weights may be kept nowhere else."""

    def __call__(self, model: Model, precision: str, scoring_head: bool) -> Any: ...


def load(network: nn.Module, checkpoint: Path, build: Build) -> None:
    """Load the weights of a checkpoint of the same model, including its adapters."""
    if damage := frozen_weights.damage(CheckpointPaths(checkpoint).engine("model") / FILE):
        raise BadInput(f"{checkpoint} cannot be read: {damage}; put it back")
    network.load_state_dict(_of_run(checkpoint, build))


def start_from(network: nn.Module, name: str, build: Build) -> None:
    """Load every weight from there; a name or a shape that does not fit is an error that names it.

    Weights that are divided over the ranks are read by the first one, which sends them to the others one by one.
    """
    folder, lora = _source_of(on_disk("model.init_from", name))
    own = network.state_dict(keep_vars=True)
    reader = Reader(own.values())
    state: dict[str, torch.Tensor] = {}
    with reader.reading() as reads:
        if reads:
            state = _of_hub(folder) if (folder / "config.json").is_file() else merged(_of_run(folder, build), lora)
            state = _fitting(own, state, name)
    names = reader.agree(set(state))
    with torch.no_grad():
        for key, value in own.items():
            if key in names:
                with whole([value]):
                    if reader.reads:
                        value.copy_(state[key])
                    reader.broadcast(value)
    add_saved(network, folder)


def _fitting(own: dict[str, torch.Tensor], state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Those of the weights that a network takes; raises `BadInput` where they are not those of such a network."""
    score = f"{SCORE}.weight"  # a missing head begins anew, and one that is not needed is ignored
    state = state if score in own else {key: value for key, value in state.items() if key != score}
    tied = {key for key, value in own.items() if key not in state and _shared(own, key, value, state)}
    without_head = {"lm_head.weight"} - state.keys() if score in own else set()  # transformers' classifiers lack it
    missing = sorted(own.keys() - state.keys() - tied - without_head - {score})
    unknown = sorted(state.keys() - own.keys())
    wrong = [f"{key} is {_shape(state[key])} there and {_shape(own[key])} here" for key in own.keys() & state.keys()
             if state[key].shape != shape(own[key])]  # fmt: skip
    for what, names in (("lacks", missing), ("has beyond this model", unknown), ("differs in shape:", sorted(wrong))):
        if names:
            some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise BadInput(f"model.init_from: {name} {what} {some}; its model must be the one of this recipe")
    unused = {key: torch.zeros(()) for key in (without_head & own.keys()) - tied}  # unwritten memory may hold NaN
    return state | unused


def _source_of(path: Path) -> tuple[Path, Lora | None]:
    """The folder that holds the weights, and the options of adapters that are not merged yet."""
    if not path.is_dir():
        raise BadInput(f"model.init_from: there is no folder {path}; give a run, a checkpoint or an export")
    run = next((run for folder in (path, *path.parents) if (run := RunPaths(folder)).resolved.is_file()), None)
    if run is None:
        return path, None
    recipe = resolved.read(run.resolved)
    if path != run.root:
        return path, recipe.model.lora
    newest, _ = manifest.newest(run.checkpoints)
    if newest is None:
        raise BadInput(f"model.init_from: {path} has no valid checkpoint yet; wait for one, or start from another run")
    return run.checkpoint(newest.step), recipe.model.lora


def merged(state: dict[str, torch.Tensor], lora: Lora | None) -> dict[str, torch.Tensor]:
    """The weights of a network without adapters, from those of a network with them."""
    state = dense_state(state)
    if lora is None:
        return state
    plain = {key.replace(".base_layer.", "."): value for key, value in state.items() if ADAPTER not in key}
    scale = lora.alpha / (lora.rank**0.5 if lora.rslora else lora.rank)
    for key, down in state.items():
        if key.endswith(".lora_A.default.weight"):
            layer = key.removesuffix(".lora_A.default.weight")
            up = state[f"{layer}.lora_B.default.weight"]
            length = state.get(f"{layer}.lora_magnitude_vector.default.weight")
            plain[f"{layer}.weight"] = together(plain[f"{layer}.weight"], down, up, scale, length)
    return plain


def _of_run(folder: Path, build: Build) -> dict[str, torch.Tensor]:
    file = CheckpointPaths(folder).engine("model") / FILE
    if not file.is_file():
        raise BadInput(f"model.init_from: {folder} holds no {FILE}; give a run, a checkpoint or an export")
    try:
        return frozen_weights.read(file, partial(_base, folder, build))
    except (OSError, safetensors.SafetensorError) as error:
        raise BadInput(f"model.init_from: {file} cannot be read: {error}") from error


def _base(folder: Path, build: Build) -> dict[str, torch.Tensor]:
    """The weights that the run of a checkpoint began with, from where its recipe names them."""
    recipe = resolved.read(run_of_checkpoint(folder.resolve() / FILE).resolved)
    with undivided(), torch.random.fork_rng(devices=()):
        torch.manual_seed(seed_of("model", recipe.seed))
        built = build(recipe.model, recipe.precision, recipe.objective.has_scoring_head)
    state: dict[str, torch.Tensor] = built.network.state_dict()
    return state


def _of_hub(folder: Path) -> dict[str, torch.Tensor]:
    """Load through transformers, which knows the names of weights in files of all versions."""
    with opening("model.init_from", str(folder)), undivided():
        config = AutoConfig.from_pretrained(folder)
        kind: Any = AutoModelForImageTextToText if sees_images(config) else AutoModelForCausalLM
        if any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
            kind = AutoModelForSequenceClassification
        network = weights(kind, str(folder), config, empty=False, dtype=config.dtype or torch.float32)
    return {**network.state_dict(), **_score(folder)}


def _score(folder: Path) -> dict[str, torch.Tensor]:
    """The head of a reward model, in a file of its own or beside the weights."""
    for path in folder.glob("*.safetensors"):
        with safetensors.safe_open(path, "pt") as file:
            if f"{SCORE}.weight" in file.keys():  # noqa: SIM118  it is no mapping
                return {f"{SCORE}.weight": file.get_tensor(f"{SCORE}.weight")}
    return {}


def _shared(own: dict[str, torch.Tensor], key: str, value: torch.Tensor, state: dict[str, Any]) -> bool:
    """Whether a weight that the file lacks is another name of one that it has."""
    return any(other in state and own[other] is value for other in own if other != key)


def _shape(value: torch.Tensor) -> str:
    return " x ".join(map(str, shape(value)))
