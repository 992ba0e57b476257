"""Is it concentration that helps, or shrinkage? The rules of results/PLAN.md on the runs of the second design.

The map chooses an arm and shows the dose response; the confirmation, with seeds of its own, judges. Source: book, "Is
it concentration that helps?" and results/PLAN.md; ours, on the claims of arXiv 2402.02098.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import isotonic_regression

from qkrepro.evidence.claims import Claim, Outcome, Tables, Threshold, Verdict
from qkrepro.evidence.learning_curves import updates_to
from qkrepro.evidence.outcomes import (
    CONCENTRATIONS,
    LEVEL,
    MARGINS,
    check_text,
    concentration_ratios,
    interval_text,
    outcome_of,
    paired_p_value,
    passed_by,
    weaker,
)
from qkrepro.theory.statistics import holm, t_interval
from qkrepro.training.tables import SweepTables

READS = ("results/PLAN.md", "results/map-*", "results/confirm-full*")
BASELINE, CONTROL = "baseline", "shrink"
PEERS = ("qk-norm", "sigma-reparam", "qk-clip", "qk-weight-decay")
MAP_SEEDS, CONFIRMATION_SEEDS = 3, 5
FEWEST_ARMS = 12  # of the dose response: the baseline and the eleven treatments at the middle strength
PERMUTATIONS = 9_999
BETTER = {"log perplexity": -1, "entropy": 1, "log updates": -1, "residual": 1}
COMPARISONS = (
    *(("concentrating", BASELINE), ("control", BASELINE), ("peer", BASELINE)),
    *(("concentrating", "control"), ("concentrating", "plain")),
)
NORMS = {"concentration": "frobenius", "walk_concentration": "walk_frobenius"}
DOSES = {"log perplexity": -1, "entropy": 1}  # the sign of the correlation with N that the claim names


def treatment_of(run: Mapping[Any, Any]) -> str:
    """Return the plan's name of a run's treatment, from the entries of its configuration."""
    if run["peer"] != "none":
        return str(run["peer"])
    if pd.notna(run["start_mean"]):
        return f"start{run['start_mean'] * run['d_model']:g}" + ("" if run["kappa"] else "-plain")
    if not run["kappa"]:
        return BASELINE
    if run["penalised"] == "tokens":
        return "tokens-keep" if run["scale"] == "deviation" else f"tokens{run['target_trace']:g}"
    if run["scale"] == "deviation":
        return "keep-exact" if run["mean"] == "keep" else "keep"
    return f"tau{run['target_trace']:g}" if run["target_trace"] else CONTROL


def finished_runs(sweep: SweepTables) -> pd.DataFrame:
    """Return one row per recorded run, with what was measured at the end of its budget.

    Columns: run, seed, treatment, strength (κ, or that of a peer), arm (both), d_model, log perplexity (validation),
    log test perplexity, entropy in nats, residual, cosine, N_W and N_M as `concentration` and `walk_concentration`,
    frobenius, walk_frobenius, trace.
    """
    measured = ["residual", "cosine", *CONCENTRATIONS, *NORMS.values(), "trace"]
    keys = ["run", "seed", "treatment", "strength", "arm", "d_model"]
    columns = [*keys, "log perplexity", "log test perplexity", "entropy", *measured]
    if sweep.summary.empty:
        return pd.DataFrame(columns=columns)
    ends = sweep.curves.sort_values("update").groupby("run").last()[["valid_entropy", *measured]]
    table = sweep.summary.drop(columns=["valid_entropy", *measured]).join(ends, on="run")
    treatment = [treatment_of(run) for run in table.to_dict("records")]
    strength = table["peer_strength"].where(table["peer"] != "none", table["kappa"])
    names = [f"{name} {value:g}" if value else name for name, value in zip(treatment, strength, strict=True)]
    table = table.assign(treatment=treatment, strength=strength, arm=names).rename(
        columns={"end_valid_loss": "log perplexity", "end_test_loss": "log test perplexity", "valid_entropy": "entropy"}
    )
    return table[columns]


def passes_check(runs: pd.DataFrame, arm: str) -> tuple[list[str], dict[str, list[float]]]:
    """Return by which of N_W and N_M an arm passes the manipulation check, and its ratios to the baseline by seed."""
    ends = runs[runs["arm"].isin([arm, BASELINE])]
    ratios = concentration_ratios(ends)
    return passed_by(ratios), ratios


def arms_of_the_map(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row per arm: means over its seeds, and which of N_W and N_M passes ("" for neither).

    runs: as `finished_runs` gives them. Columns: arm, treatment, strength, seeds, log perplexity, entropy, residual,
    concentration, walk_concentration (geometric means), passes.
    """
    rows = []
    for (treatment, strength, arm), group in runs.groupby(["treatment", "strength", "arm"], sort=False):
        means = group[["log perplexity", "entropy", "residual"]].mean().to_dict()
        means |= {name: float(np.exp(np.log(group[name]).mean())) for name in CONCENTRATIONS}
        passed = passes_check(runs, str(arm))[0] if arm != BASELINE else []
        row = {"arm": arm, "treatment": treatment, "strength": strength, "seeds": len(group)}
        rows.append(row | means | {"passes": " and ".join(passed)})
    return pd.DataFrame(rows)


