"""Recompute the numbers of the review of the first edition, and say of each whether it stands.

    .venv/bin/python benchmarks/review.py            compute all, in seconds, and write book/generated/review.{csv,md}
    .venv/bin/python benchmarks/review.py --records  the rows that follow from records alone, printed

The reviewer's numbers are in `book/review.csv` (finding, quantity, reviewed, within, since), as given to us. A number
is confirmed when ours, computed from the committed records or simulated with a seed, agrees with it to the last digit
that is given, or within `within` where the quantity is a simulation's. Otherwise it is mended where the rule or the
cases that it is about are others now (`since` says how), and corrected where they are not; the page shows both.

Source: book, "What changed since the first edition, and why".
"""

import math
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

from qkrepro.chapters.both_at_once import prevents_both
from qkrepro.chapters.localization_plane import localization_plane
from qkrepro.chapters.true_softmax import softmax_closed_forms
from qkrepro.evidence.numbers import load_numbers
from qkrepro.files import write_atomically
from qkrepro.theory.critical_mean import simplex_layers
from qkrepro.theory.depth import Spectrum, Stack, depth_experiment
from qkrepro.theory.depth_limit import cosine_residual, depth_limit, walk_cosines
from qkrepro.theory.random_energy import mean_entropy, own_token_threshold
from qkrepro.theory.statistics import holm, t_interval
from qkrepro.training.tables import sweep_tables

ROOT = Path(__file__).parents[1]
GIVEN, WRITTEN = ROOT / "book" / "review.csv", ROOT / "book" / "generated"


@cache
def _sweep(name: str) -> pd.DataFrame:
    """Return the last evaluation of each run of a sweep, with its configuration."""
    curves = sweep_tables(ROOT / "results" / f"{name}.yaml").curves
    return curves.sort_values("update").groupby("run").tail(1)


@cache
def _summary(name: str) -> pd.DataFrame:
    return sweep_tables(ROOT / "results" / f"{name}.yaml").summary


def manipulation() -> Iterator[tuple[str, str, float]]:
    """A1: what the penalty did to the spectrum, means over seeds at the end of the runs."""
    cases = {
        "full vocabulary, κ = 0": ("locater-wikitext-2", 0.0),
        "full vocabulary, κ = 1e-3": ("locater-wikitext-2", 1e-3),
        "reduced, κ = 0": ("kappa-reduced", 0.0),
        "reduced, κ = 0.1": ("kappa-reduced", 0.1),
    }
    columns = {"tr W": "trace", "‖W‖_F": "frobenius", "N_W": "concentration", "tr M": "walk_trace"}
    columns |= {"‖M‖_F": "walk_frobenius", "N_M": "walk_concentration"}
    for name, (sweep, kappa) in cases.items():
        ends = _sweep(sweep)
        for quantity, column in columns.items():
            yield "A1", f"{name}: {quantity}", float(ends.loc[ends["kappa"] == kappa, column].mean())
    variants = _sweep("variants-reduced").query("mean == 'penalty'").groupby("scale")["trace"].mean()
    for place, scale in enumerate(("frobenius", "trace-square", "variance"), 1):
        yield "A1", f"final trace of penalty form {place}", float(variants[scale])


def plateaus() -> Iterator[tuple[str, str, float]]:
    """A2: the runs in which the plateau verdict was decided."""
    curves = sweep_tables(ROOT / "results" / "starts-reduced.yaml").curves
    yield "A2", "updates of a run", float(curves["update"].max())
    yield "A2", "updates of the warm-up", float(curves["warmup"].max())
    whole = load_numbers("plateaus")["plateaus_whole"]
    low = whole[whole["start"].isin(["collapsed", "concentrated"])]
    yield "A2", "low-entropy starts with a plateau", float((low["length"] > 0).sum())
    first = whole[(whole["start"] == "xavier") & (whole["length"] > 0)]
    yield "A2", "Xavier starts with a plateau", float(len(first))


def rank_collapse() -> Iterator[tuple[str, str, str]]:
    """A3: in how many settings the concentrated spectrum keeps half of the residual, by sign and temperature."""
    table = load_numbers("rank_collapse")["depth_end"]
    keys = ["setting", "tokens", "layers", "temperature", "mean_scaled"]
    means = table.groupby([*keys, "spectrum"])["residual_ratio"].mean().unstack()
    holds = (means["concentrated"] > 0.5) & (means["concentrated"] > means["dispersed"])
    for words, temperature, sign in (("+16, λ = 1", 1.0, 1), ("−16, λ = 1", 1.0, -1), ("+16, λ = √d", None, 1)):
        at = means.index.get_level_values("temperature")
        chosen = (at == 1.0) if temperature else (at > 1.0)
        kept = holds[chosen & (sign * means.index.get_level_values("mean_scaled") > 0)]
        yield "A3", f"settings that hold at {words}", f"{int(kept.sum())} of {len(kept)}"


def localization() -> Iterator[tuple[str, str, float]]:
    """A4: the regime in which all pass although the spectrum is concentrated."""
    cell = localization_plane([0.001], [1e-6], dim=64, length=1024, locations=257)
    yield "A4", "index at ξ/λ = 0.001, T = 1024, hardly any spread", float(cell["index"].iloc[0])


