"""The chapter "Does the true softmax do this?": its rules on data of every kind, its tables against definitions."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from qkrepro.chapters.true_softmax import (
    CLAIMS,
    agreement_table,
    cumulative_profiles,
    late_mass,
    location_profiles,
    trusted_from,
)
from qkrepro.errors import ArgumentError
from qkrepro.evidence.claims import claim_named, judge, sensitivity
from qkrepro.theory.attention import saturation, softmax_attention, softmax_gradient_mass
from qkrepro.theory.softmax_forms import closed_form_table, scaled_tokens


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def agreement(*settings):
    """Settings of (distance between the profiles, half its interval, distance of the less flat one from flat)."""
    rows = [
        {"tokens": "walk", "setting": str(number), "localized": localized, "total_variation": distance,
         "low": distance - half, "high": distance + half}
        for number, (distance, half, localized) in enumerate(settings)
    ]  # fmt: skip
    return {"agreement": pd.DataFrame(rows)}


def closed_forms(*values):
    """Simulated values and standard errors beside a prediction of 1."""
    rows = [
        {"form": "f", "case": str(number), "predicted": 1.0, "simulated": value, "standard_error": error}
        for number, (value, error) in enumerate(values)
    ]
    return {"closed_forms": pd.DataFrame(rows)}


@pytest.mark.parametrize(
    ("name", "tables", "outcome"),
    [
        ("softmax-localizes-likewise", agreement((0.1, 0.02, 0.6)), "reproduced"),
        ("softmax-localizes-likewise", agreement((0.1, 0.02, 0.6), (0.5, 0.02, 0.6)), "partly"),
        ("softmax-localizes-likewise", agreement((0.5, 0.02, 0.6)), "not reproduced"),
        ("softmax-localizes-likewise", agreement((0.2, 0.1, 0.6)), "inconclusive"),
        ("softmax-localizes-likewise", agreement((0.01, 0.0, 0.05)), "not run"),  # two flat profiles test nothing
        ("softmax-closed-forms", closed_forms((1.01, 0.005), (0.99, 0.01)), "reproduced"),
        ("softmax-closed-forms", closed_forms((1.01, 0.005), (1.3, 0.01)), "not reproduced"),
        ("softmax-closed-forms", closed_forms((1.01, 0.005), (1.3, 0.3)), "inconclusive"),  # weak data decide nothing
    ],
)
def test_data_decide_the_verdict(name, tables, outcome):
    verdict = judge(claim_named(CLAIMS, name), tables)
    assert verdict.outcome == outcome, verdict.because


def test_agreement_of_flat_profiles_does_not_make_a_claim_partly_true():
    verdict = judge(CLAIMS[0], agreement((0.5, 0.02, 0.6), (0.01, 0.0, 0.05)))
    assert (verdict.outcome, verdict.holds, verdict.of) == ("not reproduced", 0, 1)


def test_the_verdicts_move_with_their_thresholds():
    table = sensitivity(CLAIMS[0], agreement((0.25, 0.02, 0.6)))
    assert table.set_index("threshold")["outcome"][[0.2, 0.3]].tolist() == ["not reproduced", "reproduced"]
    table = sensitivity(CLAIMS[1], closed_forms((1.04, 0.001)))
    assert table.set_index("threshold")["outcome"][[0.03, 0.05]].tolist() == ["not reproduced", "reproduced"]


def profiles(**changes):
    arguments = {"length": 12, "draws": 30, "coefficient": 0.9, "seeds": [1, 2], **changes}
    return location_profiles({"one": torch.eye(5) / 2}, [0.5, 8.0], **arguments)


def test_location_profiles_are_shares_and_means_over_the_same_draws():
    table = profiles(seeds=[7])
    g = generator(7)
    tokens = scaled_tokens("raw walk", 12, 5, coefficient=0.9, batch=30, generator=g)
    logits = torch.stack([x @ x[-1] / 2 for x in tokens])
    rows = table[(table["tokens"] == "raw walk") & (table["temperature"] == 8.0)]
    free = (saturation(logits, 8.0) == 0).double().mean(0)
    mass = softmax_gradient_mass(softmax_attention(logits, 8.0)).site.mean(0)
    assert rows["linear"].tolist() == pytest.approx(free.tolist())
    assert rows["mass"].tolist() == pytest.approx(mass.tolist())


def test_agreement_is_the_distance_of_the_normalised_profiles_and_of_the_less_flat_one_from_flat():
    table = profiles()
    table.loc[:, "linear"], table.loc[:, "mass"] = 1.0, 2.0
    assert agreement_table(table)[["total_variation", "localized"]].abs().max().max() < 1e-12
    first = table["theta"] == table["theta"].min()
    table["linear"], table["mass"] = first.astype(float), (~first).astype(float)
    assert agreement_table(table)["total_variation"].tolist() == pytest.approx([1.0] * 8)
    assert agreement_table(table)["localized"].tolist() == pytest.approx([11 / 12] * 8)


def test_cumulative_profiles_end_at_one():
    table = cumulative_profiles(profiles())
    last = table[table["theta"] == 1.0]
    assert last["linear"].tolist() == pytest.approx([1.0] * len(last))
    assert last["mass"].tolist() == pytest.approx([1.0] * len(last))


def test_trusted_from_is_the_end_of_the_unbroken_run_from_the_hot_side():
    high = {1.0: 0.1, 4.0: 0.3, 16.0: 0.15, 64.0: 0.01}
    rows = [{"tokens": "a", "spectrum": "s", "temperature": t, "spread": 10 / t, "high": h} for t, h in high.items()]
    never = [{"tokens": "b", "spectrum": "s", "temperature": 1.0, "spread": 1.0, "high": 0.9}]
    table = trusted_from(pd.DataFrame(rows + never), 0.2).set_index("tokens")
    assert table.loc["a", "temperature"] == 16.0
    assert table.loc["a", "spread"] == 10 / 16
    assert math.isnan(table.loc["b", "temperature"])


def test_gradient_of_the_true_softmax_sits_in_the_last_sites_of_raw_walks():
    late = late_mass([1.0, 4.0, 8.0], dim=64, length=128, share=0.05, draws=200, generator=generator())
    assert (late["softmax"] > 0.9).all()
    assert (late["linear"] < 0.2).all()


def test_closed_forms_lie_within_four_standard_errors_or_two_percent_of_simulation():
    g = generator(5)
    noise = torch.randn(24, 24, generator=g, dtype=torch.float64) / 24
    table = closed_form_table(
        {"general": noise, "equal": torch.eye(24) / 24},
        [0.3, 1.0],
        [-2.0, 2.0],
        temperature=500.0,
        lengths=(20, 16, 200),
        dims=(3000, 600),
        draws=(3000, 40, 40),
        generator=g,
    )
    assert table["form"].tolist() == ["high temperature"] * 2 + ["geometric"] * 2 + ["normalised walk"] * 2
    allowed = np.maximum(4 * table["standard_error"], 0.02 * table["simulated"].abs())
    assert ((table["predicted"] - table["simulated"]).abs() <= allowed).all()


def test_unknown_token_law_is_named():
    with pytest.raises(ArgumentError, match="law must be one of raw walk"):
        scaled_tokens("walk", 4, 3, coefficient=0.5, batch=1, generator=generator())
