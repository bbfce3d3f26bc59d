"""The categories of public benchmarks of reward models: which subset belongs to which. Data only."""

from __future__ import annotations

from fractions import Fraction

_REWARD_BENCH = {
    "Chat": "alpacaeval-easy alpacaeval-length alpacaeval-hard mt-bench-easy mt-bench-med",
    "Chat Hard": (
        "mt-bench-hard llmbar-natural llmbar-adver-neighbor llmbar-adver-gptinst llmbar-adver-gptout "
        "llmbar-adver-manual"
    ),
    "Safety": "refusals-dangerous refusals-offensive xstest-should-refuse xstest-should-respond donotanswer",
    "Reasoning": "math-prm hep-cpp hep-go hep-java hep-js hep-python hep-rust",
    "Prior Sets": "anthropic-helpful anthropic-hhh shp summarize",
}
_VL_REWARD_BENCH = {
    "general": "general wildvision wildvision-battle vlfeedback",
    "hallucination": "hallucination povid rlaif-v rlhf-v",
    "reasoning": "reasoning mathverse mmmu-pro",
}
EXTRA = frozenset({"Prior Sets"})
"""Categories that have no part in the mean of all."""
WEIGHTS = {"math-prm": Fraction(984, 447)}
"""RewardBench counts its 447 rows of mathematics as 984, as many as those of code. All other rows count once."""

_CATEGORY = {
    subset: category
    for benchmark in (_REWARD_BENCH, _VL_REWARD_BENCH)
    for category, subsets in benchmark.items()
    for subset in subsets.split()
}


def of_subset(subset: str) -> str | None:
    """The category of a subset; None if no benchmark has it."""
    return _CATEGORY.get(_plain(subset))


def weight(subset: str) -> Fraction:
    """What a row of the subset counts in its category."""
    return WEIGHTS.get(_plain(subset), Fraction(1))


def _plain(subset: str) -> str:
    return subset.strip().lower().replace("_", "-")
