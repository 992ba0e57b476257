"""The `qkrepro` command. Each command imports what it needs when it runs, so that --help and --version are instant."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

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
        from qkrepro import __version__

        typer.echo(f"qkrepro {__version__}")
        raise typer.Exit


def _verdict_line(row: Any) -> str:
    """Return a row of `verdicts` in a terminal."""
    return f"{row.outcome:15} {row.claim} ({row.provenance}): {row.because}"


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def archive(
    out: Annotated[Path | None, typer.Option(help="File to write; default _build/qkrepro-records-VERSION.zip.")] = None,
) -> None:
    """Put all records, with a digest of every file, into one archive; equal records give equal bytes."""
    from qkrepro.evidence.numbers import book_root
    from qkrepro.publishing.archive import write_archive

    written = write_archive(book_root(), out)
    for folder in written.unfinished:
        typer.echo(f"left out, not finished: {folder}")
    size = written.path.stat().st_size / 1e6
    typer.echo(f"{written.path}: {written.records} records, {size:.1f} MB, SHA-256 {written.digest}")


@app.command()
def claims(
    write: Annotated[
        bool, typer.Option("--write", help="Store the verdicts and write the pages made of them.")
    ] = False,
) -> None:
    """Judge every claim from the saved numbers; exit 1 when a stored verdict no longer follows from them."""
    from qkrepro.evidence.numbers import book_root
    from qkrepro.publishing.claims_pages import changed_verdicts, verdicts, write_pages
    from qkrepro.publishing.neighbours_page import write_neighbours

    table = verdicts()
    for row in table.itertuples():
        typer.echo(_verdict_line(row))
    if write:
        write_pages()
        write_neighbours(book_root())
    elif changed := changed_verdicts(table):
        typer.echo(f"stored verdicts that no longer follow from the data: {', '.join(changed)}", err=True)
        raise typer.Exit(1)


@app.command()
def colab() -> None:
    """Put the first cell for Colab into every notebook while _config.yml has a public address, else take it out."""
    from qkrepro.evidence.numbers import book_root
    from qkrepro.publishing.colab import write_colab_cells

    changed = write_colab_cells(book_root())
    typer.echo("\n".join(changed) or "no notebook changed: each already is as _config.yml says")


@app.command()
def explorer(
    workers: Annotated[int, typer.Option(min=1, help="Processes at once.")] = 2,
) -> None:
    """Compute the values behind the page "The plane" anew, some minutes; a build of the site only reads them."""
    from qkrepro.evidence.numbers import book_root
    from qkrepro.publishing.explorer_values import VALUES, compute_values, write_values

    path = book_root() / VALUES
    write_values(path, compute_values(workers))
    typer.echo(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


@app.command()
def figures(
    names: Annotated[list[str] | None, typer.Argument(help="Notebooks, such as signal_propagation; none: all.")] = None,
    profile: Annotated[
        str, typer.Option(help="Parameters to run with: smoke, quick (what is committed), paper.")
    ] = "quick",
    force: Annotated[bool, typer.Option("--force", help="Execute notebooks that are up to date too.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Name what is stale and run nothing; exit 1 when something is.")
    ] = False,
    repeat: Annotated[
        bool, typer.Option("--repeat", help="Execute once more, apart, and compare; exit 1 when something differs.")
    ] = False,
) -> None:
    """Execute the notebooks whose inputs changed and keep their outputs, numbers and figures; print their verdicts."""
    from qkrepro.evidence.numbers import COMMITTED_PROFILE
    from qkrepro.publishing.claims_pages import verdicts
    from qkrepro.publishing.execution import run_figures
    from qkrepro.publishing.repetition import repeat_figures

    if repeat:
        if repeat_figures(names or [], log=typer.echo):
            raise typer.Exit(1)
        return
    stale = run_figures(names or [], profile, force=force, check=check, log=typer.echo)
    if check and stale:
        raise typer.Exit(1)
    if not check and profile == COMMITTED_PROFILE:
        for row in verdicts(of=stale).itertuples():
            typer.echo(_verdict_line(row))


@app.command()
def html(
    profile: Annotated[str, typer.Option(help="Profile whose outputs are shown.")] = "quick",
    draft: Annotated[bool, typer.Option("--draft", help="Leave out missing pages; warnings are not errors.")] = False,
) -> None:
    """Build the site from the outputs at hand; strict, and complete without a network."""
    from qkrepro.publishing.site import build_site

    folder = build_site(profile, draft=draft, log=typer.echo)
    typer.echo(f"the book is {folder / 'index.html'}")


@app.command()
def train(
    corpus: Annotated[
        str | None, typer.Option(help="synthetic (default), wikitext-2, or a folder of train, valid and test text.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder with WikiText-2; default $QKREPRO_DATA, else the public hub.")
    ] = None,
    out: Annotated[str, typer.Option(help="Folder below which the run's own folder is made or continued.")] = "runs",
    kappa: Annotated[float | None, typer.Option(help="Weight of LocAteR; 0 (default) is the baseline.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, batches and dropout.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the training split, at most.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak of the schedule.")] = None,
    layers: Annotated[int | None, typer.Option(help="Decoder layers.")] = None,
    heads: Annotated[int | None, typer.Option(help="Heads a layer.")] = None,
    vocabulary: Annotated[int | None, typer.Option(help="Keep this many most frequent words; default all.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32, float64 or bf16 (vocabulary products).")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of the processor; part of the run's identity.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Any other entry of the configuration, as NAME=VALUE.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Train a language model, or continue a run that was stopped, and write its record."""
    import shlex

    from qkrepro.training.configuration import configuration_from, parse_settings
    from qkrepro.training.loop import Interrupted
    from qkrepro.training.loop import train as run
    from qkrepro.training.records import read_run

    options = {"corpus": corpus, "kappa": kappa, "seed": seed, "epochs": epochs, "learning_rate": learning_rate}
    options |= {"layers": layers, "heads": heads, "vocabulary": vocabulary}
    options |= {"precision": precision, "device": device, "threads": threads}
    given = {name: value for name, value in options.items() if value is not None}
    configuration = configuration_from(parse_settings(setting or []) | given)
    try:
        folder = run(configuration, out, data=data, progress=not quiet)
    except Interrupted as stopped:
        typer.echo(f"{stopped}\nto go on: {shlex.join(['qkrepro', *sys.argv[1:]])}", err=True)
        raise typer.Exit(130) from None
    best = read_run(folder)["summary"]
    typer.echo(
        f"{folder}: best at update {best['best_update']}, perplexity {best['valid_perplexity']:.2f} on validation, "
        f"{best['test_perplexity']:.2f} on test, attention entropy {best['valid_entropy']:.3f} nats"
    )


