"""The rules of masks and LayerNorm on data that support them, refute them and say nothing; masks and equilibria."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from qkrepro.chapters.masks_and_layernorm import CLAIMS, decay_rates
from qkrepro.evidence.claims import claim_named, judge
from qkrepro.theory.depth import Spectrum, Stack
from qkrepro.theory.masks import DISCONNECTED, equilibrium, is_connected, masks, residuals

JITTER, WIDE = np.linspace(-0.01, 0.01, 6), np.array([-2.0, 2.0] * 3)


def rates(*late: float, noise: np.ndarray = JITTER) -> dict[str, pd.DataFrame]:
    """Early rate 1, and the late rate of each of some masks."""
    rows = [(f"mask {n}", "s", seed, 1.0, value + noise[seed]) for n, value in enumerate(late) for seed in range(6)]
    return {"rates": pd.DataFrame(rows, columns=["mask", "spectrum", "seed", "early", "late"])}


def left(*logs: float, noise: np.ndarray = JITTER) -> dict[str, pd.DataFrame]:
    """Logarithm of the residual half way, of the causal mask and of windows from wide to narrow."""
    names = ["causal", *(f"window {width}" for width in (16, 8, 2)[: max(0, len(logs) - 1)])]
    rows = [
        (name, "s", seed, layer, np.exp(value + noise[(seed + number) % 6]))
        for number, (name, value) in enumerate(zip(names, logs, strict=False))
        for seed in range(6)
        for layer in (1, 2, 3, 4)
    ]
    return {"residuals": pd.DataFrame(rows, columns=["mask", "spectrum", "seed", "layer", "residual"])}


def fixed(*moved: float) -> dict[str, pd.DataFrame]:
    rows = [("causal", rank, rank, value, 0.0) for rank, value in enumerate(moved, 1)]
    return {"equilibria": pd.DataFrame(rows, columns=["mask", "rank", "numerical_rank", "moved", "orthogonality"])}


def kept(*pairs: tuple[float, ...]) -> dict[str, pd.DataFrame]:
    """Share of the rank kept at growing means, one entry a rank from 2."""
    rows = [("causal", mean, rank, v) for rank, pair in enumerate(pairs, 2) for mean, v in enumerate(pair)]
    return {"equilibria": pd.DataFrame(rows, columns=["mask", "scaled_mean", "rank", "kept_rank"])}


@pytest.mark.parametrize(
    ("name", "tables", "outcome"),
    [
        ("masks-collapse-exponentially", rates(1.0, 0.8), "reproduced"),
        ("masks-collapse-exponentially", rates(1.0, 0.2), "partly"),
        ("masks-collapse-exponentially", rates(0.2, 0.0), "not reproduced"),
        ("masks-collapse-exponentially", rates(0.5, noise=WIDE), "inconclusive"),
        ("masks-collapse-exponentially", rates(), "not run"),
        ("local-masks-collapse-slower", left(-9, -5, -3, -1), "reproduced"),
        ("local-masks-collapse-slower", left(-9, -5, -6), "partly"),
        ("local-masks-collapse-slower", left(-1, -3, -5), "not reproduced"),
        ("local-masks-collapse-slower", left(-5, -5, noise=WIDE), "inconclusive"),
        ("local-masks-collapse-slower", left(), "not run"),
        ("equilibria-of-every-rank", fixed(0.0, 1e-15), "reproduced"),
        ("equilibria-of-every-rank", fixed(0.0, 1e-2), "not reproduced"),
        ("equilibria-of-every-rank", fixed(), "not run"),
        ("a-large-mean-holds-the-rank", kept((0.1, 0.9), (0.2, 1.0)), "reproduced"),
        ("a-large-mean-holds-the-rank", kept((0.1, 0.9), (0.2, 0.3)), "partly"),
        ("a-large-mean-holds-the-rank", kept((0.9, 0.1)), "not reproduced"),
        ("a-large-mean-holds-the-rank", kept((0.9,)), "not run"),
    ],
)
def test_rules_follow_their_data(name: str, tables: Any, outcome: str) -> None:
    assert judge(claim_named(CLAIMS, name), tables).outcome == outcome


def test_all_masks_but_the_control_are_connected_and_every_query_sees_itself() -> None:
    drawn = masks(12, [2, 5], torch.Generator().manual_seed(3))
    assert {name for name, mask in drawn.items() if not is_connected(mask)} == {DISCONNECTED}
    for mask in drawn.values():
        assert mask.diagonal().all()
    assert drawn["window 2"].sum(1).tolist() == [1] + [2] * 11


def test_a_geometric_residual_has_one_rate_early_and_late() -> None:
    layers = np.arange(1, 9)
    table = pd.DataFrame({"mask": "m", "spectrum": "s", "seed": 0, "layer": layers, "residual": 0.5**layers})
    rates = decay_rates(table).iloc[0]
    assert rates["early"] == pytest.approx(np.log(2))
    assert rates["late"] == pytest.approx(np.log(2))


def test_halves_that_do_not_see_each_other_keep_their_difference() -> None:
    stack = Stack(layers=40, length=8, dim=8, tokens="independent", temperature=3.0)
    table = residuals({"s": Spectrum(0.0, 1.0)}, stack, [2], seeds=[0]).set_index(["mask", "layer"])["residual"]
    assert table["causal", 40] < 1e-6 < 0.01 < table[DISCONNECTED, 40]


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_pytorchs_own_attention_and_layer_norm_leave_the_equilibrium_where_it_is(rank: int) -> None:
    stack = Stack(length=16, dim=8)
    x, value = equilibrium(rank, stack, torch.Generator().manual_seed(rank))
    attended = nn.functional.scaled_dot_product_attention(x[None], x[None], (x @ value)[None], is_causal=True)
    torch.testing.assert_close(nn.LayerNorm(8, eps=0.0, dtype=torch.float64)(attended)[0], x)
    torch.testing.assert_close(value @ value.T, torch.eye(8, dtype=torch.float64))
    assert int(torch.linalg.matrix_rank(x)) == rank
