"""The rules of results/PLAN.md on runs that support each claim, refute it, say nothing, or are no test of it."""

from dataclasses import asdict

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from qkrepro.chapters.is_it_concentration import (
    BETTER,
    CLAIMS,
    CONFIRMATION_SEEDS,
    DOSES,
    READS,
    arms_of_the_map,
    chosen_arms,
    corrected_p,
    dose_response,
    finished_runs,
    judge_dose,
    judge_outcome,
    label_points,
    treatment_of,
    updates_ratio,
    updates_to,
)
from qkrepro.evidence.claims import claim_named, judge
from qkrepro.evidence.numbers import book_root
from qkrepro.evidence.outcomes import MARGINS
from qkrepro.training.sweep import read_sweep
from qkrepro.training.tables import sweep_tables

ROLES = {"baseline": "baseline", "concentrating": "tau16 0.01", "control": "shrink 0.01", "peer": "qk-norm"}
WOBBLE = (-1.0, 0.6, 1.0, -0.8, 0.2)  # of the seeds, in margins; mean 0


def confirmation(effect=0.0, noise=0.1, concentrated=50.0, seeds=CONFIRMATION_SEEDS) -> pd.DataFrame:
    """Make five seeds of the four arms; the concentrating one differs by `effect` margins, to the better side."""
    rows = []
    for seed in range(10, 10 + seeds):
        for place, (role, arm) in enumerate(ROLES.items()):
            shift = effect if role == "concentrating" else 0.0
            wobble = noise * WOBBLE[(seed + 2 * place) % len(WOBBLE)]
            values = {name: 4 + seed + MARGINS[name] * (better * shift + wobble) for name, better in BETTER.items()}
            wide = concentrated if role == "concentrating" else 1.0
            n = {"concentration": wide * (1 + 0.01 * seed), "walk_concentration": 1 + 0.001 * seed}
            rows.append({"seed": seed, "role": role, "arm": arm, "d_model": 128, "missed": 0} | values | n)
    return pd.DataFrame(rows)


CASES = {
    "reproduced": confirmation(effect=4),
    "partly": confirmation(effect=0.5, noise=0.05),
    "not reproduced": confirmation(effect=-4),
    "inconclusive": confirmation(effect=0.5, noise=5),
    "not a test": confirmation(effect=4, concentrated=1.2),
    "not run": confirmation(effect=4, seeds=4),
}


@pytest.mark.parametrize("outcome", CASES)
@pytest.mark.parametrize(
    "claim", [claim for claim in CLAIMS if claim.tables == ("confirmation",)], ids=lambda c: c.name
)
def test_the_word_follows_the_paired_differences(claim, outcome):
    verdict = judge(claim, {"confirmation": CASES[outcome]})
    assert verdict.outcome == outcome
    if verdict.of:
        assert verdict.of == CONFIRMATION_SEEDS
        assert verdict.holds == {"reproduced": 5, "partly": 5, "not reproduced": 0}.get(outcome, verdict.holds)


def test_without_the_baseline_of_a_seed_there_is_no_check_and_no_verdict():
    table = confirmation(effect=4)
    table = table[(table["role"] != "baseline") | (table["seed"] > 10)]
    for claim in (claim for claim in CLAIMS if claim.tables == ("confirmation",)):
        assert judge(claim, {"confirmation": table}).outcome == "not run", claim.name


def test_equal_arms_are_not_reproduced_because_the_interval_is_inside_the_margin():
    assert judge_outcome({"confirmation": confirmation(effect=0.0)}, outcome="entropy").outcome == "not reproduced"


def test_a_trade_off_between_entropy_and_rank_is_not_expressivity():
    table = confirmation(effect=4)
    arm = table["role"] == "concentrating"
    table.loc[arm, "residual"] -= 8 * MARGINS["residual"]
    verdict = judge(claim_named(CLAIMS, "concentrating-eases-both-collapses"), {"confirmation": table})
    assert verdict.outcome == "not reproduced"
    assert verdict.because.startswith("entropy: reproduced; rank: not reproduced")


