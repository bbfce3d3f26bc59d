"""Reward functions, and the processes that they run in. A function of the user's own may return a `Verdict`."""

from mmjobs.rollout.rewards.score import Sample, Score, Verdict

__all__ = ["Sample", "Score", "Verdict"]
