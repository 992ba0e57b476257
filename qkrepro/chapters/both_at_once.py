"""Both collapses at once: the central figure and the cells in which neither happens.

Source: book, "Both at once".
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib.patheffects as effects
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, QuadMesh

from qkrepro.evidence.claims import Claim, Tables, Threshold, Verdict
from qkrepro.evidence.style import DISPERSION_LABEL, INK, MEAN_LABEL, PALETTE
from qkrepro.evidence.verdicts import HALF, above, both, either, settings_verdict
from qkrepro.evidence.wording import plain
from qkrepro.theory.depth import Spectrum, Stack, depth_experiment
from qkrepro.theory.statistics import median_interval, median_intervals

READS: tuple[str, ...] = ()
SAFE_COLOUR = "#d7301f"
HALO = [effects.withStroke(linewidth=2.5, foreground="black")]
RATIOS = ("entropy_ratio", "residual_ratio")
QUANTITIES = ("entropy", "difference between tokens")
STATUS: dict[bool | None, str] = {True: "safe", False: "collapsed", None: "open"}


def both_at_once(
    spectra: Sequence[Spectrum], stack: Stack, *, seeds: Iterable[int], depths: Sequence[int] = (), setting: str = ""
) -> pd.DataFrame:
    """Return both collapses of each spectrum side by side: attention in every layer, tokens after the last.

    spectra: of W_QK, all on the same draws.
    depths: numbers of layers after which to look, each a reading of the same runs; none: the stack's own. setting: a
    name for what is special about the stack. Returns one row per (depth, seed, spectrum): setting, tokens, layers,
    mean_scaled, dispersion, seed, entropy_ratio (the least of the layers so far), first_entropy_ratio (of the first
    layer alone), residual_ratio (to the input's own). Raises as `depth_experiment` does.
    """
    table = depth_experiment(spectra, stack, seeds=seeds, measures=["residual"])
    keys, tables = ["tokens", "mean_scaled", "dispersion", "seed"], []
    for layers in depths or [stack.layers]:
        runs = table[table["layer"].between(1, layers)].groupby(keys, sort=False)
        ratios = runs.agg(
            entropy_ratio=("entropy_ratio", "min"),
            first_entropy_ratio=("entropy_ratio", "first"),
            residual_ratio=("residual_ratio", "last"),
        )
        tables.append(ratios.reset_index().assign(layers=layers))
    return pd.concat(tables, ignore_index=True).assign(setting=setting or "LayerNorm")


def safe_cells(table: pd.DataFrame, bar: float = HALF) -> pd.DataFrame:
    """Return medians of both ratios in each cell (mean_scaled, dispersion), and whether neither collapse happens there.

    Adds lowest (the smaller of the lower ends of the two 95% intervals of the medians over seeds) and status: "safe"
    when both intervals lie above the bar, "collapsed" when one lies below, otherwise "open"; safe is status == "safe".
    """
    rows = []
    for (mean, dispersion), cell in table.groupby(["mean_scaled", "dispersion"]):
        intervals = {name: median_interval(cell[name]) for name in RATIOS}
        status = both(*(above(interval, bar) for interval in intervals.values()))
        row = {"mean_scaled": mean, "dispersion": dispersion, **{name: intervals[name].estimate for name in RATIOS}}
        lowest = min(interval.low for interval in intervals.values())
        rows.append({**row, "lowest": lowest, "safe": status is True, "status": STATUS[status]})
    return pd.DataFrame(rows)


def prevents_both(tables: Tables, bar: float = HALF) -> Verdict:
    """Judge table safe: setting, tokens, layers, mean_scaled, dispersion, seed and both ratios; fewest layers.

    For each setting, law of tokens and non-zero mean: safe at the least dispersion, not at the greatest.
    """
    windows = safe_means(tables["safe"], bar)
    cases = {
        f"{name}, ξ/λ = {plain(mean)}": status for name, means in windows.items() for mean, status in means.items()
    }
    return settings_verdict(cases, _listed(windows))


def can_prevent_both(tables: Tables, bar: float = HALF, *, deep: bool = False) -> Verdict:
    """Judge table safe, as `prevents_both`, at fewest or most layers: some mean of either sign is safe."""
    windows = safe_means(tables["safe"], bar, deep=deep)
    return settings_verdict({name: either(*means.values()) for name, means in windows.items()}, _listed(windows))


def can_prevent_both_deep(tables: Tables, bar: float = HALF) -> Verdict:
    """Judge table safe, as `can_prevent_both`, at the largest number of layers."""
    return can_prevent_both(tables, bar, deep=True)


def helps_both(tables: Tables) -> Verdict:
    """Judge table safe, fewest layers: at equal mean both ratios are larger at the least than the most dispersion."""
    gains = helped_means(tables["safe"])
    counts = []
    for sign, name in ((1, "positive"), (-1, "negative")):
        statuses = [status for key, status in gains.items() if sign * key[2] > 0]
        counts.append(f"{sum(status is True for status in statuses)} of {len(statuses)} {name} means")
    cases = {f"{setting}, {tokens}, ξ/λ = {plain(mean)}": status for (setting, tokens, mean), status in gains.items()}
    return settings_verdict(cases, "at " + " and ".join(counts))


def helped_means(table: pd.DataFrame) -> dict[tuple[str, str, float], bool | None]:
    """Return by (setting, tokens, mean) whether both ratios are larger at the least than at the most dispersion."""
    cases = {}
    for key, group in _at_depth(table, deep=False).groupby(["setting", "tokens", "mean_scaled"], sort=False):
        gains = []
        for name in RATIOS:
            wide = group.pivot(index="seed", columns="dispersion", values=name).sort_index(axis=1)
            gains.append(above(median_interval(wide.iloc[:, 0] - wide.iloc[:, -1]), 0))
        cases[str(key[0]), str(key[1]), float(str(key[2]))] = both(*gains)
    return cases


def safe_means(table: pd.DataFrame, bar: float = HALF, *, deep: bool = False) -> dict[str, dict[float, bool | None]]:
    """Return by setting and law, then by mean, whether it is safe at the least dispersion alone (None: left open)."""
    truth = {text: status for status, text in STATUS.items()}
    windows: dict[str, dict[float, bool | None]] = {}
    for (setting, tokens), group in _at_depth(table, deep=deep).groupby(["setting", "tokens"], sort=False):
        cells = safe_cells(group, bar)
        ends = cells["dispersion"].min(), cells["dispersion"].max()
        least, greatest = (cells[cells["dispersion"] == end].set_index("mean_scaled")["status"] for end in ends)
        windows[f"{setting}, {tokens}"] = {
            float(mean): False if greatest[mean] == "safe" else truth[status] for mean, status in least.items()
        }
    return windows


def window_summary(windows: pd.DataFrame) -> pd.DataFrame:
    """Return medians of both ratios with their intervals, per panel (law of tokens and setting), cell and quantity.

    windows: rows of `both_at_once` at one depth. Columns panel, mean_scaled, dispersion, quantity, estimate, low, high,
    lowest, safe.
    """
    table = windows.assign(panel=windows["tokens"] + "\n" + windows["setting"])
    by, names = ["panel", "mean_scaled", "dispersion"], dict(zip(RATIOS, QUANTITIES, strict=True))
    parts = [median_intervals(table, by, column).assign(quantity=name) for column, name in names.items()]
    marks = [safe_cells(group).assign(panel=panel) for panel, group in table.groupby("panel", sort=False)]
    return pd.concat(parts).merge(pd.concat(marks)[[*by, "lowest", "safe"]], on=by)


def plot_both(cells: pd.DataFrame, dim: int, axes: Sequence[Axes]) -> QuadMesh:
    """Draw the central map: entropy ratio and residual ratio over (mean, dispersion), the safe cells outlined in both.

    cells: mean_scaled, dispersion, entropy_ratio, residual_ratio, safe; one row a cell of a full grid, dispersions > 0.
    dim: d, for the dotted line σ = |μ|. Dashed line: the ratio is one half. Returns a mesh for the colour bar.
    """
    for axis, column in zip(axes, ("entropy_ratio", "residual_ratio"), strict=True):
        grid = cells.pivot(index="dispersion", columns="mean_scaled", values=column)
        means, dispersions = grid.columns.to_numpy(float), grid.index.to_numpy(float)
        x, y = _edges(means), np.exp(_edges(np.log(dispersions)))
        mesh = axis.pcolormesh(x, y, grid.to_numpy(), cmap="viridis", vmin=0, vmax=1, rasterized=True)
        axis.contour(means, dispersions, grid, levels=[HALF], colors="white", linestyles="--", linewidths=1.3)
        safe = cells.pivot(index="dispersion", columns="mean_scaled", values="safe").to_numpy(bool)
        for colour, width in (("white", 4.6), (SAFE_COLOUR, 2.6)):
            axis.add_collection(LineCollection(_outline(safe, x, y), color=colour, linewidth=width, capstyle="round"))
        fine = np.linspace(x[0], x[-1], 401)
        axis.plot(fine, np.abs(fine) / dim**0.5, color="white", linestyle=":", linewidth=1.3)
        axis.set(xlabel=MEAN_LABEL, yscale="log", xlim=x[[0, -1]], ylim=y[[0, -1]])
        axis.set_yticks(ticks := [t for t in 2.0 ** np.arange(-4, 9) if y[0] < t < y[-1]], [f"{t:g}" for t in ticks])
        axis.minorticks_off()
        axis.grid(False)
        _label_safe(axis, cells[cells["safe"]])
    axes[0].set_ylabel(DISPERSION_LABEL)
    return mesh


def label_region(axis: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Write white text with a dark rim, readable on any colour of a map; x and y as fractions of the axes."""
    settings = {"color": "white", "ha": "center", "va": "center", "fontweight": "bold", "fontsize": 10, **style}
    axis.text(x, y, text, path_effects=HALO, transform=axis.transAxes, **settings)


def plot_windows(summary: pd.DataFrame, axes: Sequence[Axes], titles: Mapping[str, str] | None = None) -> None:
    """Draw medians of both ratios over the mean, one panel a setting: solid at the least dispersion, dotted at most.

    summary: panel, mean_scaled, dispersion, quantity, estimate, low, high, safe. Means at which the
    least dispersion is safe are shaded. titles: panel -> its title, by default its name.
    """
    for axis, (panel, rows) in zip(axes, summary.groupby("panel", sort=False), strict=True):
        least = rows["dispersion"] == rows["dispersion"].min()
        for quantity, colour in zip(QUANTITIES, (PALETTE[3], PALETTE[4]), strict=True):
            for name, chosen, line_style in (("concentrated", least, "-"), ("dispersed", ~least, ":")):
                line = rows[chosen & (rows["quantity"] == quantity)].sort_values("mean_scaled")
                label = f"{quantity}, {name}"
                axis.plot(line["mean_scaled"], line["estimate"], line_style, color=colour, label=label, linewidth=1.8)
                axis.fill_between(line["mean_scaled"], line["low"], line["high"], color=colour, alpha=0.2, linewidth=0)
        for mean in rows.loc[least & rows["safe"].astype(bool), "mean_scaled"].unique():
            axis.axvspan(mean - 1, mean + 1, color=SAFE_COLOUR, alpha=0.25, linewidth=0)
        axis.axhline(HALF, color=INK, linestyle=":", linewidth=1)
        axis.set(title=(titles or {}).get(str(panel), panel), ylim=(0, 1.08), xlabel="mean ξ/λ")


def _edges(centres: np.ndarray) -> np.ndarray:
    inner = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - inner[0]], inner, [2 * centres[-1] - inner[-1]]])


