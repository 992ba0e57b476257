"""Masks and LayerNorm: how fast a mask collapses the rank, and equilibria of every rank that LayerNorm makes possible.

Tokens are rows, x (T, d); a mask is (T, T), True where query t (row) sees key i (column). Float64.
Source: book, "Masks and LayerNorm"; Wu, Ajorlou, Wang, Jegelka, Jadbabaie 2024 (arXiv 2405.18781); construction ours.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Generator, Tensor
from torch.nn.functional import layer_norm

from qkrepro.evidence.claims import Claim, Tables, Threshold, Verdict
from qkrepro.evidence.style import COLOURS, label_lines
from qkrepro.evidence.verdicts import HALF, ROUNDING, above, settings_verdict, universal_verdict
from qkrepro.theory.attention import causal_mask
from qkrepro.theory.depth import Stack
from qkrepro.theory.masks import DISCONNECTED, attention_and_layer_norm, equilibrium
from qkrepro.theory.rank import stable_rank
from qkrepro.theory.statistics import t_interval

READS: tuple[str, ...] = ()
SOURCE = "2405.18781"
SPECTRUM_SAYS = (
    "The spectrum of W_QK sets how fast a mask collapses the rank, not whether it does; with LayerNorm a fully "
    "concentrated one has equilibria of every rank, and a large mean makes them stable."
)
FLOOR = 1e-9  # residual below which rounding has a say
SLOWED = 0.5  # the least ratio of late to early rate that is called exponential; a power law falls to about a fifth


def decay_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rate of decay, −d log residual/d layer, early and late: mask, spectrum, seed, early, late.

    table: as `residuals` returns it. Early and late are the first and the last half of the layers in which more than
    ROUNDING of the input is left.
    """
    rows = []
    for key, group in table.groupby(["mask", "spectrum", "seed"], sort=False):
        kept = group[group["residual"] > ROUNDING].set_index("layer")["residual"]
        log = [0.0, *(math.log(value) for value in kept)]  # from layer 0
        middle, end = (len(log) - 1) // 2, len(log) - 1
        if middle:
            rates = (log[0] - log[middle]) / middle, (log[middle] - log[end]) / (end - middle)
            rows.append((*key, *rates))
    return pd.DataFrame(rows, columns=["mask", "spectrum", "seed", "early", "late"])


def equilibria(scaled_mean: float, stack: Stack, noise: float, generator: Generator) -> pd.DataFrame:
    """Return one row a rank and mask: mask, rank, numerical_rank, moved, and what became of a disturbance.

    moved: the largest change of a token by one layer over √d; with W = (ξ/d)I, ξ/λ = scaled_mean. orthogonality: the
    largest entry of W_V W_Vᵀ − I. disturbed: distance from the equilibrium, relative, after the stack's layers, when
    the tokens start with Gaussian `noise` of this relative size, from the generator. Ranks 1 to d − 1, all there are.
    """
    w = scaled_mean * stack.temperature / stack.dim * torch.eye(stack.dim, dtype=torch.float64)
    rows = []
    causal = causal_mask(stack.length)
    for name, mask in {"complete": torch.ones_like(causal), "causal": causal}.items():
        for rank in range(1, stack.dim):
            x, value = equilibrium(rank, stack, generator)
            after = attention_and_layer_norm(x, w, value, stack.temperature, mask)
            start = noise * torch.randn(x.shape, generator=generator, dtype=torch.float64)
            disturbed = layer_norm(x + start, x.shape[-1:], eps=0.0)
            for _ in range(stack.layers):
                disturbed = attention_and_layer_norm(disturbed, w, value, stack.temperature, mask)
            orthogonality = float((value @ value.T - torch.eye(stack.dim)).abs().max())
            moved, away = float((after - x).norm(dim=1).max()), float((disturbed - x).norm())
            row = {
                "mask": name,
                "scaled_mean": scaled_mean,
                "rank": rank,
                "numerical_rank": int(torch.linalg.matrix_rank(x)),
                "orthogonality": orthogonality,
            }
            row |= {"moved": moved / math.sqrt(stack.dim), "disturbed": away / float(x.norm())}
            rows.append(row | {"kept_rank": float(stable_rank(disturbed) / stable_rank(x))})
    return pd.DataFrame(rows)


