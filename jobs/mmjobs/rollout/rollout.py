"""The rollout: generated answers, and everything that is learnt from them; its files in the run directory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch

from mmjobs.model.generate import Generated
from mmlaunch.run.files import publish

FILE = "rollout.safetensors"


@dataclass(frozen=True)
class Group:
    """The answers to one prompt."""

    prompt: int
    """Its index in the order of the run."""
    answers: tuple[Generated, ...]


@dataclass
class Rollout:
    """A answers of at most T tokens, those of a prompt side by side, made by one policy; every rank has all of it."""

    step: int
    """Finished steps of the policy that made it."""
    prompts: torch.Tensor  # [P], indices in the order of the run
    ids: torch.Tensor  # [A, T], 0 behind the end
    lengths: torch.Tensor  # [A]
    ended: torch.Tensor  # [A], false where an answer was cut at its greatest length
    behaviour: torch.Tensor  # [A, T], log-probabilities at generation time
    scores: torch.Tensor  # [A], raw; NaN where missing
    numbers: dict[str, torch.Tensor] = field(default_factory=dict)  # [A, T] each: old, reference, value, advantage ...

    @property
    def answers(self) -> int:
        """Of each prompt."""
        return len(self.lengths) // len(self.prompts)

    @property
    def mask(self) -> torch.Tensor:
        """[A, T], true on every generated token with the one that ends an answer; from lengths, never from ids."""
        return torch.arange(self.ids.shape[1])[None] < self.lengths[:, None]

    @property
    def valid(self) -> torch.Tensor:
        """[A, T], true on the tokens that are learnt from: those of answers that have a score."""
        return self.mask & ~self.scores.isnan()[:, None]

    def tokens(self, answer: int) -> list[int]:
        ids: list[int] = self.ids[answer, : self.lengths[answer]].tolist()
        return ids

    def values_of(self, name: str, answers: Iterable[int]) -> torch.Tensor:
        """One of the numbers for each token of these answers, one after the other: [U]"""
        return torch.cat([self.numbers[name][answer, : self.lengths[answer]] for answer in answers])

    def put(self, name: str, answers: Sequence[int], values: torch.Tensor) -> None:
        """Set a number of each token of these answers from [U]."""
        table = self.numbers.setdefault(name, torch.full(self.ids.shape, torch.nan, dtype=torch.float64))
        pieces = values.double().cpu().split([int(self.lengths[answer]) for answer in answers])
        for answer, piece in zip(answers, pieces, strict=True):
            table[answer, : len(piece)] = piece

    def part(self, groups: Sequence[int]) -> Rollout:
        """These groups alone."""
        answers = [group * self.answers + number for group in groups for number in range(self.answers)]
        rows = {name: getattr(self, name)[answers] for name in ("ids", "lengths", "ended", "behaviour", "scores")}
        numbers = {name: values[answers] for name, values in self.numbers.items()}
        return Rollout(step=self.step, prompts=self.prompts[list(groups)], numbers=numbers, **rows)

    @classmethod
    def joined(cls, parts: Sequence[Rollout]) -> Rollout:
        """The groups of several rollouts of the same policy, one after the other."""
        names = ("prompts", "ids", "lengths", "ended", "behaviour", "scores")
        rows = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        numbers = {name: torch.cat([part.numbers[name] for part in parts]) for name in parts[0].numbers}
        return cls(step=parts[0].step, numbers=numbers, **rows)

    def save(self, folder: Path) -> str:
        """Publish it in a folder; its digest."""
        folder.mkdir(parents=True, exist_ok=True)
        named = {"prompts": self.prompts, "ids": self.ids, "lengths": self.lengths, "ended": self.ended,
                 "behaviour": self.behaviour, "scores": self.scores}  # fmt: skip
        named |= {f"numbers.{name}": values for name, values in self.numbers.items()}
        content = safetensors.torch.save({name: value.contiguous() for name, value in named.items()})
        publish(folder / FILE, content)
        return _digest(content)

    @classmethod
    def load(cls, folder: Path, step: int, digest: str) -> Rollout | None:
        """The rollout of this digest; None where its file is gone or another one."""
        try:
            content = (folder / FILE).read_bytes()
        except OSError:
            return None
        if _digest(content) != digest:
            return None
        named = safetensors.torch.load(content)
        numbers = {
            name.removeprefix("numbers."): named.pop(name) for name in list(named) if name.startswith("numbers.")
        }
        return cls(step=step, numbers=numbers, **named)


def of_groups(step: int, groups: Sequence[Group], longest: int) -> Rollout:
    """The rollout of these groups, without scores. `longest`: the tokens of an answer at most."""
    answers = [answer for group in groups for answer in group.answers]
    ids = torch.zeros(len(answers), longest, dtype=torch.long)
    behaviour = torch.zeros(len(answers), longest, dtype=torch.float64)
    for row, answer in enumerate(answers):
        ids[row, : len(answer.ids)] = torch.tensor(answer.ids)
        behaviour[row, : len(answer.ids)] = torch.tensor(answer.log_probs, dtype=torch.float64)
    return Rollout(
        step=step,
        prompts=torch.tensor([group.prompt for group in groups]),
        ids=ids,
        lengths=torch.tensor([len(answer.ids) for answer in answers]),
        ended=torch.tensor([answer.ended for answer in answers]),
        behaviour=behaviour,
        scores=torch.full((len(answers),), torch.nan, dtype=torch.float64),
    )


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
