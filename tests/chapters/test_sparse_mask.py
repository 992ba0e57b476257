"""The learnt mask: its rules on data that support, refute or say nothing, and masks that hide what they say."""

import pandas as pd
import pytest
import torch

from qkrepro.chapters.sparse_mask import CLAIMS, RANDOM, _hidden, learnt_gates
from qkrepro.evidence.claims import claim_named, judge


def damage(diagonal, other, jitter=0.01):
    rows = [
        {"window": number, "offset": name, "damage": value + jitter * number * (name != "0")}
        for number in range(4)
        for name, value in (("0", diagonal), ("1", other), (RANDOM, 0.5))
    ]
    return {"damage": pd.DataFrame(rows)}


def gates(skip, alone, jitter=0.01):
    rows = [
        {"run": run, "distance": 0, "gate": value + jitter * (-1) ** run * flag, "skip": flag}
        for run in range(4)
        for flag, value in ((True, skip), (False, alone))
    ]
    return {"gates": pd.DataFrame(rows)}


def correlation(low, high):
    row = {"quantity": "trace_cov", "correlation": (low + high) / 2, "low": low, "high": high}
    return {"correlation": pd.DataFrame([row])}


@pytest.mark.parametrize(
    ("name", "tables", "outcome"),
    [
        ("diagonal-is-least-needed", damage(0.1, 0.2), "reproduced"),
        ("diagonal-is-least-needed", damage(0.3, 0.2), "partly"),
        ("diagonal-is-least-needed", damage(0.9, 0.2), "not reproduced"),
        ("diagonal-is-least-needed", damage(0.1, 0.1, jitter=0.0), "inconclusive"),
        ("diagonal-is-least-needed", {"damage": damage(0.1, 0.2)["damage"].query("window == 0")}, "not run"),
        ("trace-draws-to-diagonal", correlation(0.2, 0.6), "reproduced"),
        ("trace-draws-to-diagonal", correlation(-0.6, -0.2), "not reproduced"),
        ("trace-draws-to-diagonal", correlation(-0.1, 0.2), "inconclusive"),
        ("skip-closes-the-gate", gates(0.2, 0.8), "reproduced"),
        ("skip-closes-the-gate", gates(0.8, 0.2), "not reproduced"),
        ("skip-closes-the-gate", gates(0.5, 0.5, jitter=0.3), "inconclusive"),
    ],
)
def test_data_decide_the_verdict(name, tables, outcome):
    verdict = judge(claim_named(CLAIMS, name), tables)
    assert verdict.outcome == outcome, verdict.because


def test_masks_hide_one_key_a_query_and_never_the_first_or_last_token():
    masks = dict(_hidden(9, [-2, 0], torch.Generator().manual_seed(0)))
    assert masks["-2"].nonzero().tolist() == [[query, query - 2] for query in range(3, 8)]
    assert masks["0"].nonzero().tolist() == [[query, query] for query in range(1, 8)]
    chance = masks[RANDOM]
    assert chance.sum(-1).tolist() == [0, *[1] * 7, 0]
    assert not chance[:, [0, -1]].any()
    assert not chance.diagonal().any()


def test_a_trained_mask_opens_where_the_task_looks():
    sizes = {"dim": 4, "length": 6, "batch": 16, "rate": 0.05, "reach": 3}
    table, spectra = learnt_gates(True, runs=2, steps=150, price=0.02, **sizes)
    gate = table.groupby("distance")["gate"].mean()
    assert gate[1] > 2 * gate[2:].max()
    assert len(spectra) == 2
