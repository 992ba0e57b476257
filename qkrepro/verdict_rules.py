"""The rules of the verdicts: pure functions from a chapter's tables to a verdict with the numbers it rests on.

Each rule was written before its data. A rule that finds too little data answers "not run". Tables and columns are
those that `save_numbers` keeps for the chapter; each docstring names them. Thresholds are choices of ours.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from qkrepro.intervals import Interval, t_interval
from qkrepro.rounding import fixed

Tables = Mapping[str, pd.DataFrame]
Outcome = Literal["reproduced", "partly", "not reproduced", "inconclusive", "not a test", "not run"]

HALF = 0.5  # what "prevented" means: at least half of log T for entropy, of the input's own residual for rank
LOCALIZED = 0.3  # localization index from which a profile counts as localized: 30% of the sequence is shut out
ROUNDING = 1e-6  # what the last bits of a processor cannot reach, and no claim is about
SAME_PROFILE = 0.2  # total variation up to which two profiles over the sequence count as the same


class Verdict(NamedTuple):
    """What the data say of a claim, and the numbers in one sentence."""

    outcome: Outcome
    because: str


def share_verdict(holds: list[bool], because: str) -> Verdict:
    """Reproduced when it holds in every case, not reproduced when in none, partly in between, not run without cases."""
    if not holds:
        return Verdict("not run", "no data yet")
    outcome: Outcome = "reproduced" if all(holds) else "partly" if any(holds) else "not reproduced"
    return Verdict(outcome, because)


def _text(interval: Interval, digits: int = 2) -> str:
    return f"{fixed(interval.estimate, digits)} [{fixed(interval.low, digits)}, {fixed(interval.high, digits)}]"


def linearisation_first_order(tables: Tables) -> Verdict:
    """Table error: spread (standard deviation of logits over temperature), error (total |S - A|), one row a draw."""
    error = tables["error"].groupby("spread")["error"].mean()
    small = error[error.index <= 0.1]
    slope = float(stats.linregress(np.log(small.index.to_numpy()), np.log(small.to_numpy())).slope)
    at_one = float(np.interp(1.0, error.index.to_numpy(), error.to_numpy()))
    because = f"error grows with the spread to the power {slope:.2f} below 0.1; total error {at_one:.2f} at spread 1"
    if not 1.8 <= slope <= 2.2:
        return Verdict("not reproduced", because)
    return Verdict("reproduced" if at_one <= 0.1 else "partly", because)


def xavier_spectrum(tables: Tables) -> Verdict:
    """Table xavier: eigen_mean, frobenius_sq, expected_frobenius_sq, one row a draw (eigenvalues over d_model)."""
    table = tables["xavier"]
    mean = t_interval(table["eigen_mean"])
    ratio = t_interval(table["frobenius_sq"] / table["expected_frobenius_sq"])
    because = f"eigenvalue mean {_text(mean, 4)}, squared Frobenius norm over its closed form {_text(ratio, 3)}"
    return share_verdict([mean.low <= 0 <= mean.high, ratio.low <= 1 <= ratio.high], because)


def exact_law(tables: Tables) -> Verdict:
    """Table profiles: case, exact, low, high (95% interval of Monte Carlo), one row a location."""
    table = tables["profiles"]
    inside = table["exact"].between(table["low"] - ROUNDING, table["high"] + ROUNDING).groupby(table["case"]).mean()
    because = (
        f"the exact law lies in the 95% Monte Carlo interval at {inside.mean():.0%} of locations, {inside.min():.0%} "
        f"in the worst of {len(inside)} cases"
    )
    return share_verdict([bool(share >= 0.8) for share in inside] if inside.mean() >= 0.9 else [False], because)


def gaussian_limit(tables: Tables) -> Verdict:
    """Table profiles: case, singular_share (largest singular value over Frobenius norm of M), exact, finite."""
    table = tables["profiles"]
    error = (table["finite"] - table["exact"]).abs().groupby(table["case"]).max()
    share = table.groupby("case")["singular_share"].first()
    spread_out, dominated = error[share <= 0.1], error[share > 0.1]
    because = (
        f"largest error {spread_out.max():.3f} where no singular value exceeds a tenth of the Frobenius norm, "
        f"{dominated.max():.3f} elsewhere"
    )
    return share_verdict([bool(value <= 0.02) for value in spread_out], because)


def regimes(tables: Tables) -> Verdict:
    """Table regimes: case (late, middle, mirror, broad, all pass), index, centre, level, one row a case."""
    rules = {
        "late": lambda row: row["centre"] > 0.6 and row["index"] >= LOCALIZED,
        "middle": lambda row: 0.45 < row["centre"] < 0.75 and row["index"] > 0.5,
        "mirror": lambda row: row["centre"] < 0.4 and row["index"] >= LOCALIZED,
        "broad": lambda row: row["index"] < 0.1,
        "all pass": lambda row: row["index"] < 0.1 and row["level"] > 0.9,
    }
    rows = [row for _, row in tables["regimes"].iterrows() if row["case"] in rules]
    holds = {row["case"]: bool(rules[row["case"]](row)) for row in rows}
    missing = [case for case, good in holds.items() if not good]
    because = f"{sum(holds.values())} of {len(rules)} regimes as derived" + (f"; not: {missing}" if missing else "")
    return share_verdict([*holds.values(), *([False] * (len(rules) - len(holds)))] if holds else [], because)


def antisymmetric(tables: Tables) -> Verdict:
    """Table profiles: case "antisymmetric", exact, one row a location."""
    profile = tables["profiles"].query("case == 'antisymmetric'")["exact"]
    spread = float(profile.max() - profile.min())
    return share_verdict([spread <= 1e-6], f"the profile varies by {spread:.1e} over the sequence")


def variance_localizes(tables: Tables) -> Verdict:
    """Table plane: mean_scaled (tr M over temperature), dispersion (sigma/|mu|), index; symmetric M, one row a cell."""
    plane = tables["plane"].query("mean_scaled != 0").dropna(subset=["index"])
    holds, weakest, least = [], -1.0, 1.0
    for _, column in plane.groupby("mean_scaled"):
        correlation = float(stats.spearmanr(column["dispersion"], column["index"]).statistic)
        concentrated = float(column["index"].to_numpy()[column["dispersion"].argmin()])
        holds.append(correlation <= -0.9 and concentrated >= LOCALIZED)
        weakest, least = max(weakest, correlation), min(least, concentrated)
    because = (
        f"holds at {sum(holds)} of {len(holds)} means; rank correlation of index with dispersion at most "
        f"{weakest:.2f}, index of the most concentrated spectrum at least {least:.2f}"
    )
    return share_verdict(holds, because)


def variance_decides(tables: Tables) -> Verdict:
    """Table counterexamples: name, relative_variance (variance over squared mean), index, one row a matrix."""
    table = tables["counterexamples"].sort_values("relative_variance")
    pairs = [
        (low, high)
        for (_, low), (_, high) in ((a, b) for a in table.iterrows() for b in table.iterrows())
        if low["relative_variance"] < high["relative_variance"] and high["index"] > low["index"] + 0.1
    ]
    if not pairs:
        return Verdict("reproduced", f"no counterexample among {len(table)} matrices")
    low, high = max(pairs, key=lambda pair: pair[1]["index"] - pair[0]["index"])
    because = (
        f"{len(pairs)} counterexamples; widest: {high['name']} (relative variance {fixed(high['relative_variance'])}) "
        f"has index {high['index']:.2f}, {low['name']} ({fixed(low['relative_variance'])}) has {low['index']:.2f}"
    )
    return Verdict("not reproduced", because)


def softmax_localizes(tables: Tables) -> Verdict:
    """Table agreement: tokens, setting, total_variation, low, high (95% interval over seeds), one row a setting."""
    table = tables["agreement"]
    holds = [bool(high <= SAME_PROFILE) for high in table["high"]]
    because = (
        f"linearised and true profile agree (total variation at most {SAME_PROFILE}) in {sum(holds)} of {len(holds)} "
        f"settings; smallest {table['total_variation'].min():.2f}, largest {table['total_variation'].max():.2f}"
    )
    return share_verdict(holds, because)


def softmax_closed_forms(tables: Tables) -> Verdict:
    """Table closed_forms: form, predicted, simulated, standard_error; one row a case."""
    table = tables["closed_forms"]
    error = (table["predicted"] - table["simulated"]).abs()
    allowed = np.maximum(np.maximum(4 * table["standard_error"], 0.02 * table["simulated"].abs()), 0.01)
    holds = [bool(value) for value in error <= allowed]
    because = f"{sum(holds)} of {len(holds)} values within four standard errors, 2% or 0.01 of simulation"
    return share_verdict(holds, because)


def prevents_rank_collapse(tables: Tables) -> Verdict:
    """Table depth_end: setting, tokens, seed, spectrum (concentrated, dispersed), residual, input_residual."""
    holds = {}
    for (setting, tokens), group in tables["depth_end"].groupby(["setting", "tokens"]):
        wide = group.pivot(index="seed", columns="spectrum", values="residual")
        gain = t_interval(wide["concentrated"] - wide["dispersed"])
        kept = t_interval(wide["concentrated"] / group.groupby("seed")["input_residual"].first())
        holds[f"{setting}, {tokens}"] = gain.low > 0 and kept.estimate >= HALF
    return _settings_verdict(holds)


def prevents_entropy_collapse(tables: Tables) -> Verdict:
    """Table entropy: tokens, mean_scaled, dispersion, seed, entropy_ratio; least against greatest dispersion."""
    holds = {}
    for (tokens, mean), group in tables["entropy"].query("mean_scaled != 0").groupby(["tokens", "mean_scaled"]):
        wide = group.pivot(index="seed", columns="dispersion", values="entropy_ratio").sort_index(axis=1)
        gain = t_interval(wide.iloc[:, 0] - wide.iloc[:, -1])
        holds[f"{tokens}, mean {mean:g}"] = gain.low > 0 and float(wide.iloc[:, 0].mean()) >= HALF
    return _settings_verdict(holds)


def entropy_bound(tables: Tables) -> Verdict:
    """Table bound: setting, entropy, bound (nats), one row a setting; never violated, and at least a tenth of it."""
    table = tables["bound"]
    violated = int((table["bound"] > table["entropy"] + ROUNDING * (1 + table["entropy"])).sum())
    useful = [bool(value) for value in table["bound"] >= 0.1 * table["entropy"]]
    because = f"violated in {violated} of {len(table)} settings; at least a tenth of the entropy in {sum(useful)}"
    return Verdict("not reproduced", because) if violated else share_verdict(useful, because)


def prevents_both(tables: Tables) -> Verdict:
    """Table safe: setting, tokens, mean_scaled, dispersion, seed, entropy_ratio, residual_ratio (to the input's own).

    A cell is safe when the lower ends of both 95% t intervals over seeds are at least one half. In a group (setting,
    tokens, sign of the mean) the claim holds when the least dispersion has a safe cell and the greatest has none.
    """
    table = tables["safe"].query("mean_scaled != 0")
    table = table.assign(sign=np.where(table["mean_scaled"] > 0, "positive", "negative"))
    holds = {}
    for (setting, tokens, sign), group in table.groupby(["setting", "tokens", "sign"]):
        cells = safe_cells(group)
        ends = (
            cells[cells["dispersion"] == cells["dispersion"].min()],
            cells[cells["dispersion"] == cells["dispersion"].max()],
        )
        holds[f"{setting}, {tokens}, {sign} mean"] = bool(ends[0]["safe"].any() and not ends[1]["safe"].any())
    return _settings_verdict(holds)


def safe_cells(table: pd.DataFrame) -> pd.DataFrame:
    """One row a cell (mean_scaled, dispersion) of `prevents_both`: safe when both lower ends are at least 1/2."""
    rows = []
    for (mean, dispersion), cell in table.groupby(["mean_scaled", "dispersion"]):
        lowest = min(t_interval(cell["entropy_ratio"]).low, t_interval(cell["residual_ratio"]).low)
        rows.append({"mean_scaled": mean, "dispersion": dispersion, "lowest": lowest, "safe": lowest >= HALF})
    return pd.DataFrame(rows)


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


def _settings_verdict(holds: Mapping[str, bool]) -> Verdict:
    failing = "; ".join(name for name, good in holds.items() if not good)
    because = f"holds in {sum(holds.values())} of {len(holds)} settings" + (f"; not in: {failing}" if failing else "")
    return share_verdict(list(holds.values()), because)
