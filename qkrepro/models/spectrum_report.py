"""The table of `qkrepro spectrum`: one row per head (and distance), what its spectrum is and what chance would give.

What each column is says `spectrum_columns`; the order of the columns is that of its COLUMNS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from qkrepro.models.spectrum_columns import COLUMNS, Columns, joined

if TYPE_CHECKING:  # imported where a data frame is asked for: it takes as long as the rest
    import pandas as pd


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

    def in_text(self, model: str | Path, text: Path) -> TableOptions:
        """Return the options with the covariances of the increments of a text's tokens in a model.

        Raises as `token_covariance.increment_covariances` does.
        """
        from qkrepro.models.token_covariance import increment_covariances

        return replace(self, covariances=increment_covariances(model, text))

    def covers(self, part: str, layer: int) -> bool:
        """Return whether the table can hold a layer: with covariances it needs one."""
        return self.covariances is None or (part, layer) in self.covariances


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
    located, cov = products, None
    if options.covariances is not None:
        cov = as_array(options.covariances[layer.part, layer.layer])
        located = products_in_covariance(layer.w_q, layer.w_k, cov).between(layer.core(distance))
    frobenius_sq = located.frobenius_sq()
    moments = located.trace(), located.trace_sq(), frobenius_sq
    index, columns["centre"], columns["level"] = localization_of(*moments, 1 / layer.multiplier)
    columns |= {"localization": index, "key_bias": _key_bias(read, products)}
    columns |= _against_chance(columns, drawn())
    null = drawn() if cov is None else _null(products.d_head, products.d_model, options, cov, eigenvalues=False)
    random_index = null_localization(null, frobenius_sq, 1 / layer.multiplier)  # (heads, draws)
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
    """Return the spectrum table of a checkpoint as `qkrepro spectrum` gives it, with the columns of COLUMNS that apply.

    Parameters
    ----------
    path, layers
        As for `qk_weights`.
    distances
        Tokens between query and key, >= 0; other than 0 needs rotary positions.
    fold_norm
        Whether the gain of the preceding normalisation (and of query-key normalisation) goes into W.
    moments_only
        Leave the eigenvalues out, which is much faster.
    text
        A file of text: localization is then in the covariance of the increments of its tokens in the model, and of
        CLIP the text tower alone is given.
    draws, seed
        Of the random heads of the same shape behind the `_z` and `_percentile` columns.

    Returns
    -------
    DataFrame
        One row per head and distance.

    Raises
    ------
    ArgumentError
        A distance that is negative or without rotary positions, draws < 2, a text that cannot be read.
    CheckpointError
        A model that cannot be read, or not be run on the text.
    """
    import pandas as pd

    options = TableOptions(tuple(distances), fold_norm, moments_only, None, draws, seed)
    if text is not None:
        options = options.in_text(path, Path(text))
    chance = Chance(options)
    read = (layer for layer in qk_layers(path, layers) if options.covers(layer.part, layer.layer))
    return pd.DataFrame(joined([columns for layer in read for columns, _ in layer_tables(layer, options, chance)]))
