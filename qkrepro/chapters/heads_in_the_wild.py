"""What rotary positions do to a spectrum: one concentrated and one random head, over the distance of query and key.

A concentrated head W = P (a projection of rank d_head, all its eigenvalues 1) becomes W(Δ) with the eigenvalues of
R(−Δ), e^{±iΔf_j}: tr W(Δ) = 2 Σ_j cos(Δ f_j). Source: the book, "Heads in the wild" (ours, derived).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from qkrepro.evidence.claims import Claim, Tables, Threshold, Verdict
from qkrepro.evidence.outcomes import interval_text
from qkrepro.evidence.style import COLOURS, INK, WIDTH
from qkrepro.evidence.verdicts import HALF, universal_verdict, within
from qkrepro.models.chance import random_heads, relative_variance
from qkrepro.models.head_products import Array, head_products
from qkrepro.models.rotary import Rotary, rotary_of_layer
from qkrepro.theory.statistics import Interval

READS = ("notebooks/texts/walk.txt",)  # what the notebook reads beside the package, relative to the checkout
BOTH = ["relative_variance", "spectral_energy_share"]  # the two concentrations
BEYOND = 2.0  # standard deviations from chance that count as not chance
LOWEST = 2.5  # percent of random heads, likewise


def random_concentrations(d_head: int, d_model: int, draws: int, seed: int) -> pd.DataFrame:
    """Return both concentrations of random heads of a shape, one row a draw: the columns of BOTH.

    d_head, d_model: of the heads. draws: heads drawn, seeded.
    """
    products = random_heads(d_head, d_model, draws, seed)
    values = relative_variance(products.eigenvalues()), products.spectral_energy_share()
    return pd.DataFrame(dict(zip(BOTH, values, strict=True)))


def beyond_chance(heads: pd.DataFrame) -> pd.DataFrame:
    """Return which heads are more concentrated than chance in each sense: columns eigenvalues, energy, booleans."""
    eigenvalues = heads["relative_variance_percentile"] <= LOWEST
    return pd.DataFrame({"eigenvalues": eigenvalues, "energy": heads["spectral_energy_share_z"] > BEYOND})


def two_quantities(tables: Tables, bar: float = HALF) -> Verdict:
    """Judge table concentrations, one row: correlation, low, high (of the ranks of the columns of BOTH over heads)."""
    rows = tables["concentrations"].to_dict("records")
    holds = [within(row["low"], row["high"], -bar, bar) for row in rows]
    intervals = [interval_text(Interval(row["correlation"], row["low"], row["high"]), 2) for row in rows]
    return universal_verdict(holds, f"rank correlation {', '.join(intervals)}")


def rotary_spectra(
    distances: Sequence[float], *, d_head: int = 32, d_model: int = 128, base: float = 10000.0, seed: int = 0
) -> pd.DataFrame:
    """Return the eigenvalues over √d_head of both heads, each of ‖W‖_F = √d_head, at each distance in tokens.

    distances: Δ in tokens. d_head, d_model: of both heads. base: of the rotary frequencies.
    Returns columns kind ("concentrated", "random"), distance, real, imag: one row an eigenvalue.
    """
    rotary = rotary_of_layer({"rope_theta": base}, 0, d_head)
    frames = []
    for kind, (w_q, w_k) in _heads(d_head, d_model, seed).items():
        for distance in distances:
            products = head_products(w_q, w_k).between(rotary.rotation(distance, d_head))
            values = products.eigenvalues()[0] / d_head**0.5  # (d_head,)
            frame = pd.DataFrame({"real": values.real.tolist(), "imag": values.imag.tolist()})
            frames.append(frame.sort_values(["real", "imag"]).assign(kind=kind, distance=float(distance)))
    return pd.concat(frames, ignore_index=True)[["kind", "distance", "real", "imag"]]


def rotary_trace(
    distances: Sequence[float], *, d_head: int = 32, d_model: int = 128, base: float = 10000.0, seed: int = 0
) -> pd.DataFrame:
    """Return tr W(Δ)/d_head of both heads, and of the concentrated one by its closed form.

    distances, d_head, d_model, base: as for `rotary_spectra`.
    Returns columns kind ("concentrated", "random", "closed form"), distance, share: one row a distance; the closed form
    also at 300 distances in between, for a smooth line.
    """
    rotary = rotary_of_layer({"rope_theta": base}, 0, d_head)
    rows: list[tuple[str, float, float]] = []
    for kind, (w_q, w_k) in _heads(d_head, d_model, seed).items():
        products = head_products(w_q, w_k)
        traces = [products.between(rotary.rotation(distance, d_head)).trace() for distance in distances]
        rows += [(kind, float(at), trace.item() / d_head) for at, trace in zip(distances, traces, strict=True)]
    between = sorted({*distances, *np.geomspace(0.1, max(*distances, 1), 300).tolist()})
    rows += [("closed form", float(at), concentrated_trace(rotary, at) / d_head) for at in between]
    return pd.DataFrame(rows, columns=["kind", "distance", "share"])


def concentrated_trace(rotary: Rotary, distance: float) -> float:
    """Return tr W(Δ) = 2 Σ_j cos(Δ f_j) of the head whose W is a projection of rank 2 · (number of frequencies)."""
    return float(2 * np.cos(distance * rotary.frequencies).sum())


def _heads(d_head: int, d_model: int, seed: int) -> dict[str, tuple[Array, Array]]:
    """Return w_q and w_k, (1, d_head, d_model), of both heads, scaled to ‖W‖_F = √d_head."""
    generator = np.random.default_rng(seed)
    rows = np.linalg.qr(generator.standard_normal((d_model, d_head)))[0].T  # orthonormal, (d_head, d_model)
    w_q, w_k = (generator.standard_normal((1, d_head, d_model)) for _ in range(2))
    scale = (d_head / head_products(w_q, w_k).frobenius_sq().item()) ** 0.5
    return {"concentrated": (rows[None], rows[None]), "random": (w_q * scale, w_k)}


def plot_concentrations(heads: pd.DataFrame, drawn: pd.DataFrame, ax: Axes) -> None:
    """Draw both concentrations of trained heads, coloured by layer, with random heads behind in grey.

    heads: layer and the columns of BOTH, one row a head; drawn: as `random_concentrations` returns it.
    """
    ax.scatter(drawn[BOTH[0]], drawn[BOTH[1]], s=9, color=COLOURS["baseline"], alpha=0.5, label="random")
    for layer, group in heads.groupby("layer"):
        colour = plt.get_cmap("viridis")(float(str(layer)) / max(1, heads["layer"].max()))
        ax.scatter(group[BOTH[0]], group[BOTH[1]], s=26, color=colour, label=f"layer {layer}")
    ax.set(xscale="log", yscale="log", ylabel="spectral energy in the largest singular value")
    ax.set_xlabel(r"relative variance $\sigma_h^2/\mu_h^2$ of the eigenvalues")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def rotary_frames(spectra: pd.DataFrame, traces: pd.DataFrame) -> Iterator[Figure]:
    """Yield one figure again and again: the eigenvalues of both heads, and where the trace of the next distance is.

    spectra, traces: as `rotary_spectra` and `rotary_trace` return them.
    """
    limit = 1.12 * float(spectra[["real", "imag"]].abs().max().max())
    figure, (plane, curve) = plt.subplots(1, 2, figsize=(WIDTH, 2.9), width_ratios=(1, 1.4))
    looks: dict[str, dict[str, Any]] = {"random": {"color": COLOURS["baseline"], "s": 8}, "concentrated": {"s": 14}}
    clouds = {kind: plane.scatter([], [], linewidths=0, **look) for kind, look in looks.items()}
    plane.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel="Re λ", ylabel="Im λ")
    plot_rotary_trace(traces, curve, legend=False)
    here = curve.axvline(0, color=INK, linewidth=1)
    heading = figure.suptitle(" ", x=0.01, ha="left")
    for distance, points in spectra.groupby("distance"):
        for kind, values in points.groupby("kind"):
            clouds[str(kind)].set_offsets(values[["real", "imag"]].to_numpy())
        here.set_xdata([float(str(distance))] * 2)
        heading.set_text(f"{distance:g} tokens between query and key")
        yield figure


def plot_rotary_trace(table: pd.DataFrame, ax: Axes, *, legend: bool = True) -> None:
    """Draw tr W over d_head against the distance; table: as `rotary_trace` returns it."""
    closed = table[table["kind"] == "closed form"]
    label = "closed form of the concentrated head"
    ax.plot(closed["distance"], closed["share"], color="C0", linewidth=1, alpha=0.7, label=label)
    for kind, marker, colour in (("concentrated", "o", "C0"), ("random", "s", COLOURS["baseline"])):
        group = table[table["kind"] == kind]
        ax.plot(group["distance"], group["share"], marker, markersize=4, color=colour, label=f"{kind} head")
    ax.axhline(0, color=INK, linewidth=0.8, zorder=0)
    ax.set(xlabel="distance, tokens", ylabel=r"$\mathrm{tr}\,W(\Delta)\,/\,d_{head}$")
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xlim(-0.2, 1.5 * float(table["distance"].max()))
    if legend:
        ax.legend(loc="upper right")


def plot_head_maps(heads: pd.DataFrame, quantities: Mapping[str, str], axes: Any) -> None:
    """Draw layer × head maps of several quantities, one axes each; quantities: column to title.

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


CLAIMS = (
    Claim(
        name="two-concentrations-are-two",
        chapter="heads_in_the_wild",
        provenance="ours",
        statement=(
            "In the heads of a trained encoder the concentration of the eigenvalues does not tell that of the spectral "
            "energy: over heads their ranks hardly agree."
        ),
        rule=(
            "The rank correlation over heads of the eigenvalues' relative variance and the share of the largest "
            "squared singular value lies between -0.5 and 0.5 with its whole 95% bootstrap interval over layers."
        ),
        refuted_by="an interval wholly beyond -0.5 or 0.5",
        tables=("concentrations",),
        judge=two_quantities,
        figure="fig-two-concentrations",
        threshold=Threshold(
            "largest rank correlation, either sign", HALF, (0.2, 0.3, 0.4, 0.5, 0.6, 0.7), two_quantities
        ),
        setting="the 72 heads of MiniLM",
    ),
)