def _outline(safe: np.ndarray, x: np.ndarray, y: np.ndarray) -> list[list[tuple[float, float]]]:
    """Return line segments between safe and other cells (the border of the map counts as other)."""
    padded = np.pad(safe, 1)
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])  # a change from one row to the next
    across = [[(x[c], y[r]), (x[c + 1], y[r])] for r, c in zip(rows, columns, strict=True)]
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    return across + [[(x[c], y[r]), (x[c], y[r + 1])] for r, c in zip(rows, columns, strict=True)]


def _label_safe(axis: Axes, safe: pd.DataFrame) -> None:
    if not safe.empty:
        middle = (safe["mean_scaled"].mean(), float(np.exp(np.log(safe["dispersion"]).mean())))
        x, y = axis.transAxes.inverted().transform(axis.transData.transform(middle))
        label_region(axis, x, y, "safe", fontsize=13)


def _at_depth(table: pd.DataFrame, *, deep: bool) -> pd.DataFrame:
    layers = table["layers"].max() if deep else table["layers"].min()
    chosen: pd.DataFrame = table[(table["mean_scaled"] != 0) & (table["layers"] == layers)]
    return chosen


def _listed(windows: Mapping[str, Mapping[float, bool | None]]) -> str:
    """Return the means that are safe in each setting, as text."""
    parts = [(name, [mean for mean, status in means.items() if status]) for name, means in windows.items()]
    return "safe ξ/λ: " + "; ".join(f"{name}: {', '.join(map(plain, means)) or 'none'}" for name, means in parts)