def chosen_arms(runs: pd.DataFrame, planned: int) -> dict[str, str]:
    """Return the arm for each role of the confirmation: concentrating, control, peer; {} before the map is whole.

    planned: how many runs the map has. Of the arms that pass the check the one with the least validation perplexity is
    taken, and where none passes the one with the largest ratio of N_W; ties go to the smaller strength.
    """
    if len(runs) < planned:
        return {}
    arms = arms_of_the_map(runs).sort_values(["log perplexity", "strength"], kind="stable")
    peers = arms["arm"].isin(runs.loc[runs["treatment"].isin(PEERS), "arm"])
    plain = arms["treatment"].str.endswith("-plain") | (arms["treatment"] == BASELINE)
    treated = arms[~peers & ~plain & (arms["treatment"] != CONTROL)]
    passing = treated[treated["passes"] != ""]
    if passing.empty:
        passing = treated.sort_values("concentration", ascending=False)
    control = arms[arms["treatment"] == CONTROL]
    roles = {"concentrating": passing, "control": control, "peer": arms[peers]}
    return {role: table["arm"].iloc[0] for role, table in roles.items()}


def role_of(treatment: str) -> str:
    """Return what a treatment is in the confirmation: baseline, control, peer, plain or concentrating."""
    if treatment in (BASELINE, CONTROL):
        return {BASELINE: BASELINE, CONTROL: "control"}[treatment]
    return "peer" if treatment in PEERS else "plain" if treatment.endswith("-plain") else "concentrating"


def updates_ratio(curve: pd.DataFrame, baseline: pd.DataFrame) -> tuple[float, int]:
    """Return the mean log ratio of updates to the baseline's losses at a quarter, half and all of its budget.

    Beside it, how many of the three losses the curve does not reach.
    """
    update, values = baseline["update"].to_numpy(float), baseline["valid_loss"].to_numpy(float)
    at = np.array([0.25, 0.5, 1.0]) * update[-1]
    losses = np.interp(at, update, values)
    reached = np.array([updates_to(curve, loss) for loss in losses])
    return float(np.log(reached / at).mean()), int((reached > curve["update"].max()).sum())


def confirmation(sweep: SweepTables) -> pd.DataFrame:
    """Return the table `confirmation`: one row per run, `finished_runs` with role, log updates, missed.

    log perplexity is that of the test here. log updates: mean log ratio of updates to the baseline's losses, of the
    same seed; missed: losses that were not reached. Both NaN where the seed has no baseline.
    """
    runs = finished_runs(sweep)
    if runs.empty:
        return runs.assign(role=[], **{"log updates": [], "missed": []})
    curves = {name: curve.sort_values("update") for name, curve in sweep.curves.groupby("run")}
    base = {row["seed"]: curves[row["run"]] for _, row in runs[runs["treatment"] == BASELINE].iterrows()}
    ratios = [
        updates_ratio(curves[run], base[seed]) if seed in base else (np.nan, np.nan)
        for run, seed in zip(runs["run"], runs["seed"], strict=True)
    ]
    judged = runs.assign(**{"log perplexity": runs["log test perplexity"]}, role=runs["treatment"].map(role_of))
    return judged.assign(**{"log updates": [r[0] for r in ratios], "missed": [r[1] for r in ratios]})


