"""Validates a plain mapping as a recipe, and reports all its problems at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import ValidationError

from mmlaunch.errors import Problem, RecipeError
from mmlaunch.recipe import suggest
from mmlaunch.recipe.objective import CHOOSES, METHODS, TAGS
from mmlaunch.recipe.recipe import Recipe, completed
from mmlaunch.recipe.section import Path, Section
from mmlaunch.recipe.sound import broken_rules

S = TypeVar("S", bound=Section)

UNKNOWN = "unknown key"
_MOST = 200
"""The most problems that are reported: nobody reads more."""

_RANGES = {
    "greater_than": "more than {gt}", "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}", "less_than_equal": "at most {le}",
}  # fmt: skip
_WANTED = {
    "int": ("a whole number", "8"), "float": ("a number", "5e-6"), "bool": ("neither true nor false", ""),
    "string": ("a text", ""), "list": ("a list", "[first, second]"), "dict": ("a mapping", ""),
    "model": ("a mapping", ""),
}  # fmt: skip


def recipe_of(data: Mapping[str, Any]) -> Recipe:
    """The recipe that `data` describes; raises `RecipeError` with every problem."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        problems = problems_of(error, Recipe)
    misspelt: dict[Path, Path] = {}
    mended = _mended(data, problems, misspelt)
    hidden: list[Problem] = []
    if mended != data:
        try:  # a misspelt key hides what its section would have complained about
            Recipe.model_validate(mended)
            raise RecipeError(problems)
        except ValidationError as error:
            hidden = [problem for problem in problems_of(error, Recipe) if problem not in problems]
    known = [*problems, *hidden]
    hidden += [problem for problem in broken_rules(Recipe, completed(mended), known) if problem not in known]
    raise RecipeError(problems + [_as_written(problem, misspelt) for problem in hidden])


def _as_written(problem: Problem, misspelt: Mapping[Path, Path]) -> Problem:
    """A problem of a recipe whose keys were corrected, under the keys that the user wrote."""
    for length in range(len(problem.path), 0, -1):
        if (written := misspelt.get(problem.path[:length])) is not None:
            return replace(problem, path=(*written, *problem.path[length:]))
    return problem


def _mended(
    data: Any, problems: Sequence[Problem], misspelt: dict[Path, Path], path: Path = (), right: Path = ()
) -> Any:
    """The same data with misspelt keys spelt right, where the right spelling is of the same section.

    `misspelt` is filled: right path -> written path. A misspelt key without a value is left out: its correction would
    be a guess.
    """
    if isinstance(data, list):
        return [_mended(item, problems, misspelt, (*path, n), (*right, n)) for n, item in enumerate(data)]
    if not isinstance(data, Mapping):
        return data
    unknown = {problem.path: problem.right for problem in problems if problem.on_key and problem.what == UNKNOWN}
    mended: dict[Any, Any] = {}
    for key, value in data.items():
        hint = unknown.get((*path, key), "")
        near = re.fullmatch(r"did you mean (?:.*\.)?(\w+)\?", hint)
        meant = near.group(1) if near and hint == f"did you mean {Problem((*path, near.group(1)), '').dotted}?" else key
        name = key if meant in data or value is None else meant  # the right key is written too: keep its value
        if name != key:
            misspelt[(*right, name)] = (*path, key)
        mended[name] = _mended(value, problems, misspelt, (*path, key), (*right, name))
    return mended


def section_of(kind: type[S], data: Mapping[str, Any]) -> S:
    """Any other section, such as a cluster profile, with the same reports."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = problems_of(error, kind)
    raise RecipeError(problems + [hidden for hidden in broken_rules(kind, data, problems) if hidden not in problems])


def problems_of(error: ValidationError, root: type[Section]) -> list[Problem]:
    """pydantic's errors in our words, in the order of the file."""
    details = error.errors(include_url=False)
    problems = [_problem(dict(detail), root) for detail in details[:_MOST]]
    if (more := len(details) - _MOST) > 0:
        problems.append(Problem((), f"{more:,} more mistakes", "mend these first"))
    meant = {problem.right for problem in problems if problem.on_key}
    made_up = [p for p in problems if p.what == "missing" and f"did you mean {p.dotted}?" in meant]
    if any(problem.path == CHOOSES for problem in problems):
        kinds = suggest.sections_of(Recipe.model_fields[CHOOSES[0]].annotation)
        known = {(CHOOSES[0], name) for kind in kinds for name in kind.model_fields}
        made_up += [p for p in problems if p.what == UNKNOWN and p.path in known]
    return [problem for problem in problems if problem not in made_up]


