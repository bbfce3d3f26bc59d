"""The model of a run that is done goes to the Hugging Face hub, where the recipe says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from mmjobs.rank.context import Context
from mmjobs.rank.signals import StopRequest
from mmlaunch.run import manifest

_LOOK = 0.5
"""Seconds between two looks at a program."""


def send_model(context: Context) -> None:
    """Export the model, and send it: on the first rank, when the others have left.

    Programs of their own do it, on the CPU. What fails costs the repository and not the run: the export stays.
    """
    wanted, paths = context.recipe.push_to, context.paths
    newest, _ = manifest.newest(paths.checkpoints, contents=False)
    if wanted is None or not wanted.at_end or newest is None:
        return
    folder, watch = paths.export(newest.step), context.ranks.watch
    folder.parent.mkdir(exist_ok=True)
    merge = ["--merge-lora"] if wanted.merge_lora else []
    programs = [["mmjobs.tasks.push", str(folder), wanted.repository, *(["--public"] if wanted.public else [])]]
    if not folder.exists():
        programs.insert(0, ["mmjobs.tasks.export", str(paths.root), str(folder), *merge])
    for program in programs:
        watch.doing("sends the model to the hub" if program is programs[-1] else "exports the model")
        said = _run(program, context.stop, watch.moved)
        if "error" in said:
            again = f"mmlaunch export {paths.root.name} --push"
            context.events.warn(f"push_to: {said['error']}; later: {again}", step=newest.step)
            return
    context.events.log(f"sent to {said['url']}")


def _run(program: list[str], stop: StopRequest, moved: Callable[[], None]) -> dict[str, Any]:
    """What a program says at its end. It is ended where the job is about to be."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", *program]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            moved()
            if stop.signal or stop.too_late_for(0):
                process.terminate()
                process.wait()
                return {"error": "the time is over"}
            time.sleep(_LOOK)
        assert process.stdout is not None
        lines = process.stdout.read().strip().splitlines()
    try:
        return dict(json.loads(lines[-1]))
    except (IndexError, ValueError, TypeError):
        return {"error": f"{program[0]} ended with exit code {process.returncode}"}
