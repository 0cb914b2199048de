"""`agentd completion SHELL`: what a shell has to read to complete agentd's verbs and options; click knows how each is asked."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_AGENTD_COMPLETE"  # by which the shell's function asks `agentd` itself


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    r"""Print the completion script of a shell.

    \b
    eval "$(agentd completion bash)"        in ~/.bashrc
    eval "$(agentd completion zsh)"         in ~/.zshrc, after compinit
    agentd completion fish | source         in ~/.config/fish/config.fish
    """
    click.echo(script(shell))


def script(shell: str) -> str:
    """The script, for a command that is called `agentd`."""
    from agentd.cli import main

    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click has all three
    asked = kind(main, {}, "agentd", VARIABLE)
    return (
        asked.source_template % asked.source_vars()
    )  # without click's look at the version of a bash that need not be here
