"""Waiver tokens: their rules on data that support, refute or say nothing, and orders that hold the same tokens."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from qkrepro.chapters.waiver_tokens import (
    CLAIMS,
    MIDDLE_CLS,
    MIDDLE_SEP,
    NO_CLS,
    TRAINED,
    _of_head,
    arrangements,
    own_values,
)
from qkrepro.evidence.claims import claim_named, judge
from qkrepro.training.live_model import trained_live
from qkrepro.training.tables import LIVE

SIGNS = (1, -1, 1, -1)


def values(ratio, rank, *, received=0.5, jitter=0.01):
    rows = [
        {"window": number, "layer": layer, "received": received, "value": ratio * (1 + jitter * sign), "rank": rank}
        for layer in range(2)
        for number, sign in enumerate(SIGNS)
    ]
    table = pd.DataFrame(rows)
    return {"values": table.assign(rank=table["rank"] + jitter * (-1) ** table["window"])}


def moved(token, place, dropped, jitter=0.01):
    cells = {
        (TRAINED, "first"): 10.0,
        (MIDDLE_SEP, "[SEP]"): token,
        (MIDDLE_SEP, "last"): place,
        (MIDDLE_CLS, "[CLS]"): token,
        (MIDDLE_CLS, "first"): place,
        (NO_CLS, "first"): dropped,
    }
    rows = [
        (number, order, at, value + jitter * sign * (at == "first"))
        for number, sign in enumerate(SIGNS)
        for (order, at), value in cells.items()
    ]
    return {"moved": pd.DataFrame(rows, columns=["window", "order", "place", "received"])}


def correlation(low, high):
    return {"correlation": pd.DataFrame([{"quantity": "trace_cov", "low": low, "high": high}])}


@pytest.mark.parametrize(
    ("name", "tables", "outcome"),
    [
        ("excess-has-little-value", values(0.2, 0.0), "reproduced"),
        ("excess-has-little-value", values(3.0, 0.0), "not reproduced"),
        ("excess-has-little-value", values(1.0, 0.0, jitter=0.3), "inconclusive"),
        ("excess-has-little-value", values(0.2, 0.0, received=0.1), "not run"),
        ("attention-avoids-value", values(1.0, -0.4), "reproduced"),
        ("attention-avoids-value", values(1.0, 0.4), "not reproduced"),
        ("attention-avoids-value", values(1.0, 0.0, jitter=0.3), "inconclusive"),
        ("waivers-are-chosen-by-feature", moved(9.0, 1.0, 1.0), "reproduced"),
        ("waivers-are-chosen-by-feature", moved(9.0, 1.0, 8.0), "partly"),
        ("waivers-are-chosen-by-feature", moved(1.0, 9.0, 8.0), "not reproduced"),
        ("waivers-are-chosen-by-feature", {"moved": moved(9, 1, 1)["moved"].query("window == 0")}, "not run"),
        ("trace-keeps-from-sinks", correlation(-0.6, -0.2), "reproduced"),
        ("trace-keeps-from-sinks", correlation(0.2, 0.6), "not reproduced"),
        ("trace-keeps-from-sinks", correlation(-0.1, 0.2), "inconclusive"),
    ],
)
def test_data_decide_the_verdict(name, tables, outcome):
    verdict = judge(claim_named(CLAIMS, name), tables)
    assert verdict.outcome == outcome, verdict.because


def test_orders_hold_the_special_tokens_where_they_say():
    window = torch.tensor([101, 1, 2, 3, 4, 5, 102])
    for order, (tokens, places) in arrangements(window).items():
        assert tokens[places["[SEP]"]] == 102, order
        assert places["last"] == len(tokens) - 1
        words = [token for token in tokens.tolist() if token < 100]
        assert words == [1, 2, 3, 4, 5]
        assert (101 in tokens) == ("[CLS]" in places)
        if "[CLS]" in places:
            assert tokens[places["[CLS]"]] == 101, order


def test_a_head_that_pays_for_nothing_carries_nothing():
    received = torch.tensor([0.6, 0.2, 0.1, 0.1], dtype=torch.float64).numpy()
    found = _of_head(received, torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64))
    assert found["special"]
    assert found["value"] == 0
    assert found["share"] == pytest.approx(0.7)
    assert found["carried"] == pytest.approx(0.3 / 0.7)
    assert found["rank"] < -0.9


def test_a_model_of_ours_is_measured_on_queries_that_see_all_keys_that_count():
    model, tokens = trained_live(replace(LIVE, epochs=0.1, layers=2), sequences=3)
    measured = own_values(model, tokens)
    with torch.no_grad():
        trace = model.trace(tokens)[1]
        norms = model.layers[1].attention.value(trace.inputs[2]).norm(dim=-1)
    half = tokens.shape[1] // 2
    assert tokens.shape == (3, LIVE.length)
    assert measured[["sequence", "layer"]].value_counts().to_dict() == {(s, n): 1 for s in range(3) for n in range(2)}
    row = measured.query("sequence == 2 and layer == 1").iloc[0]
    paid = trace.attention[2, 0, half:, :half].double().mean(0)
    values = norms[:half]
    assert row["received"] == pytest.approx(float(paid.max()))
    assert row["first"] == pytest.approx(float(paid[0]))
    assert row["value"] == pytest.approx(float(values[paid.argmax()] / values.median()), rel=1e-6)