def test_holm_runs_over_the_comparisons_that_are_there():
    table = CASES["inconclusive"]
    p_values = corrected_p(table, "entropy")
    wide = table.pivot(index="seed", columns="role", values="entropy")
    raw = [stats.ttest_rel(wide[arm], wide[against]).pvalue for arm, against in p_values.index]
    assert list(p_values.index) == [
        ("concentrating", "baseline"),
        ("control", "baseline"),
        ("peer", "baseline"),
        ("concentrating", "control"),
    ]
    assert p_values.iloc[int(np.argmin(raw))] == pytest.approx(min(1, 4 * min(raw)))


def curve(updates, losses) -> pd.DataFrame:
    return pd.DataFrame({"update": updates, "valid_loss": losses})


def test_updates_to_a_loss_are_linear_between_evaluations():
    falling = curve([0, 100, 200], [8.0, 6.0, 5.0])
    assert updates_to(falling, 7.0) == 50
    assert updates_to(falling, 5.5) == 150
    assert updates_to(falling, 4.0) == 300  # never: the budget and one interval more


def test_a_run_that_is_twice_as_fast_needs_half_of_the_updates():
    at = np.arange(0, 401, 100)
    slow, fast = curve(at, 8 - at / 100), curve(at, 8 - 2 * at / 100)
    ratio, missed = updates_ratio(fast, slow)
    assert ratio == pytest.approx(np.log(0.5))
    assert missed == 0
    assert updates_ratio(slow, fast)[1] == 1  # of its three losses, the last is out of reach
    assert updates_ratio(slow, slow)[0] == pytest.approx(0)


def the_map(sign=1.0, noise=0.1, arms=14, seeds=3, by_norm=False) -> pd.DataFrame:
    """Make a map whose outcomes follow N (or the norm alone) with this sign: perplexity falls, entropy rises."""
    generator = np.random.default_rng(1)
    n, norm = generator.permutation(arms) + 1.0, generator.permutation(arms) + 1.0
    cause = norm if by_norm else n
    mixed = norm + 0.3 * n if by_norm else n
    rows = [
        {
            "seed": seed, "arm": f"tau{arm}", "treatment": "tau16" if arm else "baseline", "strength": 0.01,
            "log perplexity": -sign * cause[arm] + noise * generator.normal(),
            "entropy": sign * cause[arm] + noise * generator.normal(),
            "concentration": mixed[arm], "walk_concentration": mixed[arm],
            "frobenius": norm[arm], "walk_frobenius": norm[arm], "residual": 0.8, "d_model": 128,
        }
        for seed in range(seeds)
        for arm in range(arms)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("runs", "outcome"),
    [
        (the_map(), "reproduced"),
        (the_map(by_norm=True), "partly"),
        (the_map(sign=-1.0), "not reproduced"),
        (the_map(noise=1e4), "inconclusive"),
        (the_map(seeds=2), "not run"),
        (the_map(arms=8), "not run"),
    ],
)
def test_the_dose_response_follows_the_order_of_the_arms(runs, outcome):
    dose = dose_response(runs, permutations=999)
    judged = {name: judge_dose({"dose": dose}, n="N_W", outcome=name).outcome for name in DOSES}
    assert set(judged.values()) == {outcome}


def p_values_of_noise(arrange, draws=120):
    """Return p-values of entropies that are noise, one for each arm at all its seeds; the runs as `arrange` has them.

    In the map perplexity follows N, so that Holm takes it first and doubles the p-value of the entropy, up to one.
    """
    p_values = []
    for seed in range(draws):
        noise = np.random.default_rng(seed).normal(size=12)
        dose = dose_response(arrange(the_map(arms=12).assign(entropy=np.tile(noise, 3))), permutations=199, seed=seed)
        p_values.append(dose.loc[dose["outcome"] == "entropy", "p"].iloc[0])
    return np.array(p_values)


def distance_from_uniform(doubled):
    """Return the p-value of the hypothesis that p-values, doubled and cut off at one, come from the uniform law."""
    above = stats.binomtest(int((doubled == 1).sum()), len(doubled), 0.5).pvalue
    return min(above, stats.kstest(doubled[doubled < 1], "uniform").pvalue)


