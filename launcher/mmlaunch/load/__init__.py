"""From YAML text, `extends:` and `-s` overrides to one mapping in which every value remembers its place."""

from mmlaunch.load.recipe import Loaded, load_recipe

__all__ = ["Loaded", "load_recipe"]
