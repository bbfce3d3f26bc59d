"""Rollouts: generated answers, their scores and advantages."""