def corrected_p(table: pd.DataFrame, outcome: str) -> pd.Series:
    """Return Holm's p-values of an outcome over the comparisons of the confirmation, by (arm, against)."""
    wide = table.pivot(index="seed", columns="role", values=outcome)
    pairs = [(arm, against) for arm, against in COMPARISONS if {arm, against} <= set(wide)]
    p_values = [paired_p_value((wide[arm] - wide[against]).dropna().tolist()) for arm, against in pairs]
    return pd.Series(holm(p_values), index=pd.MultiIndex.from_tuples(pairs, names=["arm", "against"]), dtype=float)


def judge_outcome(tables: Tables, margin: float | None = None, *, outcome: str, against: str = BASELINE) -> Verdict:
    """Judge the concentrating arm against another on one outcome by the plan's words. Reads `confirmation`.

    tables: by name. against: the other arm's role. margin: of equivalence, None for the plan's.
    """
    table = tables["confirmation"]
    counts = table["role"].value_counts()
    needed = dict.fromkeys(("concentrating", against, BASELINE))
    if min(counts.get(role, 0) for role in needed) < CONFIRMATION_SEEDS:
        counted = ", ".join(f"{role} {counts.get(role, 0)}" for role in needed)
        so_far = f"runs of the confirmation so far: {counted}; {CONFIRMATION_SEEDS} of each are planned"
        return Verdict("not run", so_far)
    arm = table.loc[table["role"] == "concentrating", "arm"].iloc[0]
    passed, ratios = passes_check(table, arm)
    if not passed:
        return Verdict("not a test", f"{arm} did not concentrate the spectrum: {check_text(ratios)}")
    wide = table.pivot(index="seed", columns="role", values=outcome)
    differences = (wide["concentrating"] - wide[against]).dropna()
    p_value, better = corrected_p(table, outcome)["concentrating", against], BETTER[outcome]
    bound = MARGINS[outcome] if margin is None else margin
    word = outcome_of(differences.tolist(), better, bound, p_value)
    because = (
        f"{arm} against {against}: {outcome} changes by {interval_text(t_interval(differences))}, p after Holm "
        f"{p_value:.2g}, margin {bound:g}; it passes by {' and '.join(passed)} ({check_text(ratios)})"
    )
    if outcome == "log updates":
        because += f"; losses not reached: {int(table.loc[table['role'] == 'concentrating', 'missed'].sum())}"
    return Verdict(word, because, int((better * differences > 0).sum()), len(differences))


def judge_expressivity(tables: Tables) -> Verdict:
    """Judge whether entropy and rank recede from collapse together. Reads `confirmation`."""
    entropy, rank = (judge_outcome(tables, outcome=name) for name in ("entropy", "residual"))
    if entropy.outcome in ("not run", "not a test"):
        return entropy
    word = weaker(entropy.outcome, rank.outcome)
    return Verdict(word, f"entropy: {entropy.outcome}; rank: {rank.outcome}. {entropy.because}; {rank.because}")


def dose_response(runs: pd.DataFrame, *, permutations: int = PERMUTATIONS, seed: int = 0) -> pd.DataFrame:
    """Return the rank correlation of N with each outcome over the arms, within seeds, with permutation p-values.

    runs: of the map. Arms with κ > 0, without concentrated starts and peers, and the baseline, where all seeds are
    recorded. One permutation of the arms serves all seeds. Returns columns n, outcome, arms, seeds, correlation, p,
    partial (given the Frobenius norm), partial_p; p-values after Holm's correction over the rows.
    """
    plain = ~runs["treatment"].isin(PEERS) & ~runs["treatment"].str.startswith("start")
    kept = runs[plain].groupby("arm").filter(lambda group: group["seed"].nunique() == runs["seed"].nunique())
    wide = kept.pivot(index="seed", columns="arm")
    generator = np.random.default_rng(seed)
    arms = kept["arm"].nunique()
    orders = np.stack([np.arange(arms), *(generator.permutation(arms) for _ in range(permutations))])
    rows = []
    for (n, norm), outcome in product(NORMS.items(), DOSES):
        x, z, y = (stats.rankdata(wide[name].to_numpy(float), axis=1) for name in (n, norm, outcome))
        both = _rank_correlations(x, y, z, orders)
        p_values = [float((np.abs(values) >= abs(values[0]) - 1e-12).mean()) for values in both]
        row = {"n": CONCENTRATIONS[n], "outcome": outcome, "arms": arms, "seeds": len(wide)}
        rows.append(
            row | {"correlation": both[0][0], "p": p_values[0], "partial": both[1][0], "partial_p": p_values[1]}
        )
    table = pd.DataFrame(rows)
    return table.assign(p=holm(table["p"]), partial_p=holm(table["partial_p"]))


