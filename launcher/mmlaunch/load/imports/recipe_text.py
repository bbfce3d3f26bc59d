"""Writes a draft as the text of a recipe, with a comment behind each value that needs one."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from mmlaunch.load.imports.draft import GUESS, Draft, LeftOut
from mmlaunch.recipe.environment import hide_secrets
from mmlaunch.recipe.scalars import CONTROL

SECTIONS = (
    "name", "model", "data", "objective", "optim", "batch", "epochs", "steps", "precision", "deepspeed", "checkpoint",
    "evaluate", "log", "resources", "seed",
)  # fmt: skip
"""The order of a recipe."""
WIDTH = 100
"""The longest mapping that is written on one line."""
LONGEST = 120
"""The longest line with its comment."""
_PLAIN = re.compile(r"[A-Za-z0-9_./~][\w./:%+@~-]*( [\w./%+-]+)*")
_SECRET = re.compile("(token|password|secret|api_?key)$", re.IGNORECASE)
_NOT_PLAIN = ("true", "false", "null", "none", "yes", "no", "on", "off", "~", "")


def text_of(draft: Draft, head: str) -> str:
    """The recipe; `head` is the comment on top."""
    lines = [*_comment(head), *_legend(draft)]
    tree = _tree(draft.values)
    for name in sorted(tree, key=lambda name: SECTIONS.index(name)):
        lines += _entry(name, tree[name], name, draft.comments, "")
    return "\n".join([*lines, *_left_out(draft)]) + "\n"


def scalar(value: Any) -> str:
    """One value as YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return re.sub(r"e([+-])0*", lambda sign: f"e{sign.group(1).replace('+', '')}", f"{value:.10g}")
    if isinstance(value, int):
        return str(value)
    text = str(value)
    plain = _PLAIN.fullmatch(text) and text.lower() not in _NOT_PLAIN and ": " not in text and not text.endswith(":")
    return (
        text if plain else "'" + text.replace("'", "''") + "'" if "\\" in text else json.dumps(text, ensure_ascii=False)
    )


def flow(value: Any) -> str:
    """Any value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    text = scalar(value)
    return json.dumps(value, ensure_ascii=False) if text == value and re.search(r"[:%@]", text) else text


def _legend(draft: Draft) -> Iterator[str]:
    if draft.guesses:
        yield f"# {GUESS}: nothing in the configuration says it for certain; look at it."
    if any(text.startswith("default of") for text in draft.comments.values()):
        yield f"# default of {draft.tool}: what {draft.tool} uses where a configuration says nothing."
    if draft.left_out:
        yield "# What was not taken over stands at the end, with the reason where one is known."


def _tree(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of dotted paths as nested mappings."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *above, last = path.split(".")
        place = tree
        for part in above:
            place = place.setdefault(part, {})
        place[last] = (
            {**place[last], **value} if isinstance(place.get(last), dict) and isinstance(value, dict) else value
        )
    return tree


def _entry(key: str, value: Any, path: str, comments: Mapping[str, str], indent: str) -> Iterator[str]:
    """The lines of one key."""
    inner = any(other.startswith((f"{path}.", f"{path}[")) for other in comments)
    one_line = f"{indent}{key}: {flow(value)}"
    if isinstance(value, dict) and (inner or not indent or len(one_line) > WIDTH):
        yield _with_comment(f"{indent}{key}:", comments.get(path, ""))
        for name, item in value.items():
            yield from _entry(name, item, f"{path}.{name}", comments, f"{indent}  ")
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        yield _with_comment(f"{indent}{key}:", comments.get(path, ""))
        for index, item in enumerate(value):
            yield _with_comment(f"{indent}  - {flow(item)}", comments.get(f"{path}[{index}]", ""))
    else:
        text = one_line if isinstance(value, (dict, list)) else f"{indent}{key}: {scalar(value)}"
        yield _with_comment(text, comments.get(path, ""))


def _with_comment(line: str, comment: str) -> str:
    """The comment behind the line, or, where it is long, above it."""
    comment = CONTROL.sub(" ", comment)
    whole = f"{line:<38}  # {comment}" if comment else line
    if len(whole) <= LONGEST:
        return whole
    lead = " " * (len(line) - len(line.lstrip())) + "# "
    return "\n".join(
        [*textwrap.wrap(comment, LONGEST, initial_indent=lead, subsequent_indent=lead, break_on_hyphens=False), line]
    )


def _left_out(draft: Draft) -> Iterator[str]:
    if not draft.left_out:
        return
    yield ""
    yield "# Not taken over:"
    texts = [_shown(one) for one in draft.left_out]
    width = min(44, max(map(len, texts)))
    for text, one in zip(texts, draft.left_out, strict=True):
        yield f"#   {text:<{width}}  ({CONTROL.sub(' ', one.reason)})"


def _shown(one: LeftOut) -> str:
    """An argument on one line, without what looks like a secret: `hub_token: ****`."""
    value = "****" if _SECRET.search(one.name) and one.value is not None else flow(one.value)
    return hide_secrets(CONTROL.sub(" ", f"{one.name}: {value}"))


def _comment(text: str) -> Iterator[str]:
    yield from textwrap.wrap(text, LONGEST, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
