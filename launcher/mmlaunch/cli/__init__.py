"""The command line: one file for each command, loaded only when it is typed, and what an error looks like."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

import click

from mmlaunch import __version__
from mmlaunch.errors import BadInput, MachineError, MmlaunchError, RecipeError, UserError

USUAL = (
    "init", "validate", "render", "estimate", "submit", "status", "logs", "cancel", "resume", "why", "table", "results",
    "chat", "board", "report", "doctor", "export", "compare", "data", "convert", "split", "decontaminate",
    "import-config", "runs", "schema", "completion",
)  # fmt: skip
"""The order in which --help lists the commands; those that are not named here come behind them."""


@cache
def commands() -> dict[str, str]:
    """Name -> what it does: every file of this folder whose docstring begins with `mmlaunch NAME`. None is imported."""
    table = {}
    for path in Path(__file__).parent.glob("*.py"):
        with path.open(encoding="utf-8") as file:
            name, _, what = file.readline().strip().strip('"').partition(": ")
        command = path.stem.replace("_", "-")
        if name == f"`mmlaunch {command}`":
            table[command] = what
    order = {name: number for number, name in enumerate(USUAL)}
    return {name: table[name] for name in sorted(table, key=lambda name: (order.get(name, len(order)), name))}


EXAMPLES = """
\b
Examples:
  mmlaunch validate recipes/dpo_llama3.yaml
  mmlaunch submit recipes/quickstart.yaml --follow
  mmlaunch submit recipes/dpo_llama3.yaml -s optim.lr=1e-6
  mmlaunch status

Runs live in ./runs, or in $MMLAUNCH_RUNS.
"""


OTHER_TOOLS = {
    "run": "submit", "launch": "submit", "start": "submit", "train": "submit", "ls": "status",
    "list": "status", "ps": "status", "show": "status", "info": "status", "top": "status --watch", "stop": "cancel",
    "kill": "cancel", "rm": "cancel", "check": "validate", "lint": "validate", "plan": "render",
    "dry-run": "render", "dryrun": "render", "preview": "render", "tail": "logs", "log": "logs", "restart": "resume",
    "continue": "resume", "retry": "resume", "tensorboard": "board", "explain": "why", "debug": "why",
    "memory": "estimate", "dedup": "decontaminate", "predict": "submit", "evaluate": "submit", "eval": "submit",
    "score": "submit", "merge": "results", "collect": "results", "notify": "watch", "shell": "attach",
    "ssh": "attach", "exec": "attach", "trace": "profile", "import": "import-config", "migrate": "import-config",
}  # fmt: skip
"""What people type who come from another tool."""
OPTIONS = {"--dryrun": "write --dry-run", "--plan": "write --dry-run",
           "--set": "write -s optim.lr=1e-6", "--config": "name the recipe without an option: mmlaunch submit my.yaml",
           "--wait": "write --follow", "--watch": "write --follow", "--executor": "write --cluster"}  # fmt: skip
"""Options of other tools, and what to write here."""


class Commands(click.Group):
    """Imports a command only when it is used, so that --help is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(commands())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in commands():
            return None
        command: click.Command = importlib.import_module(f"mmlaunch.cli.{cmd_name.replace('-', '_')}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in commands() and not args[0].startswith("-"):
            import difflib

            if args[0] == "help":
                return self.resolve_command(ctx, [*args[1:], "--help"]) if args[1:] else self._show_help(ctx)
            near = [OTHER_TOOLS.get(args[0]) or "", *difflib.get_close_matches(args[0], commands(), n=1)]
            guess = next((word for word in near if word), None)
            hint = f"did you mean {guess}?" if guess else f"one of: {', '.join(commands())}"
            if args[0].endswith((".yaml", ".yml")):
                hint = f"did you mean mmlaunch submit {args[0]}?"
            ctx.fail(f"no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def _show_help(self, ctx: click.Context) -> NoReturn:
        click.echo(ctx.get_help())
        ctx.exit()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(commands().items()))


@click.command(
    cls=Commands,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@click.version_option(__version__, "-V", "--version", prog_name="mmlaunch")
def group() -> None:
    """One YAML recipe becomes a multi-node alignment run that heals itself."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The process boundary: expected errors become a message and an exit code, bugs a traceback."""
    gc.set_threshold(100_000)  # starting up makes many objects and no garbage,
    atexit.register(gc.freeze)  # and what a process leaves behind need not be searched for any
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # it would look for them in every package there is
    color = False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None
    if sys.stdout is None:  # closed by the caller: nothing could be shown
        print("mmlaunch: standard output is closed", file=sys.stderr)
        sys.exit(MachineError.exit_code)
    try:
        code = group.main(
            args=list(arguments) if arguments is not None else None,
            prog_name="mmlaunch",
            standalone_mode=False,
            color=color,
        )
        sys.stdout.flush()
    except RecipeError as error:
        code = _report(error, color)
    except MmlaunchError as error:
        click.echo(f"{click.style('error', fg='red', bold=True)}: {_printable(str(error))}", err=True, color=color)
        # 94 is of a job, and keeps it from a restart: here, what cannot be read is named by the user.
        code = UserError.exit_code if isinstance(error, BadInput) else error.exit_code
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        _show(error)
        code = error.exit_code
    except OSError as error:  # the output cannot be written: a full disk, a closed terminal
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        click.echo(f"mmlaunch: {error}", err=True)
        code = MachineError.exit_code
    sys.exit(code if isinstance(code, int) else 0)


def _show(error: click.ClickException) -> None:
    """As click does, with a hint for options of other tools."""
    hint = OPTIONS.get(error.option_name, "") if isinstance(error, click.NoSuchOption) else ""
    message = _printable(error.format_message()) + (f" {hint}" if hint else "")
    if isinstance(error, click.UsageError):
        click.UsageError(message, error.ctx).show()
    else:
        click.ClickException(message).show()


def _printable(text: str) -> str:
    """A text without what a terminal would obey: names of files and keys may hold it."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def _report(error: RecipeError, color: bool | None) -> int:
    from mmlaunch.recipe.environment import hide_secrets  # the schema is loaded already: it has found the mistakes

    for problem in error.problems:
        where, _, rest = str(problem).partition(": ") if problem.place else ("", "", str(problem))
        where, rest = (hide_secrets(_printable(text).replace("\n", "\ufffd")) for text in (where, rest))
        click.echo(f"{click.style(where, bold=True)}: {rest}" if where else rest, err=True, color=color)
        if problem.excerpt:
            source, _, caret = hide_secrets(problem.excerpt).partition("\n")
            click.echo(f"{source}\n{click.style(caret, fg='red')}", err=True, color=color)
    count = len(error.problems)
    click.echo(click.style(f"{count} error{'s' if count > 1 else ''}", fg="red", bold=True), err=True, color=color)
    return error.exit_code
