"""Figures of signal propagation: profiles over the sequence, maps over the plane of spectra, softmax beside them."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

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
