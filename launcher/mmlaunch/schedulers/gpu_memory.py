"""How much memory a GPU has, by what a site calls its kind."""

from __future__ import annotations

import re

SOLD = {
    "b300": "288G", "b200": "192G", "h200": "141G", "gh200": "96G", "h100": "80G", "h800": "80G", "a800": "80G",
    "a100_40": "40G", "a100-40": "40G", "a100_80": "80G", "a100-80": "80G", "l40": "48G", "a6000": "48G", "a40": "48G",
    "rtx6000": "48G", "a30": "24G", "a10": "24G", "l4": "24G", "4090": "24G", "3090": "24G", "mi300x": "192G",
    "mi250": "128G", "v100": "32G",
}  # fmt: skip
"""Part of a name -> its memory as it is sold. An A100 alone may have 40 or 80: nothing is said of it."""


def memory_of(kind: str) -> str:
    """`141G` of `nvidia_h200`; empty where the name says nothing for certain."""
    text = kind.lower().replace(" ", "")
    written = re.search(r"(\d{2,3})gb?\b", text)
    if written:
        return f"{written.group(1)}G"
    whole = [name for name in SOLD if re.search(rf"(?<![a-z0-9]){name}(?![0-9])", text)]
    return SOLD[max(whole, key=len)] if whole else ""
