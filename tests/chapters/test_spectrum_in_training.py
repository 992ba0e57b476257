"""Whether the penalty concentrated: the rule, and the ratios that it reads."""

import numpy as np
import pandas as pd
import pytest

from qkrepro.chapters.spectrum_in_training import CLAIMS, run_ends
from qkrepro.evidence.claims import claim_named, judge, sensitivity
from qkrepro.evidence.outcomes import concentration_ratios, passed_by, ratio_interval

CLAIM = claim_named(CLAIMS, "locater-concentrates")


def ends(w: list[float], m: list[float]) -> dict[str, pd.DataFrame]:
    """Baselines with N_W = N_M = 1 and an arm with these, a value a seed."""
    base = pd.DataFrame({"seed": range(len(w)), "arm": "baseline", "d_model": 128})
    arm = base.assign(arm="locater", concentration=w, walk_concentration=m)
    return {"ends": pd.concat([base.assign(concentration=1.0, walk_concentration=1.0), arm])}


@pytest.mark.parametrize(
    ("w", "m", "outcome", "holds"),
    [
        ([3.0, 3.1, 2.9], [1.0, 1.1, 0.9], "reproduced", 3),
        ([0.5, 0.6, 0.4], [3.0, 3.1, 2.9], "reproduced", 3),
        ([0.5, 0.6, 0.4], [1.0, 1.1, 0.9], "not reproduced", 0),
        ([0.5, 9.0, 1.0], [1.0, 1.1, 0.9], "inconclusive", 1),
        ([3.0, 3.1], [3.0, 3.1], "not run", None),
    ],
)
def test_the_rule_answers_support_refutation_and_silence(w, m, outcome, holds):
    verdict = judge(CLAIM, ends(w, m))
    assert (verdict.outcome, verdict.holds) == (outcome, holds)


def test_the_verdict_is_shown_over_its_threshold():
    result = sensitivity(CLAIM, ends([2.4, 2.5, 2.6], [1.0, 1.1, 0.9])).set_index("threshold")["outcome"]
    assert (result[1.5], result[2.0], result[3.0]) == ("reproduced", "reproduced", "not reproduced")


def test_a_ratio_counts_random_weights_as_one_over_d_and_passes_only_with_its_interval_above_one():
    table = ends([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])["ends"]
    table.loc[table["arm"] == "baseline", "concentration"] = 1e-6
    assert concentration_ratios(table)["N_W"] == pytest.approx([128] * 3)
    assert ratio_interval([1.0, 2.0, 4.0]).estimate == pytest.approx(2)
    assert passed_by({"N_W": [0.5, 9.0, 9.0], "N_M": [2.1, 2.0, 2.2]}) == ["N_M"]


def test_the_ends_of_a_run_are_its_last_evaluation():
    rows = [
        {"run": f"{kappa}", "seed": 0, "kappa": kappa, "update": update, "d_model": 128, "concentration": float(update)}
        for kappa in (0.0, 0.1, 0.2)
        for update in (0, 10)
    ]
    curves = pd.DataFrame(rows).assign(**dict.fromkeys(["trace", "frobenius", "walk_trace", "walk_frobenius"], 1.0))
    result = run_ends(curves.assign(walk_concentration=np.nan), 0.1)
    assert result[["arm", "concentration"]].to_numpy().tolist() == [["baseline", 10.0], ["locater", 10.0]]
