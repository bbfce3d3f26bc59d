"""The small values: what they mean, and that what is written reads back as the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mmlaunch.recipe import scalars
from mmlaunch.recipe.scalars import Every, Plain, Warmup


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("24:00:00", 86400), ("1-12:00:00", 129600), ("2-00:00", 172800), ("30m", 1800), ("2h30m", 9000), ("90s", 90),
     ("1.5h", 5400), ("1d", 86400), ("10 min", 600), ("00:00:30", 30)],
)  # fmt: skip
def test_durations(text: str, seconds: int) -> None:
    assert scalars.parse_duration(text) == seconds


@given(st.integers(1, 10**7))
def test_durations_read_back(seconds: int) -> None:
    assert scalars.parse_duration(scalars.format_duration(seconds)) == seconds


@given(st.one_of(st.builds(Every, steps=st.integers(1, 10**6)), st.builds(Every, seconds=st.integers(1, 10**6))))
def test_intervals_read_back(every: Every) -> None:
    assert TypeAdapter(scalars.Interval).validate_python(str(every)) == every


@given(
    st.one_of(
        st.builds(Warmup, steps=st.integers(0, 10**6)),
        st.builds(Warmup, share=st.integers(0, 1000).map(lambda n: n / 1000)),
    )
)
def test_warmups_read_back(warmup: Warmup) -> None:
    assert TypeAdapter(scalars.WarmupLength).validate_python(str(warmup)) == warmup


def test_a_warmup_is_never_longer_than_the_run() -> None:
    assert Warmup(steps=500).of(100) == 100
    assert Warmup(share=0.03).of(1000) == 30
    assert Warmup(share=0.5).of(3) == 2


@pytest.mark.parametrize(("text", "slurm"), [("64G", "64G"), ("64GB", "64G"), ("900 MiB", "900M"), ("1t", "1T")])
def test_memory(text: str, slurm: str) -> None:
    assert TypeAdapter(scalars.MemorySize).validate_python(text) == slurm


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\x1b[31mb", "a\x00", "", " ", "a\u2028b"])
def test_lines_hold_nothing_that_could_leave_their_line(text: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(scalars.Line).validate_python(text)


def test_free_form_values_follow_yaml_1_2() -> None:
    tree = {
        "a": Plain("1e-5"),
        "b": Plain("no"),
        "c": Plain("true"),
        "d": "1",
        "e": [Plain("12"), Plain("1:30")],
        "f": None,
    }
    assert scalars.resolve_plain(tree) == {"a": 1e-5, "b": "no", "c": True, "d": "1", "e": [12, "1:30"], "f": None}
