"""How long the command line takes, as a ratio to `python -c "import submitit"` in the same run.

    python benchmarks/light.py [--rounds 15] > benchmarks/results/DATE-light.md

The commands take turns, so that a change of the machine's speed meets all of them; the ratios are medians of the ratios
within a round. `status` is measured over 1,000 finished runs of 60 events each, in seconds: that is what people wait.

Every module has its bytecode, as after an installation, also where PYTHONDONTWRITEBYTECODE is set and a checkout has
none: each command would compile all that it imports of mmlaunch, and nothing of submitit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECIPE = str(ROOT / "recipes" / "dpo_llama3.yaml")
MMLAUNCH = str(Path(sys.executable).parent / "mmlaunch")
COMMANDS = {
    "import submitit": [sys.executable, "-c", "import submitit"],
    "mmlaunch --help": [MMLAUNCH, "--help"],
    "mmlaunch validate": [MMLAUNCH, "validate", RECIPE],
    "mmlaunch render": [MMLAUNCH, "render", RECIPE, "--cluster", "slurm"],
}
GOALS = {"mmlaunch --help": 1.0, "mmlaunch validate": 2.5, "mmlaunch render": 2.5}
RUNS, EVENTS = 1000, 60


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def finished_runs(folder: Path) -> None:
    """Run directories as a finished run leaves them, as far as `status` reads them."""
    for number in range(RUNS):
        run = folder / f"run-1121-{number:04x}"
        run.mkdir(parents=True)
        (run / "recipe.resolved.yaml").write_text("name: run\n")
        at = 1.79e9 + number
        events = [{"event": "submitted", "method": "dpo", "steps": 600}, {"event": "started", "attempt": 1, "job": "7"}]
        events += [
            {"event": "step", "attempt": 1, "step": 10 * i, "steps": 600, "loss": 0.5, "rate": 9.8}
            for i in range(EVENTS)
        ]
        events += [
            {"event": "checkpoint", "step": 590, "bytes": 1},
            {"event": "ended", "state": "done", "exit_code": 0},
        ]
        (run / "events.jsonl").write_text("".join(json.dumps({"time": at, **event}) + "\n" for event in events))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in (*COMMANDS, "mmlaunch status")}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as bytecode:
        finished_runs(Path(folder))
        os.environ["MMLAUNCH_RUNS"] = folder
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = bytecode
        commands = {**COMMANDS, "mmlaunch status": [MMLAUNCH, "status"]}
        for number in range(rounds + 1):
            for name, command in commands.items():
                passed = seconds(command)
                if number:  # the first round warms the file cache, and writes the bytecode
                    times[name].append(passed)
    print(f"# Start-up of the command line, {date.today()}\n")
    print(
        f"`python benchmarks/light.py --rounds {rounds}`, Python {platform.python_version()}, {os.cpu_count()} cores\n"
    )
    print("| command | median s | ratio to `import submitit` | goal |\n|---|---|---|---|")
    base = times["import submitit"]
    for name, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(taken, base, strict=True))
        goal = f"at most {GOALS[name]:.1f}" if name in GOALS else "under 1.5 s" if name == "mmlaunch status" else ""
        label = f"{name} ({RUNS:,} finished runs)" if name == "mmlaunch status" else name
        print(f"| `{label}` | {statistics.median(taken):.3f} | {ratio:.2f} | {goal} |")


if __name__ == "__main__":
    main()