@app.command()
def spectrum(
    model: Annotated[str, typer.Argument(help="Folder or file of weights, or owner/model on the hub.")],
    layers: Annotated[str | None, typer.Option(help="Layers to read, such as 0-5,7; none: all.")] = None,
    format: Annotated[str, typer.Option(help="table, csv, json or parquet.")] = "table",
    plot: Annotated[Path | None, typer.Option(help="Draw the heads and their spectra to this file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
    text: Annotated[
        Path | None, typer.Option(help="Localization in the covariance of this text's tokens in the model.")
    ] = None,
    distance: Annotated[str, typer.Option(help="Under rotary positions: distances in tokens, such as 0,1,8,64.")] = "0",
    fold_norm: Annotated[bool, typer.Option("--fold-norm", help="Fold the gains of normalisations into W.")] = False,
    moments_only: Annotated[bool, typer.Option("--moments-only", help="No eigenvalues: much faster.")] = False,
    draws: Annotated[int, typer.Option(help="Random heads to compare with.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the random heads.")] = 0,
) -> None:
    """Read the query-key eigenspectrum of every head of a checkpoint, beside what chance would give."""
    import os

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # layers are read in threads: a product needs no more of them
    from qkrepro.cli.spectrum import SpectrumRequest, parse_distances, run_spectrum
    from qkrepro.models.spectrum_report import TableOptions

    options = TableOptions(parse_distances(distance), fold_norm, moments_only, None, draws, seed)
    run_spectrum(SpectrumRequest(model, layers, format, plot, out, text, options), typer.echo)


@app.command()
def sweep(
    file: Annotated[str, typer.Argument(help="Sweep file, such as results/search-kappa.yaml.")],
    data: Annotated[str | None, typer.Option(help="Folder with WikiText-2; default $QKREPRO_DATA.")] = None,
    runs: Annotated[str, typer.Option(help="Folder for checkpoints, shared by all workers.")] = "runs",
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask cluster, tcp://HOST:PORT; default: one that is started here.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Runs at once in the cluster that is started here.")] = None,
) -> None:
    """Run what is not recorded yet of a sweep file's cross product, and print the table of its records."""
    from qkrepro.training.sweep import run_sweep

    outcome = run_sweep(file, data=data, runs=runs, scheduler=scheduler, workers=workers, log=typer.echo)
    typer.echo(outcome.table.to_string(index=False))
    if outcome.failed:
        raise typer.Exit(1)


@app.command()
def walk(
    file: Annotated[
        str, typer.Argument(help="Sweep file whose runs were trained, such as results/kappa-reduced.yaml.")
    ],
    data: Annotated[str | None, typer.Option(help="Folder with WikiText-2; default $QKREPRO_DATA.")] = None,
    runs: Annotated[str, typer.Option(help="Folder in which the sweep trained: it holds the weights.")] = "runs",
) -> None:
    """Hold the tokens of trained models against the random walk of the theory, and keep the tables beside the sweep."""
    from qkrepro.training.walk_checks import write_walk_records

    folder = write_walk_records(file, runs, data, log=typer.echo)
    typer.echo(f"written to {folder}")


def main() -> None:
    """Run the command; bad input is one line on stderr and exit code 2, never a traceback."""
    try:
        app()
    except QKReproError as error:
        typer.echo(f"qkrepro: {error}", err=True)
        sys.exit(2)
