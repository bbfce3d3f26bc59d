"""The estimate: parameters and memory of a recipe, from shapes alone: no weights are read and no torch is loaded."""