def test_the_permutation_p_value_of_noise_is_uniform():
    assert distance_from_uniform(p_values_of_noise(lambda runs: runs)) > 0.02


def test_seeds_that_count_as_arms_of_their_own_make_noise_significant():
    apart = p_values_of_noise(lambda runs: runs.assign(arm=runs["arm"] + " " + runs["seed"].astype(str), seed=0))
    assert distance_from_uniform(apart) < 1e-4


@pytest.mark.parametrize("count", [1, 12, 20])
def test_names_of_points_stand_apart_in_the_order_of_their_heights(count):
    _, axis = plt.subplots(figsize=(7.2, 3.2))
    axis.set(xlim=(0, 1), ylim=(0, 1))
    heights = np.linspace(0.3, 0.32, count)
    label_points(axis, pd.DataFrame({"name": [f"tau{i}" for i in range(count)], "x": 0.5, "y": heights, "colour": "k"}))
    places = [text.xyann[1] for text in axis.texts]
    plt.close()
    assert [text.get_text() for text in axis.texts] == [f"tau{i}" for i in range(count)]
    assert min(places) >= 0
    assert max(places) <= 1 + 1e-9
    assert (np.diff(places) >= min(0.05, 1 / max(count - 1, 1)) - 1e-9).all()


def test_concentrated_starts_and_peers_are_no_doses():
    runs = the_map()
    other = runs[runs["arm"] == "tau1"].assign(arm="start16 0.01", treatment="start16")
    peer = runs[runs["arm"] == "tau1"].assign(arm="qk-norm", treatment="qk-norm")
    pd.testing.assert_frame_equal(
        dose_response(pd.concat([runs, other, peer]), permutations=9), dose_response(runs, permutations=9)
    )


def test_the_choice_takes_the_best_arm_that_concentrates_and_waits_for_the_whole_map():
    rows = []
    for seed in range(3):
        for arm, treatment, loss, n in (
            ("baseline", "baseline", 4.5, 1.0), ("shrink 0.01", "shrink", 4.4, 0.1), ("shrink 0.1", "shrink", 4.6, 0.1),
            ("tau16 0.01", "tau16", 4.45, 60.0), ("tau8 0.01", "tau8", 4.42, 1.1), ("qk-norm", "qk-norm", 4.3, 1.0),
        ):  # fmt: skip
            values = {"log perplexity": loss + 0.001 * seed, "entropy": 3.0, "residual": 0.8}
            n_values = {"concentration": n * (1 + 0.01 * seed), "walk_concentration": 1.0}
            row = {"seed": seed, "arm": arm, "treatment": treatment, "strength": 0.01, "d_model": 128}
            rows.append(row | values | n_values)
    runs = pd.DataFrame(rows)
    assert chosen_arms(runs, planned=len(runs) + 1) == {}
    chosen = chosen_arms(runs, planned=len(runs))
    assert chosen == {"concentrating": "tau16 0.01", "control": "shrink 0.01", "peer": "qk-norm"}
    assert arms_of_the_map(runs).set_index("arm").loc["tau16 0.01", "passes"] == "N_W"


def test_every_run_of_the_map_has_the_name_that_the_plan_gives_it():
    folder = book_root() / "results"
    plan = (folder / "PLAN.md").read_text()
    sweeps = [folder / f"{name}.yaml" for name in ("map-middle", "map-peers", "map-strengths")]
    runs = [asdict(run) for sweep in sweeps for run in read_sweep(sweep)]
    assert len(runs) == 195
    names = {treatment_of(run) for run in runs}
    assert len(names) == 20
    for name in names - {"qk-weight-decay", "start16-plain", "start64-plain"}:
        assert name in plan, name
    recorded = finished_runs(sweep_tables(sweeps[0]))
    assert {"baseline", "shrink", "tau16", "keep"} <= set(recorded["treatment"])
    assert READS[0] == "results/PLAN.md"


def test_a_sweep_without_records_has_no_finished_runs(tmp_path):
    (tmp_path / "none.yaml").write_text("fixed: {epochs: 1}\nlists: {seed: [0]}\n")
    assert finished_runs(sweep_tables(tmp_path / "none.yaml")).empty
