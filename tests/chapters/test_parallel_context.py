"""A context in pieces: its rules on data that support, refute or say nothing, and masks that hide what they say."""

import pandas as pd
import pytest
import torch

from qkrepro.chapters.parallel_context import CLAIMS, REMEDIES, encode, encoded_contexts, keep, masses
from qkrepro.evidence.claims import claim_named, judge
from qkrepro.models.minilm import minilm_folder, token_windows


def encodings(pieces, remedy=(0.5, 0.5), jitter=0.01, windows=4):
    """Entropy and disagreement of two pieces and of both remedies; the whole context has 1 and 0."""
    ways = [("whole", 1, (1.0, 0.0)), ("pieces", 2, pieces), *((way, 2, remedy) for way in REMEDIES)]
    rows = [
        (number, way, count, *(value + jitter * (number - 1.5) * count for value in values))
        for number in range(windows)
        for way, count, values in ways
    ]
    return {"encodings": pd.DataFrame(rows, columns=["window", "way", "pieces", "entropy", "disagreement"])}


def correlation(low, high):
    return {"correlation": pd.DataFrame([{"quantity": "frobenius_cov", "correlation": 0, "low": low, "high": high}])}


@pytest.mark.parametrize(
    ("name", "tables", "outcome"),
    [
        ("pieces-raise-entropy", encodings((1.5, 0.6)), "reproduced"),
        ("pieces-raise-entropy", encodings((0.5, 0.6)), "not reproduced"),
        ("pieces-raise-entropy", encodings((1.0, 0.6)), "inconclusive"),
        ("pieces-raise-entropy", encodings((1.5, 0.6), windows=1), "not run"),
        ("loss-follows-entropy", encodings((1.5, 0.6), (1.2, 0.3)), "reproduced"),
        ("loss-follows-entropy", encodings((0.5, 0.6), (0.8, 0.3)), "not reproduced"),
        ("loss-follows-entropy", encodings((1.0, 0.6), (1.0, 0.6), jitter=0.5), "inconclusive"),
        ("loss-follows-entropy", encodings((1.5, 0.6), windows=1), "not run"),
        ("sink-and-selection-help", encodings((1.5, 0.6), (1.2, 0.3)), "reproduced"),
        ("sink-and-selection-help", encodings((1.5, 0.6), (1.2, 0.9)), "not reproduced"),
        ("sink-and-selection-help", encodings((1.5, 0.6), (1.5, 0.6)), "inconclusive"),
        ("sink-and-selection-help", encodings((1.5, 0.6), windows=1), "not run"),
        ("dispersed-heads-rise", correlation(0.2, 0.6), "reproduced"),
        ("dispersed-heads-rise", correlation(-0.6, -0.2), "not reproduced"),
        ("dispersed-heads-rise", correlation(-0.1, 0.2), "inconclusive"),
    ],
)
def test_data_decide_the_verdict(name, tables, outcome):
    verdict = judge(claim_named(CLAIMS, name), tables)
    assert verdict.outcome == outcome, verdict.because


def test_pieces_see_themselves_and_the_prefix_and_the_query_sees_all():
    encoding = encode(8, 2, 2, prefix=1)
    assert encoding.group.tolist() == [0, 1, 1, 1, 2, 2, 3, 3]
    assert encoding.place.tolist() == [0, 1, 2, 3, 1, 2, 4, 5]
    seen = [row.nonzero().flatten().tolist() for row in encoding.seen]
    assert seen == [[0], *[[0, 1, 2, 3]] * 3, *[[0, 4, 5]] * 2, *[list(range(8))] * 2]


def test_the_query_loses_the_pieces_that_are_not_kept_and_nobody_else_does():
    encoding = encode(8, 2, 2, prefix=1)
    fewer = keep(encoding, torch.tensor([1]))
    lost = encoding.seen & ~fewer.seen
    assert lost.nonzero().tolist() == [[query, key] for query in (6, 7) for key in (1, 2, 3)]


def test_masses_add_attention_by_piece():
    attention = torch.tensor([0.1, 0.2, 0.0, 0.0, 0.3, 0.1, 0.3, 0.0])
    torch.testing.assert_close(masses(attention, encode(8, 2, 2, prefix=1)), torch.tensor([0.1, 0.2, 0.4, 0.3]))


def test_one_piece_is_the_whole_context_and_two_are_not():
    folder = minilm_folder()
    window = token_windows(folder, "A heron waits in the shallow water, and the farmers do not mind at all.")
    table, heads = encoded_contexts(folder, window, [2], query=5, prefix=2, seed=0)
    table = table.set_index("way")
    assert table.loc["whole", "disagreement"] == 0
    assert table.loc["pieces", "disagreement"] > 0.1
    assert (table.loc[["best half", "random half"], "between"] < table.loc["pieces", "between"]).all()
    assert heads["rise"].mean() == pytest.approx(table.loc["pieces", "entropy"] - table.loc["whole", "entropy"])
    assert sorted(zip(heads["layer"], heads["head"], strict=True)) == [(i, k) for i in range(6) for k in range(12)]
