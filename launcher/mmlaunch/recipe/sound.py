"""Finds the rules that a section with mistakes breaks besides.

Mistaken values are removed first, and a rule that reads a removed value is left out. So one mistake neither hides
another one nor causes a false one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from mmlaunch.errors import Problem
from mmlaunch.recipe.objective import CHOOSES, TAGS
from mmlaunch.recipe.section import UNRULED, Path, Section

_GONE = object()


def broken_rules(kind: type[Section], data: Mapping[str, Any], known: Iterable[Problem]) -> list[Problem]:
    """The rules that the sound part of `data` breaks; `known` are the mistakes in the rest."""
    mistaken = {problem.path for problem in known}
    parts: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        key = field.alias or name
        value = data.get(key)
        if value is None and not field.is_required() and (key,) not in mistaken:  # left out, or empty
            parts[name] = field.get_default(call_default_factory=True)
        else:
            parts[name] = _sound(field, value, {path[1:] for path in mistaken if path[:1] == (key,)})
        if key == CHOOSES[0] and CHOOSES in mistaken:
            parts[name] = _GONE
    section = kind.model_construct(**parts)
    for name, value in parts.items():
        if value is _GONE:
            del vars(section)[name]
    return list(_broken(section, ()))


def _broken(section: Section, path: Path) -> Iterator[Problem]:
    for rule in section.RULES:
        try:
            for below, _, error in rule(section):
                yield Problem((*path, *below), error.message(), (error.context or {}).get("right", ""))
        except AttributeError:  # it reads a value that was removed
            continue
    for name, field in type(section).model_fields.items():
        value, key = vars(section).get(name), field.alias or name
        if isinstance(value, Section):
            yield from _broken(value, (*path, key))
        for index, item in enumerate(value if isinstance(value, list) else ()):
            if isinstance(item, Section):
                yield from _broken(item, (*path, key, index))


def _sound(field: FieldInfo, value: Any, mistaken: set[Path]) -> Any:
    """The value of a field without the mistakes below it, and without what cannot be read because of them."""
    kind: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    gone = {path for path in mistaken if path}
    while True:
        rest = value
        for path in gone:
            rest = _without(rest, path)
        if rest is _GONE:
            return _GONE
        try:
            checked = adapter.validate_python(rest, context=UNRULED)
        except ValidationError as error:
            above = {_unreadable(detail["loc"], detail["type"]) for detail in error.errors(include_url=False)}
            if () in above or above <= gone:
                return _GONE
            gone |= above
            continue
        for path in gone:
            _forget(checked, path)
        return checked


def _unreadable(location: tuple[str | int, ...], kind: str) -> Path:
    """The path that cannot be read because of an error of pydantic: the value, or the section that lacks it."""
    path = tuple(part for part in location if part not in TAGS)
    return path[:-1] if kind == "missing" else path


def _without(value: Any, path: Path) -> Any:
    """`value` without the key at `path`, or the nearest key above it; `_GONE` if nothing is left."""
    if not path:
        return _GONE
    head, below = path[0], path[1:]
    if isinstance(value, Mapping) and isinstance(head, int):  # a single item is read as a list of one
        return _without(value, below)
    if isinstance(value, Mapping):
        rest = _without(value[head], below) if head in value else _GONE
        others = {key: item for key, item in value.items() if key != head}
        return others if rest is _GONE else {**value, head: rest}
    if isinstance(value, list) and isinstance(head, int) and head < len(value) and below:
        rest = _without(value[head], below)
        return _GONE if rest is _GONE else [*value[:head], rest, *value[head + 1 :]]
    return _GONE


def _forget(value: Any, path: Path) -> bool:
    """Make what stands at `path` absent, or the nearest attribute above it; true: it is `value` itself."""
    if not path or not isinstance(value, (Section, list, dict)):
        return True
    head, below = path[0], path[1:]
    if isinstance(value, list):
        return not (isinstance(head, int) and head < len(value) and below) or _forget(value[head], below)
    if isinstance(value, dict):
        return False  # it was removed before the section was read
    names = {field.alias or name: name for name, field in type(value).model_fields.items()}
    if head in names:
        gone = [names[head]] if _forget(vars(value).get(names[head]), below) else []
    else:  # an unknown key may have been meant for any that is not written
        gone = [name for name in names.values() if name not in value.model_fields_set]
    for name in gone:
        vars(value).pop(name, None)
    return False
