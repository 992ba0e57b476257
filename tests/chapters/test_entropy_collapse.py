"""The chapter "Entropy collapse": its rules on data that support, refute or say nothing, and its tables."""

import numpy as np
import pandas as pd
import pytest
import torch

from qkrepro.chapters.entropy_collapse import (
    CLAIMS,
    bound_curves,
    bound_table,
    deficit_matrices,
    deficit_table,
    entropy_plane,
)
from qkrepro.evidence.claims import claim_named, judge, sensitivity
from qkrepro.theory.spectrum import matrix_moments

JITTER = np.linspace(-0.02, 0.02, 10)
WIDE = np.array([-0.4] * 5 + [0.4] * 5)


def entropy(*pairs, noise=JITTER):
    """A mean per pair of entropy ratios, at the least and at the greatest dispersion."""
    rows = [
        {"tokens": "walk", "mean_scaled": float(mean), "dispersion": spread, "seed": seed, "entropy_ratio": value}
        for mean, pair in enumerate(pairs, 1)
        for seed in range(len(noise))
        for spread, value in ((0.1, pair[0] + noise[seed]), (10.0, pair[1]))
    ]
    return {"entropy": pd.DataFrame(rows)}


def bound(*rows):
    return {"bound": pd.DataFrame(rows, columns=["setting", "entropy", "entropy_ratio", "bound"])}


def deficit(trace, norm):
    """(excess, half its interval) of the other matrix of equal trace, and of equal norm, at the hottest temperature."""
    rows = [
        {"fixed": fixed, "spectrum": name, "temperature": hot, "excess": value, "excess_low": value - half,
         "excess_high": value + half}
        for hot, sign in ((10.0, -1), (100.0, 1))  # the cooler one says the opposite and is not judged
        for fixed, (excess, half) in (("trace", trace), ("Frobenius norm", norm))
        for name, value in (("concentrated", 0.0), ("other", sign * excess))
    ]  # fmt: skip
    return {"deficit": pd.DataFrame(rows)}


@pytest.mark.parametrize(
    ("name", "tables", "outcome"),
    [
        ("prevents-entropy-collapse", entropy((0.8, 0.2), (0.7, 0.1)), "reproduced"),
        ("prevents-entropy-collapse", entropy((0.8, 0.2), (0.3, 0.1)), "partly"),
        ("prevents-entropy-collapse", entropy((0.3, 0.2), (0.2, 0.8)), "not reproduced"),
        ("prevents-entropy-collapse", entropy((0.5, 0.0), noise=WIDE), "inconclusive"),
        ("concentration-raises-entropy", entropy((0.3, 0.2), (0.2, 0.1)), "reproduced"),
        ("concentration-raises-entropy", entropy((0.3, 0.2), (0.1, 0.3)), "partly"),
        ("concentration-raises-entropy", entropy((0.2, 0.3)), "not reproduced"),
        ("concentration-raises-entropy", entropy((0.5, 0.5), noise=WIDE), "inconclusive"),
        ("what-is-fixed-decides-entropy", deficit((1.0, 0.1), (-1.0, 0.1)), "reproduced"),
        ("what-is-fixed-decides-entropy", deficit((1.0, 0.1), (1.0, 0.1)), "partly"),
        ("what-is-fixed-decides-entropy", deficit((-1.0, 0.1), (1.0, 0.1)), "not reproduced"),
        ("what-is-fixed-decides-entropy", deficit((0.1, 1.0), (-0.1, 1.0)), "inconclusive"),
        ("entropy-bound-informs", bound(("a", 2.0, 0.5, 1.0)), "reproduced"),
        ("entropy-bound-informs", bound(("a", 2.0, 0.5, 1.0), ("b", 2.0, 0.5, 0.01)), "partly"),
        ("entropy-bound-informs", bound(("a", 2.0, 0.5, 0.01)), "not reproduced"),
        ("entropy-bound-informs", bound(("a", 2.0, 0.5, 2.1)), "not reproduced"),  # a violation
        ("entropy-bound-informs", bound(("a", 4.0, 0.99, 4.0)), "inconclusive"),  # uniform attention tests nothing
    ],
)
def test_data_decide_the_verdict(name, tables, outcome):
    verdict = judge(claim_named(CLAIMS, name), tables)
    assert verdict.outcome == outcome, verdict.because


def test_the_verdicts_move_with_their_thresholds():
    table = sensitivity(claim_named(CLAIMS, "prevents-entropy-collapse"), entropy((0.65, 0.1)))
    assert table.set_index("threshold")["outcome"][[0.5, 0.7]].tolist() == ["reproduced", "not reproduced"]
    table = sensitivity(claim_named(CLAIMS, "entropy-bound-informs"), bound(("a", 2.0, 0.5, 0.3)))
    assert table.set_index("threshold")["outcome"][[0.1, 0.5]].tolist() == ["reproduced", "not reproduced"]


def test_the_plane_has_every_law_mean_dispersion_and_seed_once():
    table = entropy_plane([-2.0, 2.0], [0.1, 4.0], seeds=range(2), length=8, dim=8)
    assert len(table) == 3 * 2 * 2 * 2
    assert not table.duplicated(["tokens", "mean_scaled", "dispersion", "seed"]).any()
    assert table["entropy_ratio"].between(0, 1.2).all()


def test_bounds_lie_below_the_entropy_the_sharper_the_closer():
    table = bound_table(4.0, length=12, dim=8, seeds=2)
    assert (table["violated"] == 0).all()
    assert (table["bound"] <= table["centred"] + 1e-9).all()
    assert (table["centred"] <= table["logits"] + 1e-9).all()
    assert (table["logits"] <= table["entropy"] + 1e-9).all()


def test_curves_of_the_bounds_rise_with_temperature():
    curves = bound_curves(4.0, [1.0, 1000.0], length=12, dim=8, seeds=2)
    wide = curves.pivot(index="quantity", columns="temperature", values="estimate")
    assert len(wide) == 4
    assert (wide[1000.0] >= wide[1.0]).all()


def test_matrices_share_what_is_fixed_and_the_deficit_is_ordered_as_derived():
    generator = torch.Generator().manual_seed(0)
    dim = 32
    matrices = deficit_matrices(4.0, dim, generator)
    moments = {fixed: {name: matrix_moments(w) for name, w in group.items()} for fixed, group in matrices.items()}
    assert [float(moment.trace) for moment in moments["trace"].values()] == pytest.approx([4.0] * 3)
    norms = [float(moment.frobenius_sq) for moment in moments["Frobenius norm"].values()]
    assert norms == pytest.approx([norms[0]] * 3)
    table = deficit_table(matrices, [3000.0], length=24, walks=400, generator=generator)
    predicted = table[table["fixed"] == "Frobenius norm"]["predicted"].to_numpy()
    assert predicted / predicted[2] == pytest.approx([dim + 3, 3, 1])
    assert (table["excess"] == 0).sum() == 2  # the concentrated matrix, in both groups
