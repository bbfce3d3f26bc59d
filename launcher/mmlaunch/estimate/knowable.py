"""What the shapes of a model say against a recipe before anything is queued."""

from __future__ import annotations

from mmlaunch.errors import Problem, UserError
from mmlaunch.estimate.shapes.network import network_of
from mmlaunch.recipe import Recipe


def contradictions(recipe: Recipe) -> list[Problem]:
    """What cannot work with these shapes; nothing where they are not known on this machine."""
    try:
        network = network_of(recipe.model)
    except UserError:
        return []
    if network.vision is None:
        return []
    problems = []
    if recipe.model.projector.kind == "pixel_shuffle" and not recipe.model.pretrained and network.vision.side % 2:
        what = f"pixel_shuffle needs an even number of patches a side, and the encoder has {network.vision.side}"
        problems.append(Problem(("model", "projector"), what, "write projector: mlp, or another encoder"))
    sources = [*recipe.data.train, *recipe.data.input, *recipe.data.eval]
    fixed = not network.vision.any_size
    if (
        fixed
        and network.features >= recipe.data.max_tokens
        and all(
            source.images != "none" and (source.kind_of_rows.image_folder or source.kind_of_rows.generated)
            for source in sources
        )
    ):
        what = f"an image alone has {network.features} tokens, so no example with one fits"
        problems.append(Problem(("data", "max_tokens"), what, f"write more than {network.features}"))
    return problems
