"""The kind of this machine's GPUs, as their driver says it."""

from __future__ import annotations

import subprocess

GIBIBYTE = 1024
SLACK = 5
"""GiB that the driver may keep back of what a GPU is sold with."""
SOLD = (16, 24, 32, 40, 48, 64, 80, 96, 128, 141, 192, 288)


def kind() -> tuple[str, str]:
    """The name of the first GPU, and its memory as it is sold: `NVIDIA H200`, `141G`; both empty without one."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "", ""
    name, comma, memory = done.stdout.partition("\n")[0].partition(",")
    if done.returncode or not comma or not memory.strip().isdigit():
        return "", ""
    size = int(memory) / GIBIBYTE
    near = min(SOLD, key=lambda one: abs(one - size))
    return name.strip(), f"{near if abs(near - size) < SLACK else int(size)}G"
