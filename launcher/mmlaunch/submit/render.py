"""Renders the job script and the DeepSpeed configuration from templates that users can read and replace."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from jinja2.loaders import FileSystemLoader
from jinja2.runtime import BlockReference, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner

from mmlaunch.errors import TemplateError
from mmlaunch.load.cluster import config_folder
from mmlaunch.recipe.scalars import SLURM_WORD
from mmlaunch.schedulers import choose
from mmlaunch.submit.plan import Plan

DEEPSPEED = "deepspeed.json.j2"
TEMPLATE_FAULTS = (
    jinja2.TemplateError, TemplateError, ArithmeticError, AttributeError, LookupError, OSError,
    RecursionError, TypeError, ValueError,
)  # fmt: skip
"""The errors that an expression in a user's template may raise."""


_PLAIN = (str, int, float, list, tuple, dict, LoopContext, Cycler, Joiner)
"""The types whose methods a template may call: they change nothing and reach no file."""


class UnreadableTemplate(TemplateError):
    """A template that is no text; the message names its file."""


class _Loader(FileSystemLoader):
    """Reads templates, and says which one is not UTF-8."""

    def get_source(self, environment: jinja2.Environment, template: str) -> tuple[str, str, Any]:
        try:
            return super().get_source(environment, template)
        except UnicodeDecodeError as error:
            places = (Path(folder, template) for folder in self.searchpath)
            path = next(place for place in places if place.is_file())
            what = f"{path}: is not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x})"
            raise UnreadableTemplate(f"{what}; save it as UTF-8") from None


class _Sandbox(ImmutableSandboxedEnvironment):
    """Templates may come with a recipe of somebody else: they see the plan's values and reach nothing behind them.

    Jinja's sandbox closes the ways to Python's internals. The plan also holds objects with methods that write files
    or build other objects, so a template calls only Jinja's own functions, macros, and methods of plain values.
    """

    def is_safe_callable(self, obj: Any) -> bool:
        own = isinstance(obj, (Macro, BlockReference)) or any(obj is known for known in self.globals.values())
        method = getattr(obj, "__wrapped__", obj)  # Jinja wraps `str.format`, to watch over what it looks up
        return bool(super().is_safe_callable(obj)) and (own or isinstance(getattr(method, "__self__", None), _PLAIN))


class Renderer:
    """Templates are looked for beside the recipe, then in the user's config folder, then in the package."""

    def __init__(self, beside: Path) -> None:
        folders = [beside, beside / "templates", config_folder() / "templates", resources.files("mmlaunch.templates")]
        self.environment = _Sandbox(
            loader=_Loader([str(folder) for folder in folders]),
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # each template is rendered once
            autoescape=False,  # scripts, not HTML: values pass through `sh` and `sbatch`
        )
        self.environment.filters.update(sh=quoted, sbatch=on_sbatch_line, json=as_json)

    def script(self, plan: Plan) -> str:
        """The job script."""
        return self._render(choose.named(plan.cluster.executor).template, plan)

    def deepspeed(self, plan: Plan) -> str:
        """The DeepSpeed configuration, checked to be JSON."""
        text = self._render(DEEPSPEED, plan)
        try:
            json.loads(text)
        except ValueError as error:
            raise TemplateError(f"{self._path(DEEPSPEED)}: renders to what is not JSON: {error}") from None
        return text

    def _render(self, name: str, plan: Plan) -> str:
        context = {field.name: getattr(plan, field.name) for field in fields(plan)}
        context.update(world=plan.world, slurm_time=plan.slurm_time, slurm_begin=plan.slurm_begin)
        try:
            return self.environment.get_template(name).render(context)
        except UnreadableTemplate:
            raise
        except jinja2.TemplateSyntaxError as error:
            path = Path(error.filename or name)
            raise TemplateError(_at(path, error.lineno, error.message or "is no template")) from None
        except TEMPLATE_FAULTS as error:
            raise TemplateError(_at(*_place_of(error, name), str(error) or type(error).__name__)) from None

    def _path(self, name: str) -> Path:
        return Path(self.environment.get_template(name).filename or name)


def quoted(value: Any) -> str:
    """A shell word, whatever the value holds."""
    text = str(value)
    if "\n" in text or "\0" in text:
        raise TemplateError(f"{text!r} holds a newline: it cannot stand in a script")
    return shlex.quote(text)


def on_sbatch_line(value: Any) -> str:
    """A value for an #SBATCH line, which no shell reads: plain words stay as they are, others get double quotes."""
    text = str(value)
    if SLURM_WORD.fullmatch(text):
        return text
    if re.search(r'[\x00-\x1f\x7f"\\]', text) or not text:
        raise TemplateError(f"{text!r} cannot stand on an #SBATCH line")
    return f'"{text}"'


def as_json(value: Any) -> str:
    """Indented JSON in the order of the plan."""
    return json.dumps(value, indent=2, allow_nan=False)


def _place_of(error: BaseException, name: str) -> tuple[Path, int]:
    """The template and the line that raised. Jinja puts templates into the traceback; the deepest one raised."""
    place, trace = (Path(name), 0), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith(".j2"):
            place = Path(trace.tb_frame.f_code.co_filename), trace.tb_lineno
        trace = trace.tb_next
    return place


def _at(path: Path, line: int, message: str) -> str:
    """`file:line: message`, with the line of the template below."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    if not 0 < line <= len(lines):
        return f"{path}: {message}"
    text = lines[line - 1]
    return f"{path}:{line}: {message}\n{line:>4} | {text}"
