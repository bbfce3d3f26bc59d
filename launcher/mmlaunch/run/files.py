"""Files of a run are written completely or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mmlaunch.errors import MachineError

READ_ONLY = 0o444


@contextlib.contextmanager
def explained(doing: str, but: type[OSError] | tuple[type[OSError], ...] = ()) -> Iterator[None]:
    """Turn an OSError into one sentence that names the path. Errors of the types `but` are left to the caller."""
    try:
        yield
    except but:
        raise
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise MachineError(f"{doing}: {error.strerror or error}{where}") from error


def publish(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write `path` through a temporary file, flush it to disk and rename it into place."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)  # whatever the umask: other users may read a run
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
