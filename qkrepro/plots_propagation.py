"""Figures of signal propagation: profiles over the sequence, maps over the plane of spectra, softmax beside them."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

BOX = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 2.0}
FORMS = (
    ("limit", "0.5", ":", "Gaussian, T → ∞"),
    ("exact", "C0", "-", "exact law"),
    ("finite", "C1", "--", "Gaussian, finite T"),
)


def plot_profiles(profiles: pd.DataFrame, titles: Mapping[str, str], axes: Sequence[Axes]) -> None:
    """One panel a case: ρ_θ in the limit, in the finite-length form, exactly, and drawn with its 95% interval.

    profiles: of `propagation_cases.profile_table`. titles: case -> title of its panel, in the order of the panels.
    """
    for axis, (case, title) in zip(axes, titles.items(), strict=True):
        rows = profiles[profiles["case"] == case]
        for column, colour, line, label in FORMS:
            axis.plot(rows["theta"], rows[column], color=colour, linestyle=line, linewidth=1.8, label=label)
        bars = [rows["drawn"] - rows["low"], rows["high"] - rows["drawn"]]
        axis.errorbar(
            rows["theta"],
            rows["drawn"],
            yerr=bars,
            fmt=".",
            color="0.15",
            markersize=4,
            linewidth=0.8,
            label="drawn, 95% interval",
        )
        axis.set(title=title, ylim=(-0.04, 1.04), xlim=(0, 1.02))
        axis.label_outer()
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    for axis in axes:
        grid = axis.get_subplotspec()
        if grid is not None and grid.is_last_row():
            axis.set_xlabel("location θ = i/T")
        if grid is not None and grid.is_first_col():
            axis.set_ylabel("ρ, share not saturated")


def plot_plane(
    plane: pd.DataFrame,
    column: str,
    axis: Axes,
    *,
    colours: str,
    label: str,
    contour: float,
    limits: tuple[float, float] = (0, 1),
) -> None:
    """One measure over the plane of tr M and spread, with the line where the localization index is `contour`.

    plane: of `localization_plane.localization_plane`. Dashed lines: tr M = ±2λ, beyond which the focus is in the middle
    of a half. column: index, centre or level, on a colour scale from limits[0] to limits[1].
    """
    grid, index = (plane.pivot(index="spread_scaled", columns="mean_scaled", values=name) for name in (column, "index"))
    x, y = grid.columns.to_numpy(), grid.index.to_numpy()
    mesh = axis.pcolormesh(x, y, grid.to_numpy(), cmap=colours, vmin=limits[0], vmax=limits[1], shading="nearest")
    colorbar = axis.figure.colorbar(mesh, ax=axis, location="top", shrink=0.9)
    colorbar.set_label(label)
    axis.contour(x, y, index.to_numpy(), levels=[contour], colors="black", linewidths=1.4)
    for boundary in (-2, 2):
        axis.axvline(boundary, color="white", linestyle="--", linewidth=1.2)
    axis.set(yscale="log", xlabel="tr M / λ", ylabel="√(d σ²) / λ")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.label_outer()


def mark_regimes(axis: Axes, places: Mapping[str, tuple[float, float]]) -> None:
    """Write the name of each regime at its place (tr M / λ, √(d σ²) / λ)."""
    for name, (mean, spread) in places.items():
        axis.text(mean, spread, name, ha="center", va="center", fontsize="small", bbox=BOX)


def plot_counterexamples(
    profiles: pd.DataFrame, table: pd.DataFrame, pairs: Sequence[Sequence[str]], axes: Sequence[Axes]
) -> None:
    """One panel a group of names: ρ_θ of each matrix, with its relative variance and its localization index."""
    rows = table.set_index("name")
    for axis, names in zip(axes, pairs, strict=True):
        for name in names:
            curve = profiles[profiles["name"] == name]
            row = rows.loc[name]
            label = f"{name}:\nσ²/μ² = {row['relative_variance']:.3g}, L = {row['index']:.2f}"
            axis.plot(curve["theta"], curve["rho"], linewidth=1.8, label=label)
        axis.set(xlabel="location θ = i/T", ylim=(-0.04, 1.55), xlim=(0, 1.02), yticks=[0, 0.25, 0.5, 0.75, 1])
        axis.legend(loc="upper left")
        axis.label_outer()
    axes[0].set_ylabel("ρ, share not saturated")


def plot_cumulative(
    cumulative: pd.DataFrame, spectrum: str, temperatures: Sequence[float], axes: NDArray[np.object_]
) -> None:
    """Rows of panels by temperature, columns by token law: the share of each profile in the tokens up to θ.

    cumulative: of `true_softmax.cumulative_profiles`. axes: (temperatures, token laws).
    """
    rows = cumulative[cumulative["spectrum"] == spectrum]
    for line, temperature in zip(axes, temperatures, strict=True):
        for axis, law in zip(line, rows["tokens"].unique(), strict=True):
            part = rows[(rows["tokens"] == law) & (rows["temperature"] == temperature)]
            axis.plot(part["theta"], part["linear"], color="C1", linestyle="--", label="not saturated (linearised)")
            axis.plot(part["theta"], part["mass"], color="C0", label="gradient mass A(1 − A) of softmax")
            axis.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1, label="uniform")
            axis.set(xlim=(0, 1), ylim=(-0.03, 1.03), title=f"{law}, λ = {temperature:g}", xlabel="location θ = i/T")
            axis.label_outer()
        line[0].set_ylabel("share up to θ")
    axes[0, 0].figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def plot_agreement(agreement: pd.DataFrame, tolerance: float, axes: Sequence[Axes]) -> None:
    """Total variation between both profiles: a panel a spectrum against λ, and all against the spread of the logits.

    agreement: of `true_softmax.agreement_table`. Dotted: the tolerance up to which profiles count as the same.
    """
    markers = dict(zip(agreement["tokens"].unique(), "osD^", strict=False))
    for axis, (spectrum, group) in zip(axes, agreement.groupby("spectrum", sort=False), strict=False):
        for place, (law, rows) in enumerate(group.groupby("tokens", sort=False)):
            bars = [rows["total_variation"] - rows["low"], rows["high"] - rows["total_variation"]]
            style = {"marker": markers[law], "color": f"C{place}", "markersize": 4, "linewidth": 1.3}
            axis.errorbar(rows["temperature"], rows["total_variation"], yerr=bars, label=str(law), **style)
            axes[-1].scatter(rows["spread"], rows["total_variation"], marker=markers[law], color=f"C{place}", s=16)
        axis.set(title=str(spectrum), xlabel="temperature λ")
    for axis in axes:
        axis.axhline(tolerance, color="0.4", linestyle=":", linewidth=1.2)
        axis.set(xscale="log", ylim=(-0.03, 1.03))
        axis.label_outer()
    axes[-1].set(title="all settings", xlabel="spread of the logits / λ")
    axes[0].set_ylabel("total variation")
    axes[0].legend()


def plot_closed_forms(table: pd.DataFrame, axes: Sequence[Axes]) -> None:
    """One panel a form: simulated value with four standard errors against the predicted one, and the diagonal."""
    labels = {
        "high temperature": "entropy deficit, in units of its scale",
        "geometric": "entropy on a raw walk (nats)",
        "normalised walk": "log T − entropy, normalised (nats)",
    }
    for axis, (form, rows) in zip(axes, table.groupby("form", sort=False), strict=True):
        ends = [rows["predicted"].min(), rows["predicted"].max()]
        axis.plot(ends, ends, color="0.5", linestyle="--", linewidth=1)
        for place, (_, row) in enumerate(rows.iterrows()):
            bar = 4 * row["standard_error"]
            axis.errorbar(
                row["predicted"],
                row["simulated"],
                yerr=bar,
                fmt="o",
                markersize=4,
                color=f"C{place}",
                label=row["case"],
            )
        axis.set(title=labels[str(form)], xlabel="closed form", ylabel="simulated")
        axis.legend(loc="upper left")
