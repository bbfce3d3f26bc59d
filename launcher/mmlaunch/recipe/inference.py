"""`objective` for tasks that train nothing: they go through rows of data once, split into shards."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from mmlaunch.recipe.method import Method
from mmlaunch.recipe.requirements import Requirements
from mmlaunch.recipe.rewards import RewardSource
from mmlaunch.recipe.sampling import Sampling
from mmlaunch.recipe.scalars import Count, Line, NotNegative, OneOrMore, Real, Share, use_default_for_none
from mmlaunch.recipe.section import Mistake, mistake, rule


class Inference(Method):
    """Rows go through a model or a function, a batch at a time; each shard has a range of them and is a job task."""

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "num_shards": "shards", "tasks": "shards", "array": "shards", "concurrency": "at_once", "parallel": "at_once",
        "max_failures": "max_failed", "generate": "sampling", "generation": "sampling",
    }  # fmt: skip

    TASK: ClassVar[str] = "inference"
    OUTPUT: ClassVar[str] = "predictions.jsonl"
    """The file in the run directory that holds a record for each row."""
    MADE: ClassVar[str] = ""
    """The file in the run directory that holds the rows that were made from the records; empty: none are made."""

    shards: Count = 1
    """How many parts the rows are split into. On Slurm each is a task of a job array."""
    at_once: Count | None = None
    """So many shards run at the same time at most."""
    window: Count = 512
    """So many rows, one after the other, are sorted by length, so that a batch holds prompts of similar lengths."""
    max_failed: Share = 0.01
    """The share of rows that may fail: beyond it the run has failed. Each failed row is written with its reason."""

    @property
    def batch(self) -> int:
        """Rows that a rank works on at a time."""
        return 8

    @property
    def makes_rows(self) -> bool:
        """Whether rows are made of the records."""
        return bool(self.MADE)

    @property
    def requirements(self) -> Requirements:
        return Requirements(least=0)

    @rule
    def _whole_batches(self) -> Iterator[Mistake]:
        if self.window % self.batch:
            near = -(-self.window // self.batch) * self.batch
            what = f"a window of {self.window} rows is not whole batches of {self.batch}"
            yield ("window",), self.window, mistake(what, f"write {near}")


class Greedy(Sampling):
    """The likeliest answer."""

    temperature: NotNegative = 0.0


class Continued(Sampling):
    """A rest of an answer, drawn (as InternVL draws it)."""

    temperature: NotNegative = 0.7
    top_k: Count | None = 50
    max_new_tokens: Count = 2048


class Generating(Inference):
    """The model answers prompts. What a recipe leaves out of `sampling` has the defaults of its method."""

    sampling: Sampling
    """How answers are generated."""

    @property
    def batch(self) -> int:
        return self.sampling.prompts


class Predict(Generating):
    """Answers to prompts."""

    method: Literal["predict"]
    """Answers to prompts, without training."""
    sampling: Annotated[Greedy, BeforeValidator(use_default_for_none)] = Field(default_factory=Greedy)


class Score(Inference):
    """Scores of answers that the data have, by reward runs and functions."""

    READS_MODEL: ClassVar[bool] = False
    OUTPUT: ClassVar[str] = "scores.jsonl"
    MADE: ClassVar[str] = "selected.jsonl"

    method: Literal["score"]
    """Scores of the data's own answers."""
    rewards: Annotated[list[RewardSource], OneOrMore(), Field(examples=[["runs/rm-llama3-8b"]])] = []
    """Reward runs and functions; scores are summed with their weights."""
    select: Literal["none", "pairs", "best", "all"] = "none"
    """What is made of the scored answers, in selected.jsonl. pairs: each better answer with each worse one, and the
    scores of both (MMPO's margins); best: the best answer of each row; all: every answer of at least `least`."""
    least: Real | None = None
    """Answers of a lower score are never chosen, nor kept: 1 keeps right ones alone."""
    gap: NotNegative = 0.0
    """A pair's scores have to be further apart than this."""
    pairs_per_row: Count | None = None
    """The most pairs of a row, drawn by the seed. Left out: all."""
    against: Line | None = None
    """A second file of predictions for the same rows: both are scored, and the better answer wins its row."""
    batch_rows: Count = 8
    """Rows that a rank scores at a time."""

    @property
    def batch(self) -> int:
        return self.batch_rows

    @property
    def requirements(self) -> Requirements:
        return Requirements(least=1, prompts=False)

    @property
    def makes_rows(self) -> bool:
        return self.select != "none"

    @property
    def compared_with(self) -> str | None:
        return self.against

    @property
    def reward_sources(self) -> list[RewardSource]:
        return self.rewards

    def frozen_stages(self, adapter_alone: bool, stage: int) -> list[int]:
        """All reward runs but the first, whose model is that of the recipe."""
        return [stage] * (sum(source.path is not None for source in self.rewards) - 1)

    @rule
    def _scores_come_from_somewhere(self) -> Iterator[Mistake]:
        if not self.rewards:
            yield ("rewards",), None, mistake("score has no rewards", "add rewards: runs/rm, or rewards: exact")

    @rule
    def _choices_do_something(self) -> Iterator[Mistake]:
        for name, of in (("least", ("pairs", "best", "all")), ("gap", ("pairs",)), ("pairs_per_row", ("pairs",))):
            if name in self.model_fields_set and getattr(self, name) and self.select not in of:
                what = f"it has a meaning with select: {' or '.join(of)} alone"
                yield (name,), getattr(self, name), mistake(what, "remove it, or add select")
        if self.select == "all" and self.least is None:
            yield ("least",), None, mistake("nothing says which answers are kept", "add least: 1")
        if self.against is not None and self.select != "none":
            yield ("select",), self.select, mistake("answers of two models are compared, not chosen", "remove it")


class DropoutNtp(Generating):
    """Worse answers for preference data: the second half of a good answer, written by a model that sees no image."""

    MADE: ClassVar[str] = "pairs.jsonl"

    method: Literal["dropout_ntp"]
    """Preference pairs whose rejected answers are continued without the image (DropoutNTP of InternVL)."""
    sampling: Annotated[Continued, BeforeValidator(use_default_for_none)] = Field(default_factory=Continued)
    """How answers are continued."""
    start_ratio: Annotated[Real, Field(ge=0, lt=1)] = 0.5
    """The share of the chosen answer, in words, that both answers begin with."""
    image: Literal["remove", "keep"] = "remove"
    """Whether the image is seen while the answer is continued."""

    @property
    def requirements(self) -> Requirements:
        return Requirements(least=1)
