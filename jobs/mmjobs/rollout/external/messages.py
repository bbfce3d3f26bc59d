"""What trainer and server say to each other: JSON over HTTP, tokens in and tokens out.

    GET  /health     Health: who answers, which weights it has, whether it works and how far it is
    POST /load       Load -> Loaded: take the weights of a folder, forget every cache, and say what was read
    POST /generate   Questions -> Answers

Each request carries the key of the server's address. A request that fails has another status than 200 and an `error`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

PROTOCOL = 1
KEY = "MMLAUNCH_ENGINE_KEY"
"""The environment variable that tells a server its key."""
HEADER = "X-Mmlaunch-Key"
STALE = 409
"""The status of questions for another version of the weights than the server has."""
T = TypeVar("T")


@dataclass(frozen=True)
class Health:
    """The state of a server."""

    engine: str
    """`vllm`, or the name of another one."""
    release: str
    protocol: int = PROTOCOL
    version: str = ""
    """The version of the policy whose weights it has; empty until it has loaded one."""
    busy: bool = False
    progress: int = 0
    """Grows with every step of its work."""


@dataclass(frozen=True)
class Load:
    """Take the weights of a folder."""

    folder: str
    version: str


@dataclass(frozen=True)
class Loaded:
    """What was read."""

    version: str
    checksums: dict[str, list[int]]
    """Two sums over the bits of each tensor, as `mmjobs.model.checksum` computes them, by its name in the files."""


@dataclass(frozen=True)
class Settings:
    """How answers are drawn; the same for prompts with and without images."""

    temperature: float
    top_p: float
    top_k: int | None
    min_new_tokens: int
    max_new_tokens: int
    stops: list[int]
    """Tokens that end an answer and are part of it."""
    forbidden: list[int]
    """Tokens that are never drawn."""


@dataclass(frozen=True)
class Question:
    """One prompt."""

    ids: list[int]
    """Its tokens, with one placeholder for each image."""
    images: list[str]
    """PNG files in base64."""
    seeds: list[int]
    """One for each answer."""
    options: dict[str, int] = field(default_factory=dict)
    """What the processor of images has to be told for this prompt."""


@dataclass(frozen=True)
class Questions:
    """Prompts that are answered by one version of the policy."""

    version: str
    settings: Settings
    prompts: list[Question]


@dataclass(frozen=True)
class Answer:
    """One answer."""

    ids: list[int]
    log_probs: list[float]
    """Of each token in the distribution that it was drawn from."""


@dataclass(frozen=True)
class Answered:
    """The answers to one prompt, in the order of its seeds."""

    prompt: list[int]
    """The tokens of the prompt as the model read them, with all tokens of its images."""
    answers: list[Answer]


@dataclass(frozen=True)
class Answers:
    """The answers to all prompts, in their order."""

    version: str
    prompts: list[Answered]


def read(kind: type[T], value: Any) -> T:
    """A message from what JSON has made of it; raises `ValueError` where it is none of this kind."""
    inner = {"settings": Settings, "prompts": Question if kind is Questions else Answered, "answers": Answer}
    try:
        made = {name: _inner(inner[name], one) if name in inner else one for name, one in value.items()}
        return kind(**made)
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"no message of the kind {kind.__name__}: {error}") from error


def _inner(kind: type[Any], value: Any) -> Any:
    return [read(kind, one) for one in value] if isinstance(value, list) else read(kind, value)


def plain(message: Any) -> dict[str, Any]:
    """A message as JSON takes it."""
    return dataclasses.asdict(message)
