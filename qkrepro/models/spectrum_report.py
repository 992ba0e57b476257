"""The table of `qkrepro spectrum`: one row per head (and distance), what its spectrum is and what chance would give.

The number of eigenvalues that a mean or a variance runs over is in the column's name: `_model` for all d_model of
them (zeros included), `_head` for the d_head that can differ from zero. COLUMNS says what each column is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qkrepro.errors import ArgumentError, check_integer
from qkrepro.models.chance import (
    NullDraws,
    localization_of,
    null_draws,
    null_localization,
    percentile,
    random_heads,
    relative_variance,
    top_share,
    z_score,
)
from qkrepro.models.checkpoint import qk_layers
from qkrepro.models.head_products import Array, HeadProducts, as_array, head_products, products_in_covariance
from qkrepro.models.heads import QKLayer

if TYPE_CHECKING:  # imported where a data frame is asked for: it takes as long as the rest
    import pandas as pd

COLUMNS = {
    "part": "tower of the model, for models of several",
    "layer": "number of the layer, from 0",
    "head": "number of the head, from 0",
    "distance": "tokens between query and key, under rotary positions",
    "d_model": "width of the tokens",
    "d_head": "width of the head",
    "temperature": "λ, one over the model's own logit multiplier",
    "trace": "tr W, the sum of the eigenvalues",
    "trace_sq": "tr W², the sum of their squares",
    "frobenius": "‖W‖_F, root of the sum of squared singular values",
    "spectral_norm": "‖W‖_2, the largest singular value",
    "eigen_mean_model": "mean of all d_model eigenvalues",
    "eigen_variance_model": "tr W²/d_model − mean²; negative for some complex spectra",
    "eigen_mean_head": "mean of the d_head eigenvalues that can differ from zero",
    "eigen_variance_head": "tr W²/d_head − mean²; negative for some complex spectra",
    "eigen_spread_head": "mean |λ − mean|² over these d_head",
    "relative_variance": "eigen_spread_head / eigen_mean_head²: 0 when they all agree",
    "top_share": "share of Σ|λ| in the largest |λ|",
    "spectral_energy_share": "‖W‖_2² / ‖W‖_F², the largest squared singular value over their sum",
    "symmetry_score": "½(1 + tr W²/tr WWᵀ): 1 symmetric, 0 antisymmetric",
    "localization": "localization index of the linearised softmax, 0 flat to 1",
    "centre": "where the signal passes, 0 first to 1 last token",
    "level": "mean signal propagation probability",
    "key_bias": "‖w_kᵀ b_q‖, what the query's bias adds to the logits per unit of key token",
    "trace_z": "tr W/‖W‖_F in standard deviations from random heads",
    "spectral_energy_share_z": "spectral_energy_share in standard deviations from random heads",
    "symmetry_score_z": "the same for symmetry_score",
    "top_share_z": "the same for top_share",
    "relative_variance_percentile": "percentage of random heads with a smaller relative_variance",
    "localization_percentile": "percentage of random heads of this ‖W‖_F with a smaller localization index",
}
Columns = dict[str, list[Any]]  # of the table, by name and in order, all of one length
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
    "spectral_energy_share": "energy",
    "spectral_energy_share_z": "energy z",
    "symmetry_score": "sym",
    "symmetry_score_z": "sym z",
    "localization": "local",
    "localization_percentile": "local %",
    "centre": "centre",
}


@dataclass(frozen=True)
class TableOptions:
    """What the table holds. covariances: (part, layer) to the covariance of that layer's token increments."""

    distances: tuple[float, ...] = (0,)
    fold_norm: bool = False
    moments_only: bool = False
    covariances: Mapping[tuple[str, int], Any] | None = None
    draws: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ArgumentError for a distance that is negative, or draws < 2."""
        check_integer("draws", self.draws, at_least=2)
        for distance in self.distances:
            if not 0 <= distance < float("inf"):
                raise ArgumentError(f"distance must be >= 0 tokens, got {distance!r}")


@dataclass(frozen=True)
class Chance:
    """The random heads of each shape of head, drawn when first needed; threads wait for each other's draws.

    threads: that compute the eigenvalues of the draws, while those that wait do nothing.
    """

    options: TableOptions
    threads: int = 1
    drawn: dict[tuple[int, int], NullDraws] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def of_shape(self, d_head: int, d_model: int) -> NullDraws:
        """Return the statistics of random heads of this shape."""
        with self.lock:
            if (d_head, d_model) not in self.drawn:
                self.drawn[d_head, d_model] = _null(d_head, d_model, self.options, threads=self.threads)
            return self.drawn[d_head, d_model]


def spectrum_table(
    layers: Iterable[QKLayer],
    *,
    distances: Sequence[float] = (0,),
    fold_norm: bool = False,
    moments_only: bool = False,
    covariances: Mapping[tuple[str, int], Any] | None = None,
    draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Return one row per head and distance, with the columns of COLUMNS that apply.

    Parameters
    ----------
    layers
        As `qk_layers` yields them.
    distances
        Tokens between query and key, >= 0; other than 0 needs rotary positions.
    fold_norm
        Whether the gain of the preceding normalisation (and of query-key normalisation) goes into W.
    moments_only
        Leave the eigenvalues out, which is much faster.
    covariances
        (part, layer) to Σ of the increments of that layer's tokens, for localization, centre and level; None takes I.
    draws, seed
        Of the random heads of the same shape behind the `_z` and `_percentile` columns.

    Returns
    -------
    DataFrame
        One row per head and distance.

    Raises
    ------
    ArgumentError
        A distance that is negative or without rotary positions, or draws < 2.
    """
    import pandas as pd

    options = TableOptions(tuple(distances), fold_norm, moments_only, covariances, draws, seed)
    chance = Chance(options)
    tables = [columns for layer in layers for columns, _ in layer_tables(layer, options, chance)]
    return pd.DataFrame(joined(tables))


