"""`mmlaunch completion`: Print a shell's completion script."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

HOW = {
    "bash": 'eval "$(mmlaunch completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(mmlaunch completion zsh)"    # in ~/.zshrc',
    "fish": "mmlaunch completion fish | source     # in ~/.config/fish/config.fish",
}


@click.command(epilog="\b\nExamples:\n  " + "\n  ".join(HOW.values()))
@click.argument("shell", type=click.Choice(list(HOW)))
def command(shell: str) -> None:
    """Print the completion script of SHELL: commands, options, run and cluster names."""
    from mmlaunch.cli import group

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(group, {}, "mmlaunch", "_MMLAUNCH_COMPLETE").source())
