"""What `qkrepro spectrum` does: parse its options, read a model layer by layer, write the table and the figure."""

import io
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkrepro.errors import ArgumentError, check_choice
from qkrepro.files import write_atomically
from qkrepro.models.checkpoint import Tower, chosen_layers, open_towers, read_layer
from qkrepro.models.heads import QKLayer
from qkrepro.models.spectrum_columns import Columns, columns_as_text, joined
from qkrepro.models.spectrum_report import Chance, TableOptions, layer_tables

THREADS = 4  # at most, since each holds a layer in memory
FORMATS = ("table", "csv", "json", "parquet")
PLOTS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class SpectrumRequest:
    """What the command is asked for: model, layers (text such as 0-5,7), outputs, a text, and what the table holds."""

    model: str
    layers: str | None
    format: str
    plot: Path | None
    out: Path | None
    text: Path | None
    options: TableOptions


def run_spectrum(request: SpectrumRequest, log: Callable[[str], None]) -> None:
    """Read the model, then write the table to `out` (or log it) and the figure to `plot`.

    Raises ArgumentError for options that do not fit, CheckpointError for a model that cannot be read. Nothing is
    written unless all of it could be computed.
    """
    _check(request)
    towers = open_towers(request.model)
    wanted = None if request.layers is None else parse_layers(request.layers)
    options = request.options if request.text is None else request.options.in_text(request.model, request.text)
    towers = [tower for tower in towers if options.covers(tower.part.name, 0)]
    rows = list(_tables(towers, wanted, options, keep=request.plot is not None))
    whole = joined([columns for columns, _, _ in rows])
    if request.plot is not None:
        _plot(whole, [eigenvalues for _, eigenvalues, _ in rows if eigenvalues is not None], request.plot)
    write_table(whole, request.format, request.out, log)
    if request.format == "table":
        for note in rows[0][2]:
            log(note)


def write_table(table: Columns, kind: str, out: Path | None, log: Callable[[str], None]) -> None:
    """Write the table to the file `out`, whole or not at all, or log it; kind: one of FORMATS."""
    if kind == "parquet":
        import pandas as pd

        assert out is not None
        write_atomically(out, pd.DataFrame(table).to_parquet(index=False))
        return
    text = columns_as_text(table, kind)
    if out is None:
        log(text)
    else:
        write_atomically(out, f"{text}\n".encode())


def parse_layers(text: str) -> list[int]:
    """Return `0-5,7` as a list of layers in the order given, each once; ArgumentError for anything else."""
    layers: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ArgumentError(f"layers must be numbers and ranges such as 0-5,7, got {text!r}")
        begin, end = int(first), int(last) if dash else int(first)
        if end < begin or end - begin > 10_000:
            raise ArgumentError(f"layers must be ranges that grow, such as 0-5, got {text!r}")
        layers += [layer for layer in range(begin, end + 1) if layer not in layers]
    return layers


def parse_distances(text: str) -> tuple[float, ...]:
    """Return `0,1,8,64` as numbers of tokens; ArgumentError for anything else."""
    try:
        return tuple(dict.fromkeys(float(piece) for piece in text.split(",")))
    except ValueError as error:
        raise ArgumentError(f"distance must be numbers of tokens such as 0,1,8,64, got {text!r}") from error


def notes(layer: QKLayer, options: TableOptions) -> Iterator[str]:
    """Yield what a reader of the table should know of this model, one sentence each."""
    yield "Percent and z: among random heads of the same shape and size. Every column, in full: --format csv."
    if layer.b_q is not None and layer.rotary is None:
        yield (
            "Biases are not part of W: that of the query adds (w_kᵀ b_q)ᵀ x to the logit of a key x (key_bias);\n"
            "that of the key adds one constant to all logits of a query, which softmax ignores."
        )
    elif layer.b_q is not None:
        yield "Biases are not part of W: they add terms that depend on key and distance (column key_bias)."
    if layer.group > 1:
        yield f"Each key head serves {layer.group} query heads."
    if layer.rotary is not None:
        yield "Rotary positions: W depends on the distance between query and key; see --distance."
    if layer.qk_norm is not None:
        yield (
            "Queries and keys are normalised: each logit is divided by their root mean squares, so the scale of W\n"
            "means nothing here, nor does localization, which takes it at face value."
        )
    if layer.softcap is not None:
        yield f"Logits ω are capped: {layer.softcap:g} tanh(ω/{layer.softcap:g})."
    if options.covariances is not None:
        yield "local, local % and centre: in the covariance of the increments of the text's tokens."
        if layer.part:
            yield "Images have no increments: the vision tower is left out."


