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
from qkrepro.evidence.verdicts import within
from qkrepro.theory.attention import (
    attention_entropy,
    piecewise_linear_attention,
    saturation,
    softmax_attention,
    softmax_gradient_mass,
)
from qkrepro.theory.statistics import Interval, intervals, t_interval

SMALL_SPREAD = 0.1  # of the logits over the temperature, up to which the leading order of the error is fitted
COLOURS = {"softmax": "C0", "piecewise linear": "C1"}


class GaussianClipping(NamedTuple):
    """Expectations over T independent Gaussian logits, each float64 and shaped like the spread."""

    share_low: Tensor  # share of keys with weight clipped to 0
    share_high: Tensor  # share of keys with weight clipped to 1
    row_sum: Tensor  # Σ S_i, 1 as long as nothing is clipped


def linearisation_error(logits: Tensor, temperature: float = 1.0, *, mask: Tensor | None = None) -> Tensor:
    """Total error Σ_i |S_i − A_i| of a row: 0 where they agree, 2 where two probabilities share no key.

    logits: (..., T). temperature: λ > 0. mask: True for visible. Returns float64, (...).
    Raises as `qkrepro.theory.attention.softmax_attention` does.
    """
    linear = piecewise_linear_attention(logits, temperature, mask=mask)
    return (linear - softmax_attention(logits, temperature, mask=mask)).abs().sum(-1)


def small_spread_error(spread: Tensor) -> Tensor:
    """Leading order of the mean total error as spread → 0 and T → ∞, 2 φ(1) spread² = 0.484 spread².

    The weights differ by (u² − mean of u²)/(2T) to second order, u = (ω − ω̄)/λ, and E|Z² − 1|/2 = 2 φ(1).
    Returns float64, shaped like `spread`.
    """
    return 2 * _density(torch.ones((), dtype=torch.float64)) * spread.double().square()


def gaussian_clipping(spread: Tensor, length: int) -> GaussianClipping:
    """Closed form of what is clipped: u = (ω − ω̄)/λ is N(0, τ²), τ² = spread² (1 − 1/T), and T S = clip(1 + u, 0, T).

    spread: > 0, any shape. length: T >= 2. Raises ArgumentError outside of these.
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

    spreads: standard deviations of the logits over the temperature. length: keys a row. draws: rows a spread.
    Returns one row a draw and spread: spread, draw, error (Σ|S − A|), share_low, share_high (of keys), row_sum (Σ S).
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


def summarise_draws(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over draws with its 95% t interval, one row a spread and quantity: spread, quantity, estimate, low, high.

    rows: of `linearisation_draws`.
    """
    long = rows.melt(["spread", "draw"], var_name="quantity")
    return intervals(long, ["spread", "quantity"], "value")


def peaked_rows(peaks: Sequence[float], *, length: int, temperature: float) -> pd.DataFrame:
    """What a count of unsaturated keys and the true softmax say of rows with one logit above T − 1 equal ones.

    peaks: height of that logit in units of λ. Returns one row a peak: peak, unsaturated (share of keys), entropy
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
    """Weights when one key's logit is `offset` above T − 1 equal ones.

    offsets: (n,), in the unit of the logits. Returns one row an offset and function: offset (in units of λ), function
    ("softmax", "piecewise linear"), moved (weight of the moved key), other (weight of each other key).
    """
    check_integer("length", length, at_least=2)
    logits = torch.zeros(len(offsets), length, dtype=torch.float64)
    logits[:, 0] = offsets.double()
    tables = []
    for name, attend in [("softmax", softmax_attention), ("piecewise linear", piecewise_linear_attention)]:
        weights = attend(logits, temperature)  # (n, T)
        columns = {"offset": offsets / temperature, "moved": weights[:, 0], "other": weights[:, 1]}
        table = pd.DataFrame({key: column.numpy() for key, column in columns.items()})
        tables.append(table.assign(function=name))
    return pd.concat(tables, ignore_index=True)


def _density(x: Tensor) -> Tensor:
    density: Tensor = torch.exp(-x.square() / 2) / (2 * torch.pi) ** 0.5
    return density


def growth_power(error: pd.DataFrame) -> Interval:
    """Power with which the error grows at spreads up to 0.1, fitted draw by draw: mean and 95% t interval over draws.

    error: one row a draw and spread: spread, draw, error. Raises ArgumentError below two draws.
    """
    small = error[error["spread"] <= SMALL_SPREAD].pivot(index="spread", columns="draw", values="error")
    slopes = np.polyfit(np.log(small.index.to_numpy()), np.log(small.to_numpy()), 1)[0]  # (draws,)
    return t_interval(slopes)


def linearisation_first_order(tables: Tables, bound: float = 0.1) -> Verdict:
    """Table error: spread (standard deviation of logits over temperature), draw, error (total |S − A|), a row a draw.

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


