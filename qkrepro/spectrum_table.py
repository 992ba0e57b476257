"""The table of `qkrepro spectrum`: one row a head (and distance), what its spectrum is and what chance would give.

The number of eigenvalues that a mean or a variance runs over is in the column's name: `_model` for all d_model of
them (zeros included), `_head` for the d_head that can differ from zero. COLUMNS says what each column is.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import pandas as pd
import torch
from torch import Tensor

from qkrepro.attention_heads import QKLayer
from qkrepro.errors import ArgumentError, check_integer
from qkrepro.head_products import HeadProducts, head_products, products_in_covariance
from qkrepro.spectrum_null import (
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
    "symmetric_share": "‖(W + Wᵀ)/2‖² / ‖W‖²: 1 symmetric, 0 antisymmetric",
    "localization": "localization index of the linearised softmax, 0 flat to 1",
    "centre": "where the signal passes, 0 first to 1 last token",
    "level": "mean signal propagation probability",
    "key_bias": "‖w_kᵀ b_q‖, what the query's bias adds to the logits per unit of key token",
    "trace_z": "tr W/‖W‖_F in standard deviations from random heads",
    "symmetric_share_z": "the same for symmetric_share",
    "top_share_z": "the same for top_share",
    "relative_variance_percentile": "percentage of random heads with a smaller relative_variance",
    "localization_percentile": "percentage of random heads of this ‖W‖_F with a smaller localization index",
}
OF_EIGENVALUES = ("eigen_spread_head", "relative_variance", "top_share", "top_share_z", "relative_variance_percentile")


@dataclass(frozen=True)
class TableOptions:
    """What the table holds. covariances: (part, layer) to the covariance of that layer's token increments."""

    distances: tuple[float, ...] = (0,)
    fold_norm: bool = False
    moments_only: bool = False
    covariances: Mapping[tuple[str, int], Tensor] | None = None
    draws: int = 200
    seed: int = 0


