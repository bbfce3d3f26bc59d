"""What a rank and `mmlaunch results` hold in memory while they go through many rows.

    .venv/bin/python -m benchmarks.flat [ROWS ...] >> benchmarks/results/DATE-generate.md

`evaluate` over drawings, each an image of its own, with a very small model and answers of four tokens: one rank of a
local run, whose memory is read from /proc when so many rows are done; then `mmlaunch results` merges all records. The
number of rows may be written: with 10000 and 100000 both are seen to grow or not.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mmlaunch.api import Run, load, submit
from mmlaunch.run import ledger, shards

ROWS, LOOKS = (10_000, 100_000), (2_000, 10_000, 20_000, 50_000, 100_000)
RECIPE: dict[str, Any] = {
    "name": "flat",
    "model": {
        "vision": {"random": {"width": 16, "layers": 1, "heads": 1, "image_size": 16, "patch": 8}},
        "language": {"random": {"width": 16, "layers": 1, "heads": 1}},
    },
    "objective": {
        "method": "evaluate", "metric": "exact", "sampling": {"max_new_tokens": 4, "prompts": 64}, "window": 512,
    },
    "precision": "fp32",
    "resources": {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1, "cpus_per_rank": 1, "time": "2h"},
}  # fmt: skip


def main() -> None:
    print(
        "\n## Memory over many rows\n\n`python -m benchmarks.flat`, `evaluate` with one image and four tokens a row\n"
    )
    print("| rows | memory of the rank, MB | rows/s | `mmlaunch results`: MB at most | seconds |")
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        os.environ |= {"MMLAUNCH_RUNS": f"{name}/runs", "DS_ACCELERATOR": "cpu"}
        for rows in map(int, sys.argv[1:] or ROWS):
            measure(Path(name), rows)


def measure(folder: Path, rows: int) -> None:
    """A line of the table."""
    path = folder / f"flat-{rows}.yaml"
    data = {"input": {"format": "shapes", "limit": rows}}
    path.write_text(json.dumps({**RECIPE, "name": f"flat-{rows}", "data": data}))
    run = submit(load(path), cluster="local")
    began, held = time.monotonic(), {}
    for done, pid in progress(run):
        for look in LOOKS:
            if look not in held and done >= look and (now := resident(pid)):
                held[look] = now
                print(f"{done} rows: {now / 1e6:.0f} MB", file=sys.stderr)
    seconds = time.monotonic() - began
    assert run.status().state == "done", run.status()
    most, merging = results(run.name)
    shown = ", ".join(f"{now / 1e6:.0f} at {look:,}" for look, now in held.items())
    print(f"| {rows:,} | {shown} | {rows / seconds:.0f} | {most / 1e6:.0f} | {merging:.1f} |", flush=True)


def progress(run: Run) -> Any:
    """How many rows are done, and the process id of the rank, as often as its ledger says so."""
    shard = shards.shard(run.paths, 0)
    tail, pid = ledger.Tail(shard.events), 0
    while True:
        for event in tail.new():
            if event["event"] == "records" and (pid := pid or rank(shard.attempt(1).rank_log(0))):
                yield event["done"], pid
            if event["event"] == "ended":
                return
        time.sleep(0.2)


def rank(log: Path) -> int:
    said = re.search(r"pid (\d+)", log.read_text())
    return int(said[1]) if said else 0


def resident(pid: int) -> int:
    """Bytes that a process has in memory; 0 once it has gone."""
    try:
        return int(re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0]) * 1024
    except (OSError, IndexError):
        return 0


def results(name: str) -> tuple[int, float]:
    """The most memory of `mmlaunch results`, and its seconds."""
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "mmlaunch", "results", name], stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024, time.monotonic() - began


if __name__ == "__main__":
    main()
