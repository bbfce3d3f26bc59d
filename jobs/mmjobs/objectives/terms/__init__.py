"""The terms of a preference objective: every function here that carries the mark `@term`, by its name."""

from __future__ import annotations

import importlib
import pkgutil

from mmjobs.objectives.terms.term import REGISTERED as TERMS

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["TERMS"]
