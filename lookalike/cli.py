"""The command line: a table of commands. Each lives in the room whose work it does and is loaded when it is called."""

from __future__ import annotations

import importlib
import sys

import click

from lookalike import __version__
from lookalike.errors import LookalikeError

#: command: (module that has it as `command`, one line of help)
COMMANDS = {
    "up": ("workers.up", "Start everything on this machine."),
    "work": ("workers.work", "Run the workers of this machine."),
    "serve": ("backend.serve", "Run the ML backend."),
    "status": ("lookalike.status", "Show what is queued, running, done and failed."),
    "keyframes": ("lookalike.companion", "Give a project of videos its project of keyframes to label."),
    "runs": ("lookalike.runs", "Show what propagations changed."),
    "undo": ("lookalike.undo", "Withdraw what one propagation did."),
    "sign-in": ("lookalike.sign_in", "Print an address that signs you in to the pages, once."),
    "backup": ("lookalike.backup", "Write the ledger and the pictures into one archive."),
    "restore": ("lookalike.restore", "Bring back what a backup holds."),
    "doctor": ("lookalike.doctor", "Say what is wrong with a connection, and how to mend it."),
    "models": ("lookalike.models", "List the embedding models that are known by name."),
    "prelabel": ("workers.prelabel", "Pre-label a folder of clips, or the tasks of a project."),
    "compare": ("workers.compare", "Show which model and clustering suit your own clips."),
    "similar": ("workers.similar", "Find more keyframes like these."),
    "evaluate": ("workers.evaluate", "Measure how much labelling a small sample saves."),
    "bench": ("workers.bench", "Measure speed, as ratios in one run."),
}


class _Commands(click.Group):
    """Loads a command when it is called: `lookalike status` does not wait for torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found = importlib.import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(found, click.Command)
        found.name = cmd_name
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def commands() -> None:
    """Label a few keyframes in Label Studio; their lookalikes get the label as a pre-annotation."""


def main() -> None:
    """Run a command; what goes wrong foreseeably is one sentence and exit status 1."""
    try:
        commands(prog_name="lookalike", standalone_mode=True)
    except LookalikeError as error:
        click.echo(f"lookalike: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
