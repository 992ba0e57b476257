"""The rules on positional and semantic attention on data that support them, refute them and say nothing."""

import pandas as pd
import pytest

from qkrepro.chapters.positional_or_semantic import CLAIMS, descend
from qkrepro.evidence.claims import claim_named, judge
from qkrepro.theory.two_mechanisms import draw_samples, fixed_point


def comparison(*values):
    rows = [(f"number {k}", value, value, 1.0) for k, value in enumerate(values)]
    return {"comparison": pd.DataFrame(rows, columns=["quantity", "low", "high", "published"])}


def descents(*gaps, seeds=(0, 1), theta=0.15, size=2.0):
    """Energy gaps, semantic minus positional, at ascending α from 1; m and θ as the starts named them."""
    rows = [
        {"weight": 0.3, "alpha": 1.0 + k, "seed": seed, "mechanism": name, "energy": gap * (name == "semantic"),
         "m": 0.25 * (name == "positional"), "theta": theta * (name == "semantic"),
         "q": 0.05 * (size + 0.01 * seed if name == "semantic" else 1)}
        for k, gap in enumerate(gaps)
        for seed in seeds
        for name in ("positional", "semantic")
    ]  # fmt: skip
    return {"descents": pd.DataFrame(rows)}


@pytest.mark.parametrize(
    ("name", "tables", "outcome"),
    [
        ("positional-or-semantic-numbers", comparison(1.01, 0.99), "reproduced"),
        ("positional-or-semantic-numbers", comparison(1.01, 1.5), "partly"),
        ("positional-or-semantic-numbers", comparison(1.5), "not reproduced"),
        ("positional-or-semantic-numbers", comparison(), "not run"),
        ("samples-make-semantic", descents(1.0, -1.0), "reproduced"),
        ("samples-make-semantic", descents(1.0, 0.5), "not reproduced"),
        ("samples-make-semantic", descents(1.0), "not run"),
        ("eigenvector-names-mechanism", descents(1.0), "reproduced"),
        ("eigenvector-names-mechanism", descents(1.0, size=0.5), "not reproduced"),
        ("eigenvector-names-mechanism", descents(1.0, theta=0.0), "not reproduced"),
        ("eigenvector-names-mechanism", descents(1.0, seeds=(0,)), "not run"),
    ],
)
def test_data_decide_the_verdict(name, tables, outcome):
    verdict = judge(claim_named(CLAIMS, name), tables)
    assert verdict.outcome == outcome, verdict.because


def test_descent_agrees_with_the_theory_at_a_small_dimension():
    theory = fixed_point(2.0, draw_samples(0.3, 512, 0), "semantic")
    semantic = descend(2.0, 0.3, dim=200, steps=1500, seed=0).iloc[1]
    assert semantic["theta"] == pytest.approx(theory["theta"], rel=0.15)