def layer_tables(
    layer: QKLayer, options: TableOptions, chance: Chance
) -> list[tuple[Columns, NDArray[np.complex128] | None]]:
    """Return the rows of a layer and the eigenvalues behind them, one pair per distance.

    Eigenvalues are (heads, d_head), or None where they are not wanted.
    """
    read = layer.folded() if options.fold_norm else layer
    products = head_products(read.w_q, read.w_k)
    drawn = cache(lambda: _null_of_layer(layer, products, options, chance))
    tables = []
    for distance in options.distances:
        if distance != 0 and layer.rotary is None:
            raise ArgumentError(f"distance must be 0, since this model has no rotary positions, got {distance:g}")
        core = read.core(distance, gains=options.fold_norm)
        tables.append(_columns(layer, read, products.between(core), distance, drawn, options))
    return tables


def joined(tables: Sequence[Columns]) -> Columns:
    """Return the rows of several tables of the same columns below each other."""
    return {name: [value for table in tables for value in table[name]] for name in (tables[0] if tables else {})}


def _columns(
    layer: QKLayer,
    read: QKLayer,
    products: HeadProducts,
    distance: float,
    drawn: Callable[[], NullDraws],
    options: TableOptions,
) -> tuple[Columns, NDArray[np.complex128] | None]:
    """Return the columns and the eigenvalues: what the heads are, then where chance would stand.

    The order matters: meanwhile another thread may be drawing what chance gives.
    """
    columns: dict[str, Any] = {"part": layer.part} if layer.part else {}
    columns |= {"layer": layer.layer, "head": range(layer.heads)}
    if layer.rotary is not None:
        columns["distance"] = distance
    columns |= {"d_model": products.d_model, "d_head": products.d_head, "temperature": 1 / layer.multiplier}
    columns |= _moments(products)
    eigenvalues = None if options.moments_only else products.eigenvalues()  # (heads, d_head)
    if eigenvalues is not None:
        columns |= _of_eigenvalues(eigenvalues)
    located = _located(layer, products, distance, options)
    index, columns["centre"], columns["level"] = localization_of(*located, 1 / layer.multiplier)
    columns |= {"localization": index, "key_bias": _key_bias(read, products)}
    columns |= _against_chance(columns, drawn())
    located_null = drawn() if options.covariances is None else _null_in_covariance(layer, products, options)
    random_index = null_localization(located_null, located[2], 1 / layer.multiplier)  # (heads, draws)
    columns["localization_percentile"] = percentile(index, random_index)
    return {name: _listed(columns[name], layer.heads) for name in COLUMNS if name in columns}, eigenvalues


