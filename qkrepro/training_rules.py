"""The rules of the verdicts on training runs; see `verdict_rules`. Written before the runs they judge."""

import numpy as np
import pandas as pd
from scipy import stats

from qkrepro.intervals import t_interval
from qkrepro.verdict_rules import SAME_PROFILE, Outcome, Tables, Verdict, share_verdict
from qkrepro.wording import passes

FEWEST_SEEDS = 3
SHAPES = tuple((layers, heads) for layers in (1, 2, 4) for heads in (1, 4))


def _training(table: pd.DataFrame) -> str:
    """How long the runs of a table learned, and over how many words.

    Columns best_epoch, last_epoch (of an evaluation) and corpus_words. A run that was best at its last evaluation may
    not be at its best yet: how many there are is said.
    """
    words = ", ".join(f"{number:,}" for number in sorted(set(table["corpus_words"])))
    length = passes(table["best_epoch"].min(), table["best_epoch"].max())
    ended = int((table["best_epoch"] == table["last_epoch"]).sum())
    return f"best after {length} over the text, in {ended} of {len(table)} runs at the last evaluation; {words} words"


def _paired(table: pd.DataFrame, value: str, sign: int) -> Verdict:
    """Regularised minus baseline (kappa 0), paired by seed; `sign` is the direction the claim names.

    One row a run. What `_training` reads is said with the verdict: best_epoch and last_epoch (passes over the text
    until the best and until the last evaluation), corpus_words.
    """
    wide = table.assign(arm=np.where(table["kappa"] == 0, "baseline", "locater"))
    wide = wide.pivot(index="seed", columns="arm", values=value)
    pairs = wide.dropna() if {"baseline", "locater"} <= set(wide.columns) else wide.iloc[:0]
    if len(pairs) < FEWEST_SEEDS:
        return Verdict("not run", f"{len(pairs)} paired seeds; at least {FEWEST_SEEDS} are needed")
    gap = t_interval(pairs["locater"] - pairs["baseline"])
    because = f"{value} changes by {gap.estimate:.3f} [{gap.low:.3f}, {gap.high:.3f}] over {len(pairs)} paired seeds"
    because = f"{because}; {_training(table)}"
    if sign * gap.estimate <= 0:
        return Verdict("not reproduced", because)
    return Verdict("reproduced" if min(sign * gap.low, sign * gap.high) > 0 else "partly", because)


def perplexity_improves(tables: Tables) -> Verdict:
    """Table paired: seed, kappa (0 and the one chosen on validation), test_perplexity and what `_paired` reads."""
    return _paired(tables["paired"], "test_perplexity", -1)


def entropy_rises(tables: Tables) -> Verdict:
    """Table paired: seed, kappa, valid_entropy (nats, mean over queries, best checkpoint) and what `_paired` reads."""
    return _paired(tables["paired"], "valid_entropy", +1)


def perplexity_follows_variance(tables: Tables) -> Verdict:
    """Table kappas: seed, kappa, eigen_variance (d_model eigenvalues), valid_perplexity and what `_training` reads.

    One row a run. Per seed the rank correlation over kappa; reproduced when its t interval over seeds lies above 0.
    """
    values = [
        float(stats.spearmanr(group["eigen_variance"], group["valid_perplexity"]).statistic)
        for _, group in tables["kappas"].groupby("seed")
        if len(group) >= 4
    ]
    if len(values) < FEWEST_SEEDS:
        return Verdict("not run", f"{len(values)} seeds with at least four kappas; {FEWEST_SEEDS} are needed")
    mean = t_interval(values)
    because = f"rank correlation over kappa {mean.estimate:.2f} [{mean.low:.2f}, {mean.high:.2f}], {len(values)} seeds"
    because = f"{because}; {_training(tables['kappas'])}"
    outcome: Outcome = "reproduced" if mean.low > 0 else "partly" if mean.estimate > 0 else "not reproduced"
    return Verdict(outcome, because)


def low_entropy_traps(tables: Tables) -> Verdict:
    """Table starts: start (xavier, collapsed, concentrated), seed, early_loss (nats a token, mean of the first half).

    Both other starts have lower attention entropy than xavier. The claim is that low entropy traps: reproduced when
    both learn slower than xavier, partly when one of them does.
    """
    wide = tables["starts"].pivot(index="seed", columns="start", values="early_loss")
    if len(wide) < FEWEST_SEEDS or not {"xavier", "collapsed", "concentrated"} <= set(wide.columns):
        return Verdict("not run", f"{len(wide)} seeds; {FEWEST_SEEDS} with all three starts are needed")
    gaps = {name: t_interval(wide[name] - wide["xavier"]) for name in ("collapsed", "concentrated")}
    because = "; ".join(f"{name} {gap.estimate:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]" for name, gap in gaps.items())
    return share_verdict([gap.low > 0 for gap in gaps.values()], f"early loss against xavier: {because}")


def theory_sees_training(tables: Tables) -> Verdict:
    """Table trained: kappa, seed, total_variation (predicted against measured share of non-saturated pairs)."""
    holds = [bool(value <= SAME_PROFILE) for value in tables["trained"]["total_variation"]]
    because = f"total variation at most {SAME_PROFILE} in {sum(holds)} of {len(holds)} trained models"
    return share_verdict(holds, because)


def holds_deeper_and_wider(tables: Tables) -> Verdict:
    """Table shapes: layers, heads, seed, kappa, valid_perplexity and what `_paired` reads; its rule for all SHAPES."""
    groups = dict(list(tables["shapes"].groupby(["layers", "heads"])))
    each = [_paired(groups[shape], "valid_perplexity", -1) if shape in groups else None for shape in SHAPES]
    run = [verdict.outcome == "reproduced" for verdict in each if verdict and verdict.outcome != "not run"]
    if len(run) < len(SHAPES):
        return Verdict("not run", f"{len(run)} of {len(SHAPES)} shapes have {FEWEST_SEEDS} paired seeds")
    because = f"perplexity improves in {sum(run)} of {len(run)} shapes (layers, heads); {_training(tables['shapes'])}"
    return share_verdict(run, because)