def _check(request: SpectrumRequest) -> None:
    check_choice("format", request.format, FORMATS)
    if request.format == "parquet":
        if request.out is None:
            raise ArgumentError("out must be given with format 'parquet', such as --out heads.parquet")
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ArgumentError("format is 'parquet'; it needs: pip install 'qkrepro[hub]'") from error
    if request.plot is not None:
        if request.plot.suffix not in PLOTS:
            raise ArgumentError(f"plot must be a file that ends in {', '.join(PLOTS)}, got {str(request.plot)!r}")
        if request.options.moments_only:
            raise ArgumentError("plot must not be given with moments-only, since it shows eigenvalues")
        try:
            import seaborn  # noqa: F401
        except ImportError as error:
            raise ArgumentError("plot needs: pip install 'qkrepro[plots]'") from error
    for name, path in (("out", request.out), ("plot", request.plot)):
        if path is not None and not path.absolute().parent.is_dir():
            raise ArgumentError(f"{name} must be a file in a folder that exists, got {str(path)!r}")
        if path is not None and path.is_dir():
            raise ArgumentError(f"{name} must be a file, not a folder, got {str(path)!r}")


Rows = tuple[Columns, NDArray[np.complex128] | None, list[str]]  # of a layer, its eigenvalues, what to know of it


def _tables(towers: list[Tower], wanted: list[int] | None, options: TableOptions, *, keep: bool) -> Iterator[Rows]:
    """Read the chosen layers, with a bar on a terminal's stderr, and yield their rows; keep: eigenvalues too."""
    chosen = [(tower, layer) for tower in towers for layer in chosen_layers(tower.sizes.layers, wanted)]
    threads = _threads()
    chance = Chance(options, threads)

    def rows(place: tuple[Tower, int]) -> list[Rows]:
        layer = read_layer(*place)
        remarks = list(notes(layer, options))
        tables = layer_tables(layer, options, chance)
        return [(columns, eigenvalues if keep else None, remarks) for columns, eigenvalues in tables]

    for tables in _with_bar(_in_order(rows, chosen, threads), len(chosen)):
        yield from tables


def _threads() -> int:
    """Return the layers to read at once: processors that this process may use, or OMP_NUM_THREADS; four at most."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return min(THREADS, int(stated) if stated.isdecimal() and int(stated) else usable)


def _in_order(work: Callable[[Any], Any], items: Sequence[Any], threads: int) -> Iterator[Any]:
    """Yield the results of `work` in the order of the items, never more of them at once than there are threads."""
    with ThreadPoolExecutor(threads) as pool:
        running: deque[Future[Any]] = deque()
        try:
            for item in items:
                running.append(pool.submit(work, item))
                if len(running) == threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _with_bar(results: Iterable[Any], total: int) -> Iterable[Any]:
    """Return the results, counted by a progress bar on a terminal."""
    if not sys.stderr.isatty():
        return results
    from tqdm import tqdm

    return tqdm(results, total=total, unit="layer", leave=False)


def _plot(table: Columns, eigenvalues: list[NDArray[np.complex128]], target: Path) -> None:
    import matplotlib
    import pandas as pd

    matplotlib.use("Agg")
    from qkrepro.cli.spectrum_figure import spectrum_figure

    figure = spectrum_figure(pd.DataFrame(table), eigenvalues)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=target.suffix[1:])
    write_atomically(target, drawn.getvalue())
