"""Data sets of the Hugging Face hub, `hf://datasets/ORG/NAME[@REVISION][/FOLDER]`: in its cache, or fetched into it;
and what is streamed from there: the commit, the list of files, one file at a time."""

from __future__ import annotations

import errno
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from mmjobs.data.readers import card
from mmlaunch.errors import BadInput, MachineError, MmlaunchError
from mmlaunch.recipe.data import HUB_DATA

T = TypeVar("T")
COMMIT = re.compile(r"[0-9a-f]{40}")
WAITS: tuple[float, ...] = (1.0, 5.0, 15.0, 30.0, 60.0)
"""Seconds between two tries, in each of which the hub's own client is patient for half a minute."""
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EIO)
_MAY_PASS = (408, 425, 429)


class HubUnreachable(MmlaunchError):
    """The hub does not answer; another attempt may find that it does."""


@dataclass(frozen=True)
class HubData:
    """What a path names: a data set, a revision of it, and a file or folder in it."""

    path: str
    name: str
    revision: str | None
    inside: str | None

    @classmethod
    def of(cls, path: str) -> HubData:
        match = HUB_DATA.fullmatch(path)
        assert match is not None, path
        return cls(path, match["name"], match["revision"], match["inside"] and match["inside"].rstrip("/"))

    def at(self, commit: str) -> str:
        """The path with this commit as its revision."""
        return f"hf://datasets/{self.name}@{commit}" + (f"/{self.inside}" if self.inside else "")


def is_hub(path: str) -> bool:
    """Whether a source's path names a data set of the hub."""
    return HUB_DATA.fullmatch(path) is not None


@cache
def fetched(path: str) -> Path:
    """The folder or file in the hub's cache. What is not there yet is fetched; ranks wait for each other.

    HF_HUB_OFFLINE, HF_HOME and HF_TOKEN mean what they mean everywhere.
    """
    data = HubData.of(path)
    inside = data.inside
    folder = _snapshot(data, [inside, f"{inside}/*"] if inside else None)
    file = folder / (inside or "")
    if not file.exists():
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5])
        raise BadInput(f"{path}: {data.name} has no {inside}; it has {there or 'nothing'}")
    return file


@cache
def fetched_files(path: str, config: str, split: str | None) -> tuple[Path, list[Path]]:
    """A folder in the hub's cache, and the files of a configuration in it; other files are not fetched."""
    data = HubData.of(path)
    about = card.metadata(_snapshot(data, [card.NAME]) / card.NAME)
    wanted = card.patterns(path, about, config, split)
    folder = _snapshot(data, wanted)
    names = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file()]
    files = [folder / name for name in card.matching(names, wanted) if name != card.NAME]
    if not files:
        raise BadInput(f"{path}: {config} has no files: none is called {', '.join(wanted)}")
    return folder, files


def _snapshot(data: HubData, patterns: list[str] | None) -> Path:
    """The folder of a data set in the hub's cache, with the files that fit."""
    from huggingface_hub import snapshot_download  # only who names the hub waits for it

    try:
        return Path(snapshot_download(data.name, repo_type="dataset", revision=data.revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # all errors of the hub are one of these
        right = f"where there is network: hf download {data.name} --repo-type dataset"
        raise BadInput(f"{data.path}: cannot be fetched: {_reason(error)}; {right}") from None


@cache
def pinned(path: str) -> str:
    """The path with the commit that its revision means now."""
    from huggingface_hub import HfApi

    data = HubData.of(path)
    if data.revision and COMMIT.fullmatch(data.revision):
        return path
    return data.at(str(ask(data, lambda: HfApi().dataset_info(data.name, revision=data.revision).sha)))


def files(data: HubData) -> list[tuple[str, int]]:
    """The names of all files that the path names, with their bytes; nothing is fetched."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    where: dict[str, Any] = {"revision": data.revision, "repo_type": "dataset"}
    if data.inside:
        named = ask(data, lambda: HfApi().get_paths_info(data.name, [str(data.inside)], **where))
        if not named:
            raise BadInput(f"{data.path}: {data.name} has no {data.inside}")
        if isinstance(named[0], RepoFile):
            return [(named[0].path, named[0].size)]
    tree = ask(data, lambda: list(HfApi().list_repo_tree(data.name, data.inside, recursive=True, **where)))
    return [(entry.path, entry.size) for entry in tree if isinstance(entry, RepoFile)]


def download(data: HubData, file: str, folder: Path) -> Path:
    """A file of the data set, in a folder that is empty before."""
    from huggingface_hub import hf_hub_download

    where: dict[str, Any] = {"revision": data.revision, "repo_type": "dataset", "local_dir": folder}
    return Path(ask(data, lambda: hf_hub_download(data.name, file, **where), file))


def read_end(data: HubData, file: str, read: Callable[[Any], T]) -> T:
    """What `read` makes of a file of which only the bytes that it asks for are fetched."""
    from huggingface_hub import HfFileSystem

    def request() -> T:
        name = f"datasets/{data.name}@{data.revision}/{file}"
        with HfFileSystem().open(name, "rb", block_size=1 << 20, cache_type="readahead") as opened:
            return read(opened)

    return ask(data, request, file)


def ask(data: HubData, request: Callable[[], T], file: str = "") -> T:
    """What the hub answers. Where the network fails, it is asked again and again; raises `HubUnreachable` at last."""
    from huggingface_hub import constants, errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # that of the client it uses
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    what = f"{data.path}: {file}" if file else data.path
    if constants.HF_HUB_OFFLINE:
        right = f"unset it, or remove streaming and fetch the data first: hf download {data.name} --repo-type dataset"
        raise BadInput(f"{what}: HF_HUB_OFFLINE is set, and streaming reads from the hub; {right}")
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        for wait in (*WAITS, None):
            try:
                return request()
            except (OSError, ValueError, HTTPError, errors.XetDownloadError) as error:
                _check_passing(data, what, error)
                if wait is None:
                    raise HubUnreachable(f"{what}: the hub does not answer ({_reason(error)})") from error
            print(f"{what}: the hub does not answer; again in {wait} s", file=sys.stderr, flush=True)
            time.sleep(wait)
        raise AssertionError
    finally:
        if shown:
            enable_progress_bars()


def _check_passing(data: HubData, what: str, error: Exception) -> None:
    """Raise what will not be otherwise the next time."""
    from huggingface_hub import errors

    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
    page = f"https://huggingface.co/datasets/{data.name}"
    refusals: tuple[tuple[type[Exception], str], ...] = (
        (errors.GatedRepoError, f"is gated; accept its terms at {page}, and name HF_TOKEN in env"),
        (errors.RevisionNotFoundError, f"has no revision {data.revision}; write another one behind @"),
        (errors.RepositoryNotFoundError, "no such data set, or it is private; mend the name, or name HF_TOKEN in env"),
        (errors.EntryNotFoundError, "the hub has no such file"),
    )
    for kind, words in refusals:
        if isinstance(cause, kind) and not isinstance(cause, errors.LocalEntryNotFoundError):
            raise BadInput(f"{what}: {words}") from None
    if isinstance(cause, OSError) and cause.errno in _OF_THE_DISK:
        raise MachineError(f"{what}: cannot be written here: {cause}") from cause
    code = getattr(getattr(cause, "response", None), "status_code", None)
    if (code is not None and 400 <= code < 500 and code not in _MAY_PASS) or isinstance(
        cause, errors.HFValidationError
    ):
        raise BadInput(f"{what}: the hub refuses: {_reason(cause)}") from None


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