def _listed(values: Any, heads: int) -> list[Any]:
    """Return a column as plain values, one per head."""
    if isinstance(values, np.ndarray | range):
        return list(values.tolist() if isinstance(values, np.ndarray) else values)
    return [values] * heads


def _moments(products: HeadProducts) -> dict[str, Array]:
    trace, trace_sq, frobenius_sq = products.trace(), products.trace_sq(), products.frobenius_sq()
    columns = {"trace": trace, "trace_sq": trace_sq, "frobenius": np.sqrt(frobenius_sq)}
    norm = products.spectral_norm()
    with np.errstate(invalid="ignore"):  # W = 0 has no largest share: NaN
        columns |= {"spectral_norm": norm, "spectral_energy_share": norm**2 / frobenius_sq}
    columns["symmetry_score"] = products.symmetry_score()
    for name, count in (("model", products.d_model), ("head", products.d_head)):
        mean = trace / count
        columns |= {f"eigen_mean_{name}": mean, f"eigen_variance_{name}": trace_sq / count - mean**2}
    return columns


def _of_eigenvalues(eigenvalues: NDArray[np.complex128]) -> dict[str, Array]:
    mean = eigenvalues.mean(-1, keepdims=True)
    return {
        "top_share": top_share(eigenvalues),
        "relative_variance": relative_variance(eigenvalues),
        "eigen_spread_head": (np.abs(eigenvalues - mean) ** 2).mean(-1),
    }


def _against_chance(columns: Mapping[str, Array], null: NullDraws) -> dict[str, Array]:
    with np.errstate(invalid="ignore"):  # W = 0 has no scale: NaN
        scores = {
            "trace_z": z_score(columns["trace"] / columns["frobenius"], null.trace),
            "symmetry_score_z": z_score(columns["symmetry_score"], (1 + null.trace_sq) / 2),
        }
    if null.top_share is not None and null.relative_variance is not None and null.energy_share is not None:
        scores["spectral_energy_share_z"] = z_score(columns["spectral_energy_share"], null.energy_share)
        scores["top_share_z"] = z_score(columns["top_share"], null.top_share)
        scores["relative_variance_percentile"] = percentile(columns["relative_variance"], null.relative_variance)
    return scores


def _located(
    layer: QKLayer, products: HeadProducts, distance: float, options: TableOptions
) -> tuple[Array, Array, Array]:
    """Return tr M, tr M², ‖M‖_F² behind the localization."""
    if options.covariances is not None:
        cov = as_array(options.covariances[layer.part, layer.layer])
        products = products_in_covariance(layer.w_q, layer.w_k, cov).between(layer.core(distance))
    return products.trace(), products.trace_sq(), products.frobenius_sq()


def _null_in_covariance(layer: QKLayer, products: HeadProducts, options: TableOptions) -> NullDraws:
    """Return the random heads in the covariance of the layer's tokens, for localization alone."""
    assert options.covariances is not None
    cov = as_array(options.covariances[layer.part, layer.layer])
    return _null(products.d_head, products.d_model, options, cov, eigenvalues=False)


