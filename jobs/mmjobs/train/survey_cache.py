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
from mmjobs.data.example import BadRow
from mmjobs.data.formats.registry import parts as parts_of
from mmjobs.data.loader import begin_worker
from mmjobs.data.mixture import refuse_bad
from mmjobs.data.parent import FORK
from mmjobs.data.readers import streamed
from mmjobs.data.readers.rows import Part, file_of, is_streamed
from mmjobs.data.survey import count, fingerprint, read_rows
from mmjobs.data.survey_rows import Rows, Survey
from mmjobs.rank.context import Context
from mmjobs.rank.position import node
from mmjobs.rank.shared_files import link_or_copy, visible
from mmjobs.train import pins
from mmlaunch.errors import BadInput
from mmlaunch.recipe.data import Source
from mmlaunch.run import manifest

BLOCK = 1024
"""Rows of a block."""
SAMPLE = 64
"""So many rows are read once more before a survey is used again: images are no part of its key."""


def surveyed(
    context: Context, sources: Sequence[Source], processor: Processor, held_out: Collection[bytes] = ()
) -> Survey:
    """Every row of the sources; all ranks together."""
    ranks = context.ranks
    sources = _indexed(context, sources)
    parts = sum((parts_of(source) for source in sources), ())
    key = ranks.from_first(_key(context, sources, parts, processor, held_out) if ranks.first else None)
    path = context.paths.survey(key)
    known = ranks.from_first(_known(context, path, parts, processor) if ranks.first else None)
    if known is None:
        _make(context, parts, processor, held_out, path)
    else:
        context.events.log(f"{count(parts):,} rows are known from {known}")
    return Survey(tuple(parts), *survey_rows.read(visible(path), check=False))


def _indexed(context: Context, sources: Sequence[Source]) -> Sequence[Source]:
    """The sources at the commits of this run; of those that are streamed it is known where each row stands."""
    if not any(source.streaming for source in sources):
        return sources
    ranks, sources = context.ranks, pins.at_commits(context, sources)
    ranks.watch.doing("looks where the rows of streamed files stand", "files")
    streaming = [source for source in sources if source.streaming]
    if ranks.first:
        for source in streaming:  # the hub is asked for its files once
            streamed.shards_of(source)
    ranks.any(False)
    streamed.prepare(streaming, ranks.rank, ranks.world, ranks.watch.moved)
    ranks.any(False)
    if ranks.first:
        for source in streaming:  # all ranks read one file then
            streamed.table_of(source)
    ranks.any(False)
    ranks.watch.doing("reads the data", "rows")
    return sources


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
        "parts": [[part.name, len(part.rows), part.max_tiles] for part in parts],
        "held out": _digest(sorted(held_out), bytes),
    }
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _files(sources: Sequence[Source], parts: Sequence[Part]) -> Iterator[Path]:
    """The files that hold the rows; the images that rows name are not among them."""
    tables = {path for part in parts if (path := getattr(getattr(part.rows, "table", None), "path", None))}
    yield from sorted(tables)
    for source in sources:
        path = file_of(source) if source.path and not source.streaming else None  # that has a commit in its name
        if path is not None and path.is_dir():
            yield from sorted(path.glob("*.json"))  # what names tables, or says what is in the folder
            if not tables:  # otherwise it may be a folder of images
                yield from sorted(file for ending in ("parquet", "arrow", "tar") for file in path.rglob(f"*.{ending}"))
        elif path is not None:
            yield path


def _state(path: Path) -> list[Any]:
    state = path.stat()
    return [str(path.absolute()), state.st_size, state.st_mtime_ns, state.st_ino]


