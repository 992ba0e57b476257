"""Figures of the heads of trained models, from tidy tables to axes, and the figure of `qkrepro spectrum --plot`."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qkrepro.plots import use_style

QUANTITIES = {
    "frobenius_cov": r"$\Vert\Sigma^{1/2}W\Sigma^{1/2}\Vert_F\,/\,\lambda$",
    "trace_cov": r"$\mathrm{tr}\,W\Sigma\,/\,\lambda$",
    "frobenius": r"$\Vert W\Vert_F\,/\,\lambda$",
    "spectral_norm": r"$\Vert W\Vert_2\,/\,\lambda$",
    "trace": r"$\mathrm{tr}\,W\,/\,\lambda$",
    "relative_variance": r"$\sigma^2/\mu^2$ of $d_{head}$ eigenvalues",
    "index": "localization index",
    "level": "propagation level",
    "centre": "localization centre",
    "trace_z": "trace against chance",
}


def plot_spectra_grid(spectra: pd.DataFrame, null: pd.DataFrame, ax: Axes, reach: float = 0.25) -> int:
    """Eigenvalues over ‖W‖_F of each head in a cell of a layer × head grid, random heads behind them in grey.

    spectra: layer, head, real, imag. null: real, imag. reach: half the side of a cell; returns how many eigenvalues
    lie outside their cell and are not shown.
    """
    inside = spectra[(spectra["real"].abs() < reach) & (spectra["imag"].abs() < reach)]
    layers, heads = int(spectra["layer"].max()) + 1, int(spectra["head"].max()) + 1
    for layer in range(layers):
        for head in range(heads):
            x, y = head + null["real"] / (2 * reach), layer - null["imag"] / (2 * reach)
            ax.scatter(x, y, s=1, color="0.78", linewidths=0, rasterized=True)
    ax.hlines(range(layers), -0.5, heads - 0.5, color="0.85", linewidth=0.5, zorder=0)
    ax.vlines(range(heads), -0.5, layers - 0.5, color="0.85", linewidth=0.5, zorder=0)
    x, y = inside["head"] + inside["real"] / (2 * reach), inside["layer"] - inside["imag"] / (2 * reach)
    ax.scatter(x, y, s=6, linewidths=0)
    ax.hlines(np.arange(layers + 1) - 0.5, -0.5, heads - 0.5, color="0.35", linewidth=0.8)
    ax.vlines(np.arange(heads + 1) - 0.5, -0.5, layers - 0.5, color="0.35", linewidth=0.8)
    ax.set(xlim=(-0.52, heads - 0.48), ylim=(layers - 0.48, -0.52), aspect="equal", xlabel="head", ylabel="layer")
    ax.set_xticks(range(heads))
    ax.set_yticks(range(layers))
    ax.grid(False)
    sns.despine(ax=ax, left=True, bottom=True)
    return len(spectra) - len(inside)


def plot_against_chance(heads: pd.DataFrame, null: Sequence[float], ax: Axes) -> None:
    """Relative variance of each head by layer, with the middle 95% of random heads as a band.

    heads: layer, relative_variance.
    """
    low, middle, high = np.quantile(np.asarray(null), [0.025, 0.5, 0.975])
    ax.axhspan(low, high, color="0.88", zorder=0, label="middle 95% of random heads")
    ax.axhline(middle, color="0.5", linewidth=1, linestyle="--", zorder=1, label="their median")
    spread = np.linspace(-0.25, 0.25, int(heads["head"].max()) + 1)
    ax.scatter(
        heads["layer"] + spread[heads["head"]], heads["relative_variance"], s=16, zorder=2, label="a trained head"
    )
    ax.set(xlabel="layer", ylabel=QUANTITIES["relative_variance"], yscale="log")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))


def plot_entropy(heads: pd.DataFrame, quantity: str, ax: Axes, *, legend: bool = False) -> None:
    """Mean attention entropy of each head against a quantity, coloured by layer; heads: layer, entropy, quantity."""
    log = bool((heads[quantity] > 0).all())
    sns.scatterplot(
        heads, x=quantity, y="entropy", hue="layer", palette="viridis", s=26, ax=ax, legend="full" if legend else False
    )
    ax.set(xlabel=QUANTITIES[quantity], ylabel="entropy, nats", xscale="log" if log else "linear")
    if legend:
        ax.legend(title="layer", loc="upper left", bbox_to_anchor=(1.01, 1.0))


def plot_correlations(table: pd.DataFrame, ax: Axes, target: str = "entropy") -> None:
    """Rank correlations with their intervals, one line a quantity; table: quantity, correlation, low, high."""
    place = np.arange(len(table))[::-1]
    middle = table["correlation"].to_numpy()
    error = np.stack([middle - table["low"].to_numpy(), table["high"].to_numpy() - middle])
    ax.errorbar(middle, place, xerr=error, fmt="o", capsize=3)
    ax.axvline(0, color="0.5", linewidth=1)
    ax.set(xlim=(-1, 1), xlabel=f"rank correlation with {target}, over heads")
    ax.set_yticks(place, [QUANTITIES[name] for name in table["quantity"]])
    ax.grid(axis="y", visible=False)


def plot_rotary_spectra(spectra: pd.DataFrame, axes: Any) -> None:
    """Eigenvalues of each kind of head (rows) at several distances (columns); spectra: kind, distance, real, imag."""
    for number, (row, (kind, of_kind)) in enumerate(zip(axes, spectra.groupby("kind", sort=True), strict=True)):
        limit = 1.12 * float(of_kind[["real", "imag"]].abs().max().max())
        for ax, (distance, group) in zip(row, of_kind.groupby("distance"), strict=True):
            ax.axhline(0, color="0.6", linewidth=0.5, zorder=0)
            ax.axvline(0, color="0.6", linewidth=0.5, zorder=0)
            ax.scatter(group["real"], group["imag"], s=10)
            ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
            if number == 0:
                ax.set_title(f"distance {distance:g}")
        row[0].set_ylabel(f"{kind}\nIm λ")
    for ax in axes[-1]:
        ax.set_xlabel("Re λ")


def plot_rotary_trace(table: pd.DataFrame, ax: Axes) -> None:
    """tr W over d_head against the distance; table: kind (concentrated, random, closed form), distance, share."""
    closed = table[table["kind"] == "closed form"]
    ax.plot(closed["distance"], closed["share"], color="0.4", linewidth=1, label="closed form, concentrated")
    for kind, marker in (("concentrated", "o"), ("random", "s")):
        group = table[table["kind"] == kind]
        ax.plot(group["distance"], group["share"], marker, markersize=4, label=f"{kind} head")
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set(xlabel="distance, tokens", ylabel=r"$\mathrm{tr}\,W(\Delta)\,/\,d_{head}$")
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xlim(-0.2, 1.5 * float(table["distance"].max()))
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))


def plot_head_maps(heads: pd.DataFrame, quantities: Mapping[str, str], axes: Any) -> None:
    """Layer × head maps of several quantities, one axes each; quantities: column to title.

    A column of both signs is coloured about zero, one that spans more than a factor of 20 by its logarithm.
    """
    for ax, (name, title) in zip(axes, quantities.items(), strict=True):
        grid = heads.pivot(index="layer", columns="head", values=name)
        signed = bool((grid.to_numpy() < 0).any())
        bound = float(np.abs(grid.to_numpy()).max())
        colours: dict[str, Any] = {"cmap": "vlag", "vmin": -bound, "vmax": bound} if signed else {"cmap": "viridis"}
        if not signed and bound > 20 * float(grid.to_numpy().min()):
            colours["norm"] = LogNorm()
        sns.heatmap(grid, ax=ax, cbar_kws={"shrink": 0.8}, **colours)
        ax.set(title=title, xlabel="head", ylabel="layer")
        ax.tick_params(labelrotation=0)
        ax.grid(False)


def spectrum_figure(table: pd.DataFrame, eigenvalues: Sequence[NDArray[np.complex128]]) -> Figure:
    """The figure of `qkrepro spectrum --plot`: heads as a layer × head map, and their spectra in the complex plane.

    table: as `spectrum_table` gives it; with several distances or parts the map shows the first of them.
    eigenvalues: (heads, d_head) for each layer and distance, in the order of the table; shown over ‖W‖_F.
    """
    use_style()
    first = table
    for name in ("part", "distance"):
        if name in first:
            first = first[first[name] == first[name].iloc[0]]
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.4))
    grid = first.pivot(index="layer", columns="head", values="trace_z")
    bound = float(np.nanmax(np.abs(grid.to_numpy()))) or 1.0
    sns.heatmap(
        grid,
        ax=axes[0],
        cmap="vlag",
        vmin=-bound,
        vmax=bound,
        cbar_kws={"label": r"$\mathrm{tr}\,W\,/\,\Vert W\Vert_F$, standard deviations"},
    )
    axes[0].set(title="Trace against random heads", xlabel="head", ylabel="layer")
    axes[0].grid(False)
    _spectra(axes[1], table, eigenvalues)
    return figure


def _spectra(ax: Axes, table: pd.DataFrame, eigenvalues: Sequence[NDArray[np.complex128]]) -> None:
    """All eigenvalues over their head's ‖W‖_F in the complex plane; the axes leave out the outermost 0.5%."""
    scaled = np.concatenate(list(eigenvalues)) / table["frobenius"].to_numpy()[:, None]  # (rows, d_head)
    layer = np.repeat(table["layer"].to_numpy(), scaled.shape[1])
    real, imag = scaled.real.ravel(), scaled.imag.ravel()
    shown = ax.scatter(real, imag, c=layer, s=4, cmap="viridis", linewidths=0, rasterized=True, alpha=0.7)
    reach = np.maximum(np.abs(real), np.abs(imag))
    limit = 1.05 * float(np.quantile(reach, 0.995)) or 1.0
    ax.set(
        title=r"Eigenvalues over $\Vert W\Vert_F$",
        xlabel="Re λ",
        ylabel="Im λ",
        xlim=(-limit, limit),
        ylim=(-limit, limit),
    )
    ax.set_aspect("equal")
    if outside := int((reach > limit).sum()):
        ax.annotate(f"{outside} of {len(reach)} lie outside", (0.02, 0.02), xycoords="axes fraction", fontsize="small")
    plt.gcf().colorbar(shown, ax=ax, label="layer")
