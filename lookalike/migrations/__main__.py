"""`python -m lookalike.migrations "what has changed"`: write the next version."""

from __future__ import annotations

import click

from lookalike.migrations import write


@click.command()
@click.argument("message")
def main(message: str) -> None:
    """Write the version that leads to what lookalike/schema.py says."""
    click.echo(f"{write(message)}: look at it, and test it on a ledger of the version before")


if __name__ == "__main__":
    main()
