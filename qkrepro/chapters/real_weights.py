"""What the heads of a trained model do on a text, beside what their spectra say: tables for the book.

Entropy follows W in the covariance of the tokens themselves, localization W in the covariance of their increments.
Source: book, "Setting and notation".
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from qkrepro.evidence.claims import claims_judged_by
from qkrepro.evidence.style import QUANTITIES
from qkrepro.evidence.verdicts import Outcome, Tables, Verdict
from qkrepro.models.checkpoint import qk_layers
from qkrepro.models.head_products import head_products, random_products


def spectra(folder: Path) -> pd.DataFrame:
    """Eigenvalues of every head over its ‖W‖_F, one row an eigenvalue: layer, head, real, imag."""
    frames = []
    for layer in qk_layers(folder):
        products = head_products(layer.w_q, layer.w_k)
        values = products.eigenvalues() / np.sqrt(products.frobenius_sq())[:, None]  # (heads, d_head)
        for head, row in enumerate(values):
            frame = pd.DataFrame({"real": row.real.tolist(), "imag": row.imag.tolist()}).sort_values(["real", "imag"])
            frames.append(frame.assign(layer=layer.layer, head=head))
    return pd.concat(frames, ignore_index=True)[["layer", "head", "real", "imag"]]


def random_spectra(d_head: int, d_model: int, draws: int, seed: int) -> pd.DataFrame:
    """Eigenvalues over ‖W‖_F of random heads of the same shape, one row an eigenvalue: draw, real, imag."""
    products = random_products(d_head, d_model, draws, seed)
    values = products.eigenvalues() / np.sqrt(products.frobenius_sq())[:, None]  # (draws, d_head)
    draw = np.repeat(np.arange(draws), d_head)
    return pd.DataFrame({"draw": draw, "real": values.real.ravel(), "imag": values.imag.ravel()})


def entropy_follows_scale(tables: Tables) -> Verdict:
    """Table correlations: quantity ("frobenius_cov"), correlation, low, high (Spearman over heads, bootstrap)."""
    row = tables["correlations"].set_index("quantity").loc["frobenius_cov"]
    because = (
        f"rank correlation of entropy with the scale {row['correlation']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    )
    outcome: Outcome = "reproduced" if row["high"] <= -0.5 else "partly" if row["high"] < 0 else "not reproduced"
    return Verdict(outcome, because)


def trained_heads_concentrate(tables: Tables) -> Verdict:
    """Table heads: layer, head, percentile (of variance over squared mean, d_head eigenvalues, among random draws)."""
    share = float((tables["heads"]["percentile"] <= 2.5).mean())
    because = f"{share:.0%} of {len(tables['heads'])} heads lie in the lowest 2.5% of same-shape random draws"
    return Verdict("reproduced" if share >= 0.9 else "partly" if share > 0.1 else "not reproduced", because)


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


CLAIMS = claims_judged_by(entropy_follows_scale, trained_heads_concentrate)
