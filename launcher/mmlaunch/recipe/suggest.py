"""Suggests the word that a user probably meant."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Iterator

from mmlaunch.recipe.section import Section

_EVERYWHERE = frozenset({"name", "path", "type", "kind", "value"})
"""Words that say nothing about where they belong."""
OTHER_METHODS = frozenset({"reinforce", "dapo", "gspo", "remax", "raft", "cpo", "rrhf"})
"""Methods that are not here: another one of a similar name would be a wrong guess."""


def closest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The word of `words` that is most similar to `word`."""
    import difflib  # only mistakes need it

    by_fold = {candidate.casefold().replace("-", "_"): candidate for candidate in words}
    matches = difflib.get_close_matches(word.casefold().replace("-", "_"), by_fold, n=1, cutoff=cutoff)
    return by_fold[matches[0]] if matches else None


def key(word: str, section: type[Section], root: type[Section], path: str) -> str:
    """A hint for an unknown key of the section at `path`."""
    fold = word.casefold().replace("-", "_")
    prefix = f"{path}." if path else ""
    if fold in section.OTHER_NAMES:
        return f"did you mean {prefix}{section.OTHER_NAMES[fold]}?"
    known = [(place, owner) for name, place, owner in _all_keys(root) if name == fold]
    here = re.sub(r"\[\d+\]", "", f"{prefix}{fold}")
    others = [owner.as_word() for place, owner in known if place == here and owner is not section]
    if others:  # several sections may stand here
        return f"{section.as_word()} has none, {' and '.join(dict.fromkeys(others))} has; remove it"
    elsewhere = [place for place, _ in known] if fold not in _EVERYWHERE else []
    near = closest(word, [*section.keys(), *section.OTHER_NAMES], cutoff=0.6 if not elsewhere else 0.75)
    if near:
        return f"did you mean {prefix}{section.OTHER_NAMES.get(near, near)}?"
    if elsewhere:
        return f"did you mean {min(elsewhere, key=lambda place: place.count('.'))}?"
    return f"known here: {', '.join(section.keys())}" if section.keys() else "none is known here, remove it"


def _all_keys(root: type[Section], prefix: str = "") -> Iterator[tuple[str, str, type[Section]]]:
    """(key or other name, dotted path, section) of the whole schema."""
    below = []
    for name, field in root.model_fields.items():
        place = f"{prefix}{field.alias or name}"
        yield field.alias or name, place, root
        below += [(model, place) for model in sections_of(field.annotation)]
    yield from ((other, f"{prefix}{name}", root) for other, name in root.OTHER_NAMES.items())
    for model, place in below:
        yield from _all_keys(model, f"{place}.")


def sections_of(annotation: object) -> list[type[Section]]:
    """The sections inside an annotation: itself, its union members, its list items."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, list):
        return [section for part in typing.get_args(annotation) for section in sections_of(part)]
    return []
