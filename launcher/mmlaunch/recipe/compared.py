"""`objective` for tasks whose answers are compared with those of the data: evaluate, correctness."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_before_validator_function

from mmlaunch.recipe.inference import Continued, Generating, Greedy
from mmlaunch.recipe.reward_functions import FUNCTIONS
from mmlaunch.recipe.rewards import RewardSource
from mmlaunch.recipe.scalars import Count, Line, Real, use_default_for_none
from mmlaunch.recipe.section import Mistake, mistake, rule
from mmlaunch.recipe.suggest import closest

QUESTION = "{question}"
INSTRUCTIONS = {
    "none": QUESTION,
    "short": f"{QUESTION}\nGive only the answer, in one word or a short phrase.",
    "final": f"{QUESTION}\nThink step by step. Write your result in a last line that begins with 'Final answer:'.",
    "boxed": f"{QUESTION}\nThink step by step, and put your result into \\boxed{{}}.",
    "think": f"{QUESTION}\nThink inside <think> and </think>, then give your result inside <answer> and </answer>.",
}
"""What stands in the place of a question, by the name that a recipe writes."""


class Several(Continued):
    """Several answers, drawn (as InternVL draws them)."""

    answers: Count = 32
    max_new_tokens: Count = 4096


def _instruction(value: object) -> object:
    if isinstance(value, str) and value not in INSTRUCTIONS and QUESTION not in value:
        what = f"{value[:60]!r} says nothing of where the question goes"
        raise mistake(what, f"write {QUESTION} in it, or one of {', '.join(INSTRUCTIONS)}")
    return value


class Instructed(Generating):
    """Questions are put with an instruction, and answers compared with the data's own."""

    instruction: Annotated[str, BeforeValidator(_instruction), Field(examples=["boxed"])] = "none"
    """none, short, final, boxed, think, or your own text with {question} in it."""
    remove: list[Line] = []
    """Texts at the end of questions that are taken away first, such as an instruction of the data set's own."""

    @property
    def asks(self) -> str:
        """The text around a question."""
        return INSTRUCTIONS.get(self.instruction, self.instruction)


ALL = "all"
"""The metric of the sources that have none of their own."""
FINAL: Any = "final"
"""The metric where none is named."""


class OneForAll:
    """Metadata of a mapping from sources to metrics: a single metric is that of all sources."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_before_validator_function(_by_source, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        several = handler(schema)
        return {"anyOf": [several, several["additionalProperties"]]}


def _by_source(value: Any) -> Any:
    alone = isinstance(value, str) or (isinstance(value, dict) and {"function", "options", "path"} & set(value))
    return {ALL: value} if alone else value


Metrics = Annotated[dict[str, RewardSource], OneForAll(), Field(min_length=1)]


class Compared(Instructed):
    """Answers are compared with the data's own."""

    metric: Annotated[Metrics, Field(examples=["relaxed"], validate_default=True)] = FINAL
    """A reward function that says which answers are right, or one for each source by its name: {chartqa: relaxed, all:
    exact}. A source is called after its file or folder; the rows of predictions keep the source that they had."""

    @property
    def reward_sources(self) -> list[RewardSource]:
        return list(self.metric.values())

    @rule
    def _functions(self) -> Iterator[Mistake]:
        for name, source in self.metric.items():
            if source.function is not None or source.path is None:
                continue
            near = closest(str(source.path), FUNCTIONS)
            what = f"{source.path!r} is no function that comes with mmlaunch, and a reward run reads no truths"
            right = f"did you mean {near}?" if near else f"one of {', '.join(FUNCTIONS)}, or score.py:reward"
            yield ("metric", name), source.path, mistake(what, right)

    def unknown(self, sources: Sequence[str]) -> Iterator[Mistake]:
        """Metrics of sources that are not there."""
        for name in self.metric:
            if name != ALL and name not in sources:
                near = closest(name, sources)
                right = f"did you mean {near}?" if near else f"they are called {', '.join(sources)}"
                yield ("metric", name), None, mistake(f"no source is called {name}", right)

    def without(self, sources: Sequence[str]) -> Iterator[Mistake]:
        """Sources that have no metric."""
        if ALL not in self.metric and (without := [name for name in sources if name not in self.metric]):
            what = f"none for {', '.join(without)}"
            yield ("metric",), None, mistake(what, f"add objective.metric.{without[0]}, or {ALL}")


class Evaluate(Compared):
    """Answers to prompts, and how many of them are right."""

    method: Literal["evaluate"]
    """Answers to prompts, compared with the data's own answers."""
    sampling: Annotated[Greedy, BeforeValidator(use_default_for_none)] = Field(default_factory=Greedy)


class Correctness(Compared):
    """Preference pairs of right and wrong answers to questions whose answers are known."""

    MADE: ClassVar[str] = "pairs.jsonl"

    method: Literal["correctness"]
    """Preference pairs of answers that are right and wrong (the correctness pipeline of InternVL)."""
    sampling: Annotated[Several, BeforeValidator(use_default_for_none)] = Field(default_factory=Several)
    instruction: Annotated[str, BeforeValidator(_instruction), Field(examples=["boxed"])] = "final"
    """none, short, final, boxed, think, or your own text with {question} in it."""
    right: Real = 0.9
    """Answers of a higher score are right."""
    pairs_per_question: Count = 15
    """The most pairs of a question, drawn by the seed; those of right and wrong answers first."""
    unparsed: Literal["wrong", "format", "drop"] = "format"
    """What an answer is from which nothing can be read. wrong: a wrong one; format: a rejected one in pairs of their
    own; drop: it stands in no pair."""

    @rule
    def _a_high_score_is_right(self) -> Iterator[Mistake]:
        for name, source in self.metric.items():
            if source.lower_is_better:
                what = f"{source.metric} is lower for better answers, and here those of a high score are right"
                yield ("metric", name), source.metric, mistake(what, "name a function whose best score is 1")
