"""How a verdict moves with the number that its rule compares with: one small picture per claim with a threshold."""

import io
from typing import cast

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from qkrepro.evidence.claims import Claim, Outcome, outcome_word
from qkrepro.evidence.style import use_style

COLOURS = {
    "reproduced": "#0173b2",
    "partly": "#de8f05",
    "not reproduced": "#d55e00",
    "inconclusive": "#949494",
    "not a test": "#949494",
    "not run": "#cccccc",
}


def threshold_figure(claim: Claim, sensitivity: pd.DataFrame) -> Figure:
    """Draw the share of cases in which a claim holds over its threshold, coloured by the outcome.

    sensitivity: threshold, outcome, holds, of, as `evidence.claims.sensitivity` returns it. A rule that counts no cases
    has its points at one height. Raises ValueError for a claim without a threshold.
    """
    if claim.threshold is None:
        raise ValueError(f"claim {claim.name} has no threshold")
    use_style()
    figure, axis = plt.subplots(figsize=(5.2, 2.3))
    counted = sensitivity["of"].notna().all() and len(sensitivity) > 0
    share = (sensitivity["holds"] / sensitivity["of"]).astype(float) if counted else pd.Series(0.5, sensitivity.index)
    axis.plot(sensitivity["threshold"], share, color="0.6", linewidth=1, zorder=1)
    for outcome, rows in sensitivity.groupby("outcome", sort=False):
        axis.scatter(
            rows["threshold"],
            share[rows.index],
            color=COLOURS[str(outcome)],
            s=36,
            label=outcome_word(claim, cast(Outcome, outcome)),
            zorder=2,
        )
    axis.axvline(claim.threshold.value, color="0.4", linestyle="--", linewidth=1, label="where it is judged")
    axis.set(xlabel=claim.threshold.name, ylim=(-0.05, 1.05))
    if counted:
        axis.set_ylabel("cases that hold")
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axis.set_yticks([])
    if min(claim.threshold.tried) > 0 and max(claim.threshold.tried) > 30 * min(claim.threshold.tried):
        axis.set_xscale("log")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def threshold_alternative(claim: Claim, sensitivity: pd.DataFrame) -> str:
    """Return the picture in words: each outcome with the range of thresholds at which it stands.

    Raises ValueError for a claim without a threshold.
    """
    threshold = claim.threshold
    if threshold is None:
        raise ValueError(f"claim {claim.name} has no threshold")
    runs = (sensitivity["outcome"] != sensitivity["outcome"].shift()).cumsum()
    parts = []
    for _, rows in sensitivity.groupby(runs):
        first, last = rows["threshold"].iloc[0], rows["threshold"].iloc[-1]
        span = f"at {first:g}" if first == last else f"from {first:g} to {last:g}"
        parts.append(f"{outcome_word(claim, rows['outcome'].iloc[0])} {span}")
    return f"The verdict over the threshold, {threshold.name}, judged at {threshold.value:g}: {', '.join(parts)}."


def png_of(figure: Figure) -> bytes:
    """Return a figure as PNG bytes, without a date, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, transparent=True, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()
