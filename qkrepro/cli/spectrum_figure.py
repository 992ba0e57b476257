"""The figure of `qkrepro spectrum --plot`; apart, since seaborn takes longer to import than a table to make."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qkrepro.evidence.style import WIDTH, use_style


def spectrum_figure(table: pd.DataFrame, eigenvalues: Sequence[NDArray[np.complex128]]) -> Figure:
    """Return the figure of `qkrepro spectrum --plot`: a map of layers × heads, and spectra in the complex plane.

    table: as `qk_table` gives it; with several distances or parts the map shows the first of them.
    eigenvalues: (heads, d_head) for each layer and distance, in the order of the table; shown over ‖W‖_F.
    """
    use_style()
    first = table
    for name in ("part", "distance"):
        if name in first:
            first = first[first[name] == first[name].iloc[0]]
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.9))
    grid = first.pivot(index="layer", columns="head", values="trace_z")
    bound = float(np.nanmax(np.abs(grid.to_numpy()))) or 1.0
    sns.heatmap(
        grid,
        ax=axes[0],
        cmap="vlag",
        vmin=-bound,
        vmax=bound,
        cbar_kws={"label": "standard deviations from random heads", "location": "bottom"},
    )
    axes[0].set(title=r"Trace over $\Vert W\Vert_F$", xlabel="head", ylabel="layer")
    axes[0].grid(False)
    _spectra(axes[1], table, eigenvalues)
    return figure


def _spectra(ax: Axes, table: pd.DataFrame, eigenvalues: Sequence[NDArray[np.complex128]]) -> None:
    """Draw all eigenvalues over their head's ‖W‖_F in the complex plane; the axes leave out the outermost 0.5%."""
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
    plt.gcf().colorbar(shown, ax=ax, label="layer", location="bottom")
