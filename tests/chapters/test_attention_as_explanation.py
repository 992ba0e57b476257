"""Attention as explanation: its rules on data that support, refute or say nothing; votes, scores and the estimator."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, stats

from qkrepro.chapters.attention_as_explanation import (
    ADDITIVE,
    ASKED,
    CLAIMS,
    DEEP,
    DOT,
    GUMBEL,
    OWN,
    SCORES,
    SOFTMAX,
    TASKS,
    WEIGHTS,
    Voter,
    draw_votes,
    token_information,
    train_voters,
    vote_weights,
)
from qkrepro.evidence.claims import claim_named, judge


def voters(dot=0.3, others=0.5, gumbel=0.2, jitter=0.01):
    """Each column is `dot` or `others` by score; `gumbel` is added by cold Gumbel; jitter is of dot or of softmax."""
    rows = [
        (task, score, kind, run, base + gumbel * (kind == GUMBEL) + jitter * (-1) ** run * (score == DOT or cold))
        for task in TASKS
        for score, base in ((DOT, dot), (ADDITIVE, others), (DEEP, others))
        for kind, cold in ((SOFTMAX, False), (GUMBEL, True))
        for run in range(4)
    ]
    table = pd.DataFrame(rows, columns=["task", "score", "weights", "run", "information"])
    return table.assign(agreement=table["information"], skew=table["information"])


SCORE_CLAIMS = ("other-scores-keep-more-information", "other-scores-rank-better")
GUMBEL_CLAIMS = ("cold-gumbel-skews", "skew-explains-better")
CASES = [
    *((name, table, outcome) for name in SCORE_CLAIMS for table, outcome in (
        (voters(), "reproduced"),
        (voters(dot=0.5, others=0.3), "not reproduced"),
        (voters(dot=0.5, others=0.5, jitter=0.2), "inconclusive"),
        (voters().head(0), "not run"),
    )),
    *((name, table, outcome) for name in GUMBEL_CLAIMS for table, outcome in (
        (voters(), "reproduced"),
        (voters(gumbel=-0.2), "not reproduced"),
        (voters(gumbel=0.0, jitter=0.2).query("score != 'scaled dot product'"), "inconclusive"),
        (voters().head(0), "not run"),
    )),
]  # fmt: skip


@pytest.mark.parametrize(("name", "table", "outcome"), CASES)
def test_data_decide_the_verdict(name, table, outcome):
    verdict = judge(claim_named(CLAIMS, name), {"voters": table})
    assert verdict.outcome == outcome, verdict.because


def test_the_estimate_is_near_the_integral_for_a_gaussian_that_decides_a_noisy_sign():
    share = 0.8  # correlation of what is said with what decides
    chance = lambda x: stats.norm.cdf(share * x / math.sqrt(1 - share**2))  # noqa: E731
    entropy = lambda x: stats.norm.pdf(x) * stats.bernoulli(chance(x)).entropy()  # noqa: E731
    wanted = math.log(2) - integrate.quad(entropy, -8, 8)[0]
    rng = np.random.default_rng(0)
    number, other = rng.standard_normal((2, 3000))
    answers = (share * number + math.sqrt(1 - share**2) * other > 0).astype(float)
    shared = token_information(
        torch.tensor(np.stack([number, rng.standard_normal(3000)], axis=1)), torch.tensor(answers)
    )
    assert shared[0].item() == pytest.approx(wanted, abs=0.04)
    assert shared[1].item() < 0.04


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_the_weighted_vote_and_the_question_names_who_counts(task):
    vectors = torch.eye(9, dtype=torch.float64).expand(2, 9, 9)
    votes = draw_votes(task, vectors, 4, 20, 0.0, torch.Generator().manual_seed(0))
    assert (votes.answers == ((votes.numbers @ vote_weights(4)) > 0)).all()
    named = (votes.queries * votes.names).sum(-1)  # (runs, n, T)
    assert (named == (vote_weights(4) if task == ASKED else 0.0)).all()
    if task == OWN:
        assert (votes.names.argmax(-1) // 2 == torch.arange(4)).all()


@pytest.mark.parametrize("score", SCORES)
def test_gumbel_noise_draws_tokens_with_the_probabilities_of_the_softmax(score):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(1, 7, 4, generator=generator, dtype=torch.float64)
    votes = draw_votes(ASKED, vectors, 3, 1, 0.0, generator)
    many = type(votes)(*(part.expand(1, 4000, *part.shape[2:]) for part in votes))
    voter = Voter(score, 1, 4, generator)
    with torch.no_grad():
        soft, cold = voter(votes, 1.0, None)[0][0, 0], voter(many, 1e-3, generator)[0][0]
    drawn = torch.nn.functional.one_hot(cold.argmax(-1), 3).double().mean(0)
    assert (drawn - soft).abs().max() < 4 * 0.5 / math.sqrt(4000)  # four standard errors at most


def test_every_voter_is_measured_on_every_task():
    sizes = {"dim": 4, "runs": 2, "batch": 4, "tested": 40, "steps": 1, "rate": 0.01}
    tokens, rows = train_voters(3, 0.5, **sizes)
    assert len(rows) == len(TASKS) * len(SCORES) * len(WEIGHTS) * 2
    assert len(tokens) == 3 * len(rows)
    assert tokens.groupby(["task", "score", "weights", "run"])["attention"].sum().to_numpy() == pytest.approx(1)
    assert rows["skew"].between(0, math.log(3)).all()