CONDITIONS = (
    "means ξ/λ from −40 to 40, dispersion 0.5 against 32, walks under LayerNorm with and without a residual "
    "connection, AR(1) and independent tokens under LayerNorm, d = T = 64"
)
SAFE = (
    "A mean is safe when at the least dispersion the entropy ratio (the least of the layers) and the residual ratio "
    "are both more than one half, and at the greatest dispersion they are not: medians over seeds, by their "
    "distribution-free 95% intervals. "
)
PREVENTS = "the small eigenspectrum variance prevents both rank and entropy collapse"


def _threshold(judge: Callable[[Tables, float], Verdict]) -> Threshold:
    tried = (0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7)
    return Threshold("share of entropy and of residual that is kept", HALF, tried, judge)


CLAIMS = (
    Claim(
        name="prevents-both",
        chapter="both_at_once",
        provenance="paper",
        statement="A small eigenspectrum variance prevents both collapses at once, over 8 layers.",
        conditions=CONDITIONS,
        rule=SAFE + "The claim asks this of every non-zero mean in every setting and law of tokens.",
        refuted_by="failing at some means and holding at none",
        tables=("safe",),
        judge=prevents_both,
        quote=PREVENTS,
        figure="fig-both-windows",
        threshold=_threshold(prevents_both),
    ),
    Claim(
        name="can-prevent-both",
        chapter="both_at_once",
        provenance="reported",
        statement="A small eigenspectrum variance can prevent both collapses at once, over 8 layers.",
        conditions=f"the words are those of the text in the proceedings, as reported; {CONDITIONS}",
        rule=SAFE + "The claim asks for one safe mean, of either sign, in each setting and law of tokens.",
        refuted_by="no safe mean in some settings, and a safe one in none",
        tables=("safe",),
        judge=can_prevent_both,
        figure="fig-both-windows",
        threshold=_threshold(can_prevent_both),
    ),
    Claim(
        name="can-prevent-both-deep",
        chapter="both_at_once",
        provenance="reported",
        statement="A small eigenspectrum variance can prevent both collapses at once, over 24 layers.",
        conditions=CONDITIONS,
        rule=SAFE + "One safe mean in each setting and law of tokens; the same stacks as for 8 layers, at their end.",
        refuted_by="no safe mean in some settings, and a safe one in none",
        tables=("safe",),
        judge=can_prevent_both_deep,
        figure="fig-both-windows",
        threshold=_threshold(can_prevent_both_deep),
    ),
    Claim(
        name="concentration-helps-both",
        chapter="both_at_once",
        provenance="ours",
        statement=(
            "At equal mean a concentrated spectrum keeps more entropy and more difference between tokens than a "
            "dispersed one, over 8 layers."
        ),
        conditions=CONDITIONS,
        rule=(
            "For each setting, law of tokens and non-zero mean the paired differences of both ratios, least minus "
            "greatest dispersion, are above 0: medians over seeds, by the interval of the sign test."
        ),
        refuted_by="failing at some means and holding at none",
        tables=("safe",),
        judge=helps_both,
        figure="fig-both-windows",
    ),
)
