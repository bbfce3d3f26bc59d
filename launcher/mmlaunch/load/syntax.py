"""Explains YAML syntax errors in plain words."""

from __future__ import annotations

import yaml

from mmlaunch.errors import Problem
from mmlaunch.load.node import Place, Source


def explained(error: yaml.MarkedYAMLError, source: Source) -> Problem:
    mark = error.problem_mark or error.context_mark
    place = Place(source, *source.place_of(mark)) if mark else Place(source)
    what = error.problem or "is not YAML"
    line = source.lines[place.line - 1] if 0 < place.line <= len(source.lines) else ""
    if "\\t" in what or line[: place.column].strip(" ") == "\t" or line.lstrip(" ").startswith("\t"):
        return place.problem("a tab: YAML indents with spaces only", "replace the tab by two spaces")
    if "undefined alias" in what:
        return place.problem(what, "define the anchor (&name) before it is used")
    if "mapping values are not allowed" in what:
        above = source.lines[place.line - 2] if place.line > 1 else ""
        if (
            above.strip()
            and ":" not in above
            and _indent(above) == _indent(line)
            and not above.lstrip().startswith("- ")
        ):
            place = Place(source, place.line - 1, _indent(above) + 1, len(above.strip()))
            return place.problem("a key without a colon", "write key: value")
        return place.problem("a colon where no key can stand", 'check the indentation, or quote the text: "a: b"')
    if "could not find expected ':'" in what:
        place = Place(source, *source.place_of(error.context_mark)) if error.context_mark else place
        return place.problem("a key without a colon", "write key: value")
    if error.context and "while parsing a flow" in error.context:
        opened = error.context_mark
        if opened and opened.line != place.line - 1:
            return Place(source, *source.place_of(opened)).problem("a bracket that is never closed", "close it")
        return place.problem(
            "this does not belong into the brackets", "separate items by commas and close every bracket"
        )
    if "quoted scalar" in (error.context or ""):
        if "escape" in what:
            return place.problem("an escape that YAML does not know", r"write \\ for a backslash, or 'single quotes'")
        opened = error.context_mark
        place = Place(source, *source.place_of(opened)) if opened else place
        return place.problem("a quotation mark that is never closed", "close it")
    return place.problem(f"is not YAML: {what}", "check indentation, colons and quotes around this place")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