def spectrum_table(
    layers: Iterable[QKLayer],
    *,
    distances: Sequence[float] = (0,),
    fold_norm: bool = False,
    moments_only: bool = False,
    covariances: Mapping[tuple[str, int], Tensor] | None = None,
    draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """One row a head and distance, with the columns of COLUMNS that apply.

    distances: tokens between query and key, >= 0; other than 0 needs rotary positions. fold_norm: the gain of the
    preceding normalisation (and of query-key normalisation) goes into W. moments_only: no eigenvalues, much faster.
    covariances: Σ of the increments of each layer's tokens for localization, centre and level; I without.
    draws, seed: random heads of the same shape behind the `_z` and `_percentile` columns.
    Raises ArgumentError for a distance that is negative or without rotary positions, or draws < 2.
    """
    options = TableOptions(tuple(distances), fold_norm, moments_only, covariances, draws, seed)
    frames = [frame for frame, _ in layer_tables(layers, options)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def layer_tables(layers: Iterable[QKLayer], options: TableOptions) -> Iterator[tuple[pd.DataFrame, Tensor | None]]:
    """Yield the rows of each layer with the eigenvalues behind them, (heads, d_head), None without; one a distance."""
    _check_options(options)

    @cache
    def shared(d_head: int, d_model: int) -> NullDraws:
        return _null(d_head, d_model, options, None, None)

    for layer in layers:
        read = layer.folded() if options.fold_norm else layer
        products = head_products(read.w_q, read.w_k)
        null = _null_of_layer(layer, products, options, shared)
        for distance in options.distances:
            if distance != 0 and layer.rotary is None:
                raise ArgumentError(f"distance is {distance:g}; allowed: 0, since this model has no rotary positions")
            core = read.core(distance, gains=options.fold_norm)
            yield _rows(layer, read, products.between(core), core, distance, null, options)


def _rows(
    layer: QKLayer,
    read: QKLayer,
    products: HeadProducts,
    core: Tensor | None,
    distance: float,
    null: NullDraws,
    options: TableOptions,
) -> tuple[pd.DataFrame, Tensor | None]:
    columns: dict[str, object] = {"part": layer.part} if layer.part else {}
    columns |= {"layer": layer.layer, "head": range(layer.heads)}
    if layer.rotary is not None:
        columns["distance"] = distance
    columns |= {"d_model": products.d_model, "d_head": products.d_head, "temperature": 1 / layer.multiplier}
    columns |= _moments(products)
    eigenvalues = None if options.moments_only else products.eigenvalues()  # (heads, d_head)
    if eigenvalues is not None:
        columns |= _of_eigenvalues(eigenvalues)
    columns["symmetric_share"] = products.symmetric_share()
    located, located_null = _located(layer, products, distance, null, options)
    index, columns["centre"], columns["level"] = localization_of(*located, 1 / layer.multiplier)
    columns |= {"localization": index, "key_bias": _key_bias(read, core)}
    columns |= _against_chance(products, eigenvalues, null)
    random_index = null_localization(located_null, located[2], 1 / layer.multiplier)  # (heads, draws)
    columns["localization_percentile"] = percentile(index, random_index)
    plain = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in columns.items()}
    return pd.DataFrame({name: plain[name] for name in COLUMNS if name in plain}), eigenvalues


def _moments(products: HeadProducts) -> dict[str, Tensor]:
    trace, trace_sq = products.trace(), products.trace_sq()
    columns = {"trace": trace, "trace_sq": trace_sq}
    columns |= {"frobenius": products.frobenius_sq().sqrt(), "spectral_norm": products.spectral_norm()}
    for name, count in (("model", products.d_model), ("head", products.d_head)):
        mean = trace / count
        columns |= {f"eigen_mean_{name}": mean, f"eigen_variance_{name}": trace_sq / count - mean.square()}
    return columns


def _of_eigenvalues(eigenvalues: Tensor) -> dict[str, Tensor]:
    mean = eigenvalues.mean(-1, keepdim=True)
    return {
        "eigen_spread_head": (eigenvalues - mean).abs().square().mean(-1),
        "relative_variance": relative_variance(eigenvalues),
        "top_share": top_share(eigenvalues),
    }


def _located(
    layer: QKLayer, products: HeadProducts, distance: float, null: NullDraws, options: TableOptions
) -> tuple[tuple[Tensor, Tensor, Tensor], NullDraws]:
    """tr M, tr M², ‖M‖_F² behind the localization, and random heads in the same covariance."""
    if options.covariances is not None:
        cov = options.covariances[layer.part, layer.layer]
        products = products_in_covariance(layer.w_q, layer.w_k, cov).between(layer.core(distance))
        null = _null(products.d_head, products.d_model, options, cov, None, eigenvalues=False)
    return (products.trace(), products.trace_sq(), products.frobenius_sq()), null


def _key_bias(read: QKLayer, core: Tensor | None) -> Tensor:
    """‖w_kᵀ Cᵀ b_q‖ per head, (heads,): the size of what the query's bias adds to a logit, x_iᵀ w_kᵀ Cᵀ b_q."""
    if read.b_q is None:
        return torch.zeros(read.heads, dtype=torch.float64)
    turned = read.b_q if core is None else read.b_q @ core  # (heads, d_head)
    direction = read.w_k.double().repeat_interleave(read.group, dim=0).mT @ turned[..., None]  # (heads, d_model, 1)
    size: Tensor = direction[..., 0].norm(dim=-1)
    return size


def _against_chance(products: HeadProducts, eigenvalues: Tensor | None, null: NullDraws) -> dict[str, Tensor]:
    columns = {
        "trace_z": z_score(products.trace() / products.frobenius_sq().sqrt(), null.trace),
        "symmetric_share_z": z_score(products.symmetric_share(), (1 + null.trace_sq) / 2),
    }
    if eigenvalues is not None and null.top_share is not None and null.relative_variance is not None:
        columns["top_share_z"] = z_score(top_share(eigenvalues), null.top_share)
        columns["relative_variance_percentile"] = percentile(relative_variance(eigenvalues), null.relative_variance)
    return columns


def _null_of_layer(
    layer: QKLayer, products: HeadProducts, options: TableOptions, shared: Callable[[int, int], NullDraws]
) -> NullDraws:
    """Random heads of the layer's shape; with folded gains they carry the same gains."""
    if not options.fold_norm or (layer.input_norm is None and layer.qk_norm is None):
        return shared(products.d_head, products.d_model)
    cov = None if layer.input_norm is None else torch.diag(layer.input_norm.gain.square())
    return _null(products.d_head, products.d_model, options, cov, layer.core(0, gains=True))


def _null(
    d_head: int,
    d_model: int,
    options: TableOptions,
    cov: Tensor | None,
    core: Tensor | None,
    *,
    eigenvalues: bool = True,
) -> NullDraws:
    products = random_heads(d_head, d_model, options.draws, options.seed, cov).between(core)
    return null_draws(products, eigenvalues=eigenvalues and not options.moments_only)


def _check_options(options: TableOptions) -> None:
    check_integer("draws", options.draws, at_least=2)
    for distance in options.distances:
        if not 0 <= distance < float("inf"):
            raise ArgumentError(f"distance is {distance!r}; allowed: numbers >= 0, in tokens")
