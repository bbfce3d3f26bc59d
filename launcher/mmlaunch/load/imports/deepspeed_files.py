"""The argument `deepspeed`: a DeepSpeed configuration, or the file that holds one."""

from __future__ import annotations

import json
import re
from typing import Any

from mmlaunch.load.imports.configuration import Configuration
from mmlaunch.load.imports.draft import Draft


def convert(config: Configuration, draft: Draft) -> None:
    """Take over the ZeRO stage and the offload; of a file that is not here, what its name says."""
    value = config.take("deepspeed")
    name = "" if isinstance(value, dict) else str(value or "")
    file = config.file(name) if name else None
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file else value if isinstance(value, dict) else None
        zero = content["zero_optimization"] if content else None
        if zero is not None:
            _put_zero(draft, zero, f"from {name}" if name else "")
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        zero = None
    if zero is None and name:
        _guess_zero(draft, name)
    elif zero is None and value is not None:
        draft.leave("deepspeed", value, "it names no stage of ZeRO; deepspeed.stage and deepspeed.overrides")
    if draft.get("precision") == "fp16" and not draft.get("deepspeed.stage"):
        draft.guess("deepspeed.stage", 1, "fp16 needs the full-precision weights that ZeRO keeps")


def _put_zero(draft: Draft, zero: dict[str, Any], comment: str) -> None:
    """The stage and the offload of the `zero_optimization` of a DeepSpeed configuration."""
    stage = int(zero["stage"])
    parts = [part for part in ("optimizer", "param") if (zero.get(f"offload_{part}") or {}).get("device") == "cpu"]
    draft.put("deepspeed.stage", stage, comment)
    if parts:
        draft.put("deepspeed.offload", "all" if "param" in parts else "optimizer")


def _guess_zero(draft: Draft, name: str) -> None:
    """What the name of a DeepSpeed configuration says of it, where the file is not here or cannot be read."""
    stage = re.search(r"(?:z|zero|stage|zero_stage)[_-]?([0-3])", name, re.IGNORECASE)
    why = f"from the name of {name}, which is not here" if stage else f"{name} is not here"
    draft.guess("deepspeed.stage", int(stage.group(1)) if stage else 0, why)
    if "offload" in name and stage and stage.group(1) != "0":
        offload = "all" if stage.group(1) == "3" else "optimizer"
        draft.guess("deepspeed.offload", offload, f"from the name of {name}")
