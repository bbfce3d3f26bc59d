"""`profile`: steps that torch's profiler traces."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from mmlaunch.recipe.scalars import Count, OneOrMore
from mmlaunch.recipe.section import Mistake, Section, mistake, rule


class Profile(Section):
    """Traces of some steps on some ranks, in `profiles/` of the run. `mmlaunch profile` asks a live run for one."""

    SHORT: ClassVar[str] = "steps"
    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "step": "steps",
        "rank": "ranks",
        "record_shapes": "shapes",
        "profile_memory": "memory",
    }

    steps: Annotated[list[Count], OneOrMore(), Field(min_length=1, max_length=2, examples=[[10, 12]])]
    """The first and the last step, or one step. The first ones of a run are slower than the others."""
    ranks: Annotated[list[Annotated[int, Field(ge=0)]], OneOrMore(), Field(min_length=1)] = [0]
    """The ranks that write a trace."""
    shapes: bool = False
    """Whether a trace says the shapes of tensors."""
    memory: bool = False
    """Whether it says what each operation allocates."""

    @property
    def first(self) -> int:
        return self.steps[0]

    @property
    def last(self) -> int:
        return self.steps[-1]

    @model_validator(mode="before")
    @classmethod
    def _from_steps(cls, value: Any) -> Any:
        return {"steps": value} if isinstance(value, list) else value

    @rule
    def _in_order(self) -> Iterator[Mistake]:
        if self.last < self.first:
            yield ("steps",), self.steps, mistake(f"{self.last} comes before {self.first}", "write [first, last]")
