"""The rules of the two transitions on data that support them, refute them and say nothing; the exact sum of squares."""

import math

import pandas as pd
import pytest
import torch

from qkrepro.chapters.two_transitions import CLAIMS, critical_spread, expected_squares, limit
from qkrepro.errors import ArgumentError
from qkrepro.evidence.claims import claim_named, judge
from qkrepro.theory.random_energy import mean_participation
from qkrepro.theory.statistics import t_interval

Tables = dict[str, pd.DataFrame]


def freezing(*apart: float, noise: float = 0.01, seeds: int = 6) -> Tables:
    """Squares this far from what is expected, a law each."""
    rows = [(f"law {n}", 1.5, s, 0.4 + x + noise * (-1) ** s, 0.4) for n, x in enumerate(apart) for s in range(seeds)]
    return {"freezing": pd.DataFrame(rows, columns=["law", "ratio", "seed", "squares", "expected"])}


def by_length(table: str, by: str, value: str, *distances: tuple[float, ...]) -> Tables:
    """Distances from the limit at growing lengths, one tuple a setting."""
    rows = [(10 ** (k + 2), n, 0.3 + far, 0.3) for n, case in enumerate(distances) for k, far in enumerate(case)]
    return {table: pd.DataFrame(rows, columns=["length", by, value, "limit"])}


def stacks(bare: float, helped: float, entropy: float, *, noise: float = 0.01, seeds: int = 6) -> Tables:
    """Differences left below the threshold without and with a residual connection, and the entropy above it."""
    left = {
        (0.5, False): (bare, 0.9),
        (0.5, True): (helped, 0.9),
        (2.0, False): (0.9, 0.9),
        (2.0, True): (0.9, entropy),
    }
    rows = [
        (ratio, residual, s, 4, kept + noise * (-1) ** s, held + noise * (-1) ** s)
        for (ratio, residual), (kept, held) in left.items()
        for s in range(seeds)
    ]
    columns = ["ratio", "residual", "seed", "layer", "residual_ratio", "entropy_ratio"]
    return {"stacks": pd.DataFrame(rows, columns=columns)}


LENGTHS = ("lengths", "ratio", "squares")
SIMPLEX = ("simplex", "factor", "cosine")


@pytest.mark.parametrize(
    ("name", "tables", "outcome"),
    [
        ("one-threshold-for-all-tokens", freezing(0.0, 0.02), "reproduced"),
        ("one-threshold-for-all-tokens", freezing(0.0, 0.2), "partly"),
        ("one-threshold-for-all-tokens", freezing(0.2, -0.2), "not reproduced"),
        ("one-threshold-for-all-tokens", freezing(0.0, noise=0.5), "inconclusive"),
        ("one-threshold-for-all-tokens", freezing(0.0, seeds=1), "not run"),
        ("squared-weights-near-their-limit", by_length(*LENGTHS, (0.3, 0.2, 0.1)), "reproduced"),
        ("squared-weights-near-their-limit", by_length(*LENGTHS, (0.3, 0.2), (0.2, 0.3)), "partly"),
        ("squared-weights-near-their-limit", by_length(*LENGTHS, (0.3, 0.2, 0.25)), "not reproduced"),
        ("squared-weights-near-their-limit", by_length(*LENGTHS, (0.3,)), "not run"),
        ("the-mean-must-grow-with-the-logarithm", by_length(*SIMPLEX, (0.3, 0.1), (-0.2, -0.1)), "reproduced"),
        ("the-mean-must-grow-with-the-logarithm", by_length(*SIMPLEX, (0.1, 0.3), (-0.1, -0.2)), "not reproduced"),
        ("the-mean-must-grow-with-the-logarithm", by_length(*SIMPLEX), "not run"),
        ("residual-cures-rank-not-entropy", stacks(0.1, 0.8, 0.2), "reproduced"),
        ("residual-cures-rank-not-entropy", stacks(0.1, 0.8, 0.7), "partly"),
        ("residual-cures-rank-not-entropy", stacks(0.1, 0.3, 0.7), "not reproduced"),
        ("residual-cures-rank-not-entropy", stacks(0.1, 0.5, 0.5, noise=0.3), "inconclusive"),
        ("residual-cures-rank-not-entropy", stacks(0.1, 0.8, 0.2, seeds=1), "not run"),
    ],
)
def test_a_rule_follows_its_data(name: str, tables: Tables, outcome: str) -> None:
    assert judge(claim_named(CLAIMS, name), tables).outcome == outcome


@pytest.mark.parametrize(("count", "spread"), [(1, 3.0), (2, 1.0), (50, 0.0), (500, 2.0), (500, 6.0)])
def test_the_exact_sum_of_squares_is_that_of_drawn_rows(count: int, spread: float) -> None:
    logits = spread * torch.randn(4000, count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = t_interval(logits.softmax(-1).square().sum(-1).numpy(), confidence=0.9999)
    assert drawn.low - 1e-9 <= mean_participation(count, spread) <= drawn.high + 1e-9


def test_the_sum_of_squares_is_a_half_or_more_of_two_keys_and_refuses_none() -> None:
    assert mean_participation(2, 0.0) == pytest.approx(0.5)
    with pytest.raises(ArgumentError):
        mean_participation(0, 1.0)


def test_at_twice_the_unit_the_limit_is_that_of_the_literature() -> None:
    assert limit(2 / critical_spread(1.0, 0.0)) == pytest.approx(1 - math.sqrt(2) / 2)
    assert limit(0.5) == 0
    assert expected_squares(10**10, math.sqrt(2)) < expected_squares(65536, math.sqrt(2))
