"""`mmlaunch schema`: Print the JSON Schema of recipes, for editors."""

from __future__ import annotations

import json
from typing import Any

import click

from mmlaunch.recipe import Recipe


@click.command(
    epilog="\b\nExamples:\n  mmlaunch schema > recipe.schema.json\n  # then, on a recipe's first line:\n"
    "  # yaml-language-server: $schema=recipe.schema.json\n  mmlaunch schema --markdown > docs/recipes.md"
)
@click.option("--markdown", is_flag=True, help="A page for readers instead: every field with its type and default.")
def command(markdown: bool) -> None:
    """Print the JSON Schema of recipes: editors complete and check with it."""
    if markdown:
        from mmlaunch.cli.schema_page import page

        click.echo(page(schema()), nl=False)
    else:
        click.echo(json.dumps(schema(), indent=2))


def schema() -> dict[str, Any]:
    """The schema of a recipe file: a recipe, or part of one that extends another."""
    result = Recipe.model_json_schema(by_alias=True, mode="validation")
    extends = {"type": "string"}
    result["properties"] = {
        "extends": {
            "anyOf": [extends, {"type": "array", "items": extends}],
            "description": "Recipes that this one is laid over.",
        },
        **result["properties"],
    }
    del result["required"]  # a recipe that extends another leaves out what that one has
    result["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return result