def noise() -> Iterator[tuple[str, str, float]]:
    """A6 and B1: what the rules of the first edition say of pure noise, in per cent of 20,000 draws."""
    draws = np.random.default_rng(0).normal(size=(20_000, 5))
    half = stats.t.ppf(0.975, 4) * draws.std(axis=1, ddof=1) / math.sqrt(5)
    mean = draws.mean(axis=1)
    yield "A6", "noise, five seeds: reproduced, per cent", 100 * float((mean - half > 0).mean())
    yield "A6", "noise, five seeds: partly, per cent", 100 * float(((mean > 0) & (mean - half <= 0)).mean())
    yield "A6", "noise, five seeds: not reproduced, per cent", 100 * float((mean <= 0).mean())
    tests = load_numbers("deeper_and_wider")["tests"]
    yield "B1", "least p over six shapes", float(tests["p"].min())
    yield "B1", "least p over six shapes, after Holm", float(np.min(holm(tests["p"])))


def tuning() -> Iterator[tuple[str, str, float]]:
    """B2: the perplexities on which κ was chosen, one seed after one pass."""
    table = _summary("search-kappa").set_index("kappa")["valid_perplexity"]
    for words, kappa in (("κ = 1e-3", 1e-3), ("κ = 1e-4", 1e-4)):
        yield "B2", f"validation perplexity of the search at {words}", float(table[kappa])


def correlations() -> Iterator[tuple[str, str, float]]:
    """B3: the t interval of three rank correlations."""
    kappas = load_numbers("locater")["kappas"]
    values = [
        float(stats.spearmanr(seed["eigen_variance"], seed["valid_perplexity"]).statistic)
        for _, seed in kappas.groupby("seed")
    ]
    interval = t_interval(values)
    yield "B3", "t interval of the correlations, lower end", interval.low
    yield "B3", "t interval of the correlations, upper end", interval.high


def rules() -> Iterator[tuple[str, str, float | str]]:
    """B4 and B5: rules that can hardly fail, and thresholds that decide."""
    forms = load_numbers("true_softmax")["closed_forms"]
    verdict = softmax_closed_forms({"closed_forms": forms.assign(predicted=0.7 * forms["predicted"])})
    yield "B4", "closed forms that pass with predictions times 0.7", f"{verdict.holds} of {verdict.of}"
    trained = load_numbers("theory_in_trained_models")["trained"]
    for limit in (0.2, 0.25, 0.3):
        passing = int((trained["total_variation"] <= limit).sum())
        yield "B5", f"trained models within {limit:g}", f"{passing} of {len(trained)}"
    safe = load_numbers("both_at_once")["safe"]
    for bar in (0.4, 0.6):
        verdict = prevents_both({"safe": safe}, bar)
        yield "B5", f"means at which both are prevented, bar {bar:g}", f"{verdict.holds} of {verdict.of}"
    heads = load_numbers("real_weights")["heads"]
    yield "B5", "heads more concentrated than random ones", f"{int((heads['percentile'] < 5).sum())} of {len(heads)}"
    cell = safe[(safe["dispersion"] == safe["dispersion"].min())].groupby("mean_scaled")["residual_ratio"]
    skewed = (cell.mean() / cell.median()).idxmax()
    yield "B6", "mean of the most skewed residual ratio", float(cell.mean()[skewed])
    yield "B6", "median of the most skewed residual ratio", float(cell.median()[skewed])
    correlations = load_numbers("real_weights")["correlations"].set_index("quantity")
    for end in ("low", "high"):
        yield "B7", f"interval over layers, {end}", float(correlations.loc["frobenius_cov", end])


def collapses() -> Iterator[tuple[str, str, float]]:
    """C: both collapses in the trained model, penalised minus baseline, paired by seed, at the end."""
    ends = _sweep("locater-wikitext-2")
    for column, words in (("residual", "residual"), ("cosine", "cosine")):
        wide = ends.pivot(index="seed", columns="kappa", values=column)
        interval = t_interval(wide[1e-3] - wide[0.0])
        for end, value in zip(("estimate", "lower end", "upper end"), interval, strict=True):
            yield "C", f"{words} of the outputs, difference, {end}", value
    curves = sweep_tables(ROOT / "results" / "locater-wikitext-2.yaml").curves
    wide = curves.pivot_table(index=["epoch", "seed"], columns="kappa", values="valid_perplexity").dropna()
    change = (100 * (wide[1e-3] / wide[0.0] - 1)).groupby("epoch").mean()
    for epoch, words in ((0.5, "half a pass"), (1.0, "one pass")):
        nearest = min(change.index, key=lambda at: abs(at - epoch))
        yield "C", f"change of perplexity after {words}, per cent", float(change[nearest])