def _key_bias(read: QKLayer, products: HeadProducts) -> Array:
    """Return ‖w_kᵀ Cᵀ b_q‖ per head, (heads,): the size of what the query's bias adds to a logit, x_iᵀ w_kᵀ Cᵀ b_q.

    Its square is b_qᵀ C w_k w_kᵀ Cᵀ b_q, and the Gram matrix of W's key side holds the middle.
    """
    if read.b_q is None:
        return np.zeros(read.heads)
    square = (read.b_q[:, None] @ products.gram_k @ read.b_q[..., None])[:, 0, 0]  # (heads,)
    return np.asarray(np.sqrt(square.clip(min=0)))


def _null_of_layer(layer: QKLayer, products: HeadProducts, options: TableOptions, chance: Chance) -> NullDraws:
    """Return the random heads of the layer's shape; with folded gains they carry the same gains."""
    if not options.fold_norm or (layer.input_norm is None and layer.qk_norm is None):
        return chance.of_shape(products.d_head, products.d_model)
    cov = None if layer.input_norm is None else np.diag(layer.input_norm.gain**2)
    return _null(products.d_head, products.d_model, options, cov, layer.core(0, gains=True))


def _null(
    d_head: int,
    d_model: int,
    options: TableOptions,
    cov: Array | None = None,
    core: Array | None = None,
    *,
    eigenvalues: bool = True,
    threads: int = 1,
) -> NullDraws:
    products = random_heads(d_head, d_model, options.draws, options.seed, cov).between(core)
    return null_draws(products, eigenvalues=eigenvalues and not options.moments_only, threads=threads)


def qk_table(
    path: str | Path,
    layers: Iterable[int] | None = None,
    *,
    distances: Sequence[float] = (0,),
    fold_norm: bool = False,
    moments_only: bool = False,
    text: str | Path | None = None,
    draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the spectrum table of a checkpoint, one row per head and distance, as `qkrepro spectrum` gives it.

    Parameters
    ----------
    path, layers
        As for `qk_weights`.
    distances, fold_norm, moments_only, draws, seed
        As for `spectrum_table`.
    text
        A file of text: localization is then in the covariance of the increments of its tokens in the model, and of
        CLIP the text tower alone is given.

    Returns
    -------
    DataFrame
        One row per head and distance.

    Raises as `spectrum_table` and `qk_weights` do.
    """

    covariances = None
    if text is not None:
        from qkrepro.models.token_covariance import increment_covariances

        covariances = increment_covariances(path, Path(text))
    read = qk_layers(path, layers)
    return spectrum_table(
        (layer for layer in read if covariances is None or (layer.part, layer.layer) in covariances),
        distances=distances,
        fold_norm=fold_norm,
        moments_only=moments_only,
        covariances=covariances,
        draws=draws,
        seed=seed,
    )


def columns_as_text(table: Columns, kind: str) -> str:
    """Return the table as `csv`, as `json` (records, null where there is no number) or, for people, as a `table`."""
    if kind == "csv":
        lines = [",".join(table), *(",".join(map(_plain, row)) for row in zip(*table.values(), strict=True))]
        return "\n".join(lines)
    if kind == "json":
        rows = (dict(zip(table, map(_known, row), strict=True)) for row in zip(*table.values(), strict=True))
        return json.dumps(list(rows), indent=1, ensure_ascii=False)
    return _aligned({SHOWN[name]: table[name] for name in SHOWN if name in table})


def _known(value: Any) -> Any:
    """Return a value, or None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> str:
    """Return a value in CSV: every digit of it, nothing for a number that is not one."""
    return "" if value != value else str(value)


def _aligned(columns: Columns) -> str:
    """Return the columns below their heads, flush right, numbers to four digits."""
    written = [[name, *map(_short, values)] for name, values in columns.items()]
    widths = [max(map(len, column)) for column in written]
    rows = zip(*written, strict=True)
    return "\n".join(" ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return str(value)
