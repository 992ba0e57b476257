"""The words of `results/PLAN.md`: what a paired difference says within its margin, and whether a run concentrated.

All rules compare runs that share their seed. Source: results/PLAN.md, "The words" and "Manipulation check".
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from qkrepro.evidence.claims import Outcome, Verdict
from qkrepro.evidence.paired_runs import FEWEST_SEEDS
from qkrepro.evidence.rounding import fixed
from qkrepro.theory.statistics import Interval, mean_interval, t_interval

LEVEL = 0.05  # p-value below which a difference is there
MARGINS: Mapping[str, float] = {  # of equivalence: differences inside them are too small to matter
    "log perplexity": 0.01,
    "entropy": 0.05,
    "log updates": 0.05,
    "residual": 0.005,
}
TWICE = 2.0  # the ratio of concentrations, arm over baseline, from which an arm is a test of concentration
CONCENTRATIONS = {"concentration": "N_W", "walk_concentration": "N_M"}


def outcome_of(differences: Sequence[float], better: int, margin: float, p_value: float | None = None) -> Outcome:
    """Return the plan's word for paired differences, (seeds,), arm minus baseline.

    better: +1 or −1, the sign that the claim names. margin: of equivalence, in the unit of the differences. p_value:
    after the correction for several comparisons; None takes that of the paired t test as it is.
    Below three seeds nothing is said: "not run".
    """
    values = better * np.asarray(differences, dtype=np.float64)
    if len(values) < FEWEST_SEEDS:
        return "not run"
    gap = t_interval(values)
    differs = (paired_p_value(values.tolist()) if p_value is None else p_value) < LEVEL
    inside = max(-gap.low, gap.high) < margin
    if differs and gap.estimate > 0:
        return "partly" if inside else "reproduced"
    return "not reproduced" if differs or inside else "inconclusive"


def paired_outcome(differences: Sequence[float], better: int, margin: float, name: str) -> Verdict:
    """Return `outcome_of` with its numbers, and in how many seeds the difference has the sign that the claim names.

    differences, better, margin: as for `outcome_of`. name: what changes, with its unit.
    """
    values = np.asarray(differences, dtype=np.float64)
    outcome = outcome_of(differences, better, margin)
    if outcome == "not run":
        return Verdict(outcome, f"{len(values)} paired seeds; at least {FEWEST_SEEDS} are needed")
    because = f"{name} changes by {interval_text(t_interval(values))}; margin {margin:g}"
    return Verdict(outcome, because, int((better * values > 0).sum()), len(values))


def weaker(first: Outcome, second: Outcome) -> Outcome:
    """Return the word for two outcomes that a claim names together, as the plan has it for expressivity."""
    both = {first, second}
    order: tuple[Outcome, ...] = ("not run", "not reproduced", "inconclusive", "partly")
    return next((word for word in order if word in both), "reproduced")


def paired_values(ends: pd.DataFrame, column: str, *, log: bool = False) -> pd.Series:
    """Return arm minus baseline of each seed that has both; log: of logarithms.

    ends: seed, arm ("baseline" and one other), `column`; one row per run.
    """
    wide = ends.pivot(index="seed", columns="arm", values=column).astype(float)
    names = [name for name in wide if name != "baseline"]
    if len(names) != 1 or "baseline" not in wide:
        return pd.Series(dtype=float)
    arm, base = wide[names[0]], wide["baseline"]
    return ((arm / base).map(math.log) if log else arm - base).dropna()


def concentration_ratios(ends: pd.DataFrame) -> dict[str, list[float]]:
    """Return N_W and N_M of the arm over those of the baseline, one value per seed, by "N_W" and "N_M".

    ends: seed, arm, d_model, concentration, walk_concentration. Below 1/d_model, that of random weights, N counts as
    1/d_model.
    """
    ratios = {}
    for column, name in CONCENTRATIONS.items():
        floored = ends.assign(**{column: np.maximum(ends[column].astype(float), 1 / ends["d_model"].astype(float))})
        ratios[name] = np.exp(paired_values(floored, column, log=True)).tolist()
    return ratios


def ratio_interval(ratios: Sequence[float]) -> Interval:
    """Return the geometric mean of ratios with its 95% t interval, that of the mean logarithm."""
    return Interval(*(float(np.exp(end)) for end in mean_interval(np.log(ratios).tolist())))


def passed_by(ratios: Mapping[str, Sequence[float]], least: float = TWICE) -> list[str]:
    """Return by which of N_W and N_M an arm passes the manipulation check.

    It passes where the geometric mean over seeds is at least `least` and its interval lies above 1.
    """
    intervals = {name: ratio_interval(values) for name, values in ratios.items() if len(values) >= FEWEST_SEEDS}
    return [name for name, ratio in intervals.items() if ratio.estimate >= least and ratio.low > 1]


def check_text(ratios: Mapping[str, Sequence[float]]) -> str:
    """Return both ratios with their intervals: "N_W times 0.21 [0.16, 0.27], N_M times 1.00 [0.77, 1.31]"."""
    return ", ".join(f"{name} times {interval_text(ratio_interval(values), 2)}" for name, values in ratios.items())


def interval_text(interval: Interval, digits: int = 3) -> str:
    """Return an estimate with its interval in brackets: "−0.012 [−0.018, −0.006]"."""
    estimate, low, high = (fixed(value, digits).replace("-", "−") for value in interval)
    return f"{estimate} [{low}, {high}]"


def paired_p_value(differences: Sequence[float]) -> float:
    """Return the p-value of the two-sided paired t test; equal differences give 0, or 1 where they are 0 or too few."""
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2 or np.ptp(values) == 0:
        return float(len(values) < 2 or values[0] == 0)
    return float(stats.ttest_1samp(values, 0).pvalue)
