"""`resources`: lists of partitions, the time at which a job may begin, the run that it waits for."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mmlaunch.errors import RecipeError
from mmlaunch.load.cluster import Cluster
from mmlaunch.recipe.begin import delay_of
from mmlaunch.recipe.check import section_of
from mmlaunch.recipe.resources import Resources
from mmlaunch.recipe.scalars import Plain


@pytest.mark.parametrize(
    ("written", "read"),
    [("a100", "a100"), (["a100"], "a100"), (["a100", "h100"], "a100,h100"), ("a100,h100", "a100,h100")],
)
def test_partitions(written: Any, read: str) -> None:
    assert section_of(Resources, {"partition": written}).partition == read
    assert section_of(Cluster, {"partition": written}).partition == read


@pytest.mark.parametrize(
    ("written", "says"),
    [([], "is an empty list"), (["a,b"], "'a,b' is no word of a list"), ([""], "is no word"), ([3], "is no word"),
     (["a b"], "cannot stand on an #SBATCH line"), (["a\nb"], "cannot stand on an #SBATCH line"),
     ({"a": 1}, "a text is wanted")],
)  # fmt: skip
def test_partitions_that_are_refused(written: Any, says: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(says)):
        section_of(Resources, {"partition": written})


@pytest.mark.parametrize(
    ("written", "read", "delay"),
    [
        ("22:00", "22:00", None), ("9:05", "9:05", None), ("22:00:30", "22:00:30", None),
        ("2026-12-01", "2026-12-01", None), ("2026-12-01T22:00", "2026-12-01T22:00", None),
        ("2026-12-01 22:00:15", "2026-12-01T22:00:15", None), ("now+2h", "now+2h", 7200),
        ("now+90m", "now+90m", 5400), ("now+01:30:00", "now+90m", 5400), ("now+2h30m", "now+02:30:00", 9000),
    ],
)  # fmt: skip
def test_begin(written: str, read: str, delay: int | None) -> None:
    begin = section_of(Resources, {"begin": Plain(written)}).begin
    assert begin == read and delay_of(begin) == delay
    assert section_of(Resources, {"begin": begin}).begin == begin


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("25:00", "'25:00' is no time that there is"), ("22:75", "is no time that there is"),
        ("2026-02-30", "is no time that there is"), ("tonight", "'tonight' is no time at which a job may begin"),
        ("22", "is no time at which"), ("", "is no time at which"), (None, "is no time at which"),
        (["22:00"], "is no time at which"), ("now+2", "has no unit"), ("now+0s", "is no delay"),
        ("now+soon", "is not a duration"), ("22:00\n#SBATCH --uid=0", "is no time at which"),
    ],
)  # fmt: skip
def test_begin_that_is_refused(written: Any, says: str) -> None:
    if written is None:
        assert section_of(Resources, {}).begin is None
        return
    with pytest.raises(RecipeError, match=re.escape(says)):
        section_of(Resources, {"begin": written})


def test_other_names_are_recognised() -> None:
    with pytest.raises(RecipeError, match=r"did you mean after\?"):
        section_of(Resources, {"dependency": "sft"})
