"""The reward functions that are shipped: one section of the same name for each, with its options.

Each has one function of that name in `mmjobs/rollout/rewards/functions.py`.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from mmlaunch.recipe.scalars import Count, NotNegative, Share, listed
from mmlaunch.recipe.section import Mistake, Section, mistake, rule

CONTEXT = ("prompt", "origin", "finished", "truths")
"""What a function may name beside the answer, the truth and its options."""


class Exact(Section):
    """1 if the answer is the truth, but for spaces at its ends and in a row."""

    case: bool = False
    """Whether upper and lower case differ."""
    punctuation: bool = False
    """Whether punctuation counts."""


class Numeric(Section):
    """1 if the last number of the answer is that of the truth: 1,234 and 1/2 and 50% and 1e-3 are numbers."""

    tolerance: NotNegative = 0.0
    """How far the number may be from the truth."""
    relative: NotNegative = 1e-6
    """How far it may be from the truth, as a part of the truth; the larger of both holds."""


class Relaxed(Section):
    """ChartQA's relaxed accuracy: 1 if a number is near the truth, or a text that is no number the same."""

    tolerance: Share = 0.05
    """How far a number may be from the truth, as a part of the truth."""


class Choice(Section):
    """1 if the answer chooses the letter of the truth, A to J, or the whole text of its option in the prompt."""


class YesNo(Section):
    """1 if the answer says yes or no as the truth does: as its first word, its last line, or behind "the answer is"."""


class Vqa(Section):
    """The VQA score: the share of the ten truths that say the same, at most 1; of fewer truths, any."""


class Anls(Section):
    """1 - edit distance / length of the longer text, from the nearest truth; 0 below the threshold."""

    threshold: Share = 0.5
    """The least similarity that counts."""


class Boxed(Numeric):
    """1 if the last \\boxed{..} or "Final answer: .." is the truth: as numbers where both are, else as texts."""


class Math(Section):
    """1 if math-verify takes the answer and the truth for the same expression; it has to be installed."""

    digits: Annotated[int, Field(ge=1, le=15)] = 6
    """Numbers are compared after they are rounded to so many digits behind the point."""


class Final(Numeric):
    """1 if the marked final answer is a truth: as text, by value, as a choice, or as an expression."""

    digits: Annotated[int, Field(ge=1, le=15)] = 6
    """As in `math`, which is used where math-verify is installed."""
    marked: bool = True
    """Whether only a marked answer counts; if not, an answer without a mark is compared as a whole."""


def _synonyms(value: Any) -> Any:
    """A table, or the file that holds one: JSON, or a line for each object with its synonyms behind commas."""
    if isinstance(value, str):
        value = _table_of(Path(value).expanduser())
    if not isinstance(value, dict):
        raise mistake("a mapping or a file is wanted here", "write synonyms: {dog: [puppy, hound]}")
    return {str(name): listed(words if words is not None else []) for name, words in value.items()}


def _table_of(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            return json.loads(text)
    except (OSError, ValueError) as error:
        raise mistake(f"{path} cannot be read: {error}", "write a file of UTF-8 text or JSON, or a mapping") from None
    lines = [[word.strip() for word in line.split(",") if word.strip()] for line in text.splitlines()]
    return {words[0]: words[1:] for words in lines if words}


class Chair(Section):
    """CHAIR, lower is better: the share of the known objects that an answer mentions which are not in the image."""

    synonyms: Annotated[
        dict[str, list[str]],
        BeforeValidator(_synonyms),
        Field(min_length=1, examples=["{dog: [puppy, hound]}"]),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]}),
    ]
    """The known objects with their synonyms, or a file of them, which is read when the recipe is."""


class Amber(Chair):
    """AMBER's measures of a description of an image."""

    measure: Literal["coverage", "hallucination"] = "coverage"
    """The share of the objects in the image that are mentioned; or of those mentioned that are not in the image, for
    which lower is better."""


def _regular(value: Any) -> Any:
    try:
        re.compile(value if isinstance(value, str) else "")
    except re.error as error:
        raise mistake(
            f"{str(value)!r} is no regular expression: {error}", "write one such as '<think>.*</think>.*'"
        ) from None
    return value


class Format(Section):
    """1 if the whole answer has a form."""

    pattern: Annotated[str, BeforeValidator(_regular), Field(min_length=1, examples=["'<think>.*</think>.*'"])]
    """A regular expression that the whole answer has to match; a point matches line ends too."""


class Length(Section):
    """Soft: 1 at the wanted length, less and less beyond it."""

    OTHER_NAMES: ClassVar[dict[str, str]] = {"max": "most", "max_length": "most", "goal": "target"}

    target: Count | None = None
    """The wanted number of characters; 0 for an answer of none, and of twice as many."""
    most: Count | None = None
    """The most characters that cost nothing; 0 for an answer of twice as many."""

    @rule
    def _one_length(self) -> Iterator[Mistake]:
        if (self.target is None) == (self.most is None):
            what = "nothing says how long" if self.target is None else "both target and most say how long"
            yield (), None, mistake(what, "write one of the two: target: 400, or most: 400")


FUNCTIONS: dict[str, type[Section]] = {
    kind.as_word(): kind
    for kind in (
        Exact, Numeric, Relaxed, Choice, YesNo, Vqa, Anls, Boxed, Final, Math, Chair, Amber, Format, Length,
    )
}  # fmt: skip
"""The shipped functions, and the section that reads the options of each."""

WITHOUT_TRUTH = ("format", "length")
"""The shipped functions that look at the answer alone."""

LOWER_IS_BETTER = ("chair", "amber_hallucination")
"""The metrics whose best score is 0."""
