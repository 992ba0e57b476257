"""The closed forms for Gaussian logits against draws, and the error of the linearisation against its expansion."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, stats

from qkrepro.chapters.softmax_linearisation import (
    CLAIMS,
    gaussian_clipping,
    linearisation_draws,
    linearisation_error,
    moved_logit,
    peaked_rows,
    small_spread_error,
)
from qkrepro.errors import ArgumentError
from qkrepro.evidence.claims import claim_named, judge


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("length", [2, 5, 64])
def test_closed_forms_of_clipping_match_draws_within_four_standard_errors(length):
    spreads = [0.3, 1.0, 3.0, 30.0]
    table = linearisation_draws(spreads, length=length, temperature=2.5, draws=4000, generator=seeded(3))
    closed = gaussian_clipping(torch.tensor(spreads), length)
    for row, (_, group) in enumerate(table.groupby("spread")):
        for name in ("share_low", "share_high", "row_sum"):
            error = group[name].std() / math.sqrt(len(group))
            assert (
                abs(group[name].mean() - float(getattr(closed, name)[row])) <= 4 * error + 1e-5
            )  # events too rare for the draws


def test_row_sum_equals_the_integral_over_the_clipped_weight():
    closed = gaussian_clipping(torch.tensor([2.0]), 4)
    law = stats.norm(scale=2 * math.sqrt(0.75))
    clipped, _ = integrate.quad(lambda u: np.clip(1 + u, 0, 4) * law.pdf(u), -1, 40, points=[3])
    assert float(closed.row_sum) == pytest.approx(clipped, rel=1e-8)


def test_error_at_small_spread_is_the_second_order_term():
    table = linearisation_draws([1e-3], length=4096, temperature=1.0, draws=50, generator=seeded(1))
    error = table["error"].std() / math.sqrt(50)
    assert abs(table["error"].mean() - float(small_spread_error(torch.tensor(1e-3)))) < 4 * error + 1e-3 * 4.84e-7


def test_error_of_one_dominating_key_is_known_exactly():
    logits = torch.tensor([0.0, 0.0, 0.0, 3.0], dtype=torch.float64)  # T = 4, mean 3/4, S = (1/16, .., 13/16)
    softmax = math.exp(3) / (math.exp(3) + 3)
    assert float(linearisation_error(logits)) == pytest.approx(2 * abs(13 / 16 - softmax), rel=1e-13)


def test_masked_row_has_the_error_of_its_visible_keys():
    logits = torch.randn(6, generator=seeded(4), dtype=torch.float64)
    mask = torch.tensor([True, True, False, True, False, True])
    torch.testing.assert_close(linearisation_error(logits, mask=mask), linearisation_error(logits[mask]))


def test_moved_key_leaves_the_linear_range_at_the_two_thresholds():
    offsets = torch.tensor([-2.5 * 8 / 7, -1.0, 0.0, 2.5 * 8], dtype=torch.float64)
    linear = moved_logit(offsets, length=8, temperature=2.5)["linear"]
    np.testing.assert_allclose(linear, [0.0, (1 - 0.4 * 7 / 8) / 8, 1 / 8, 1.0], atol=1e-15)


def test_row_with_a_peak_is_decided_by_softmax_long_before_a_key_is_clipped():
    table = peaked_rows([0.0, 15.0, 17.0], length=16, temperature=2.5).set_index("peak")
    assert table["unsaturated"].tolist() == [1.0, 1.0, 0.0]  # clipped from λT = 16 λ on: the peak at 1, the others at 0
    assert table.loc[0.0, "entropy"] == pytest.approx(math.log(16))
    weight = math.exp(15) / (math.exp(15) + 15)
    assert table.loc[15.0, "mass"] == pytest.approx(1 - weight**2 - 15 * ((1 - weight) / 15) ** 2, rel=1e-6)


def error(power, at_one, noise=0.01):
    """Draws whose error is `at_one` times the spread to a power that varies by `noise` between draws."""
    rows = [
        {"spread": s, "draw": d, "error": at_one * s ** (power + noise * (d - 2)) * (1 + noise * (d - 2))}
        for s in (0.01, 0.03, 0.1, 1.0)
        for d in range(5)
    ]
    return {"error": pd.DataFrame(rows)}


@pytest.mark.parametrize(
    ("tables", "outcome"),
    [
        (error(2, 0.05), "reproduced"),
        (error(2, 0.5), "partly"),
        (error(1, 0.05), "not reproduced"),
        (error(0, 0.05), "not reproduced"),
        (error(2, 0.05, noise=0.4), "inconclusive"),
        (error(2, 0.1), "inconclusive"),
        ({"error": error(2, 0.05)["error"].query("spread < 1")}, "not run"),
    ],
)
def test_data_decide_the_verdict(tables, outcome):
    verdict = judge(claim_named(CLAIMS, "linearisation-first-order"), tables)
    assert verdict.outcome == outcome, verdict.because


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_clipping(torch.tensor([0.0]), 4), "spread must be finite and > 0, got 0.0"),
        (lambda: gaussian_clipping(torch.tensor([1.0]), 1), "length must be an integer >= 2, got 1"),
        (
            lambda: linearisation_draws([-1.0], length=4, temperature=1.0, draws=2, generator=seeded()),
            "spreads must be finite and > 0",
        ),
        (
            lambda: linearisation_draws([1.0], length=4, temperature=1.0, draws=0, generator=seeded()),
            "draws must be an integer >= 1, got 0",
        ),
        (lambda: moved_logit(torch.ones(3), length=1), "length must be an integer >= 2, got 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
