"""Export: a checkpoint of a run becomes a Hugging Face directory that anyone can load."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from mmjobs.checkpoint.train_state import MODEL, TrainState
from mmjobs.tasks.model_card import Card
from mmjobs.tasks.program import end
from mmlaunch.errors import BadInput
from mmlaunch.recipe import resolved
from mmlaunch.run import ledger, manifest
from mmlaunch.run.paths import CheckpointPaths, RunPaths


def export(
    run: Path, to: Path, step: int | None = None, merge: bool = False, processor: bool = True
) -> tuple[int, str]:
    """Write the directory `to`, whole or not at all; the step that it holds, and the class that reads it.

    Without a `processor` it holds the tokenizer alone: what prepares images is left to whoever serves the model.
    """
    from mmjobs.model import adapters, frozen_weights, heads, llava, parts, preprocessor
    from mmjobs.model.restore import restore
    from mmjobs.model.weights import FILE as WEIGHTS

    paths = RunPaths(run)
    recipe = resolved.read(paths.resolved)
    step = _valid(paths, step)
    if processor and (reason := preprocessor.unserved(recipe.model.tiling)) is not None:
        what = f"images would be served otherwise than they were trained: {reason}"
        raise BadInput(f"{what}; write --no-processor, and prepare images with your own code")
    if damage := frozen_weights.damage(CheckpointPaths(paths.checkpoint(step)).engine(MODEL) / WEIGHTS, fully=True):
        raise BadInput(f"step {step} cannot be exported: {damage}; put it back, or export another run")
    built = restore(recipe, paths.checkpoint(step))
    network: Any = built.network
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if recipe.model.lora is not None and merge:
        adapters.merge(network)
    elif recipe.model.lora is not None:
        adapters.save(network, recipe.model.lora, partial / adapters.FOLDER, base=str(to.resolve()))
        adapters.detach(network)
    network.to(parts.TYPES[recipe.precision])
    if recipe.objective.has_scoring_head:
        chat = built.chat
        network = heads.save_score(network, chat.tokenizer, chat.end_id, partial, _rewards(paths, step))
    network.save_pretrained(partial)
    (built.processor if processor else built.chat.tokenizer).save_pretrained(partial)
    kind = _kind(network, sees=built.chat.image_token is not None)
    own = isinstance(network, llava.Assembled)
    card = Card(recipe, step, _metrics(paths, step), kind, (partial / adapters.FOLDER).is_dir(), own, processor)
    (partial / "README.md").write_text(card.text(built.chat))
    shutil.copy(paths.resolved, partial / "recipe.yaml")
    _share(partial)
    partial.rename(to)
    return step, kind


def _kind(network: Any, sees: bool) -> str:
    """The class of transformers that reads these weights."""
    if type(network).__name__.endswith("ForSequenceClassification"):
        return "AutoModelForSequenceClassification"
    return "AutoModelForImageTextToText" if sees else "AutoModelForCausalLM"


def _share(folder: Path) -> None:
    """Readable by whom the user's umask lets read: some writers ask for less."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _valid(paths: RunPaths, step: int | None) -> int:
    if step is None:
        newest, rejected = manifest.newest(paths.checkpoints)
        if newest is None:
            found = "; ".join(rejected) or "none was ever saved"
            raise BadInput(f"{paths.root.name} has no valid checkpoint ({found})")
        return newest.step
    if step not in manifest.steps(paths.checkpoints):
        there = ", ".join(map(str, manifest.steps(paths.checkpoints))) or "none"
        raise BadInput(f"{paths.root.name} has no checkpoint of step {step}; there are: {there}")
    try:
        manifest.validate(paths.checkpoint(step))
    except manifest.InvalidCheckpoint as error:
        raise BadInput(f"the checkpoint of step {step} is damaged: {error}") from error
    return step


def _metrics(paths: RunPaths, step: int) -> dict[str, float]:
    """What was measured at this step, or last before it."""
    found: dict[str, float] = {}
    for event in ledger.read(paths.events).all("evaluated"):
        if int(event.get("step", 0)) <= step:
            found = event["metrics"]
    return {name: value for name, value in found.items() if isinstance(value, float)}


def _rewards(paths: RunPaths, step: int) -> dict[str, float]:
    """How the rewards of this checkpoint are spread: over the evaluation, or over the last training steps."""
    state = TrainState.read(CheckpointPaths(paths.checkpoint(step)).state)
    if "eval/reward" in state.metrics and state.evaluated == step:
        return {"mean": state.metrics["eval/reward"], "spread": state.metrics["eval/reward_spread"]}
    return {"mean": state.learner.get("mean", 0.0), "spread": state.learner.get("spread", 1.0)}


def main() -> int:
    """`python -m mmjobs.tasks.export RUN TO`, which `mmlaunch export` calls."""
    parser = argparse.ArgumentParser(prog="mmlaunch export")
    parser.add_argument("run", type=Path)
    parser.add_argument("to", type=Path)
    parser.add_argument("--checkpoint", type=int)
    parser.add_argument("--merge-lora", action="store_true")
    parser.add_argument("--no-processor", action="store_true")
    return end(parser, _export)


def _export(given: argparse.Namespace) -> dict[str, Any]:
    step, kind = export(given.run, given.to, given.checkpoint, given.merge_lora, not given.no_processor)
    return {"step": step, "kind": kind}


if __name__ == "__main__":
    sys.exit(main())
