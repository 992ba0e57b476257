"""The `qkrepro` command. Each command imports what it needs when it runs, so that --help and --version are instant."""

import sys
from typing import Annotated

import typer

from qkrepro import __version__
from qkrepro.errors import QKReproError

app = typer.Typer(
    name="qkrepro",
    help="Re-run the book, read a checkpoint's QK eigenspectrum, train with LocAteR. (arXiv 2402.02098)",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qkrepro {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command; bad input is one line on stderr and exit code 2, never a traceback."""
    try:
        app()
    except QKReproError as error:
        typer.echo(f"qkrepro: {error}", err=True)
        sys.exit(2)
