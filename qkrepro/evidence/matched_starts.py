"""The arms of results/PLAN-plateaus.md: two starts of W_QK, each at two entropies of attention, and a control of steps.

The rules are those of the plan, in its words. Source: results/PLAN-plateaus.md, "Arms", "Manipulation check" and
"Outcomes".
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from qkrepro.evidence.claims import Outcome, Tables, Verdict
from qkrepro.evidence.learning_curves import longest_plateau, updates_to
from qkrepro.evidence.outcomes import interval_text, outcome_of, paired_p_value
from qkrepro.evidence.paired_runs import FEWEST_SEEDS
from qkrepro.theory.statistics import holm, t_interval

BASELINE = "xavier"
ARMS = (BASELINE, "cold", "concentrated", "even", "scaled")
LOW_AGAINST_HIGH = (("cold", "xavier"), ("concentrated", "even"))
COMPARISONS = {  # the pairs that are judged by each outcome, over which Holm's correction runs
    "log updates": (*LOW_AGAINST_HIGH, ("cold", "concentrated"), ("scaled", "cold")),
    "plateau": LOW_AGAINST_HIGH,
}
MATCHED = (("cold", "concentrated"), ("cold", "scaled"), ("xavier", "even"))  # in entropy at update 0
TOLERANCE, APART, NORM_TOLERANCE = 0.05, 2.0, 0.05  # nats, nats, share of ‖W‖_F
MARGIN = 0.1  # of log updates, and of the share of updates on a plateau
LEVELS = (200, 300)  # updates whose losses of Xavier's run the others are to reach
PLATEAU = {"window": 80, "share": 0.5, "least_fall": 0.04}


def arm_name(run: Mapping[Any, Any]) -> str:
    """Return which arm of results/PLAN-plateaus.md a run is, from its start_gain, start_mean and temperature."""
    if run["start_gain"] != 1:
        return "scaled"
    if run["start_mean"] is not None and not pd.isna(run["start_mean"]):
        return "concentrated" if run["temperature"] < 1 else "even"
    return "cold" if run["temperature"] < 1 else "xavier"


def named_arms(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table of runs or evaluations with a column `arm`."""
    names = [arm_name(run) for run in table[["start_gain", "start_mean", "temperature"]].to_dict("records")]
    return table.assign(arm=pd.Series(names, index=table.index, dtype=object))


def arm_table(curves: pd.DataFrame) -> pd.DataFrame:
    """Return one row a run: arm, seed, entropy and frobenius at update 0, log updates, missed, plateau, last_loss.

    curves: arm, seed, update, warmup, valid_loss, valid_entropy, frobenius. log updates: mean log ratio of the updates
    to the losses that Xavier's run of the seed has at LEVELS; missed: how many of them are not reached; both NaN where
    the seed has no run of Xavier's. plateau: the longest one after the warm-up, over the updates after it.
    """
    runs = {key: run.sort_values("update") for key, run in curves.groupby(["arm", "seed"], sort=False)}
    rows = []
    for (arm, seed), run in runs.items():
        reached = np.full(len(LEVELS), np.nan)
        if (BASELINE, seed) in runs:
            base = runs[BASELINE, seed]
            reached = np.array([updates_to(run, x) for x in np.interp(LEVELS, base["update"], base["valid_loss"])])
        late, last = run[run["update"] >= run["warmup"]], run["update"].max()
        rest = longest_plateau(late["update"].to_numpy(float), late["valid_loss"].to_numpy(float), **PLATEAU)
        row = {"arm": arm, "seed": seed, "entropy": run["valid_entropy"].iloc[0], "frobenius": run["frobenius"].iloc[0]}
        row |= {"log updates": float(np.log(reached / LEVELS).mean()), "missed": int((reached > last).sum())}
        row |= {"plateau": rest.length / float(last - run["warmup"].iloc[0]), "last_loss": run["valid_loss"].iloc[-1]}
        rows.append(row)
    columns = ["arm", "seed", "entropy", "frobenius", "log updates", "missed", "plateau", "last_loss"]
    return pd.DataFrame(rows, columns=columns)


def arm_differences(runs: pd.DataFrame, arm: str, against: str, outcome: str) -> pd.Series:
    """Return an outcome of one arm minus that of another, by the seeds that have both."""
    wide = runs.pivot(index="seed", columns="arm", values=outcome).reindex(columns=list(ARMS)).astype(float)
    return (wide[arm] - wide[against]).dropna()


def failed_checks(runs: pd.DataFrame) -> list[str]:
    """Return what of the manipulation check fails, in words: entropies matched and apart, norms equal at update 0.

    What is missing or not a number fails too.
    """
    if runs[["entropy", "frobenius"]].isna().any(axis=None):
        return ["an entropy or a norm at update 0 is missing"]
    pairs = [(pair, arm_differences(runs, *pair, "entropy").abs()) for pair in (*MATCHED, *LOW_AGAINST_HIGH)]
    failed = [
        f"entropies of {a} and {b} differ by {gap.max():.2f}" for (a, b), gap in pairs[:3] if gap.max() > TOLERANCE
    ]
    failed += [
        f"entropies of {a} and {b} differ by only {gap.min():.2f}" for (a, b), gap in pairs[3:] if gap.min() < APART
    ]
    norms = runs[runs["arm"] != "scaled"].groupby("seed")["frobenius"].agg(lambda values: values.max() / values.min())
    return failed + [f"norms of W differ by a factor {norms.max():.2f}"] * bool(norms.max() > 1 + NORM_TOLERANCE)


def judge_arms(
    tables: Tables, margin: float = MARGIN, *, arm: str, against: str, outcome: str = "log updates"
) -> Verdict:
    """Judge a comparison of two arms by the words of results/PLAN-plateaus.md; the claim says that there is more.

    Reads `anew`: as `arm_table` gives it.
    """
    runs = tables["anew"]
    gaps = arm_differences(runs, arm, against, outcome)
    if len(gaps) < FEWEST_SEEDS:
        return Verdict("not run", f"{len(gaps)} seeds with {arm} and {against}; {FEWEST_SEEDS} are needed")
    if failed := failed_checks(runs):
        return Verdict("not a test", "; ".join(failed))
    pairs = COMPARISONS[outcome]
    p_values = holm([paired_p_value(arm_differences(runs, *pair, outcome).tolist()) for pair in pairs])
    p_value = float(p_values[pairs.index((arm, against))])
    because = (
        f"{arm} against {against}: {outcome} changes by {interval_text(t_interval(gaps))}, p after Holm {p_value:.2g}, "
        f"margin {margin:g}; losses not reached: {int(runs.loc[runs['arm'].isin([arm, against]), 'missed'].sum())}"
    )
    return Verdict(outcome_of(gaps.tolist(), 1, margin, p_value), because, int((gaps > 0).sum()), len(gaps))


def judge_traps(tables: Tables, margin: float = MARGIN) -> Verdict:
    """Join the plateaus of both arms of low entropy against those of high entropy. Reads `anew`."""
    first, second = (
        judge_arms(tables, margin, arm=arm, against=against, outcome="plateau") for arm, against in LOW_AGAINST_HIGH
    )
    words = {first.outcome, second.outcome}
    if words & {"not run", "not a test"}:
        return first if first.outcome in ("not run", "not a test") else second
    word: Outcome = "partly" if words & {"reproduced", "partly"} else "inconclusive"
    if len(words) == 1 and words <= {"reproduced", "not reproduced"}:
        word = first.outcome
    low = tables["anew"].query("arm in ['cold', 'concentrated']")
    return Verdict(word, f"{first.because}; {second.because}", int((low["plateau"] > 0).sum()), len(low))
