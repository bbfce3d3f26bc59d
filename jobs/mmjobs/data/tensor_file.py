"""Files of tensors: written whole or not at all, whatever interrupts the library that writes them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """In this context a file is written at the path that it gives; afterwards it stands at `path`.

    It is written in a folder of its own, where safetensors leaves temporary files when it is killed: whoever writes to
    the same path next removes them. A full disk is an `OSError`, as everywhere else.
    """
    folder = path.with_name(f".{path.name}.writing")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder / path.name
        (folder / path.name).chmod(folder.stat().st_mode & 0o666)  # safetensors hides it from everybody else
        with (folder / path.name).open("rb") as file:
            os.fsync(file.fileno())
        (folder / path.name).replace(path)
    except safetensors.SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            code = int(number[1])
            raise OSError(code, os.strerror(code), str(path)) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
