"""The task `make_toy`: tiny models and generated data in the places where a toy recipe names them, once per content."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjobs.data import toys
from mmjobs.tasks.program import end
from mmlaunch.recipe.data import Source


def make(given: argparse.Namespace) -> dict[str, Any]:
    """Make every piece that is not there yet; one that is killed while it is made is not there."""
    made = 0
    for piece in json.loads(given.pieces):
        folder = Path(piece["folder"])
        if folder.is_dir():
            continue
        print(f"toy: {piece['title']}", file=sys.stderr, flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            _model(piece, aside) if piece["kind"] == "model" else _data(piece, aside)
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():  # another submission made the same piece first
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        made += 1
    return {"made": made}


def _model(piece: Mapping[str, Any], folder: Path) -> None:
    from mmjobs.model.toys import families  # transformers take seconds, and data alone need none

    families.make(folder, piece["family"], piece["vocabulary"], piece["options"])


def _data(piece: Mapping[str, Any], folder: Path) -> None:
    path = folder / piece["name"]
    path.parent.mkdir(parents=True)
    own = {key: piece[key] for key in ("rows", "first", "answers", "images", "style", "turned")}
    toys.write(toys.ToyData(source=Source.model_validate(piece["source"]), **own), path)


def main() -> int:
    """`python -m mmjobs.tasks.make_toy`, which `mmlaunch submit --toy` calls."""
    parser = argparse.ArgumentParser(prog="mmlaunch submit --toy")
    parser.add_argument("pieces", help="a JSON list of what to make")
    return end(parser, make)


if __name__ == "__main__":
    sys.exit(main())
