"""The schema of a recipe: what a user may write, one file for each section."""

from mmlaunch.recipe.recipe import Recipe

__all__ = ["Recipe"]
