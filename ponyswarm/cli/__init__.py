"""The ``ponyswarm`` command: a table of commands, loaded when used, and one end for errors.

A command module parses, makes one call and prints. Help comes from the table, so that
``ponyswarm --help`` loads none of them. Exit codes: 0 good, 1 the tests or the verdict
are bad, 2 usage or set-up, 3 inconclusive or disputed, 4 untrusted or invalid.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from ponyswarm import __version__
from ponyswarm.errors import InfraError, LocalError, PeerError, PonySwarmError

EXIT_BAD = 1
EXIT_USAGE = 2
EXIT_INCONCLUSIVE = 3
EXIT_UNTRUSTED = 4
EXIT_INTERRUPTED = 130

# Name: (where the command is, its line of help). The command's own help may say more.
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("ponyswarm.cli.init:init", "Set this machine up: settings, key, interpreters."),
    "doctor": (
        "ponyswarm.cli.doctor:doctor",
        "Say what works on this machine, and what would help.",
    ),
    "trust": ("ponyswarm.cli.trust:trust", "Choose the projects whose jobs may run here."),
    "follow": ("ponyswarm.cli.trust:follow", "Choose further projects whose ledger to keep."),
    "node": ("ponyswarm.cli.node:node", "Run this machine's node."),
    "status": ("ponyswarm.cli.read:status", "Show what the node here is doing."),
    "pause": ("ponyswarm.cli.control:pause", "Take no jobs for a while."),
    "resume": ("ponyswarm.cli.control:resume", "Take jobs again."),
    "drain": ("ponyswarm.cli.control:drain", "Let what runs end, then stop the node."),
    "key": ("ponyswarm.cli.key:key", "Make, show or rotate your key."),
    "project": ("ponyswarm.cli.project:project", "Create and look after a project."),
    "init-project": (
        "ponyswarm.cli.init_project:init_project",
        "Propose [tool.ponyswarm] from what a project has.",
    ),
    "run": ("ponyswarm.cli.run:run", "Run a project's matrix on this machine."),
    "announce": ("ponyswarm.cli.announce:announce", "Ask volunteers to test a commit."),
    "watch": ("ponyswarm.cli.watch:watch", "Show a job's matrix while it fills in."),
    "try": ("ponyswarm.cli.attempt:attempt", "Have uncommitted work tested by your volunteers."),
    "withdraw": ("ponyswarm.cli.maintain:withdraw", "End a job: nobody runs it any more."),
    "hook": ("ponyswarm.cli.hook:hook", "Announce commits from git hooks."),
    "ci-step": ("ponyswarm.cli.ci:ci_step", "Print a step for a hosted CI that announces."),
    "vouch": ("ponyswarm.cli.maintain:vouch", "Say who runs a volunteer's key."),
    "results": ("ponyswarm.cli.read:results", "Show what works where: a project's matrix."),
    "show": ("ponyswarm.cli.read:show", "Show everything that is known of one cell."),
    "diff": ("ponyswarm.cli.queries:diff", "Show the tests that differ between two jobs or runs."),
    "flaky": ("ponyswarm.cli.queries:flaky", "List tests that pass here and fail there."),
    "volunteers": ("ponyswarm.cli.queries:volunteers", "Show how far each volunteer agrees."),
    "search": ("ponyswarm.cli.queries:search", "Find failed tests by words."),
    "sql": ("ponyswarm.cli.queries:sql", "Ask the ledger in SQL, reading only."),
    "log": ("ponyswarm.cli.read:log", "List ledger entries, newest first."),
    "verify": ("ponyswarm.cli.read:verify", "Check the ledger, or a proof file."),
    "fsck": ("ponyswarm.cli.fsck:fsck", "Check every byte of the ledger, and mend it."),
    "web": ("ponyswarm.cli.web:web", "Show the ledger as pages in your browser."),
    "export": ("ponyswarm.cli.export:export", "Write a proof that others can check offline."),
    "service": ("ponyswarm.cli.service:service", "Start the node with this machine."),
    "completion": ("ponyswarm.cli.completion:completion", "Print a completion script for a shell."),
    "demo": ("ponyswarm.cli.demo:demo", "Run a small swarm on this machine and show it work."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        with _kept():
            command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # By the table: to complete a word no command is imported.
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [
            CompletionItem(name, help=line)
            for name, (_, line) in COMMANDS.items()
            if name.startswith(incomplete)
        ]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and name not in COMMANDS and not name.startswith("-"):
            import difflib

            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "'ponyswarm --help' lists them."
            ctx.fail(f"there is no command '{name}': {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        try:
            return super().invoke(ctx)
        except (PonySwarmError, KeyboardInterrupt) as fault:
            faults: list[BaseException] = [fault]
        except OSError as fault:
            if fault.filename is None:
                raise
            faults = [_unusable(fault)]
        except BaseExceptionGroup as group:
            # A nursery wraps what its tasks raise; only what is ours has an end here.
            faults = list(_leaves(group))
            if not all(isinstance(leaf, (PonySwarmError, KeyboardInterrupt)) for leaf in faults):
                raise
        # The chain says to those who look (tests, a debugger) where each text came from.
        raise click.exceptions.Exit(_report(faults)) from faults[0]


def _unusable(fault: OSError) -> InfraError:
    """A file or folder that a command did not look out for; nothing is known but its name."""
    return InfraError(
        f"{os.fsdecode(fault.filename)} cannot be used ({fault.strerror}): check what it is, who "
        "owns it, and that the disk has room"
    )


@contextmanager
def _kept() -> Iterator[None]:
    """Leave what is imported here out of every garbage collection: it stays until the end."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for fault in group.exceptions:
        if isinstance(fault, BaseExceptionGroup):
            yield from _leaves(fault)
        else:
            yield fault


def _report(faults: list[BaseException]) -> int:
    """Say on stderr what went wrong; the exit code that stands for it."""
    if any(isinstance(fault, KeyboardInterrupt) for fault in faults):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    for text in dict.fromkeys(map(str, faults)):
        click.echo(f"error: {text}", err=True)
    if any(isinstance(fault, (LocalError, InfraError)) for fault in faults):
        return EXIT_USAGE
    return EXIT_UNTRUSTED if any(isinstance(fault, PeerError) for fault in faults) else EXIT_USAGE


def print_json(data: object) -> None:
    """What ``--json`` prints: one object, keys in the order they were made."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


# Every option can be given by a variable, too: PONYSWARM_NODE_LISTEN, for containers and CI.
@click.group(
    cls=LazyGroup,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "PONYSWARM",
    },
)
@click.option(
    "--home",
    metavar="DIR",
    help="Keep settings, key, ledger and caches under DIR (also: PONYSWARM_HOME).",
)
@click.version_option(__version__, message="ponyswarm %(version)s")
@click.pass_context
def main(ctx: click.Context, home: str | None) -> None:
    """Volunteers lend their machines to run Python projects' tests, peer to peer."""
    from ponyswarm.home import Home

    ctx.obj = Home.locate(home)
