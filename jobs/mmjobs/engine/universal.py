"""Checkpoints for another number of ranks: DeepSpeed's universal format, where each parameter has files of its own."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from deepspeed.checkpoint import DeepSpeedCheckpoint
from deepspeed.checkpoint.constants import (
    BASE_OPTIMIZER_STATE,
    FP32_FLAT_GROUPS,
    OPTIMIZER_STATE_DICT,
    PARAM,
    PARAM_GROUPS,
    PARAM_SHAPES,
    PARAM_SLICE_MAPPINGS,
    SINGLE_PARTITION_OF_FP32_GROUPS,
    UNIVERSAL_CHECKPOINT_VERSION_KEY,
    UNIVERSAL_CHECKPOINT_VERSION_VALUE,
)
from deepspeed.checkpoint.ds_to_universal import extract_zero_shards, extract_zero_shards_stage3
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address, map_to_flat_opt_states

from mmlaunch.errors import BadInput

INFO = {UNIVERSAL_CHECKPOINT_VERSION_KEY: UNIVERSAL_CHECKPOINT_VERSION_VALUE}
"""A checkpoint of stage 1 or 2 must hold this to be converted: it says that only ZeRO divides tensors."""
_KNOWN: list[Any] = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
"""Classes of DeepSpeed that its own files hold; they are plain records."""
_DIVIDED = {BASE_OPTIMIZER_STATE, PARAM_SLICE_MAPPINGS, SINGLE_PARTITION_OF_FP32_GROUPS, FP32_FLAT_GROUPS}


@contextmanager
def harmless(source: Path) -> Iterator[None]:
    """In this context loading runs no code: only tensors, containers and known classes of DeepSpeed are read.

    Raises `BadInput`, which names `source`, for a file that holds anything else.

    DeepSpeed asks for the opposite in every call of its own; this switch of torch's stands above what a call asks for.
    """
    switch = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        with torch.serialization.safe_globals(_KNOWN):
            yield
    except pickle.UnpicklingError as error:
        reason = str(error).strip().partition("\n")[0]
        raise BadInput(f"{source}: holds more than tensors, and is not loaded ({reason})") from error
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before


def convert(source: Path, target: Path, stage: int) -> Iterator[None]:
    """Write the optimiser's state in `source` once more, parameter by parameter; each turn is a piece of the work.

    `deepspeed.checkpoint.ds_to_universal` does the same in one go, in processes of its own. Its fragments are used as
    they are; they are put together here, because it takes the folder's name for a pattern and fails at a `+` in it.
    """
    fragments, target = target / "fragments", target / "zero"
    target.mkdir(parents=True)
    with harmless(source):
        if stage == 3:
            (weights, *_), optimisers = _in_order(source, "*_model_states.pt"), _in_order(source, "*_optim_states.pt")
            groups = [dict(group) for group in _read(weights)[PARAM_SHAPES]]
            for rank in range(len(optimisers)):
                extract_zero_shards_stage3([optimisers], [groups], len(optimisers), fragments, (0, rank))
                yield
            shapes = {name: shape for group in groups for name, shape in group.items()}
            common = _read(optimisers[0])[OPTIMIZER_STATE_DICT]
            adam = common[OPTIMIZER_STATE_DICT]
            steps = {number: {"step": state["step"]} for number, state in adam["state"].items()}
            common[OPTIMIZER_STATE_DICT] = {"state": steps, PARAM_GROUPS: adam[PARAM_GROUPS]}
        else:
            checkpoint = DeepSpeedCheckpoint(str(source))
            for rank in range(checkpoint.dp_degree):
                extract_zero_shards(fragments, checkpoint, (0, 0, rank))
                yield
            shapes = checkpoint.model_state_metadata[0][1][PARAM_SHAPES]
            common = checkpoint.get_zero_checkpoint_state(0, 0, 0)[OPTIMIZER_STATE_DICT]
            common[PARAM_GROUPS] = common[BASE_OPTIMIZER_STATE][PARAM_GROUPS]
        for name, shape in shapes.items():
            _join(fragments / name, target / name, shape)
            yield
        torch.save({key: value for key, value in common.items() if key not in _DIVIDED}, target / "optimizer_state.pt")


def restore(optimizer: Any, folder: Path, stage: int) -> None:
    """Load what `convert` has written, each rank its own part."""
    with harmless(folder):
        common = _read(folder / "zero" / "optimizer_state.pt")
        if stage == 3:
            _restore_all(optimizer, folder, common[OPTIMIZER_STATE_DICT])
        else:
            _restore_optimiser(optimizer, folder / "zero", common)


def _restore_all(optimizer: Any, folder: Path, adam: dict[str, Any]) -> None:
    """Weights and optimiser state of stage 3."""
    optimizer.checkpoint_event_prologue()
    optimizer.load_state_dict(None, checkpoint_folder=str(folder))
    optimizer.checkpoint_event_epilogue()
    for flat, state in optimizer.optimizer.state.items():  # DeepSpeed gives one counter to all of them, and each counts
        state["step"] = _counter(adam["state"][0]["step"], flat)
    for group, saved in zip(optimizer.param_groups, adam[PARAM_GROUPS], strict=True):  # and to all the first's settings
        group.update({key: value for key, value in saved.items() if key != "params"})


def _restore_optimiser(optimizer: Any, folder: Path, common: dict[str, Any]) -> None:
    """Masters and optimiser state of stages 1 and 2, and the weights from them.

    DeepSpeed's own loop over these expects that every rank has a part of every group. The bias of a head is too small.
    """
    optimizer._load_global_state(common)
    for group, saved, weights in zip(optimizer.param_groups, common[PARAM_GROUPS], optimizer.bit16_groups, strict=True):
        mine = [weight for weight in weights if weight._hp_mapping is not None]
        (flat,) = group["params"]
        for weight in mine:
            step = weight.load_hp_checkpoint_state(str(folder / optimizer.param_names[weight]), 0, 1)
            optimizer.optimizer.state[flat]["step"] = _counter(step, flat)
        keys = {key for weight in mine for key in weight._hp_mapping.get_optim_state_keys()}
        map_to_flat_opt_states(flat, weights, optimizer.optimizer.state, keys)
        group.update({key: value for key, value in saved.items() if key != "params"})
    optimizer.update_lp_params()


def _counter(step: Any, flat: torch.Tensor) -> torch.Tensor:
    """The step counter on the device of the parameter, where the fused optimiser needs it."""
    return torch.as_tensor(step, dtype=torch.float32).to(flat.device, copy=True)


def _in_order(folder: Path, pattern: str) -> list[Path]:
    """The files of all ranks, in the order of their numbers."""
    return sorted(folder.glob(pattern), key=lambda path: int(path.name.split("zero_pp_rank_")[1].split("_")[0]))


def _read(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _join(fragments: Path, target: Path, shape: torch.Size) -> None:
    """Join the ranks' fragments of one parameter, and delete them."""
    target.mkdir()
    for state in ("fp32", "exp_avg", "exp_avg_sq"):
        parts = sorted((fragments / "0").glob(f"{state}.*"), key=lambda path: int(path.suffix[1:]))
        torch.save({PARAM: torch.cat([_read(part) for part in parts]).reshape(shape)}, target / f"{state}.pt")
    for part in (fragments / "0").glob("step.*"):
        shutil.copy(part, target / "step.pt")  # the same on all ranks
    shutil.rmtree(fragments)
