"""Figures of eigenspectra: chosen ones, and those that Xavier initialisation draws."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes

from qkrepro.initialisation import XavierLaw


def plot_chosen_spectra(table: pd.DataFrame, axis: Axes) -> None:
    """Eigenvalues as ticks, one line a case, with mean ± standard deviation above each line.

    table: one row an eigenvalue: mean and variance (as asked for), eigenvalue (real).
    """
    labels = []
    for row, (_, group) in enumerate(table.groupby(["mean", "variance"])):
        mean, variance = float(group["mean"].iloc[0]), float(group["variance"].iloc[0])
        axis.plot(group["eigenvalue"], np.full(len(group), row), "|", markersize=12, color=f"C{row}")
        axis.errorbar(mean, row + 0.3, xerr=math.sqrt(variance), fmt="o", markersize=4, capsize=3, color="0.25")
        labels.append(f"mean {mean:g}\nvariance {variance:g}")
    axis.set(xlabel="eigenvalue", title="Chosen mean and variance", ylim=(-0.5, len(labels) - 0.4))
    axis.set_yticks(range(len(labels)), labels)


def plot_singular_values(table: pd.DataFrame, axis: Axes) -> None:
    """Sorted singular values, a line a matrix. table: one row a value: matrix, rank (1 the largest), singular_value."""
    for name, group in table.groupby("matrix", sort=False):
        axis.plot(group["rank"], group["singular_value"], label=name)
    axis.set(
        yscale="log",
        ylim=(1e-6, None),
        xlabel="rank",
        ylabel="singular value",
        title="Equal eigenvalues, other norms",
    )
    axis.legend(loc="lower left")


def plot_complex_eigenvalues(values: torch.Tensor, axis: Axes, *, label: str, marker: str = ".") -> None:
    """Eigenvalues, complex of any shape, in the complex plane with equal scales."""
    flat = values.flatten().numpy()
    axis.plot(flat.real, flat.imag, marker, markersize=6 if marker == "." else 10, label=label, linestyle="none")
    axis.set(xlabel="real part", ylabel="imaginary part", aspect="equal")
    axis.locator_params(axis="x", nbins=5)


def plot_radius_law(table: pd.DataFrame, laws: Sequence[XavierLaw], axis: Axes) -> None:
    """Histogram of |eigenvalue| over its limit radius, points with intervals over draws, beside the limit density.

    table: one row a bin and d_head: d_head, radius (middle of the bin, in units of the limit radius), estimate, low,
    high (of the density). laws: one a d_head.
    """
    ratio = torch.linspace(0, 1, 200, dtype=torch.float64)
    for colour, law in enumerate(laws):
        rows = table[table["d_head"] == law.d_head]
        bars = [rows["estimate"] - rows["low"], rows["high"] - rows["estimate"]]
        label = f"d_head {law.d_head}"
        axis.errorbar(
            rows["radius"], rows["estimate"], yerr=bars, fmt="o", markersize=4, color=f"C{colour}", label=label
        )
        density = law.radius_density(ratio * law.eigen_radius) * law.eigen_radius
        axis.plot(ratio, density, color=f"C{colour}")
    axis.axvline(1, color="0.4", linestyle=":", linewidth=1)
    axis.set(xlabel="|eigenvalue| / limit radius", ylabel="density", title="Moduli and their limit law")
    axis.legend(loc="upper left", title=f"d_model {laws[0].d_model}", title_fontsize="small")


def plot_trace_histogram(traces: pd.Series, trace_std: float, axis: Axes) -> None:
    """Histogram of tr W over draws in units of its standard deviation, beside the standard normal density."""
    axis.hist(traces / trace_std, bins=20, range=(-4, 4), density=True, color="C0", alpha=0.5, label="draws")
    z = np.linspace(-4, 4, 200)
    axis.plot(z, np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi), color="0.25", label="normal law")
    axis.set(xlabel="tr W / its standard deviation", ylabel="density", title="The sum of the eigenvalues")
    axis.legend(loc="upper left")
