"""Reads the command of a shell script: its variables, its arithmetic, the arguments of the program that it starts."""

from __future__ import annotations

import ast
import operator
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mmlaunch.load.imports.configuration import value_of

_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)=(.*)")
_ARITHMETIC = re.compile(r"\$\(\((.*?)\)\)")
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)(?::?-([^}]*))?\}|\$([A-Za-z_]\w*)")
_COMMENT = re.compile(r"(^|\s)#.*$")
_ENDS = re.compile(r"[|&;<>]|\d?>.*|&&|\|\|")
_WORDS = ("trl", "llamafactory-cli")
_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}  # fmt: skip
_SHORT = {"-p": "partition", "-N": "nodes", "-n": "ntasks", "-c": "cpus-per-task"}
"""The short options of srun that matter here."""


@dataclass(frozen=True)
class Command:
    """A program and its arguments."""

    program: str
    arguments: dict[str, Any] = field(default_factory=dict)
    launcher: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    """Words without an option before them: a configuration that the program reads, perhaps."""


def command_of(text: str) -> Command | None:
    """The first command that starts a training program: `python train.py --lr 1`, `trl dpo ...`; None without one."""
    variables: dict[str, str] = {}
    for line in re.sub(r"\\\s*\n", " ", text).splitlines():
        line = _COMMENT.sub("", line).strip()
        assignment = _ASSIGNMENT.fullmatch(line)
        values = _words(_expanded(assignment.group(2), variables)) if assignment else None
        if assignment and values is not None and len(values) <= 1:
            variables[assignment.group(1)] = values[0] if values else ""
            continue
        words = _words(_expanded(line, variables)) or []
        start = next((n for n, word in enumerate(words) if word.endswith(".py") or word in _WORDS), None)
        if start is not None and (len(words) > start + 1):
            return _command(words, start)
    return None


def _command(words: list[str], start: int) -> Command:
    end = next((n for n in range(start, len(words)) if _ENDS.fullmatch(words[n])), len(words))
    program, after = words[start].rpartition("/")[2], start + 1
    if words[start] in _WORDS:
        program, after = f"{words[start]} {words[after]}", after + 1
    arguments, files = _options(words[after:end])
    launcher, _ = _options([f"--{_SHORT[word]}" if word in _SHORT else word for word in words[:start]])
    return Command(program, arguments, launcher, files)


def _options(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """`--key value`, `--key=value`, `--key a b` and `--flag`; and the words before the first option."""
    values: dict[str, list[str]] = {}
    name, alone = "", []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            values[name] = [value] if equals else []
            name = "" if equals else name
        elif name:
            values[name].append(word)
        else:
            alone.append(word)
    options = {name: [value_of(word) for word in given] for name, given in values.items()}
    return {
        name: (True if not given else given[0] if len(given) == 1 else given) for name, given in options.items()
    }, alone


def _expanded(text: str, variables: dict[str, str]) -> str:
    """The text with its variables filled in; one that nobody sets stays as it is written."""

    def value(match: re.Match[str]) -> str:
        name, default, short = match.groups()
        return variables.get(name or short) or (default if default is not None else match.group())

    def result(match: re.Match[str]) -> str:
        sum_ = _VARIABLE.sub(value, re.sub(r"\b([A-Za-z_]\w*)\b", r"${\1}", re.sub(r"[${}]", "", match.group(1))))
        number = _calculated(sum_)
        return match.group() if number is None else str(number)

    return _VARIABLE.sub(value, _ARITHMETIC.sub(result, text))


def _calculated(text: str) -> int | None:
    """The value of whole numbers with + - * / and %, as a shell divides them; None where it is anything else."""

    def of(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](of(node.left), of(node.right))
        raise ValueError

    try:
        return of(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _words(line: str) -> list[str] | None:
    try:
        return shlex.split(line)
    except ValueError:  # a quotation mark that is closed on another line
        return None