def plot_moved_logit(table: pd.DataFrame, length: int, axes: Sequence[Axes]) -> None:
    """Weights of the moved key (first panel) and of each other key (second) against the moved key's logit.

    table: of `moved_logit` at the length T. Dotted lines: where the linearisation is clipped; dashed: λ log(T − 1),
    where the moved key holds half of the softmax.
    """
    for axis, column, title in zip(axes, ("moved", "other"), ("The key that is moved", "Each other key"), strict=True):
        for name, curve in table.groupby("function"):
            axis.plot(curve["offset"], curve[column], color=COLOURS[str(name)], label=str(name))
        for threshold in (-length / (length - 1), length):
            axis.axvline(threshold, color="0.4", linestyle=":", linewidth=1)
        axis.axvline(math.log(length - 1), color=COLOURS["softmax"], linestyle="--", linewidth=1)
        axis.set(title=title, xlabel="logit above the others / λ", ylabel="attention weight")
    axes[0].legend(loc="lower right", bbox_to_anchor=(1, 0.05))


def plot_linearisation(summary: pd.DataFrame, length: int, axes: Sequence[Axes]) -> None:
    """Error, clipped shares and row sum against the spread: points with intervals, closed forms as lines.

    summary: one row a spread and quantity (error, share_low, share_high, row_sum) with estimate, low, high.
    """
    spread = torch.from_numpy(np.geomspace(summary["spread"].min(), summary["spread"].max(), 200))
    closed = gaussian_clipping(spread, length)
    error, shares, total = axes
    small = small_spread_error(spread)
    error.plot(spread[small < 2], small[small < 2], color="0.4", linestyle="--", label="0.484 spread²")
    _points(error, summary, "error", "C0", "mean over rows")
    error.set(yscale="log", ylabel="total error Σ|S − A|", title="Error of the linearisation")
    shares.plot(spread, closed.share_low, color="C1", label="clipped to 0, closed form")
    shares.plot(spread, closed.share_high, color="C2", label="clipped to 1, closed form")
    _points(shares, summary, "share_low", "C1")
    _points(shares, summary, "share_high", "C2")
    shares.set(ylabel="share of keys", title="Saturated keys")
    total.plot(spread, closed.row_sum, color="C4", label="closed form")
    _points(total, summary, "row_sum", "C4", "mean over rows")
    total.set(yscale="log", ylabel="row sum ΣS", title="Total weight given out")
    for axis in axes:
        axis.set(xscale="log", xlabel="spread of the logits / λ")
        axis.legend(loc="upper left")


def _points(axis: Axes, summary: pd.DataFrame, quantity: str, colour: str, label: str | None = None) -> None:
    rows = summary[summary["quantity"] == quantity]
    bars = [rows["estimate"] - rows["low"], rows["high"] - rows["estimate"]]
    axis.errorbar(rows["spread"], rows["estimate"], yerr=bars, fmt="o", markersize=4, color=colour, label=label)


CLAIMS = (
    Claim(
        name="linearisation-first-order",
        chapter="softmax_linearisation",
        provenance="reported",
        statement=(
            "A piecewise-linear function approximates softmax, here for independent Gaussian logits whose spread is up "
            "to one temperature."
        ),
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
