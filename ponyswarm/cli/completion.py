"""``ponyswarm completion``: what a shell needs to complete our commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

WHERE = {
    "bash": "~/.local/share/bash-completion/completions/ponyswarm",
    "zsh": "a file named _ponyswarm in a folder of $fpath",
    "fish": "~/.config/fish/completions/ponyswarm.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(list(WHERE)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that lets SHELL complete commands and options.

    \b
    bash: ponyswarm completion bash > ~/.local/share/bash-completion/completions/ponyswarm
    zsh:  ponyswarm completion zsh > a file named _ponyswarm in a folder of $fpath
    fish: ponyswarm completion fish > ~/.config/fish/completions/ponyswarm.fish
    """
    made = get_completion_class(shell)
    assert made is not None
    root = ctx.find_root().command
    click.echo(made(root, {}, "ponyswarm", "_PONYSWARM_COMPLETE").source())
    click.echo(f"# Put this into {WHERE[shell]}.", err=True)