def _rank_correlations(
    x: NDArray[Any], y: NDArray[Any], z: NDArray[Any], orders: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the mean over seeds of r_xy and of r_xy given z, (orders,); ranks (seeds, arms), y permuted."""
    x, y, z = (_standardised(ranks) for ranks in (x, y, z))
    permuted = y[:, orders]  # (seeds, orders, arms)
    r_xy, r_zy = (np.einsum("sa,soa->so", ranks, permuted) for ranks in (x, z))
    r_xz = (x * z).sum(1)[:, None]
    rest = np.sqrt(np.maximum((1 - r_xz**2) * (1 - r_zy**2), 1e-12))
    return r_xy.mean(0), ((r_xy - r_xz * r_zy) / rest).mean(0)


def _standardised(ranks: NDArray[Any]) -> NDArray[Any]:
    centred = ranks - ranks.mean(1, keepdims=True)
    return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12))


def judge_dose(tables: Tables, *, n: str, outcome: str) -> Verdict:
    """Judge the dose response of an outcome on N by the plan's words. Reads `dose`; no rows before the map has them."""
    rows = tables["dose"][(tables["dose"]["n"] == n) & (tables["dose"]["outcome"] == outcome)]
    if rows.empty or rows["arms"].iloc[0] < FEWEST_ARMS or rows["seeds"].iloc[0] < MAP_SEEDS:
        arms, seeds = (int(rows[name].iloc[0]) if len(rows) else 0 for name in ("arms", "seeds"))
        recorded = f"{arms} arms are recorded with {seeds} seeds; at least {FEWEST_ARMS} with {MAP_SEEDS} are needed"
        return Verdict("not run", recorded)
    row = rows.iloc[0]
    right = bool(np.sign(row["correlation"]) == DOSES[outcome])
    word: Outcome = "inconclusive"
    if row["p"] < LEVEL:
        also = row["partial_p"] < LEVEL and np.sign(row["partial"]) == DOSES[outcome]
        word = ("reproduced" if also else "partly") if right else "not reproduced"
    return Verdict(
        word,
        f"rank correlation {row['correlation']:.2f} over {int(row['arms'])} arms, p {row['p']:.2g}; given the norm "
        f"{row['partial']:.2f}, p {row['partial_p']:.2g} (permutations within {int(row['seeds'])} seeds, Holm)",
    )


def label_points(axis: Axes, points: pd.DataFrame, *, gap: float = 0.05) -> None:
    """Write the names of points into a column to the right of an axis, in the order of their heights, with leaders.

    points: name, x, y, colour, a row each, in data coordinates. gap: least distance of two names, as a share of the
    axis, where there is room for it. Call it when limits and scales are set.
    """
    inside = axis.transData.transform(points[["x", "y"]].to_numpy(float))
    rows = points.assign(height=axis.transAxes.inverted().transform(inside)[:, 1]).sort_values("height")
    gap = min(gap, 1 / max(len(rows) - 1, 1))
    steps = gap * np.arange(len(rows))  # the least of squared shifts that keeps the gap, within the axis
    places = isotonic_regression(np.clip(rows["height"] - steps, 0, 1 - steps[-1])).x + steps
    for row, place in zip(rows.to_dict("records"), places, strict=True):
        leader = {"arrowstyle": "-", "relpos": (0, 0.5), "color": row["colour"], "alpha": 0.5, "lw": 0.7, "shrinkB": 3}
        options = {"xycoords": "data", "textcoords": "axes fraction", "arrowprops": leader, "color": row["colour"]}
        axis.annotate(row["name"], (row["x"], row["y"]), (1.03, place), va="center", fontsize=8.5, **options)


CONFIRMED = "ten passes over WikiText-2, all words, one layer, one head, seeds 10 to 14, the arm that the map chose"


def _outcome_claim(name: str, outcome: str, statement: str, against: str = BASELINE) -> Claim:
    """Return the claim that the concentrating arm has the better `outcome`, with this name and statement."""

    def rule(tables: Tables, margin: float | None = None) -> Verdict:
        return judge_outcome(tables, margin, outcome=outcome, against=against)

    bound = MARGINS[outcome]
    return Claim(
        name=name,
        chapter="is_it_concentration",
        provenance="ours",
        statement=f"{statement}.",
        conditions=CONFIRMED,
        rule=f"Paired differences of {outcome} over five new seeds, by the words of results/PLAN.md with a margin of "
        f"{bound:g}; Holm's correction over the comparisons; only where N_W or N_M is at least twice the "
        "baseline's (mean ratio over seeds, its interval above 1).",
        refuted_by="a difference on the worse side after Holm's correction, or an interval inside the margin",
        tables=("confirmation",),
        judge=rule,
        threshold=Threshold(f"margin of {outcome}", bound, (bound / 2, bound, 2 * bound), rule),
    )


def _dose_claim(n: str, name: str, outcome: str, words: str) -> Claim:
    """Return the claim that an outcome follows n; name and words stand for the outcome in its name and text."""

    def rule(tables: Tables) -> Verdict:
        return judge_dose(tables, n=n, outcome=outcome)

    return Claim(
        name=f"{name}-follows-{n.lower().replace('_', '-')}",
        chapter="is_it_concentration",
        provenance="ours",
        statement=f"Over the treatments of the map {words} the more concentrated the spectrum ends, by {n}.",
        conditions="8,192 words, three passes, within seeds",
        rule="Spearman's correlation over the arms, mean over seeds, by permutation of the arms, Holm over four: "
        "reproduced where it and the partial one given the norm have the sign with p < 0.05.",
        refuted_by="a correlation of the other sign with p < 0.05",
        tables=("dose",),
        judge=rule,
    )


PENALISED = "A penalty that concentrates the spectrum"
CLAIMS = (
    _outcome_claim("concentrating-lowers-perplexity", "log perplexity", f"{PENALISED} lowers test perplexity"),
    _outcome_claim("concentrating-raises-entropy", "entropy", f"{PENALISED} raises attention entropy"),
    _outcome_claim(
        "concentrating-speeds-training",
        "log updates",
        "With a penalty that concentrates the spectrum fewer updates reach the baseline's losses",
    ),
    _outcome_claim(
        "concentrating-keeps-tokens-apart",
        "residual",
        "With a penalty that concentrates the spectrum the output tokens stay further apart",
    ),
    Claim(
        name="concentrating-eases-both-collapses",
        chapter="is_it_concentration",
        provenance="ours",
        statement="Under concentration both collapses recede together in a trained model.",
        conditions=CONFIRMED,
        rule="Entropy and the residual of the outputs are judged by the words of results/PLAN.md; the weaker counts.",
        refuted_by="entropy or residual not reproduced, which includes a trade-off between them",
        tables=("confirmation",),
        judge=judge_expressivity,
    ),
    _outcome_claim(
        "concentrating-beyond-shrinkage-in-perplexity",
        "log perplexity",
        "Concentration lowers test perplexity beyond what pure shrinkage of W_QK does",
        "control",
    ),
    _outcome_claim(
        "concentrating-beyond-shrinkage-in-entropy",
        "entropy",
        "Concentration raises attention entropy beyond what pure shrinkage of W_QK does",
        "control",
    ),
    *(
        _dose_claim(n, *dose)
        for n in CONCENTRATIONS.values()
        for dose in (
            ("perplexity", "log perplexity", "perplexity is lower"),
            ("entropy", "entropy", "attention entropy is higher"),
        )
    ),
)
