"""What `mmlaunch status` shows of the runs on other machines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import click

from mmlaunch.remote.forward import ask_all


@dataclass(frozen=True)
class Place:
    """A project on another machine: what `mmlaunch status` printed there, or why there is no answer."""

    host: str
    folder: str
    text: str
    wrong: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """The answer to `--json`, each record with its host."""
        with suppress(ValueError, TypeError):
            return [{**record, "host": self.host} for record in json.loads(self.text)]
        click.echo(self.wrong or f"{self.host}: no JSON, but {self.text[:80]!r}", err=True)
        return []

    def say(self, apart: bool) -> None:
        """Print it, below an empty line where something stands `apart` above."""
        if self.wrong:
            click.echo(self.wrong, err=True)
        else:
            click.echo("\n" * apart + f"{click.style(f'{self.host}:{self.folder}', bold=True)}\n{self.text}", nl=False)


def others_of(newest: int | None, as_json: bool) -> Iterator[Place]:
    """Every place where runs from here are; of each, the newest N runs."""
    options = [*([f"--newest={newest}"] if newest else []), *(["--json"] if as_json else [])]
    for host, text, wrong in ask_all(["status", *options]):
        yield Place(host.name, host.folder, text, wrong)
