"""Configurations of other training tools, read as recipes: one file for each tool, with a table of its arguments."""
