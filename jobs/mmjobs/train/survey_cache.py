"""The survey of a run's data is made once: it is kept in the run directory, and found by later attempts and other runs.

Blocks of rows are read by all ranks, and by their data workers. Each block is a file; a rank that is killed loses the
block that it was reading. Rank 0 joins them. Every rank maps the result into memory, so that the ranks of a node share
it.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

import mmjobs
from mmjobs.data import survey_rows
from mmjobs.data.encode import Processor
from mmjobs.data.formats.registry import parts as parts_of
from mmjobs.data.loader import begin_worker
from mmjobs.data.mixture import refuse_bad
from mmjobs.data.readers.rows import Part
from mmjobs.data.survey import count, read_rows
from mmjobs.data.survey_rows import Survey
from mmjobs.rank.context import Context
from mmjobs.train import pins
from mmjobs.train.linked import link_or_copy, visible
from mmlaunch.errors import BadInput
from mmlaunch.recipe.data import Source

BLOCK = 4096
"""Rows of a block."""
_DATA = {".json", ".jsonl", ".tsv", ".xlsx", ".parquet", ".arrow", ".txt"}
"""The endings of files that hold rows, in a folder that holds images too."""


def surveyed(
    context: Context, sources: Sequence[Source], processor: Processor, held_out: Collection[bytes] = ()
) -> Survey:
    """Every row of the sources; all ranks together."""
    ranks, parts = context.ranks, sum((parts_of(source) for source in sources), ())
    key = ranks.from_first(_key(context, sources, parts, processor, held_out) if ranks.first else None)
    path = context.paths.survey(key)
    known = ranks.from_first((path if _is_whole(path) else _take_over(context, path)) if ranks.first else None)
    if known is None:
        _make(context, parts, processor, held_out, path)
    else:
        context.events.log(f"{count(parts):,} rows are known from {known}")
    return Survey(tuple(parts), *survey_rows.read(visible(path), check=False))


def _key(
    context: Context,
    sources: Sequence[Source],
    parts: Sequence[Part],
    processor: Processor,
    held_out: Collection[bytes],
) -> str:
    """The same for the same rows, read in the same way by the same code."""
    tokenizer, recipe = processor.chat.tokenizer, context.recipe
    content = {
        "code": _digest(sorted(Path(mmjobs.__path__[0]).rglob("*.py")), Path.read_bytes),
        "versions": [version(name) for name in ("transformers", "tokenizers", "pillow")],
        "tokenizer": [tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.special_tokens_map],
        "model": recipe.model.model_dump(mode="json", exclude={"lora", "train", "activation_checkpointing"}),
        "pins": pins.contents(context),
        "limits": [processor.longest, processor.overlong, repr(processor.requirements)],
        "sources": [source.model_dump(mode="json", exclude={"repeat", "augment"}) for source in sources],
        "files": [_state(path) for path in _files(sources, parts)],
        "tiles": [part.max_tiles for part in parts],
        "held out": _digest(sorted(held_out), bytes),
    }
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _files(sources: Sequence[Source], parts: Sequence[Part]) -> Iterator[Path]:
    """The files that hold the rows; the images that rows name are not among them."""
    for source in sources:
        path = Path(source.path).expanduser() if source.path else None
        if path is not None and path.is_dir():
            # Tables stand in the folder or one below; deeper ones may hold millions of images.
            yield from sorted(file for place in ("*", "*/*") for file in path.glob(place) if file.suffix in _DATA)
        elif path is not None:
            yield path
    for part in parts:
        path = getattr(getattr(part.rows, "table", None), "path", None)
        if isinstance(path, Path):
            yield path


def _state(path: Path) -> list[Any]:
    state = path.stat()
    return [str(path.absolute()), state.st_size, state.st_mtime_ns, state.st_ino]


def _digest(values: Collection[Any], content: Callable[[Any], bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        digest.update(content(value))
    return digest.hexdigest()


def _is_whole(path: Path) -> bool:
    """Whether a survey is there, and is what was written; another one is removed."""
    if not path.exists():
        return False
    try:
        survey_rows.read(path)
    except ValueError:
        path.unlink(missing_ok=True)
        return False
    return True


def _take_over(context: Context, path: Path) -> Path | None:
    """Link the survey of a run beside this one. One with bad rows is made anew: they may be good by now."""
    for other in sorted(context.paths.root.parent.glob(f"*/{path.parent.name}/{path.name}")):
        try:
            _, left_out = survey_rows.read(other)
        except ValueError:
            continue
        if not len(left_out.numbers("bad")):
            path.parent.mkdir(exist_ok=True)
            link_or_copy(other, path)
            return other if path.exists() else None
    return None


def _make(
    context: Context, parts: Sequence[Part], processor: Processor, held_out: Collection[bytes], path: Path
) -> None:
    """Read what is not read yet, all ranks together, and join it on rank 0."""
    ranks, folder = context.ranks, path.with_name(f".{path.stem}")
    blocks = Blocks(folder, tuple(parts), processor, frozenset(held_out))
    if ranks.first:
        folder.mkdir(parents=True, exist_ok=True)
    ranks.any(False)  # the folder is there
    numbers = list(range(ranks.rank, len(blocks), ranks.world))
    workers = context.recipe.data.workers if len(numbers) > 1 else 0
    loader = DataLoader(
        blocks, batch_size=None, sampler=numbers, num_workers=workers, worker_init_fn=begin_worker,
        generator=torch.Generator(),  # its own: a loader draws a seed
    )  # fmt: skip
    for rows in loader:
        for _ in range(rows):
            ranks.watch.moved()
    ranks.any(False)  # all have written theirs
    wrong = ranks.from_first(_join(context, blocks, path) if ranks.first else None)
    if wrong:
        raise BadInput(wrong)


def _join(context: Context, blocks: Blocks, path: Path) -> str | None:
    """Write the whole survey; what is wrong with the data, if the recipe does not tolerate it."""
    whole = survey_rows.joined([survey_rows.read(visible(blocks.path(number))) for number in range(len(blocks))])
    wrong = None
    if context.recipe.data.on_bad == "error":
        try:
            refuse_bad(whole[1])
        except BadInput as error:  # nothing is kept: a row whose image is put back is read again
            wrong = str(error)
    if wrong is None:
        survey_rows.write(path, whole)
    shutil.rmtree(blocks.folder, ignore_errors=True)
    return wrong


@dataclass(frozen=True)
class Blocks(Dataset[int]):
    """The blocks of a survey as torch's `DataLoader` reads them: each is written, and counts its rows."""

    folder: Path
    parts: tuple[Part, ...]
    processor: Processor
    held_out: frozenset[bytes]

    def __len__(self) -> int:
        return math.ceil(count(self.parts) / BLOCK)

    def path(self, number: int) -> Path:
        return self.folder / f"{number}.safetensors"

    def __getitem__(self, number: int) -> int:
        numbers, path = range(count(self.parts))[number * BLOCK : (number + 1) * BLOCK], self.path(number)
        if not _is_whole(path):
            survey_rows.write(path, read_rows(self.parts, self.processor, self.held_out, numbers))
        return len(numbers)
