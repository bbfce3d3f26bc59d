"""Finds a reward function and calls it. Runs in a worker: imports nothing heavy by itself."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from mmjobs.rollout.rewards.functions import FUNCTIONS, LIBRARIES, WELCOME
from mmjobs.rollout.rewards.score import Verdict, verdict

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
LONGEST = 500
"""The most characters of an exception that are passed on."""


class CannotLoad(Exception):
    """A function that does not exist, or that cannot be called as the recipe asks."""


class Function:
    """A reward function with its options."""

    def __init__(self, name: str, file: str | None, options: Mapping[str, Any], context: Sequence[str]) -> None:
        """`name` as the recipe writes it; `file` is the run's copy of the file that it names.

        `context`: what a function may name beside the answer, the truth and its options.
        """
        self._call, self._options = _load(name, file), dict(options)
        self._context = self._named(name, context)

    def _named(self, name: str, context: Sequence[str]) -> list[str]:
        """What it names of the context; raises `CannotLoad` if it cannot be called."""
        try:
            signature = inspect.signature(self._call)
        except (TypeError, ValueError):  # it has none, such as a function in C
            return []
        everything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in signature.parameters.values())
        places = list(signature.parameters.values())
        named = [one.name for index, one in enumerate(places) if one.kind in _NAMED and index > 1]
        named += [one.name for one in places[:2] if one.kind is inspect.Parameter.KEYWORD_ONLY]
        given = [one for one in context if (everything or one in named) and one not in self._options]
        try:
            signature.bind("", None, **dict.fromkeys(given), **self._options)
        except TypeError as error:
            raise CannotLoad(f"{name} cannot be called with an answer, its truth and its options: {error}") from None
        return given

    def __call__(self, sample: Mapping[str, Any]) -> Verdict:
        """The verdict on a sample; raises whatever the function raises."""
        named = {name: tuple(sample[name]) if name == "truths" else sample[name] for name in self._context}
        return verdict(self._call(sample["answer"], sample["truth"], **named, **self._options))


def _load(name: str, file: str | None) -> Callable[..., Any]:
    if name in FUNCTIONS:
        if name in LIBRARIES:
            _library(name, *LIBRARIES[name])
        if name in WELCOME and importlib.util.find_spec(WELCOME[name]):
            importlib.import_module(WELCOME[name])  # now: later its time would be that of the first answer
        return FUNCTIONS[name]
    where, _, attribute = name.rpartition(":")
    module = _module_of(Path(file)) if file is not None else importlib.import_module(where)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise CannotLoad(f"{where} defines no function {attribute}")
    return function  # type: ignore[no-any-return]  # whatever the user has written


def _library(name: str, module: str, install: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise CannotLoad(f"{name} needs the module {error.name}, which is not installed here: {install}") from None


def _module_of(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"reward_file_{file.stem.replace('-', '_')}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise CannotLoad(f"the run has no file {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def last_line(error: BaseException) -> str:
    """`ValueError: no digits (score.py:12)`: the end of a traceback on one line, and where it was raised."""
    text = " ".join(traceback.format_exception_only(type(error), error)[-1].split())
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(str(Path(__file__).parent))]
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return (text if len(text) <= LONGEST else f"{text[:LONGEST]}...") + place
