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


@app.command()
def claims(
    write: Annotated[
        bool, typer.Option("--write", help="Store the verdicts and write the pages made of them.")
    ] = False,
) -> None:
    """Judge every claim from the saved numbers; exit 1 when a stored verdict no longer follows from them."""
    from qkrepro.claims import changed_verdicts, verdicts, write_pages

    table = verdicts()
    typer.echo(table[["claim", "provenance", "outcome", "because"]].to_string(index=False, justify="left"))
    if write:
        write_pages()
    elif changed := changed_verdicts(table):
        typer.echo(f"stored verdicts that no longer follow from the data: {', '.join(changed)}", err=True)
        raise typer.Exit(1)


@app.command()
def figures(
    names: Annotated[
        list[str] | None, typer.Argument(help="Notebooks, such as 03_signal_propagation; none: all.")
    ] = None,
    profile: Annotated[
        str, typer.Option(help="Parameters to run with: smoke, quick (what is committed), paper.")
    ] = "quick",
    force: Annotated[bool, typer.Option("--force", help="Execute notebooks that are up to date too.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only say what is stale; exit 1 when something is.")] = False,
) -> None:
    """Execute the notebooks whose inputs changed and keep their outputs, numbers and figures."""
    from qkrepro.execution import run_figures

    stale = run_figures(names or [], profile, force=force, check=check, say=typer.echo)
    if check and stale:
        raise typer.Exit(1)


@app.command()
def html(
    profile: Annotated[str, typer.Option(help="Profile whose outputs are shown.")] = "quick",
    draft: Annotated[bool, typer.Option("--draft", help="Leave out missing pages; warnings are not errors.")] = False,
) -> None:
    """Build the site from the outputs at hand; strict, and complete without a network."""
    from qkrepro.website import build_site

    folder = build_site(profile, draft=draft, say=typer.echo)
    typer.echo(f"the book is {folder / 'index.html'}")


def main() -> None:
    """Run the command; bad input is one line on stderr and exit code 2, never a traceback."""
    try:
        app()
    except QKReproError as error:
        typer.echo(f"qkrepro: {error}", err=True)
        sys.exit(2)
