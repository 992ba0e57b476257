"""How far the piecewise-linear softmax S is from softmax A, and what share of the keys it shuts off.

Closed forms for independent Gaussian logits ω_i ~ N(0, (spread·λ)²), and the experiment beside them. "Spread" is the
standard deviation of the logits over the temperature. Source: book, "The softmax and its linearisation"; derived.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Generator, Tensor

from qkrepro.errors import check_integer, check_number
from qkrepro.evidence.claims import Claim, Tables, Threshold, Verdict
from qkrepro.evidence.style import PALETTE, draw_intervals
from qkrepro.evidence.verdicts import within
from qkrepro.theory.attention import (
    attention_entropy,
    piecewise_linear_attention,
    saturation,
    softmax_attention,
    softmax_gradient_mass,
)
from qkrepro.theory.statistics import Interval, t_interval

SMALL_SPREAD = 0.1  # of the logits over the temperature, up to which the leading order of the error is fitted
SOFTMAX, LINEAR = PALETTE[3], PALETTE[4]


class GaussianClipping(NamedTuple):
    """Expectations over T independent Gaussian logits, each float64 and shaped like the spread."""

    share_low: Tensor  # share of keys with weight clipped to 0
    share_high: Tensor  # share of keys with weight clipped to 1
    row_sum: Tensor  # Σ S_i, 1 as long as nothing is clipped


def linearisation_error(logits: Tensor, temperature: float = 1.0, *, mask: Tensor | None = None) -> Tensor:
    """Return the total error Σ_i |S_i − A_i| of a row: 0 where they agree, 2 where two probabilities share no key.

    logits: (..., T). temperature: λ > 0. mask: True for visible. Returns float64, (...).
    Raises as `qkrepro.theory.attention.softmax_attention` does.
    """
    linear = piecewise_linear_attention(logits, temperature, mask=mask)
    return (linear - softmax_attention(logits, temperature, mask=mask)).abs().sum(-1)


def small_spread_error(spread: Tensor) -> Tensor:
    """Return the leading order of the mean total error as spread → 0 and T → ∞, 2 φ(1) spread² = 0.484 spread².

    The weights differ by (u² − mean of u²)/(2T) to second order, u = (ω − ω̄)/λ, and E|Z² − 1|/2 = 2 φ(1).
    Returns float64, shaped like `spread`.
    """
    return 2 * _density(torch.ones((), dtype=torch.float64)) * spread.double().square()


def gaussian_clipping(spread: Tensor, length: int) -> GaussianClipping:
    """Return the closed form of what is clipped: u = (ω − ω̄)/λ is N(0, τ²), τ² = spread² (1 − 1/T).

    T S = clip(1 + u, 0, T). spread: > 0, any shape. length: T >= 2. Raises ArgumentError outside of these.
    """
    check_integer("length", length, at_least=2)
    check_number("spread", float(spread.min()), above=0)
    deviation = spread.double() * (1 - 1 / length) ** 0.5  # τ
    low, high = -1 / deviation, (length - 1) / deviation
    share_low, share_high = torch.special.ndtr(low), torch.special.ndtr(-high)
    inside = 1 - share_low - share_high + deviation * (_density(low) - _density(high))  # E (1 + u) over the unclipped
    return GaussianClipping(share_low, share_high, inside + length * share_high)


def linearisation_draws(
    spreads: Sequence[float], *, length: int, temperature: float, draws: int, generator: Generator
) -> pd.DataFrame:
    """Compare S and A on rows of Gaussian logits; the same draws, scaled, serve every spread (paired).

    spreads: standard deviations of the logits over the temperature. length: keys per row. draws: rows per spread.
    Returns one row per draw and spread: spread, draw, error (Σ|S − A|), share_low, share_high (of keys), row_sum (Σ S).
    """
    check_integer("length", length, at_least=2)
    check_integer("draws", draws, at_least=1)
    noise = torch.randn(draws, length, generator=generator, dtype=torch.float64)
    tables = []
    for spread in spreads:
        check_number("spreads", spread, above=0)
        logits = spread * temperature * noise  # (draws, T)
        state = saturation(logits, temperature)
        columns = {
            "spread": torch.full((draws,), spread, dtype=torch.float64),
            "draw": torch.arange(draws),
            "error": linearisation_error(logits, temperature),
            "share_low": (state < 0).double().mean(-1),
            "share_high": (state > 0).double().mean(-1),
            "row_sum": piecewise_linear_attention(logits, temperature).sum(-1),
        }
        tables.append(pd.DataFrame({name: column.numpy() for name, column in columns.items()}))
    return pd.concat(tables, ignore_index=True)


def peaked_rows(peaks: Sequence[float], *, length: int, temperature: float) -> pd.DataFrame:
    """Return what a count of unsaturated keys and the true softmax say of rows with one logit above T − 1 equal ones.

    peaks: height of that logit in units of λ. Returns one row per peak: peak, unsaturated (share of keys), entropy
    (nats), mass (gradient mass 1 − Σ A_i²).
    """
    check_integer("length", length, at_least=2)
    logits = torch.zeros(len(peaks), length, dtype=torch.float64)
    logits[:, 0] = temperature * torch.tensor(peaks, dtype=torch.float64)
    attention = softmax_attention(logits, temperature)
    columns = {
        "unsaturated": (saturation(logits, temperature) == 0).double().mean(-1),
        "entropy": attention_entropy(attention),
        "mass": softmax_gradient_mass(attention).total,
    }
    return pd.DataFrame({"peak": peaks, **{name: column.numpy() for name, column in columns.items()}})


def moved_logit(offsets: Tensor, *, length: int, temperature: float = 1.0) -> pd.DataFrame:
    """Return the weight of one key whose logit is `offset` above T − 1 equal ones, under both functions.

    offsets: (n,), in the unit of the logits. Columns offset (in units of λ), softmax, linear; one row per offset.
    """
    check_integer("length", length, at_least=2)
    logits = torch.zeros(len(offsets), length, dtype=torch.float64)
    logits[:, 0] = offsets.double()
    softmax, linear = (attend(logits, temperature)[:, 0] for attend in (softmax_attention, piecewise_linear_attention))
    return pd.DataFrame({"offset": offsets.numpy() / temperature, "softmax": softmax, "linear": linear})


def _density(x: Tensor) -> Tensor:
    density: Tensor = torch.exp(-x.square() / 2) / (2 * torch.pi) ** 0.5
    return density


def growth_power(error: pd.DataFrame) -> Interval:
    """Return the power with which the error grows at spreads up to 0.1, fitted draw by draw.

    Mean and 95% t interval over draws. error: of `linearisation_draws`. Raises ArgumentError below two draws.
    """
    small = error[error["spread"] <= SMALL_SPREAD].pivot(index="spread", columns="draw", values="error")
    slopes = np.polyfit(np.log(small.index.to_numpy()), np.log(small.to_numpy()), 1)[0]  # (draws,)
    return t_interval(slopes)


def linearisation_first_order(tables: Tables, bound: float = 0.1) -> Verdict:
    """Judge table error: spread (of the logits over the temperature), draw, error (total |S − A|).

    bound: total error at a spread of one temperature up to which the two count as the same function there.
    """
    table = tables["error"]
    at_one = table.loc[table["spread"] == 1.0, "error"]
    if len(at_one) < 2 or table.loc[table["spread"] <= SMALL_SPREAD, "spread"].nunique() < 2:
        return Verdict("not run", "no draws at a spread of one temperature, or at fewer than two spreads up to 0.1")
    power, error = growth_power(table), t_interval(at_one)
    because = (
        f"error grows with the spread to the power {power.estimate:.2f} [{power.low:.2f}, {power.high:.2f}] up to 0.1; "
        f"total error {error.estimate:.2f} [{error.low:.2f}, {error.high:.2f}] at spread 1"
    )
    is_second_order, is_small = within(power.low, power.high, 1.8, 2.2), within(error.low, error.high, -math.inf, bound)
    if is_second_order is False:
        return Verdict("not reproduced", because)
    if is_second_order is None or is_small is None:
        return Verdict("inconclusive", because)
    return Verdict("reproduced" if is_small else "partly", because)


def plot_peaks(table: pd.DataFrame, axis: Axes) -> None:
    """Draw the share of unsaturated keys and the gradient mass of softmax over the height of the peak; named directly.

    table: of `peaked_rows`.
    """
    for column, name, colour in (("unsaturated", "counted as unsaturated", LINEAR), ("mass", "gradient mass", SOFTMAX)):
        axis.plot(table["peak"], table[column], color=colour, linewidth=2.5)
        middle = table.iloc[2 * len(table) // 3]
        axis.annotate(name, (middle["peak"], middle[column]), (0, 8 if column == "mass" else -16), color=colour,
                      textcoords="offset points", ha="center", fontweight="bold")  # fmt: skip
    axis.set(xlabel="height of the one logit above the others / λ", ylabel="share", ylim=(-0.03, 1.05))


def plot_moved_logit(table: pd.DataFrame, length: int, axis: Axes) -> None:
    """Draw the weight of the moved key under both functions, and name the places where something happens.

    table: of `moved_logit` at the length T.
    """
    half = math.log(length - 1)
    places = {
        f"clipped to 0\nat −{length / (length - 1):.2f} λ": (-length / (length - 1), 0.0, LINEAR),
        f"half of the softmax\nat λ log(T − 1) = {half:.1f} λ": (half, 0.5, SOFTMAX),
        f"clipped to 1\nat λT = {length} λ": (length, 1.0, LINEAR),
    }
    axis.plot(table["offset"], table["softmax"], color=SOFTMAX, linewidth=2.5)
    axis.plot(table["offset"], table["linear"], color=LINEAR, linewidth=2.5)
    for (text, (x, y, colour)), shift in zip(places.items(), ((-14, 26), (-12, 4), (-4, -52)), strict=True):
        axis.plot(x, y, "o", color=colour, markersize=7)
        axis.annotate(text, (x, y), shift, textcoords="offset points", color=colour, fontsize="small",
                      ha="right" if shift[1] == 4 else "center")  # fmt: skip
    axis.text(half + 2.7, 0.9, "softmax", color=SOFTMAX, fontweight="bold", va="top")
    axis.text(length * 0.66, 0.6, "piecewise linear", color=LINEAR, fontweight="bold", va="top")
    axis.set(xlabel="logit of the moved key above the others / λ", ylabel="attention weight of that key")


def plot_linearisation(summary: pd.DataFrame, length: int, axes: Sequence[Axes]) -> None:
    """Draw error, clipped shares and row sum against the spread: points with intervals, closed forms as lines.

    summary: one row per spread and quantity (error, share_low, share_high, row_sum) with estimate, low, high.
    """
    spread = torch.from_numpy(np.geomspace(summary["spread"].min(), summary["spread"].max(), 200))
    closed = gaussian_clipping(spread, length)
    error, shares, total = axes
    small = small_spread_error(spread)
    curves = [
        (error, "error", LINEAR, spread[small < 2], small[small < 2]),
        (shares, "share_low", LINEAR, spread, closed.share_low),
        (shares, "share_high", SOFTMAX, spread, closed.share_high),
        (total, "row_sum", LINEAR, spread, closed.row_sum),
    ]
    for axis, quantity, colour, x, y in curves:
        rows = summary[summary["quantity"] == quantity]
        axis.plot(x, y, color=colour)
        draw_intervals(axis, rows["spread"], rows, color=colour)
        axis.set(xscale="log", xlabel="spread of the logits / λ")
    error.text(0.13, 0.004, "0.484 spread²", color=LINEAR)
    shares.text(1.4, 0.03, "clipped to 1", color=SOFTMAX, fontsize="small")
    shares.text(0.9, 0.4, "clipped to 0", color=LINEAR, fontsize="small", ha="right")
    error.set(yscale="log", ylabel="total error Σ|S − A|", title="To half a temperature the error is of second order")
    shares.set(ylabel="share of keys", title="Half of the keys\nare shut off in the end")
    total.set(yscale="log", ylabel="row sum ΣS", title="The weights no longer\nsum to one")


CLAIMS = (
    Claim(
        name="linearisation-first-order",
        chapter="softmax_linearisation",
        provenance="reported",
        statement="A piecewise-linear function approximates softmax.",
        conditions="for independent Gaussian logits whose spread is up to one temperature",
        rule=(
            "The total error |S − A| grows with the spread of the logits to a power whose 95% interval over draws lies "
            "within 1.8 to 2.2, fitted at spreads up to 0.1: its first order is right. Partly when, besides, the error "
            "at a spread of one temperature exceeds 0.1 (of at most 2 between two probabilities). Inconclusive when an "
            "interval contains one of these bounds."
        ),
        refuted_by="a power outside of 1.8 to 2.2: a first-order error, or one that does not vanish",
        tables=("error",),
        judge=linearisation_first_order,
        figure="fig-linearisation",
        threshold=Threshold(
            "total error at a spread of one temperature",
            0.1,
            (0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
            linearisation_first_order,
        ),
    ),
)
READS = ()
