"""The Markdown page of every field of a recipe, made from the JSON Schema: `mmlaunch schema --markdown`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

HEAD = """\
# Recipes: every field

A recipe is one YAML file. `mmlaunch validate RECIPE` checks it and names every mistake with its line. This page is made
from the same schema by `mmlaunch schema --markdown`; a test holds the two together. Which recipes are shipped, and what
each is for, stands in the first lines of each file in [recipes](../recipes). [first-run.md](first-run.md) writes one
step by step; [pipelines.md](pipelines.md) says how several become one file.

## How values are written

| word on this page | what to write |
|---|---|
| time | `90s`, `30m`, `2h30m`, `24:00:00`, `2-00:00:00`. A number without a unit is refused. |
| share | `3%` or `0.03` |
| size | `80G`, `900M`: a whole number and K, M, G or T |
| text | one line; `no`, `on` and `1e5` stay the texts that they are |
| section | a mapping with the fields that the link shows. Where one word is enough, its table says so. |
| list of X | a list, or a single X |

The field decides what a text means, not YAML: `5e-6` is a number, `24:00:00` a time. An unknown key is an error, with
the name that was probably meant. A dash in the column *default* means that nothing is set.

**Building on another recipe.** `extends: base/llama3_clip.yaml` lays this file over that one. Mappings are merged, key
by key; anything else is replaced, lists too. Several files are a list, and later ones win. Files that `extends` names
are looked for beside the recipe, then among the shipped ones. All other paths start at the folder that you submit from.

