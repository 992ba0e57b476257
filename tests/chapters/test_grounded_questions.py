"""Grounded questions: its rules on data that support, refute or say nothing; grids, questions and what is learnt."""

import pandas as pd
import pytest
import torch

from qkrepro.chapters.grounded_questions import (
    CLAIMS,
    NONE,
    PRIORS,
    RANDOM,
    RIGHT,
    World,
    draw_questions,
    train_with_priors,
)
from qkrepro.evidence.claims import claim_named, judge
from qkrepro.theory.spectrum import random_rotation


def results(none, right, random, jitter=0.01):
    """Accuracy or attention of each prior at 10 and 100 questions; the jitter is not shared between priors."""
    rows = [
        (prior, size, kind, run, *(value[size == 100] + jitter * (-1) ** run * (prior == NONE),) * 2)
        for prior, value in ((NONE, none), (RIGHT, right), (RANDOM, random))
        for size in (10, 100)
        for kind in ("object", "relation")
        for run in range(4)
    ]
    return pd.DataFrame(rows, columns=["prior", "questions", "kind", "run", "accuracy", "attention"])


HELPS, SHOWS = "a-grounding-prior-helps", "a-grounding-prior-shows-the-cell"
SCARCE, MUST = "a-prior-helps-most-when-answers-are-scarce", "a-prior-must-be-right"


@pytest.mark.parametrize(
    ("name", "table", "outcome"),
    [
        (HELPS, results((0.2, 0.8), (0.6, 0.9), (0.2, 0.5)), "reproduced"),
        (HELPS, results((0.2, 0.8), (0.6, 0.7), (0.2, 0.5)), "partly"),
        (HELPS, results((0.5, 0.9), (0.3, 0.7), (0.2, 0.5)), "not reproduced"),
        (HELPS, results((0.5, 0.5), (0.5, 0.5), (0.2, 0.5), jitter=0.3), "inconclusive"),
        (HELPS, results((0.5, 0.5), (0.5, 0.5), (0.2, 0.5)).head(0), "not run"),
        (SHOWS, results((0.2, 0.8), (0.6, 0.9), (0.2, 0.5)), "reproduced"),
        (SHOWS, results((0.5, 0.9), (0.3, 0.7), (0.2, 0.5)), "not reproduced"),
        (SHOWS, results((0.5, 0.5), (0.5, 0.5), (0.2, 0.5), jitter=0.3), "inconclusive"),
        (SCARCE, results((0.2, 0.8), (0.6, 0.9), (0.2, 0.5)), "reproduced"),
        (SCARCE, results((0.2, 0.5), (0.3, 0.9), (0.2, 0.5)), "not reproduced"),
        (SCARCE, results((0.5, 0.5), (0.5, 0.5), (0.5, 0.5)).head(0), "not run"),
        (MUST, results((0.5, 0.8), (0.6, 0.9), (0.2, 0.5)), "reproduced"),
        (MUST, results((0.2, 0.5), (0.6, 0.9), (0.5, 0.8)), "not reproduced"),
        (MUST, results((0.5, 0.8), (0.6, 0.9), (0.5, 0.8), jitter=0.3), "inconclusive"),
    ],
)
def test_data_decide_the_verdict(name, table, outcome):
    verdict = judge(claim_named(CLAIMS, name), {"results": table})
    assert verdict.outcome == outcome, verdict.because


def test_a_gain_that_varies_over_runs_says_nothing_of_scarcity():
    table = results((0.5, 0.5), (0.6, 0.6), (0.2, 0.5))
    table.loc[(table["prior"] == RIGHT) & (table["questions"] == 10), "accuracy"] += [0.2, -0.2, 0.2, -0.2] * 2
    assert judge(claim_named(CLAIMS, SCARCE), {"results": table}).outcome == "inconclusive"


def test_only_the_cell_that_is_meant_matches_its_question():
    generator = torch.Generator().manual_seed(0)
    world = World(side=3, dim=12, names=12, noise=0.0)
    words = torch.eye(12, dtype=torch.float64).expand(2, 12, 12)
    turn = random_rotation(12, batch=(2,), generator=generator)
    drawn = draw_questions(world, words, turn, 40, generator)
    turned = torch.cat([half @ turn[:, None] for half in drawn.cells.chunk(2, dim=-1)], dim=-1)  # pictures to words
    match = (drawn.queries * turned).sum(-1)  # (runs, n, T)
    torch.testing.assert_close(match, torch.nn.functional.one_hot(drawn.right[..., 0], 9).double())
    assert drawn.relation.any()
    assert (~drawn.relation).any()
    assert (drawn.right[drawn.relation] % 3 > 0).all()  # a cell with a left neighbour


def test_every_prior_is_tested_on_equal_questions():
    sizes = {"runs": 2, "batch": 4, "tested": 20, "steps": 0, "rate": 0.01, "weight": 1.0}
    table, spectra, shown = train_with_priors(World(side=2, names=4, dim=4), [5, 9], **sizes)
    assert len(table) == 3 * 2 * 2 * 2  # priors, sizes, kinds, runs
    untrained = table.query("questions == 5").pivot(index=["kind", "run"], columns="prior", values="attention")
    assert (untrained[NONE] == untrained[RIGHT]).all()
    assert (untrained[NONE] == untrained[RANDOM]).all()
    assert len(spectra) == 3 * 2 * 2
    assert set(shown) == {(prior, size) for prior in PRIORS for size in (5, 9)}
