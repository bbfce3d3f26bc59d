"""`mmlaunch logs`: What the ranks of a run print."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import click

from mmlaunch.cli import options
from mmlaunch.errors import UserError
from mmlaunch.load import find_run
from mmlaunch.monitor import status
from mmlaunch.monitor.state import FINAL
from mmlaunch.run import shards
from mmlaunch.run.job_logs import batch_logs
from mmlaunch.run.paths import RunPaths, rank_of_log

POLL = 0.3
INTERRUPTED = 130
_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")


@click.command(
    epilog="\b\nExamples:\n  mmlaunch logs last\n  mmlaunch logs -f dpo-llama3-8b\n"
    "  mmlaunch logs dpo-llama3-8b --rank 3 --attempt 2 -n 50"
)
@options.run(many=False)
@click.option("-f", "--follow", is_flag=True, help="Stay until the run ends, over all its attempts.")
@click.option("--rank", type=click.IntRange(min=0), help="Only this rank.")
@click.option("--attempt", type=click.IntRange(min=1), help="Only this attempt; otherwise the newest.")
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Only the last N lines of each rank.")
def command(run: str, follow: bool, rank: int | None, attempt: int | None, lines: int | None) -> None:
    """Show what the ranks of RUN print, with the rank's number before each line, and what srun prints."""
    paths = find_run.resolve(run)
    if shards.is_task(paths):
        _show_shards(paths, rank, lines)
        return
    attempts = paths.attempt_numbers
    if attempt is not None and attempt not in attempts:
        raise UserError(f"{paths.name} has no attempt {attempt}; it has {', '.join(map(str, attempts)) or 'none'}")
    printed = [number for number in attempts if paths.attempt(number).all_logs]
    view = View(paths, rank, attempt, lines, first=max(attempts if follow else printed, default=1))
    if follow:
        view.follow()
    elif not view.print_new() and not view.print_batch():
        if rank is not None and (known := sorted(view.ranks())) and rank not in known:
            raise UserError(f"{paths.name} has no rank {rank}; it has {known[0]} to {known[-1]}")
        click.echo(f"{paths.name} has printed nothing yet; next: mmlaunch status {paths.name}", err=True)


def _show_shards(run: RunPaths, rank: int | None, lines: int | None) -> None:
    """The newest attempts of those shards that run, or that did not end well; of all where there are none."""
    every = shards.all_shards(run)
    states = status.of_all(every)
    chosen = [shard for shard, one in zip(every, states, strict=True) if one.attempt and one.state != "done"]
    for shard in chosen or [shard for shard in every if shard.attempt_numbers]:
        click.secho(shard.name, bold=True)
        view = View(shard, rank, None, lines, first=max(shard.attempt_numbers, default=1))
        view.print_new()
    View(run, None, None, lines, first=1).print_batch()


@dataclass
class View:
    """The logs that are shown, and how far each has been read."""

    run: RunPaths
    rank: int | None
    attempt: int | None
    lines: int | None
    first: int  # the newest attempt when the view was opened
    offsets: dict[Path, int] = field(default_factory=dict)

    def files(self) -> list[Path]:
        """The logs of the chosen attempt, or of all from `first` on: those of the ranks, then srun's."""
        known = self.run.attempt_numbers
        attempts = [n for n in known if n == self.attempt or (self.attempt is None and n >= self.first)]
        logs = [path for number in attempts for path in self.run.attempt(number).all_logs]
        if self.rank is not None:
            logs = [path for path in logs if rank_of_log(path) == self.rank]
        return sorted(
            logs, key=lambda path: (int(path.parent.parent.name), rank_of_log(path) is None, rank_of_log(path) or 0)
        )

    def ranks(self) -> set[int]:
        """The ranks that have a log in any attempt."""
        logs = (path for number in self.run.attempt_numbers for path in self.run.attempt(number).all_logs)
        return {rank for path in logs if (rank := rank_of_log(path)) is not None}

    def print_new(self) -> bool:
        """Print every complete line that is new since the last call; returns whether there was any."""
        printed = False
        for path in self.files():
            first_time = path not in self.offsets
            data = _read_from(path, self.offsets.get(path, 0))
            whole = data[: data.rfind(b"\n") + 1]
            self.offsets[path] = self.offsets.get(path, 0) + len(whole)
            lines = whole.decode(errors="replace").splitlines()
            if first_time and self.lines is not None:
                lines = lines[-self.lines :] if self.lines else []
            for line in lines:
                click.echo(_prefix(path) + line)
                printed = True
        return printed

    def print_batch(self) -> bool:
        """Print what the job script itself said: if no rank has begun, the reason stands there."""
        printed = False
        for path in batch_logs(self.run):
            for line in path.read_text(errors="replace").splitlines():
                click.echo(f"[batch] {line}")
                printed = True
        return printed

    def follow(self) -> None:
        """Print until the run has ended and everything is shown."""
        try:
            while True:
                over = status.of(self.run).state in (*FINAL, "lost")
                if not self.print_new() and over:
                    return
                time.sleep(POLL)
        except KeyboardInterrupt:
            click.echo(f"left; next: mmlaunch status {self.run.name}", err=True)
            raise SystemExit(INTERRUPTED) from None


def _prefix(path: Path) -> str:
    rank = rank_of_log(path)
    return f"[{path.stem}] " if rank is None else click.style(f"[{rank}] ", fg=_COLOURS[rank % len(_COLOURS)])


def _read_from(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read()
    except FileNotFoundError:
        return b""
    except PermissionError:
        return f"({path} may not be read)\n".encode() if offset == 0 else b""