def decays_exponentially(tables: Tables) -> Verdict:
    """Judge table rates: mask, spectrum, seed, early, late; one setting a connected mask and spectrum.

    Holds where the late rate is positive and more than SLOWED times the early one, by their t intervals over seeds. The
    mask that is not connected is a control, told beside the verdict.
    """
    cases, control = {}, 0.0
    for (mask, spectrum), group in tables["rates"].groupby(["mask", "spectrum"], sort=False):
        if mask == DISCONNECTED:
            control = max(control, float(group["late"].abs().max()))
        elif len(group) > 1:
            cases[f"{mask}, {spectrum}"] = above(t_interval(group["late"] - SLOWED * group["early"]), 0)
    return settings_verdict(
        cases, f"late rate of tokens in two halves that do not see each other: at most {control:.0e}"
    )


def local_is_slower(tables: Tables) -> Verdict:
    """Judge table residuals: mask, spectrum, seed, layer, residual; half way through, or where all is above FLOOR.

    A setting is a spectrum and a pair of neighbours among causal masks, from the widest to the narrowest: more is left
    with the narrower one, by the t interval over seeds of the paired difference of logarithms.
    """
    table = tables["residuals"]
    early = table[table["layer"] <= (table["layer"].max() + 1) // 2] if len(table) else table
    cases = {}
    for spectrum, group in early.groupby("spectrum", sort=False):
        judged = group[group["mask"].str.startswith(("causal", "window"))]
        least = judged.groupby("layer")["residual"].min()
        if not (least > FLOOR).any():
            continue
        at = least.index[least > FLOOR].max()
        wide = judged[judged["layer"] == at].pivot(index="seed", columns="mask", values="residual").map(math.log)
        windows = sorted((name for name in wide if str(name).startswith("window")), key=_width, reverse=True)
        order = ["causal", *windows]
        for broad, narrow in itertools.pairwise(order):
            cases[f"{narrow} against {broad}, {spectrum!s}"] = above(t_interval(wide[narrow] - wide[broad]), 0)
    return settings_verdict(cases)


def every_rank_has_an_equilibrium(tables: Tables) -> Verdict:
    """Judge table equilibria: mask, rank, numerical_rank, moved, orthogonality; each row is a case, and one refutes."""
    rows = tables["equilibria"]
    exact = (rows["moved"] < ROUNDING) & (rows["orthogonality"] < ROUNDING) & (rows["numerical_rank"] == rows["rank"])
    holds: list[bool | None] = [bool(row) for row in exact]
    largest = f"{rows['moved'].max():.1g} of a token's length" if len(rows) else "nothing"
    return universal_verdict(holds, f"fixed in {int(exact.sum())} of {len(exact)} cases; the largest step is {largest}")


def a_large_mean_holds_the_rank(tables: Tables, share: float = HALF) -> Verdict:
    """Judge table equilibria: mask, scaled_mean, rank, kept_rank; ranks above 1, least against largest mean.

    A setting is a mask and a rank: after a small disturbance the largest mean keeps more than this share of the stable
    rank beyond one, the least mean less. Tokens that are all alike have a stable rank of one.
    """
    rows, cases = tables["equilibria"], {}
    for (mask, rank), group in rows[rows["rank"] > 1].groupby(["mask", "rank"], sort=False):
        count = int(str(rank))
        kept = ((group.sort_values("scaled_mean")["kept_rank"] * count - 1) / (count - 1)).tolist()
        if len(kept) > 1:
            cases[f"{mask}, rank {rank}"] = kept[-1] > share > kept[0]
    return settings_verdict(cases)


def _width(name: object) -> int:
    return int(str(name).rpartition(" ")[2])


def plot_masks(drawn: Mapping[str, Tensor], axes: Sequence[Axes]) -> None:
    """Draw each mask (T, T), visible pairs dark, one axes each."""
    for axis, (name, mask) in zip(axes, drawn.items(), strict=True):
        axis.imshow(mask.double(), cmap="Greys", vmin=-0.3, vmax=1.6)
        axis.set_title(name, fontsize="small")
        axis.set(xticks=[], yticks=[])
        axis.grid(False)


def plot_residuals(table: pd.DataFrame, axis: Axes) -> None:
    """Draw the median residual over depth, one line a mask, down to a millionth; table: mask, layer, residual."""
    for mask, group in table.groupby("mask", sort=False):
        median = group.groupby("layer")["residual"].median().loc[lambda line: line > ROUNDING]
        style: dict[str, Any] = {"color": COLOURS["baseline"], "linestyle": "--"} if mask == DISCONNECTED else {}
        axis.plot(median.index, median, label=str(mask), **style)
    axis.set(yscale="log", ylim=(ROUNDING / 2, 1.5), xlabel="layer", ylabel="residual, relative to the input")
    label_lines(axis)


def plot_kept_rank(table: pd.DataFrame, axis: Axes) -> None:
    """Draw the share of the stable rank that a disturbance leaves, over the rank; table: as `equilibria` returns it."""
    for mean, group in table[table["mask"] == "causal"].groupby("scaled_mean"):
        axis.plot(group["rank"], group["kept_rank"], marker="o", markersize=4, label=f"ξ/λ = {mean:g}")
    axis.set(xlabel="rank of the equilibrium", ylabel="stable rank that is left, share", ylim=(0, 1.05))
    label_lines(axis)


STACK = "stacks of 16 tokens without LayerNorm, two spectra"
CLAIMS = (
    Claim(
        name="masks-collapse-exponentially",
        chapter="masks_and_layernorm",
        provenance="literature",
        statement="Without LayerNorm the residual decays exponentially for every quasi-strongly connected mask.",
        rule=(
            "For each connected mask and spectrum the rate of decay in the last half of the layers is more than half "
            "of that in the first half, by its 95% t interval over seeds. A power of the depth falls to about a fifth."
        ),
        refuted_by="a rate that slows down in some settings and stays in none",
        tables=("rates",),
        judge=decays_exponentially,
        figure="fig-mask-decay",
        setting=STACK,
    ),
    Claim(
        name="local-masks-collapse-slower",
        chapter="masks_and_layernorm",
        provenance="literature",
        statement="The narrower the window of a causal mask, the slower the collapse.",
        rule=(
            "Half way through the stack, or at the last layer before it in which all residuals are above 1e-9, more is "
            "left with the narrower of two causal masks, in every spectrum, by the 95% t interval over seeds of the "
            "paired difference of logarithms. The earlier layer was taken after rounding had decided two pairs."
        ),
        refuted_by="less left with the narrower window in some pairs, and more in none",
        tables=("residuals",),
        judge=local_is_slower,
        figure="fig-mask-decay",
        setting=STACK,
    ),
    Claim(
        name="equilibria-of-every-rank",
        chapter="masks_and_layernorm",
        provenance="literature",
        statement="With LayerNorm and a suitable orthogonal W_V there are equilibria of every rank.",
        rule=(
            "For each rank from 1 to d - 1 and both masks the tokens built here have that rank, W_V is orthogonal and "
            "no token moves in a layer, all to a millionth."
        ),
        refuted_by="one rank whose tokens move",
        tables=("equilibria",),
        judge=every_rank_has_an_equilibrium,
        figure="fig-kept-rank",
        setting="attention with W_QK = cI and LayerNorm, d = 16",
    ),
    Claim(
        name="a-large-mean-holds-the-rank",
        chapter="masks_and_layernorm",
        provenance="ours",
        statement="A large mean makes these equilibria stable, and with a small one a disturbance collapses the rank.",
        rule=(
            "For each rank above 1 and both masks, tokens that start with noise of a ten-thousandth keep more than "
            "half of their stable rank beyond one at the largest mean, and less at the least. Beyond one, because "
            "equal tokens have a stable rank of one, half of that of rank 2; the first form of the rule missed this."
        ),
        refuted_by="ranks that the largest mean does not keep, or the least does, and none that follows the rule",
        tables=("equilibria",),
        judge=a_large_mean_holds_the_rank,
        figure="fig-kept-rank",
        threshold=Threshold(
            "share of the stable rank beyond one", HALF, (0.2, 0.35, 0.5, 0.65, 0.8), a_large_mean_holds_the_rank
        ),
        setting="attention with W_QK = cI and LayerNorm, d = 16",
    ),
)
