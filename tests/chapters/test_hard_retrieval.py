"""Hard retrieval: its rules on data that support, refute or say nothing; gradients, sequences and operations."""

import pandas as pd
import pytest
import torch

from qkrepro.chapters.hard_retrieval import (
    BLOCKED,
    CLAIMS,
    HARD,
    SOFT,
    Task,
    attention_of,
    decoding_operations,
    draw_batch,
    train_arms,
)
from qkrepro.evidence.claims import claim_named, judge


def accuracy(soft, hard, blocked, jitter=0.001):
    rows = [
        ("task", kind, "soft" if kind == SOFT else "hard", run, value + jitter * (-1) ** run * (kind == HARD))
        for kind, value in ((SOFT, soft), (HARD, hard), (BLOCKED, blocked))
        for run in range(4)
    ]
    return pd.DataFrame(rows, columns=["task", "trained", "decoded", "run", "accuracy"])


@pytest.mark.parametrize(
    ("name", "table", "outcome"),
    [
        ("hard-attention-loses-little", accuracy(0.9, 0.9, 0.1), "reproduced"),
        ("hard-attention-loses-little", accuracy(0.9, 0.7, 0.1), "not reproduced"),
        ("hard-attention-loses-little", accuracy(0.9, 0.9, 0.1, jitter=0.2), "inconclusive"),
        ("hard-attention-loses-little", accuracy(0.9, 0.9, 0.1).head(0), "not run"),
        ("the-gradient-is-what-counts", accuracy(0.9, 0.9, 0.1), "reproduced"),
        ("the-gradient-is-what-counts", accuracy(0.9, 0.1, 0.5), "not reproduced"),
        ("the-gradient-is-what-counts", accuracy(0.9, 0.5, 0.5, jitter=0.2), "inconclusive"),
    ],
)
def test_data_decide_the_verdict(name, table, outcome):
    verdict = judge(claim_named(CLAIMS, name), {"accuracy": table})
    assert verdict.outcome == outcome, verdict.because


def test_straight_through_has_the_values_of_the_maximum_and_the_gradient_of_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    hard, soft = (attention_of(logits, kind) @ weights for kind in (HARD, SOFT))
    assert hard.item() == pytest.approx(1.0)
    lent, own = (torch.autograd.grad(read, logits)[0] for read in (hard, soft))
    torch.testing.assert_close(lent, own)
    assert not (attention_of(logits, BLOCKED) @ weights).requires_grad


def test_the_copies_of_a_sequence_carry_the_symbol_that_is_asked_and_no_other_does():
    generator = torch.Generator().manual_seed(0)
    task = Task(6, copies=2, noise=0.0, symbols=9, dim=9)
    embedding = torch.eye(9, dtype=torch.float64).expand(3, 9, 9)
    queries, keys, values, answers = draw_batch(task, embedding, 5, generator)
    same = (queries * keys).sum(-1)
    assert (same[..., :2] == 1).all()
    assert (same[..., 2:] == 0).all()
    assert (values.argmax(-1)[..., :2] == answers[..., None]).all()
    assert (values.sum(-1) == 1).all()


def test_hard_decoding_saves_the_product_with_the_values():
    table = decoding_operations([4, 64], 8)
    assert table["soft"].tolist() == [2 * 2 * 4 * 8, 2 * 2 * 64 * 8]
    assert (table["ratio"] == 2).all()


def test_all_kinds_are_tested_on_all_tasks():
    sizes = {"runs": 2, "batch": 4, "tested": 5, "steps": 2, "rate": 0.01}
    accuracies, spectra = train_arms({"recall": Task(4, dim=4)}, (SOFT, HARD, BLOCKED), **sizes)
    assert len(accuracies) == 2 * 4  # soft attention is decoded in two ways
    assert (accuracies.query("decoded == 'hard'")["entropy"] < 1e-9).all()
    assert len(spectra) == 2 * 3