**From the command line.** `-s` changes any field, through the same checks:
`-s optim.lr=1e-6 -s data.train[0].limit=500`.
"""

SOME = 1000
"""A limit above it guards against slips, and nobody needs to read it."""


def page(schema: Schema) -> str:
    """The whole page."""
    return HEAD + "".join(_Writer(schema["$defs"]).whole(schema))


class _Writer:
    """Writes each section once, under the path where it is met first; later paths link to it."""

    def __init__(self, definitions: dict[str, Schema]) -> None:
        self.definitions = definitions
        self.headings: dict[str, str] = {}
        self.waiting: list[tuple[str, int]] = []

    def whole(self, schema: Schema) -> Iterator[str]:
        needed = ["name", "model", "data", "objective", "optim", "batch"]
        yield "\n## The whole recipe\n\n"
        yield from self._table("", schema, needed)
        for name, field in schema["properties"].items():
            choices = field.get("oneOf", [])
            if choices:
                yield f"\n## {name}\n\n{self._methods(choices)}"
            for reference in choices:
                yield from self._section(_target(reference), self._heading_of_method(reference), 2)
            for target in [] if choices else self._targets(field):
                yield from self._section(target, name, 2)

    def _heading_of_method(self, reference: Schema) -> str:
        method = self._body(_target(reference))["properties"]["method"]
        return f"objective: {method.get('const', 'preferences' if 'enum' in method else 'custom')}"

    def _methods(self, choices: list[Schema]) -> str:
        """The words that an objective may be."""
        rows = ["| method | |\n|---|---|\n"]
        for reference in choices:
            method = self._body(_target(reference))["properties"]["method"]
            names = [method["const"]] if "const" in method else method.get("enum") or method["examples"]
            words = ", ".join(f"`{name}`" for name in names)
            heading = self._heading_of_method(reference)
            rows.append(f"| {words} | {_line(self._body(_target(reference))['description'])} {_link(heading)} |\n")
        return "".join(rows)

    def _section(self, name: str, heading: str, depth: int) -> Iterator[str]:
        """One section, then those that it holds."""
        if not name or name in self.headings:
            return
        self.headings[name] = heading
        body = self._body(name)
        yield f"\n{'#' * depth} {heading}\n\n"
        yield from self._about(name, heading)
        alike = next((other for other in self.headings if other != name and self._same_keys(other, name)), None)
        fields = dict(body["properties"])
        if alike:
            other = self._body(alike)["properties"]
            fields = {key: field for key, field in fields.items() if field != other[key]}
            yield f"The same fields as {_link(self.headings[alike])}, with these differences:\n\n"
        path = re.sub(r"^objective: ", "", heading).replace(": ", ".")
        for key, field in fields.items():
            for target in self._targets(field):
                self.headings.setdefault(f"?{target}", self._path(path, key, target, field))
        yield from self._table(path, {"properties": fields}, body.get("required", []))
        for key, field in fields.items():
            for target in self._targets(field):
                if self._body(target)["properties"]:
                    yield from self._section(target, self._path(path, key, target, field), 3)

    def _about(self, name: str, heading: str) -> Iterator[str]:
        """What a section is, and what a single word in its place means."""
        about = _line(self._body(name)["description"])
        whole = self.definitions[name]
        if not re.fullmatch(rf"`{re.escape(heading)}`\.?", about):
            yield re.sub(rf"^`{re.escape(heading)}`: (\w)", lambda match: match[1].upper(), about) + "\n\n"
        if "anyOf" in whole and not heading.startswith("objective: "):
            short = whole["anyOf"][1].get("title", "").lower().replace(" ", "_")
            yield f"A single value stands for `{short}`.\n\n"

    def _same_keys(self, one: str, other: str) -> bool:
        if one.startswith("?"):
            return False
        keys = [set(self._body(name)["properties"]) for name in (one, other)]
        return keys[0] == keys[1] and len(keys[0]) > 2

    def _path(self, path: str, key: str, target: str, field: Schema) -> str:
        several = len(self._targets(field)) > 1
        return f"{path}.{key}" + (f": {_as_word(target)}" if several else "")

    def _targets(self, field: Schema) -> list[str]:
        """The sections that may be the value of a field."""
        inside = [field, *field.get("anyOf", []), field.get("items", {})]
        inside += [part.get("items", {}) for part in field.get("anyOf", [])]
        names = [_target(part) for part in inside if _target(part)]
        return [name for name in dict.fromkeys(names) if self._is_section(name)]

    def _is_section(self, name: str) -> bool:
        whole = self.definitions[name]
        return "properties" in whole or any("properties" in part for part in whole.get("anyOf", []))

    def _body(self, name: str) -> Schema:
        whole = self.definitions[name]
        body: Schema = whole if "properties" in whole else {"properties": {}, **whole, **whole.get("anyOf", [{}])[0]}
        return body

    def _table(self, path: str, section: Schema, required: list[str]) -> Iterator[str]:
        if not section["properties"]:
            return
        yield "| field | type | default | |\n|---|---|---|---|\n"
        for key, field in section["properties"].items():
            default = "needed" if key in required else _default(field.get("default"))
            kind = "see below" if "oneOf" in field else self._kind(field, f"{path}.{key}" if path else key)
            yield f"| `{key}` | {kind} | {default} | {_line(field['description'])} |\n"

    def _kind(self, field: Schema, path: str) -> str:
        """The type of a field, in a few words."""
        targets = self._targets(field)
        if len(targets) > 1:
            return ", ".join(self._link_to(target, path, True) for target in targets)
        parts = [part for part in field.get("anyOf", [field]) if part.get("type") != "null"]
        if len(parts) == 2 and parts[0].get("type") == "array":
            return f"list of {self._kind(parts[0]['items'], path)}"
        examples = field.get("examples", [])
        return " or ".join(dict.fromkeys(self._plain({"examples": examples, **part}, path) for part in parts))

    def _plain(self, part: Schema, path: str) -> str:
        if target := _target(part):
            return self._link_to(target, path, False) if self._is_section(target) else self._plain(
                self.definitions[target], path)  # fmt: skip
        if "const" in part or "enum" in part:
            return ", ".join(f"`{value}`" for value in part.get("enum", [part.get("const")]))
        kind, examples = part.get("type"), [str(example) for example in part.get("examples", [])]
        if isinstance(kind, list):
            return "share" if not examples and len(kind) == 2 else " or ".join(
                f"`{example}`" for example in examples if not example.isdigit()) or "text, list or mapping"  # fmt: skip
        if kind == "array":
            return f"list of {self._kind(part['items'], path)}"
        if kind == "string":
            return _text(examples)
        return {"boolean": "`true`, `false`", "object": "mapping"}.get(str(kind), f"{kind}{_bounds(part)}")

    def _link_to(self, target: str, path: str, several: bool) -> str:
        """A link to where a section stands; one without fields has no place of its own."""
        if not self._body(target)["properties"]:
            return f"`{_as_word(target)}`"
        heading = self.headings.get(target) or self.headings.get(f"?{target}", path)
        return f"[{_as_word(target) if several else 'section'}](#{anchor(heading)})"


def _target(part: Schema) -> str:
    """The definition that a reference names."""
    return str(part.get("$ref", "")).rpartition("/")[2]


def _as_word(name: str) -> str:
    """`YesNo` as `yes_no`."""
    return re.sub(r"\B([A-Z])", r"_\1", name.rpartition("__")[2]).lower()


def anchor(heading: str) -> str:
    """The name that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _link(heading: str) -> str:
    return f"[{heading}](#{anchor(heading)})"


def _line(text: str) -> str:
    """A description as one cell of a table."""
    return re.sub(r"\s*\n\s*", " ", text).replace("|", "\\|")


def _text(examples: list[str]) -> str:
    if examples and re.fullmatch(r"\d+[smh]", examples[0]):
        return "time"
    if examples and re.fullmatch(r"\d+[KMGT]", examples[0]):
        return "size"
    return f"text, e.g. `{examples[0]}`" if examples else "text"


def _bounds(part: Schema) -> str:
    """` ≥ 1`, ` > 0, < 1`; limits that only guard against slips are left out."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    shown = [f"{sign} {part[key]:g}" for key, sign in signs.items() if key in part and part[key] <= SOME]
    return f" {', '.join(shown)}" if shown else ""


def _default(value: Any) -> str:
    if value is None or value == {} or value == []:
        return "-"
    if isinstance(value, list):
        return ", ".join(_default(item) for item in value)
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"
