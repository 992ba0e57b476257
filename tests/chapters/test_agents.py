"""Agents: the rules on data that support, refute or say nothing; the environment, its controller and the policies."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from qkrepro.chapters.agents import (
    ATTENTION,
    CLAIMS,
    MLP,
    RELEVANT,
    SUM,
    Policy,
    Reach,
    controller,
    episode_costs,
    gains,
    score_policies,
    train,
)
from qkrepro.evidence.claims import claim_named, judge


def scores(attention, mlp, added, jitter=0.001):
    rows = [
        (policy, training, "plain", run, tested, value + jitter * (-1) ** run * (policy == ATTENTION))
        for training in ("none", "some")
        for policy, value in ((ATTENTION, attention), (MLP, mlp), (SUM, added))
        for run in range(4)
        for tested, value in ((0, 1.0), (20, value))
    ]
    return pd.DataFrame(rows, columns=["policy", "training", "weights", "run", "tested_with", "score"])


@pytest.mark.parametrize(
    ("name", "table", "outcome"),
    [
        ("attention-bears-irrelevant-features", scores(0.9, 0.5, 0.5), "reproduced"),
        ("attention-bears-irrelevant-features", scores(0.9, 0.895, 0.5), "not reproduced"),
        ("attention-bears-irrelevant-features", scores(0.5, 0.9, 0.1), "not reproduced"),
        ("attention-bears-irrelevant-features", scores(0.9, 0.8, 0.5, jitter=0.2), "inconclusive"),
        ("attention-bears-irrelevant-features", scores(0.9, 0.8, 0.5).head(0), "not run"),
        ("attention-does-more-than-names", scores(0.9, 0.9, 0.5), "reproduced"),
        ("attention-does-more-than-names", scores(0.5, 0.1, 0.9), "not reproduced"),
        ("attention-does-more-than-names", scores(0.5, 0.1, 0.5, jitter=0.2), "inconclusive"),
    ],
)
def test_data_decide_the_verdict(name, table, outcome):
    verdict = judge(claim_named(CLAIMS, name), {"scores": table})
    assert verdict.outcome == outcome, verdict.because


def test_the_environment_passes_the_checker_of_gymnasium():
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        check_env(Reach(4))
    texts = [str(warning.message) for warning in warned]
    assert all("infinity" in text or "spec" in text for text in texts), texts


def test_the_gains_solve_the_regulator_by_iterating_its_costs():
    moves, push = np.array([[1.0, 0.2], [0.0, 1.0]]), np.array([[0.0], [0.2]])
    ahead = np.zeros((2, 2))
    for _ in range(500):  # of value iteration
        gain = np.linalg.inv(0.1 + push.T @ ahead @ push) @ push.T @ ahead @ moves
        ahead = np.diag([1.0, 0.1]) + moves.T @ ahead @ (moves - push @ gain)
    np.testing.assert_allclose(gains(), gain[0], rtol=1e-9)


def test_the_controller_costs_less_than_doing_nothing_or_half_of_its_force():
    def cost(part):
        return episode_costs(lambda seen: part * controller(seen), 1, 0, 16)[0]

    assert cost(1.0) < cost(0.5) < cost(0.0)


@pytest.mark.parametrize("kind", [ATTENTION, MLP, SUM])
def test_irrelevant_features_of_value_zero_change_only_what_attends(kind):
    generator = torch.Generator().manual_seed(0)
    names = torch.randn(2, 9, 14, generator=generator, dtype=torch.float64)
    policy = Policy(kind, names, generator)
    seen = torch.randn(2, 5, RELEVANT, generator=generator, dtype=torch.float64)
    more = torch.cat([seen, torch.zeros(2, 5, 6, dtype=torch.float64)], dim=-1)
    assert torch.allclose(policy(seen), policy(more)) == (kind != ATTENTION)
    if kind == ATTENTION:
        torch.testing.assert_close(policy.weights(more).sum(-1), torch.ones(2, 5, dtype=torch.float64))


def test_a_penalty_empties_the_weights_of_an_input_that_was_never_there():
    penalties = torch.tensor([0.0, 0.01], dtype=torch.float64)
    policy = train(MLP, (0, None), penalties, features=6, batch=4, steps=60, rate=0.03)
    left = policy.w_in.detach()[..., RELEVANT:].abs().amax((-2, -1))
    assert left[1] < 0.05 * left[0]


def test_every_policy_is_tested_after_every_training():
    sizes = {"batch": 2, "steps": 2, "rate": 0.01}
    trainings = {"none": (0, None), "few": (2, 3)}
    table, spectra = score_policies((ATTENTION, MLP), trainings, (0, 2), runs=2, penalty=0.1, episodes=1, **sizes)
    assert len(table) == 2 * 2 * 2 * 4
    assert table.notna().all(axis=None)
    assert len(spectra) == 2 * 4
