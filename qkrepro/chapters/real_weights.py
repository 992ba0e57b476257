"""What the heads of a trained model do on a text, beside what their spectra say.

Entropy follows W in the covariance of the tokens themselves, localization W in the covariance of their increments.
Source: book, "Real weights".
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from scipy import stats

from qkrepro.evidence.claims import Claim, Outcome, Tables, Threshold, Verdict
from qkrepro.evidence.style import COLOURS, INK, QUANTITIES
from qkrepro.evidence.wording import signed
from qkrepro.models.checkpoint import qk_layers
from qkrepro.models.head_products import HeadProducts, head_products, random_products
from qkrepro.theory.spectrum import qk_eigenvalues, qk_moments
from qkrepro.theory.statistics import correlations

READS = ("notebooks/texts/walk.txt",)  # what the notebook reads beside the package, relative to the checkout

LOWEST = 2.5  # percentile of random heads below which a head counts as more concentrated than chance
MOST = 0.9  # share of heads from which "the heads" are
FEW = 0.1  # share up to which they are not
STRONG = -0.5  # rank correlation up to which entropy follows the scale


def spectra(folder: Path) -> pd.DataFrame:
    """Return the eigenvalues of every head over its ‖W‖_F, one row an eigenvalue: layer, head, real, imag."""
    frames = []
    for layer in qk_layers(folder):
        for head, values in enumerate(_scaled_eigenvalues(head_products(layer.w_q, layer.w_k))):
            frame = pd.DataFrame({"real": values.real, "imag": values.imag}).sort_values(["real", "imag"])
            frames.append(frame.assign(layer=layer.layer, head=head))
    return pd.concat(frames, ignore_index=True)[["layer", "head", "real", "imag"]]


def random_spectra(d_head: int, d_model: int, draws: int, seed: int) -> pd.DataFrame:
    """Return the eigenvalues over ‖W‖_F of random heads of one shape, one row an eigenvalue: draw, real, imag."""
    values = _scaled_eigenvalues(random_products(d_head, d_model, draws, seed))
    draw = np.repeat(np.arange(draws), d_head)
    return pd.DataFrame({"draw": draw, "real": values.real.ravel(), "imag": values.imag.ravel()})


def entropy_correlations(heads: pd.DataFrame, quantities: Sequence[str], *, seed: int, resamples: int) -> pd.DataFrame:
    """Return the rank correlation of each quantity with attention entropy over all heads, with two intervals.

    heads: layer, entropy and the quantities. Returns columns quantity, correlation, low and high (whole layers are
    resampled, since the heads of a layer read the same tokens), heads_low and heads_high (single heads are).
    """
    layers = correlations(heads, "entropy", quantities, seed=seed, resamples=resamples, blocks="layer")
    single = correlations(heads, "entropy", quantities, seed=seed, resamples=resamples)
    return layers.assign(heads_low=single["low"], heads_high=single["high"])


def layer_table(heads: pd.DataFrame) -> pd.DataFrame:
    """Return what the heads of each layer have in common, one row a layer.

    heads: layer, percentile, relative_variance, entropy, frobenius_cov. Returns columns layer, heads, below_chance (how
    many heads lie in the lowest 2.5% of random ones), relative_variance (median), entropy (mean), frobenius_cov
    (median), correlation (rank correlation of entropy and frobenius_cov within the layer).
    """
    rows = [
        {
            "layer": layer,
            "heads": len(group),
            "below_chance": int((group["percentile"] <= LOWEST).sum()),
            "relative_variance": group["relative_variance"].median(),
            "entropy": group["entropy"].mean(),
            "frobenius_cov": group["frobenius_cov"].median(),
            "correlation": float(stats.spearmanr(group["frobenius_cov"], group["entropy"]).statistic),
        }
        for layer, group in heads.groupby("layer")
    ]
    return pd.DataFrame(rows)


def plot_kinds(seed: int, axes: Sequence[Axes], *, d_head: int = 32, d_model: int = 384) -> None:
    """Draw the eigenvalues over ‖W‖_F of three made heads, a panel each: random, with a mean, concentrated."""
    generator = torch.Generator().manual_seed(seed)
    drawn, noise = torch.randn(2, d_head, d_model, generator=generator, dtype=torch.float64).unbind()
    w_q = torch.linalg.qr(drawn.mT).Q.mT  # orthonormal rows: a multiple of w_q as w_k adds that mean to the spectrum
    radius = d_head**0.5  # of the disc that the noise fills
    kinds = {"random": 0.0, "with a mean": 1.5, "concentrated": 10.0}
    colours = (COLOURS["dispersed"], INK, COLOURS["concentrated"])
    for axis, colour, (name, mean) in zip(axes, colours, kinds.items(), strict=True):
        w_k = mean * radius * w_q + noise
        values = qk_eigenvalues(w_q, w_k) / qk_moments(w_q, w_k).frobenius_sq.sqrt()
        for line in (axis.axhline, axis.axvline):
            line(0, color=INK, linewidth=0.6, zorder=0)
        axis.plot(values.real, values.imag, ".", color=colour)
        axis.set(xlabel="Re λ", xlim=(-0.1, 0.2), ylim=(-0.1, 0.1), aspect="equal")
        axis.set_title(name, color=colour)
        axis.grid(False)
    axes[0].set_ylabel("Im λ")


def plot_spectra_grid(spectra: pd.DataFrame, null: pd.DataFrame, ax: Axes, reach: float = 0.25) -> int:
    """Draw the eigenvalues over ‖W‖_F of heads, a cell of a layer × head grid each, random heads behind them in grey.

    spectra: layer, head, real, imag. null: real, imag. reach: half the side of a cell. Returns how many eigenvalues
    lie outside their cell and are not shown.
    """
    inside = spectra[(spectra["real"].abs() < reach) & (spectra["imag"].abs() < reach)]
    layers, heads = int(spectra["layer"].max()) + 1, int(spectra["head"].max()) + 1
    for head, layer in product(range(heads), range(layers)):
        x, y = head + null["real"] / (2 * reach), layer - null["imag"] / (2 * reach)
        ax.scatter(x, y, s=0.6, color=INK, alpha=0.5, linewidths=0, rasterized=True)
    x, y = inside["head"] + inside["real"] / (2 * reach), inside["layer"] - inside["imag"] / (2 * reach)
    ax.scatter(x, y, s=4, linewidths=0)
    ax.hlines(np.arange(layers + 1) - 0.5, -0.5, heads - 0.5, color=INK, linewidth=0.8)
    ax.vlines(np.arange(heads + 1) - 0.5, -0.5, layers - 0.5, color=INK, linewidth=0.8)
    ax.set(xlim=(-0.52, heads - 0.48), ylim=(layers - 0.48, -0.52), aspect="equal", xlabel="head", ylabel="layer")
    ax.set(xticks=range(heads), yticks=range(layers))
    ax.grid(False)
    sns.despine(ax=ax, left=True, bottom=True)
    return len(spectra) - len(inside)


def plot_against_chance(heads: pd.DataFrame, null: Sequence[float], ax: Axes) -> None:
    """Draw the relative variance of heads by layer, with the middle 95% of random heads as a band.

    heads: layer, head, relative_variance. null: relative variances of random heads.
    """
    low, middle, high = np.quantile(np.asarray(null), [0.025, 0.5, 0.975])
    ax.axhspan(low, high, color=INK, alpha=0.25, linewidth=0, zorder=0)
    ax.axhline(middle, color=INK, linewidth=1, linestyle="--", zorder=1)
    label = "random heads:\nmiddle 95%\nand median"
    ax.text(1.01, middle, label, va="center", fontsize="small", transform=ax.get_yaxis_transform())
    spread = np.linspace(-0.25, 0.25, int(heads["head"].max()) + 1)
    ax.scatter(heads["layer"] + spread[heads["head"]], heads["relative_variance"], s=16, zorder=2)
    ax.set(xlabel="layer", ylabel=QUANTITIES["relative_variance"], yscale="log")


def plot_entropy(heads: pd.DataFrame, quantity: str, ax: Axes) -> None:
    """Draw the mean attention entropy of heads against a quantity, coloured by layer; heads: layer, entropy."""
    log = bool((heads[quantity] > 0).all())
    colours = [tuple(colour) for colour in colormaps["plasma"](np.linspace(0.38, 0.76, heads["layer"].nunique()))]
    for number, (colour, layer) in enumerate(zip(colours, sorted(heads["layer"].unique()), strict=True)):
        rows = heads[heads["layer"] == layer]
        ax.scatter(rows[quantity], rows["entropy"], s=22, color=colour)
        ax.text(0.04, 0.46 - 0.075 * number, f"layer {layer}", color=colour, fontsize="small", transform=ax.transAxes)
    ax.set(xlabel=QUANTITIES[quantity], ylabel="entropy, nats", xscale="log" if log else "linear")


def entropy_follows_scale(tables: Tables, strong: float = STRONG) -> Verdict:
    """Judge table correlations (row frobenius_cov; columns low, high) and table layers (column correlation)."""
    table, layers = tables["correlations"], tables["layers"]["correlation"]
    row = table.loc[table["quantity"] == "frobenius_cov", ["correlation", "low", "high"]]
    middle, low, high = row.to_numpy(float)[0].tolist()
    holds = int((layers <= strong).sum())
    interval = f"{signed(middle)} [{signed(low)}, {signed(high)}] when layers are resampled"
    because = (
        f"rank correlation of entropy with the scale {interval}; within a layer between {signed(layers.min())} and "
        f"{signed(layers.max())}, at most {signed(strong, 1)} in {holds} of {len(layers)} layers"
    )
    outcome: Outcome = "inconclusive"
    if high < 0:
        outcome = "reproduced" if high <= strong and holds == len(layers) else "partly"
    elif low > strong:
        outcome = "not reproduced"
    return Verdict(outcome, because, holds, len(layers))


def trained_heads_concentrate(tables: Tables, most: float = MOST) -> Verdict:
    """Judge table heads: column percentile (of variance over squared mean, d_head eigenvalues, among random draws)."""
    percentile = tables["heads"]["percentile"]
    holds, of = int((percentile <= LOWEST).sum()), len(percentile)
    if of == 0:
        return Verdict("not run", "no head was measured")
    range_ = stats.binomtest(holds, of).proportion_ci(0.95)  # of the share, were the heads a sample
    because = f"{holds} of {of} heads lie in the lowest {LOWEST:g}% of random draws of the same shape"
    if range_.low <= FEW and range_.high >= most:
        return Verdict("inconclusive", f"{because}; so few heads leave the share open", holds, of)
    outcome: Outcome = "reproduced" if holds >= most * of else "partly" if holds > FEW * of else "not reproduced"
    return Verdict(outcome, because, holds, of)


def _scaled_eigenvalues(products: HeadProducts) -> np.ndarray:
    """Return the d_head eigenvalues of each head over its ‖W‖_F, (heads, d_head) complex128."""
    values: np.ndarray = products.eigenvalues() / np.sqrt(products.frobenius_sq())[:, None]
    return values


CLAIMS = (
    Claim(
        name="trained-heads-concentrate",
        chapter="real_weights",
        provenance="ours",
        statement="Nine in ten heads of all-MiniLM-L6-v2 are more concentrated than random ones of the same shape.",
        conditions="variance over squared mean of their d_head eigenvalues",
        rule=(
            "At least 90% of the heads lie in the lowest 2.5% of random draws; partly above 10%; inconclusive where "
            "the 95% binomial interval of the share holds both 10% and 90%."
        ),
        refuted_by="at most a tenth of the heads there",
        tables=("heads",),
        judge=trained_heads_concentrate,
        figure="fig-minilm-chance",
        threshold=Threshold(
            "share of heads in the lowest 2.5%", MOST, (0.5, 0.8, 0.85, 0.9, 0.92, 0.95, 1.0), trained_heads_concentrate
        ),
    ),
    Claim(
        name="entropy-follows-scale",
        chapter="real_weights",
        provenance="ours",
        statement=(
            "In all-MiniLM-L6-v2, on one text, a head's attention entropy falls with the scale of W_QK in the "
            "covariance of its tokens, over all heads and within each layer."
        ),
        rule=(
            "The bootstrap interval of the rank correlation over heads, layers resampled whole, lies below −0.5, and "
            "so does the correlation within each layer; partly when only the interval lies below 0; inconclusive when "
            "it holds 0 and −0.5."
        ),
        refuted_by="an interval that reaches 0 and lies above −0.5",
        tables=("correlations", "layers"),
        judge=entropy_follows_scale,
        figure="fig-minilm-entropy",
        threshold=Threshold(
            "rank correlation", STRONG, (-0.9, -0.8, -0.7, -0.6, -0.5, -0.3, -0.1), entropy_follows_scale
        ),
    ),
)
