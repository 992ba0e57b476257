"""The tables of the chapter on the true softmax against the definitions behind them."""

import math

import pandas as pd
import pytest
import torch

from qkrepro.chapters import true_softmax
from qkrepro.chapters.true_softmax import (
    agreement_table,
    cumulative_profiles,
    deficit_comparison,
    draw_tokens,
    geometric_comparison,
    late_mass,
    normalised_comparison,
    trusted_from,
)
from qkrepro.errors import ArgumentError
from qkrepro.theory.attention import saturation, softmax_attention, softmax_gradient_mass


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def location_profiles(**changes):
    arguments = {"length": 12, "draws": 30, "coefficient": 0.9, "seeds": [1, 2], **changes}
    return true_softmax.location_profiles({"one": torch.eye(5) / 2}, [0.5, 8.0], **arguments)


def test_location_profiles_are_shares_and_means_over_the_same_draws():
    table = location_profiles(seeds=[7])
    g = generator(7)
    tokens = draw_tokens("raw walk", 12, 5, coefficient=0.9, batch=30, generator=g)
    logits = torch.stack([x @ x[-1] / 2 for x in tokens])
    rows = table[(table["tokens"] == "raw walk") & (table["temperature"] == 8.0)]
    free = (saturation(logits, 8.0) == 0).double().mean(0)
    mass = softmax_gradient_mass(softmax_attention(logits, 8.0)).site.mean(0)
    assert rows["linear"].tolist() == pytest.approx(free.tolist())
    assert rows["mass"].tolist() == pytest.approx(mass.tolist())


def test_agreement_is_the_distance_of_the_normalised_profiles():
    table = location_profiles()
    table.loc[:, "linear"], table.loc[:, "mass"] = 1.0, 2.0
    assert agreement_table(table)["total_variation"].abs().max() < 1e-12
    first = table["theta"] == table["theta"].min()
    table["linear"], table["mass"] = first.astype(float), (~first).astype(float)
    assert agreement_table(table)["total_variation"].tolist() == pytest.approx([1.0] * 8)


def test_cumulative_profiles_end_at_one():
    table = cumulative_profiles(location_profiles())
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


def test_comparisons_with_closed_forms_lie_within_four_standard_errors_or_two_percent():
    g = generator(5)
    noise = torch.randn(24, 24, generator=g, dtype=torch.float64) / 24
    tables = [
        deficit_comparison(
            {"general": noise, "equal": torch.eye(24) / 24}, length=20, temperature=500.0, draws=3000, generator=g
        ),
        geometric_comparison([0.3, 1.0], dim=3000, length=16, draws=40, generator=g),
        normalised_comparison([-2.0, 2.0], dim=600, length=200, draws=40, generator=g),
    ]
    table = pd.concat(tables)
    allowed = (4 * table["standard_error"]).clip(lower=0.02 * table["simulated"].abs())
    assert ((table["predicted"] - table["simulated"]).abs() <= allowed).all()


def test_unknown_token_law_is_named():
    with pytest.raises(ArgumentError, match="law must be one of raw walk"):
        draw_tokens("walk", 4, 3, coefficient=0.5, batch=1, generator=generator())
