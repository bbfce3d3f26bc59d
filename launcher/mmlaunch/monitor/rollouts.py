"""What a run of reinforcement learning was rewarded for: reward against KL, lengths, endings, some answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mmlaunch.run import ledger
from mmlaunch.run.ledger import Event, kind_of
from mmlaunch.run.paths import RunPaths

COLUMNS = {
    "reward": "reward", "reward_std": "spread", "eval/reward": "held out", "right": "right", "kl_sequence": "KL",
    "length": "length", "truncated": "cut", "reward_missing": "missing", "flat_groups": "flat",
    "explained_variance": "explained", "generation_kl": "KL to engine",
}  # fmt: skip
"""The numbers of a rollout that are shown, where it has them, and their headings."""
_SHARES = ("right", "truncated", "reward_missing", "flat_groups")
_FEW = 12
"""So many rollouts are shown, spread over the run."""
_CUT, _MISSING, _FLAT, _OUTSIDE = 0.5, 0.1, 0.9, 0.02


class Ends(NamedTuple):
    """A number at the beginning and at the end of a run."""

    early: float
    late: float

    @property
    def gain(self) -> float:
        return self.late - self.early


@dataclass(frozen=True)
class Rollouts:
    """The rollouts of a run in the order of their steps; one that was made twice counts once."""

    steps: tuple[int, ...]
    metrics: tuple[dict[str, Any], ...]
    samples: tuple[dict[str, Any], ...]
    """Of the newest."""

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """The headings and the rows of a table: reward and KL side by side, as over-optimisation shows in both."""
        named = [name for name in COLUMNS if any(_number(one.get(name)) is not None for one in self.metrics)]
        last = len(self.steps) - 1
        shown = sorted({round(number * last / max(1, _FEW - 1)) for number in range(_FEW)})
        rows = [[str(self.steps[i]), *(_text(name, self.metrics[i].get(name)) for name in named)] for i in shown]
        return ["step", *(COLUMNS[name] for name in named)], rows

    def warnings(self) -> list[str]:
        """What looks wrong in the numbers."""
        return [text for text in (self._longer(), self._apart(), self._wrong(), *self._shares()) if text]

    def _longer(self) -> str | None:
        """Answers that grow with their reward."""
        reward, length = self._ends("reward"), self._ends("length")
        if reward is None or length is None or not reward.gain > 0 or length.late < 1.5 * length.early:
            return None
        grew = f"answers grew from {length.early:.0f} to {length.late:.0f} tokens"
        return f"{grew} while the reward rose: does it pay for length?"

    def _apart(self) -> str | None:
        """A reward that rises in training and not on held-out prompts."""
        reward, held_out = self._ends("reward"), self._ends("eval/reward")
        if reward is None or held_out is None or not reward.gain > 0 or held_out.gain > 0.2 * reward.gain:
            return None
        rose = f"the reward rose by {reward.gain:.2f}, and by {held_out.gain:.2f} on held-out prompts"
        return f"{rose}: it may be learnt by heart"

    def _wrong(self) -> str | None:
        """A reward that rises while fewer answers are right."""
        reward, right = self._ends("reward"), self._ends("right")
        if reward is None or right is None or not reward.gain > 0 or right.gain > -0.02:
            return None
        fell = f"right answers fell from {right.early:.0%} to {right.late:.0%}"
        return f"the reward rose while {fell}: the reward is being cheated"

    def _shares(self) -> list[str]:
        newest = self.metrics[-1] if self.metrics else {}
        found = []
        for name, most, what in (
            ("truncated", _CUT, "of the answers never end: raise sampling.max_new_tokens, or see shaping.no_end"),
            ("reward_missing", _MISSING, "of the answers have no score"),
            ("generation_outside", _OUTSIDE, "of the tokens have quite another probability in the engine than here"),
            ("flat_groups", _FLAT, "of the groups have equal scores: nothing is learnt from them"),
        ):
            value = _number(newest.get(name))
            if value is not None and value > most:
                found.append(f"{value:.0%} {what}")
        return found

    def _ends(self, name: str) -> Ends | None:
        """The mean of the first and of the last quarter of all values of a name; None where there are too few."""
        values = [value for one in self.metrics if (value := _number(one.get(name))) is not None]
        if len(values) < 4:
            return None
        quarter = max(1, len(values) // 4)
        return Ends(sum(values[:quarter]) / quarter, sum(values[-quarter:]) / quarter)

    def as_json(self) -> list[dict[str, Any]]:
        return [{"step": step, **metrics} for step, metrics in zip(self.steps, self.metrics, strict=True)]


def of(run: RunPaths) -> Rollouts | None:
    """The rollouts of a run; None where it makes none."""
    events = ledger.read(run.events).events
    made: dict[int, Event] = {event["step"]: event for event in events if kind_of(event) == "rollout"}
    if not made:
        return None
    evaluated = {event["step"]: event["metrics"] for event in events if kind_of(event) == "evaluated"}
    steps = sorted(made)
    metrics = [{**made[step]["metrics"], **_held_out(steps, step, evaluated)} for step in steps]
    return Rollouts(tuple(steps), tuple(metrics), tuple(made[steps[-1]].get("samples", ())))


def _held_out(steps: Sequence[int], step: int, evaluated: dict[int, Any]) -> dict[str, Any]:
    """The evaluation between the rollout before and this one, whose policy is that of this rollout or nearly."""
    before = max((other for other in steps if other < step), default=-1)
    between = [metrics for at, metrics in sorted(evaluated.items()) if before < at <= step]
    return dict(between[-1]) if between else {}


def _number(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def _text(name: str, value: Any) -> str:
    number = _number(value)
    if number is None:
        return ""
    if name in _SHARES:
        return f"{number:.0%}"
    return f"{number:.0f}" if name == "length" else f"{number:.3g}"
