"""The data formats by the names that recipes call them, and the parts of a source."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmjobs.data.example import Example
from mmjobs.data.formats import auto, internvl, llava, mdpo, prompts, rlaif_v, shapes, shp, trl, ultrafeedback
from mmjobs.data.readers.rows import Part
from mmlaunch.recipe.data import Source


def _recognised(source: Source) -> Sequence[Example]:
    return FORMATS[auto.recognised(source)](source)


FORMATS: dict[str, Callable[[Source], Sequence[Example]]] = {
    "auto": _recognised, "llava": llava.rows, "mdpo": mdpo.rows, "internvl": internvl.rows, "rlaif_v": rlaif_v.rows,
    "trl": trl.rows, "ultrafeedback": ultrafeedback.rows, "shp": shp.rows, "prompts": prompts.rows,
    "shapes": shapes.rows,
}  # fmt: skip
"""Each gives the rows that a source names, after its `skip` and `limit`, each row once."""


def parts(source: Source) -> tuple[Part, ...]:
    """The rows of a source with the settings of the mixture: the recipe's, joined with those of the data's own file.

    Repeats multiply, the smaller tile budget holds, and either may ask for augmentation.
    """
    name = auto.recognised(source) if source.format == "auto" else source.format
    found = internvl.parts(source) if name == "internvl" else (Part(source.path or name, FORMATS[name](source)),)
    return tuple(
        Part(
            part.name,
            part.rows,
            part.repeat * source.repeat,
            "jpeg" if "jpeg" in (part.augment, source.augment) else "none",
            min((tiles for tiles in (part.max_tiles, source.max_tiles) if tiles is not None), default=None),
        )
        for part in found
    )
