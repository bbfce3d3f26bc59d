"""The data: from the sources of a recipe to the batches of a step."""
