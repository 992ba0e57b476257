"""What `qkrepro spectrum` does: parse its options, read a model layer by layer, write the table and the figure."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from torch import Tensor
from tqdm import tqdm

from qkrepro.attention_heads import QKLayer
from qkrepro.errors import ArgumentError, check_choice
from qkrepro.pretrained import chosen_layers, read_layer
from qkrepro.spectrum_table import TableOptions, layer_tables
from qkrepro.towers import Tower, open_towers

FORMATS = ("table", "csv", "json", "parquet")
PLOTS = (".png", ".svg", ".pdf")
SHOWN = {  # the columns of the printed table, with short heads
    "part": "part",
    "layer": "layer",
    "head": "head",
    "distance": "dist",
    "temperature": "temp",
    "trace": "trace",
    "trace_z": "z",
    "frobenius": "‖W‖_F",
    "spectral_norm": "‖W‖_2",
    "eigen_mean_head": "mean",
    "eigen_spread_head": "spread",
    "relative_variance_percentile": "spread %",
    "top_share": "top",
    "symmetric_share": "sym",
    "symmetric_share_z": "sym z",
    "localization": "local",
    "localization_percentile": "local %",
    "centre": "centre",
}


@dataclass(frozen=True)
class SpectrumRequest:
    """The options of the command, as given; `distances` and `layers` are text such as 0,1,8 and 0-5,7."""

    model: str
    layers: str | None = None
    format: str = "table"
    plot: Path | None = None
    out: Path | None = None
    text: Path | None = None
    distances: str = "0"
    fold_norm: bool = False
    moments_only: bool = False
    draws: int = 200
    seed: int = 0


def run_spectrum(request: SpectrumRequest, say: Callable[[str], None]) -> None:
    """Read the model, then write the table to `out` (or say it) and the figure to `plot`.

    Raises ArgumentError for options that do not fit, CheckpointError for a model that cannot be read. Nothing is
    written unless all of it could be computed.
    """
    _check(request)
    towers = open_towers(request.model)
    wanted = None if request.layers is None else parse_layers(request.layers)
    options = TableOptions(
        distances=parse_distances(request.distances),
        fold_norm=request.fold_norm,
        moments_only=request.moments_only,
        draws=request.draws,
        seed=request.seed,
    )
    if request.text is not None:
        from qkrepro.token_covariance import increment_covariances

        options = replace(options, covariances=increment_covariances(request.model, request.text))
    first: list[QKLayer] = []
    tables, eigenvalues = [], []
    for table, values in layer_tables(_progress(towers, wanted, first), options):
        tables.append(table)
        eigenvalues.append(values if request.plot is not None else None)
    whole = pd.concat(tables, ignore_index=True)
    if request.plot is not None:
        _plot(whole, eigenvalues, request.plot)
    write_table(whole, request.format, request.out, say)
    if request.format == "table":
        for note in notes(first[0], options):
            say(note)


def write_table(table: pd.DataFrame, kind: str, out: Path | None, say: Callable[[str], None]) -> None:
    """The table as text, CSV, JSON (records) or Parquet; to the file whole or not at all, or said."""
    if kind == "parquet":
        assert out is not None
        _atomically(out, lambda path: table.to_parquet(path, index=False))
        return
    if kind == "csv":
        text = table.to_csv(index=False, lineterminator="\n").rstrip("\n")
    elif kind == "json":
        text = table.to_json(orient="records", indent=1, double_precision=15)
    else:
        shown = table[[name for name in SHOWN if name in table]].rename(columns=SHOWN)
        text = shown.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep="-")
    if out is None:
        say(text)
    else:
        _atomically(out, lambda path: path.write_text(text + "\n", encoding="utf-8"))


def parse_layers(text: str) -> list[int]:
    """`0-5,7` as a list of layers in the order given, each once; ArgumentError for anything else."""
    layers: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ArgumentError(f"layers is {text!r}; allowed: numbers and ranges such as 0-5,7")
        begin, end = int(first), int(last) if dash else int(first)
        if end < begin or end - begin > 10_000:
            raise ArgumentError(f"layers is {text!r}; allowed: ranges that grow, such as 0-5")
        layers += [layer for layer in range(begin, end + 1) if layer not in layers]
    return layers


def parse_distances(text: str) -> tuple[float, ...]:
    """`0,1,8,64` as numbers of tokens; ArgumentError for anything else."""
    try:
        return tuple(dict.fromkeys(float(piece) for piece in text.split(",")))
    except ValueError as error:
        raise ArgumentError(f"distance is {text!r}; allowed: numbers of tokens such as 0,1,8,64") from error


def notes(layer: QKLayer, options: TableOptions) -> Iterator[str]:
    """What a reader of the table should know of this model, one sentence each."""
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


def _check(request: SpectrumRequest) -> None:
    check_choice("format", request.format, FORMATS)
    if request.format == "parquet":
        if request.out is None:
            raise ArgumentError(
                "format is 'parquet' and out is not given; allowed: a file, such as --out heads.parquet"
            )
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ArgumentError("format is 'parquet'; it needs: pip install 'qkrepro[hub]'") from error
    if request.plot is not None:
        if request.plot.suffix not in PLOTS:
            raise ArgumentError(f"plot is {str(request.plot)!r}; allowed: a file that ends in {', '.join(PLOTS)}")
        if request.moments_only:
            raise ArgumentError("plot is given with moments-only; allowed: one of them, since it shows eigenvalues")
        try:
            import seaborn  # noqa: F401
        except ImportError as error:
            raise ArgumentError("plot needs: pip install 'qkrepro[plots]'") from error
    for name, path in (("out", request.out), ("plot", request.plot)):
        if path is not None and not path.absolute().parent.is_dir():
            raise ArgumentError(f"{name} is {str(path)!r}; allowed: a file in a folder that exists")
        if path is not None and path.is_dir():
            raise ArgumentError(f"{name} is {str(path)!r}; allowed: a file, not a folder")


def _progress(towers: list[Tower], wanted: list[int] | None, first: list[QKLayer]) -> Iterator[QKLayer]:
    """Read the chosen layers with a bar on a terminal's stderr; keeps the first layer for the notes."""
    chosen = [(tower, layer) for tower in towers for layer in chosen_layers(tower.sizes.layers, wanted)]
    for tower, number in tqdm(chosen, unit="layer", disable=not sys.stderr.isatty(), leave=False):
        layer = read_layer(tower, number)
        if not first:
            first.append(layer)
        yield layer


def _plot(table: pd.DataFrame, eigenvalues: list[Tensor | None], target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from qkrepro.plots_heads import spectrum_figure

    figure = spectrum_figure(table, [values for values in eigenvalues if values is not None])
    _atomically(target, lambda path: figure.savefig(path))


def _atomically(target: Path, write: Callable[[Path], object]) -> None:
    """Write beside the target, then put it in place; ArgumentError when that is not possible."""
    temporary = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        write(temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise ArgumentError(f"{target} cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
