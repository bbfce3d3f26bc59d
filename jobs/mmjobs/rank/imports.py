"""Imports that libraries make of one another, where nobody needs them and each costs every rank a second."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def as_if_missing(package: str) -> Iterator[None]:
    """In this context an import of a package fails, unless it is imported already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # what Python takes for: there is none
    try:
        yield
    finally:
        del sys.modules[package]