def entropies() -> Iterator[tuple[str, str, float]]:
    """E1: the random-energy law at a finite number of tokens, the own token's weight, and its threshold."""
    count = 65_536
    for ratio in (0.3, 0.6):
        spread = ratio * math.sqrt(2 * math.log(count))
        yield "E1", f"H/log T at b = {ratio:g}, T = 65,536", mean_entropy(count, spread) / math.log(count)
    yield "E1", "threshold of the own token, T = 1024, v = 0", own_token_threshold(0.0, 1024)
    yield "E1", "weight of the own token at 7, T = 1024", 1 / (1 + 1023 * math.exp(-7.0))


def depth() -> Iterator[tuple[str, str, float]]:
    """E3: the recursion over depth against a stack of eight layers, d = 512, concentrated W, random walk."""
    stack = Stack(layers=8, dim=512, length=64)
    for mean in (16.0, 0.0, -16.0):
        cosines = depth_limit(walk_cosines(64), scaled_mean=mean, layers=8).cosines
        kept = float(cosine_residual(cosines[-1]) / cosine_residual(cosines[0]))
        yield "E3", f"kept residual in the limit at {mean:g}", kept
        table = depth_experiment([Spectrum(mean, 0.0)], stack, seeds=range(3), measure_at=[8], measures=["residual"])
        yield "E3", f"kept residual of a stack at {mean:g}", float(table.query("layer == 8")["residual_ratio"].mean())


def critical() -> Iterator[tuple[str, str, float]]:
    """E6: the cosine after one layer on a simplex, at four fifths of the critical mean.

    The review does not say its similarity; at 0.3, which is also that of the chapter, both numbers come out.
    """
    for count in (1_024, 100_000):
        similarity = 0.3
        mean = 0.8 * math.log(count) / (1 - similarity)
        cosine = simplex_layers(count, similarity, mean, layers=1)
        yield "E6", f"cosine after a layer at n = {count:,}", float(torch.as_tensor(cosine).flatten()[-1])


RECORDS: tuple[Callable[[], Iterator[tuple[str, str, float | str]]], ...] = (
    *(manipulation, plateaus, rank_collapse, tuning, correlations, rules, collapses),
)
SIMULATED: tuple[Callable[[], Iterator[tuple[str, str, float | str]]], ...] = (
    *(localization, noise, entropies, depth, critical),
)


def computed(records_only: bool = False) -> pd.DataFrame:
    """Return finding, quantity and our value as text, one row each."""
    groups = RECORDS if records_only else RECORDS + SIMULATED
    return pd.DataFrame([row for group in groups for row in group()], columns=["finding", "quantity", "computed"])


def compared(ours: pd.DataFrame, given: pd.DataFrame) -> pd.DataFrame:
    """Return finding, quantity, reviewed, computed (as many decimals as the review gives) and outcome.

    Raises KeyError for a number of the review that is not computed, or one of ours that it does not give.
    """
    table = given.merge(ours, on=["finding", "quantity"], how="outer", indicator=True, sort=False)
    alone = table[table["_merge"] != "both"]
    if len(alone):
        raise KeyError(f"no partner for {alone[['finding', 'quantity', '_merge']].to_dict('records')}")
    rows = given.merge(ours, on=["finding", "quantity"])
    texts = [_shown(reviewed, value) for reviewed, value in zip(rows["reviewed"], rows["computed"], strict=True)]
    agrees = [_agrees(*row) for row in zip(rows["reviewed"], rows["within"], rows["computed"], strict=True)]
    outcome = [
        "confirmed" if agree else f"mended: {since}" if since else "corrected"
        for agree, since in zip(agrees, rows["since"], strict=True)
    ]
    return rows.assign(computed=texts, outcome=outcome)[["finding", "quantity", "reviewed", "computed", "outcome"]]


def _decimals(reviewed: str) -> int:
    return len(reviewed.partition(".")[2])


def _shown(reviewed: str, value: float | str) -> str:
    return value if isinstance(value, str) else f"{value + 0.0:.{_decimals(reviewed)}f}".replace("-", "−")


def _agrees(reviewed: str, within: str, value: float | str) -> bool:
    if isinstance(value, str):
        return value == reviewed
    margin = float(within) if within else 0.5 * 10.0 ** -_decimals(reviewed)
    return abs(value - float(reviewed.replace("−", "-"))) <= margin * (1 + 1e-9)


def page(table: pd.DataFrame) -> str:
    """Return the comparison as MyST Markdown."""
    kinds = table["outcome"].str.partition(":")[0].value_counts()
    head = f"{len(table)} numbers: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}.\n\n"
    lines = ["| finding | quantity | reviewed | computed | outcome |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in table.itertuples(index=False)]
    return head + "\n".join(lines) + "\n"


def main() -> None:
    """Compute, compare, and write what the page shows."""
    given = pd.read_csv(GIVEN, dtype=str, keep_default_na=False)
    if "--records" in sys.argv:
        ours = computed(records_only=True)
        given = given[given["quantity"].isin(ours["quantity"])]
        print(compared(ours, given).to_string(index=False))
        return
    table = compared(computed(), given)
    write_atomically(WRITTEN / "review.csv", table.to_csv(index=False, lineterminator="\n").encode())
    write_atomically(WRITTEN / "review.md", page(table).encode())
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
