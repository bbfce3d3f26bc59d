"""Reads a configuration of another tool from YAML, JSON, Python or a shell script."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from mmlaunch.errors import UserError
from mmlaunch.load.imports.configuration import Configuration, value_of
from mmlaunch.load.imports.shell import command_of
from mmlaunch.load.text import parse
from mmlaunch.recipe.scalars import Plain

MAX_BYTES = 1 << 20
LORA_NAMES = {"r": "lora_r", "target_modules": "lora_target_modules", "modules_to_save": "lora_modules_to_save"}
"""The fields of peft's LoraConfig, as they are called on TRL's command line."""


def read(path: Path) -> Configuration:
    """The arguments in a file; a `UserError` where it holds none."""
    text = _text(path)
    start = text.lstrip()
    if path.suffix in (".sh", ".bash") or text.startswith("#!"):
        return _of_shell(path, text)
    if path.suffix == ".py" or start.startswith(("from ", "import ")):
        return _of_python(path, text)
    if path.suffix == ".json" or start.startswith("{"):
        return Configuration(path, _mapping(path, _of_json(path, text)))
    return Configuration(path, _mapping(path, _plain(parse(text, str(path)).plain())))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a configuration file") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: is larger than 1 MiB; name a configuration file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; name a configuration file") from None


def _of_shell(path: Path, text: str) -> Configuration:
    command = command_of(text)
    if command is None:
        raise UserError(f"{path}: starts no training program; name a script with a line such as python train.py --lr 1")
    file = next((word for word in (command.arguments.get("config"), *command.files) if word), None)
    if file:
        raise UserError(f"{path}: the arguments of {command.program} stand in {file}; name that file")
    return Configuration(path, command.arguments, command.program, command.launcher)


def _of_json(path: Path, text: str) -> Any:
    """JSON, or a mapping as Python prints it: with None, True and single quotes."""
    try:
        return json.loads(text)
    except ValueError as error:
        try:
            return ast.literal_eval(text.strip())
        except (SyntaxError, ValueError):
            raise UserError(f"{path}: is neither JSON nor a Python mapping ({error}); mend it") from None


def _of_python(path: Path, text: str) -> Configuration:
    """The literal arguments of the first call of a `...Config` of TRL, and of peft's LoraConfig beside it."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: is not Python ({error.msg}); mend it") from None
    arguments: dict[str, Any] = {}
    program = ""
    for node in ast.walk(tree):
        name = _name_of(node.func) if isinstance(node, ast.Call) else ""
        if not isinstance(node, ast.Call) or not name.endswith("Config"):
            continue
        if name == "LoraConfig":
            lora = {LORA_NAMES.get(key, key): value for key, value in _literals(node).items()}
            arguments |= {"use_peft": True, **lora}
        elif not program:
            program = name
            arguments |= _literals(node)
    if not program:
        raise UserError(f"{path}: calls no DPOConfig or other configuration; name a file that does")
    return Configuration(path, arguments, program)


def _name_of(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _literals(call: ast.Call) -> dict[str, Any]:
    """The keyword arguments; one that is computed is kept as its text."""
    values: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            continue
        try:
            values[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError:
            values[keyword.arg] = ast.unparse(keyword.value)
    return values


def _mapping(path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{path}: a mapping of arguments is wanted here; name a configuration file")
    return {str(key): item for key, item in value.items()}


def _plain(value: Any) -> Any:
    """The values of unquoted scalars."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value_of(str(value)) if isinstance(value, Plain) else value