def _digest(values: Collection[Any], content: Callable[[Any], bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        digest.update(content(value))
    return digest.hexdigest()


def _known(context: Context, path: Path, parts: Sequence[Part], processor: Processor) -> Path | None:
    """Where the survey was that this run has now: in its own directory, or in that of a run beside it.

    Bad rows may be good by now: a survey with some is used only to go on with the rows that a run has begun with.
    """
    begun = manifest.newest(context.paths.checkpoints, contents=False)[0] is not None
    tolerant = context.recipe.data.on_bad == "skip"
    if (rows := _whole(path)) is not None:
        if (not _has_bad(rows) or (begun and tolerant)) and _is_as_before(rows, parts, processor):
            return path
        path.unlink(missing_ok=True)
    for other in sorted(context.paths.root.parent.glob(f"*/{path.parent.name}/{path.name}")):
        rows = _whole(other)
        if rows is not None and not _has_bad(rows) and _is_as_before(rows, parts, processor):
            path.parent.mkdir(exist_ok=True)
            link_or_copy(other, path)
            return other if path.exists() else None
    return None


def _whole(path: Path) -> Rows | None:
    """The survey of a file; None where there is none, or it is not what was written."""
    try:
        return survey_rows.read(path) if path.exists() else None
    except ValueError:
        return None


def _has_bad(rows: Rows) -> bool:
    return len(rows[1].numbers("bad")) > 0


def _is_as_before(rows: Rows, parts: Sequence[Part], processor: Processor) -> bool:
    """Whether some of the rows, and the sizes of their images, are still what they were."""
    usable, _ = rows
    for place in sorted({len(usable) * number // SAMPLE for number in range(SAMPLE)}) if len(usable) else ():
        before = usable[place]
        if is_streamed(parts[before.part]):
            continue  # a commit does not change, and to look at it would fetch its files
        try:
            example = parts[before.part].rows[before.row]
            same = fingerprint(example) == before.question and processor.sizes(example) == before.images
        except BadRow:
            same = False
        if not same:
            return False
    return True


def _make(
    context: Context, parts: Sequence[Part], processor: Processor, held_out: Collection[bytes], path: Path
) -> None:
    """Read what is not read yet, all ranks together, and join it on rank 0."""
    ranks, folder = context.ranks, path.with_name(f".{path.stem}")
    workers = context.recipe.data.workers if count(parts) > BLOCK * ranks.world else 0
    moved = ranks.watch.moved if not workers else _nothing
    blocks = Blocks(folder, tuple(parts), processor, frozenset(held_out), moved)
    if ranks.first:
        folder.mkdir(parents=True, exist_ok=True)
    ranks.any(False)  # the folder is there
    numbers = list(range(ranks.rank, len(blocks), ranks.world))
    if any(is_streamed(part) for part in parts):
        numbers = share_of_node(ranks.gather(node()), ranks.rank, len(blocks))
    loader = DataLoader(
        blocks, batch_size=None, sampler=numbers, num_workers=workers, worker_init_fn=begin_worker,
        multiprocessing_context=FORK if workers else None,
        generator=torch.Generator(),  # its own: a loader draws a seed
    )  # fmt: skip
    for rows in loader:
        for _ in range(rows if workers else 0):
            ranks.watch.moved()
    ranks.any(False)  # all have written theirs
    wrong = ranks.from_first(_join(context, blocks, path) if ranks.first else None)
    if wrong:
        raise BadInput(wrong)


def share_of_node(nodes: Sequence[str], rank: int, count: int) -> list[int]:
    """The blocks of a rank, where each node reads a stretch of its own: so it fetches no more than the files of that.
    `nodes` has the node of each rank; the ranks of one take its blocks in turn."""
    names = list(dict.fromkeys(nodes))
    place, ranks = names.index(nodes[rank]), [nodes.count(name) for name in names]
    begin, end = (count * sum(ranks[:number]) // len(nodes) for number in (place, place + 1))
    return list(range(begin + nodes[:rank].count(nodes[rank]), end, ranks[place]))


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


def _nothing() -> None:
    """A worker gives no sign of life; its rank does, for each block."""


@dataclass(frozen=True)
class Blocks(Dataset[int]):
    """The blocks of a survey as torch's `DataLoader` reads them: each is written, and counts its rows."""

    folder: Path
    parts: tuple[Part, ...]
    processor: Processor
    held_out: frozenset[bytes]
    moved: Callable[[], None]
    """Called for each row where the rank itself reads it."""

    def __len__(self) -> int:
        return math.ceil(count(self.parts) / BLOCK)

    def path(self, number: int) -> Path:
        return self.folder / f"{number}.safetensors"

    def __getitem__(self, number: int) -> int:
        numbers, path = range(count(self.parts))[number * BLOCK : (number + 1) * BLOCK], self.path(number)
        if (rows := _whole(path)) is None or _has_bad(rows):
            survey_rows.write(path, read_rows(self.parts, self.processor, self.held_out, numbers, self.moved))
        return len(numbers)
