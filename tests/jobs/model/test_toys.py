"""Toys: the tiny model of each family is built as the recipe's own would be, and answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmjobs.model.build import build
from mmjobs.model.toys import families
from mmlaunch.errors import UserError
from mmlaunch.recipe.model import Model

REFUSED = "paligemma"
"""Its toy is made, and a rehearsal says what a run would: its processor makes what is not made for answers here."""
SEEING = [family for family in families.WHOLE if family not in ("gemma", REFUSED)]
TEXT = ("gemma", "llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3")


@pytest.mark.parametrize("family", [*SEEING, *TEXT])
def test_the_toy_of_each_family_is_a_model_that_a_recipe_can_name(tmp_path: Path, family: str) -> None:
    families.make(tmp_path / "toy", family, "llama-2", {})
    built = build(Model.model_validate({"pretrained": str(tmp_path / "toy")}))
    assert built.network.config.model_type == family
    assert (built.chat.image_id is not None) == (family in SEEING)


@pytest.mark.parametrize("vocabulary", ["llama-2", "llama-3"])
def test_parts_speak_by_the_template_of_the_recipe(tmp_path: Path, vocabulary: str) -> None:
    families.make(tmp_path / "language", "llama", vocabulary, {})
    families.make(tmp_path / "vision", "clip", vocabulary, {"layers": 5})
    parts = {"vision": {"path": str(tmp_path / "vision"), "feature_layer": -5}, "language": str(tmp_path / "language")}
    built = build(Model.model_validate({**parts, "chat_template": vocabulary}))
    assert built.chat.image_id is not None


def test_a_family_that_nobody_knows_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no toy of the family secret can be made; those that see are .*llava"):
        families.make(tmp_path / "toy", "secret", "llama-2", {})