def _problem(detail: dict[str, Any], root: type[Section]) -> Problem:
    path = tuple(part for part in detail["loc"] if part not in TAGS)
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "mistake":
        return Problem(path, detail["msg"], context.get("right", ""))
    if kind == "extra_forbidden":
        section = section_at(root, detail["loc"][:-1])
        parent = Problem(path[:-1], "").dotted
        return Problem(path, UNKNOWN, suggest.key(str(path[-1]), section, root, parent), on_key=True)
    if kind == "missing":
        return Problem(path, "missing", _example(root, detail["loc"]), on_key=True)
    if kind == "literal_error":
        words = METHODS if path == ("objective", "method") else _words(context["expected"])
        return Problem(path, f"unknown value {_shown(value)}", _choice(value, words))
    if kind in _RANGES:
        return Problem(
            path, f"{_shown(value)} is out of range", "write a number that is " + _RANGES[kind].format(**context)
        )
    if kind == "finite_number":
        return Problem(path, f"{_shown(value)} is not a finite number", "write a number such as 5e-6")
    if kind == "string_pattern_mismatch":
        return Problem(path, f"{_shown(value)} is not a plain file name", "use letters, digits, '.', '_' and '-'")
    if kind == "too_short":
        has = f"has {context['actual_length']} items" if context["actual_length"] else "is empty"
        return Problem(path, has, f"write at least {context['min_length']} of them")
    if kind == "too_long":
        return Problem(path, f"has {context['actual_length']} items", f"write {context['max_length']}")
    return _wrong_type(path, kind, value, root, detail)


def _wrong_type(
    path: tuple[str | int, ...], kind: str, value: Any, root: type[Section], detail: dict[str, Any]
) -> Problem:
    wanted, example = _WANTED.get(kind.split("_")[0], ("", ""))
    if not wanted:
        return Problem(path, str(detail["msg"]).lower())
    if wanted == "a mapping":
        section = section_at(root, detail["loc"])
        example = f"keys: {', '.join(section.keys()[:8])}"
        right = f"write a mapping with {example}" if section is not root or path == () else ""
        return Problem(path, f"a mapping is wanted here, this is {_shown(value)}", right)
    if wanted.startswith("neither"):
        return Problem(path, f"{_shown(value)} is neither true nor false", "write true or false")
    if value is None:
        return Problem(
            path,
            f"has no value, and {wanted} is wanted",
            _example(root, detail["loc"]) or "write one or remove the key",
        )
    right = _example(root, detail["loc"]) or (f"write one such as {example}" if example else "")
    return Problem(path, f"{wanted} is wanted here, this is {_shown(value)}", right)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "empty"
    text = str(value)
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _words(expected: str) -> list[str]:
    """pydantic lists a literal's values as `'a', 'b' or 'c'`."""
    return re.findall(r"'([^']*)'", expected)


def _choice(value: Any, words: Sequence[str]) -> str:
    near = suggest.closest(str(value), words) if str(value) not in suggest.OTHER_METHODS else None
    listing = f"one of {', '.join(words)}"
    return f"did you mean {near}? ({listing})" if near else f"write {listing}"


def _example(root: type[Section], location: Sequence[str | int]) -> str:
    """`write name: dpo-llama3-8b`, when the field that stands at this place has an example."""
    section, key = section_at(root, location[:-1]), location[-1] if location else ""
    for name, field in section.model_fields.items():
        if key in (name, field.alias):
            examples = field.examples or _nested_examples(field.metadata)
            if examples:
                return f"write {key}: {examples[0]}"
            sections = suggest.sections_of(field.annotation)
            if sections:
                return f"write a mapping with keys: {', '.join(sections[0].keys()[:8])}"
    return ""


def _nested_examples(metadata: Sequence[Any]) -> list[Any]:
    return next((item.examples for item in metadata if getattr(item, "examples", None)), [])


def section_at(root: type[Section], location: Sequence[str | int]) -> type[Section]:
    """The section that reads the mapping at this place; tags such as `<ppo>` choose among several."""
    current: list[type[Section]] = [root]
    for part in location:
        if part in TAGS:
            current = [section for section in current if f"<{section.as_word()}>" == part] or current
        elif isinstance(part, str):
            fields = [item for section in current for item in section.model_fields.items()]
            annotation = next((field.annotation for name, field in fields if part in (name, field.alias)), None)
            current = suggest.sections_of(annotation) or current
    return current[0]
