"""The chapter "Rank collapse": its rules on data that support, refute or say nothing, its tables and figures."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from qkrepro.chapters.rank_collapse import (
    ARCHITECTURES,
    CLAIMS,
    LAWS,
    depth_table,
    judged_rows,
    plot_attention_patterns,
    plot_depth,
    token_similarities,
)
from qkrepro.evidence.claims import claim_named, judge, sensitivity
from qkrepro.theory.depth import Stack

JITTER = np.linspace(-0.02, 0.02, 10)
WIDE = np.array([-0.5] * 5 + [0.5] * 5)


def depth_end(*pairs, noise=JITTER, deep=None):
    """Settings of (concentrated, dispersed) residual ratios at 8 layers; `deep` at 24, the same when None."""
    rows = [
        {
            "setting": str(number),
            "tokens": "walk",
            "temperature": 1.0,
            "mean_scaled": 16.0,
            "spectrum": spectrum,
            "layers": layers,
            "seed": seed,
            "residual_ratio": ratio + (noise[seed] if spectrum == "concentrated" else 0),
            "first_entropy_ratio": 0.5,
        }
        for layers, cases in ((8, pairs), (24, deep or pairs))
        for number, pair in enumerate(cases)
        for spectrum, ratio in zip(("concentrated", "dispersed"), pair, strict=True)
        for seed in range(len(noise))
    ]
    return {"depth_end": pd.DataFrame(rows)}


HOLDS, FAILS, OPEN = (0.8, 0.1), (0.2, 0.1), (0.5, 0.1)


@pytest.mark.parametrize("name", ["prevents-rank-collapse", "prevents-rank-collapse-deep"])
@pytest.mark.parametrize(
    ("tables", "outcome"),
    [
        (depth_end(HOLDS, HOLDS), "reproduced"),
        (depth_end(HOLDS, FAILS), "partly"),
        (depth_end(FAILS, FAILS), "not reproduced"),
        (depth_end((0.8, 0.9)), "not reproduced"),  # kept, but no thanks to the small variance
        (depth_end(OPEN, noise=WIDE), "inconclusive"),
        (depth_end(HOLDS, noise=JITTER[:4]), "inconclusive"),  # four seeds hold no 95% interval
    ],
)
def test_data_decide_whether_a_small_variance_prevents_rank_collapse(name, tables, outcome):
    verdict = judge(claim_named(CLAIMS, name), tables)
    assert verdict.outcome == outcome, verdict.because


@pytest.mark.parametrize(
    ("tables", "outcome"),
    [
        (depth_end((0.3, 0.1)), "reproduced"),
        (depth_end((0.3, 0.1), (0.1, 0.3)), "partly"),
        (depth_end((0.1, 0.3)), "not reproduced"),
        (depth_end((0.3, 0.3), noise=WIDE), "inconclusive"),
    ],
)
def test_data_decide_whether_concentration_slows_rank_collapse(tables, outcome):
    assert judge(claim_named(CLAIMS, "concentration-slows-rank-collapse"), tables).outcome == outcome


def test_each_depth_is_judged_by_its_own_runs_alone():
    tables = depth_end(HOLDS, HOLDS, deep=(HOLDS, FAILS))
    shallow, deep = (judge(claim, tables) for claim in CLAIMS[:2])
    assert (shallow.holds, shallow.of, deep.holds, deep.of) == (2, 2, 1, 2)


def test_a_verdict_says_where_tokens_stay_different_because_each_reads_itself_alone():
    tables = depth_end(HOLDS)
    alone = {"depth_end": tables["depth_end"].assign(first_entropy_ratio=0.01)}
    assert "in 0 of those" in judge(CLAIMS[0], tables).because
    assert "in 1 of those" in judge(CLAIMS[0], alone).because


def test_the_verdict_moves_with_its_threshold():
    table = sensitivity(CLAIMS[0], depth_end((0.55, 0.1)))
    assert table.set_index("threshold")["outcome"][[0.5, 0.7]].tolist() == ["reproduced", "not reproduced"]


@pytest.fixture(scope="module")
def depth():
    stack = Stack(length=8, dim=8)
    return depth_table(4.0, 0.1, 4.0, stack, [1.0, 2.0], seeds=range(2), measured=[1, 2, 3])


def test_every_architecture_law_sign_and_temperature_is_run_once(depth):
    judged = judged_rows(depth, [2, 3])
    keys = ["setting", "tokens", "mean_scaled", "spectrum", "layers", "seed"]
    assert not judged.duplicated(keys).any()
    assert len(judged) == len(ARCHITECTURES) * len(LAWS) * 4 * 2 * 2 * 2
    assert sorted(judged["mean_scaled"].unique()) == [-4, -2, 2, 4]
    assert set(judged.loc[judged["mean_scaled"] == 2, "temperature"]) == {2.0}


def test_judged_rows_carry_the_entropy_of_the_first_layer(depth):
    judged = judged_rows(depth, [3])
    keys = ["setting", "tokens", "mean_scaled", "spectrum", "seed"]
    result = judged.merge(depth[depth["layer"] == 1], on=keys)
    assert len(result) == len(judged)
    assert result["first_entropy_ratio"].tolist() == result["entropy_ratio"].tolist()


def test_similarities_begin_with_the_input_and_end_alike_without_a_mean():
    similarities = token_similarities(0.0, 16.0, Stack(layers=12, length=12, dim=16), seed=0)
    assert len(similarities) == 13
    assert all(torch.allclose(matrix.diagonal(), torch.ones(12, dtype=torch.float64)) for matrix in similarities)
    assert similarities[0].min() < 0.9
    assert similarities[-1].min() > 0.99


@pytest.fixture
def axes():
    figure, axes = plt.subplots(1, 2)
    yield axes
    plt.close(figure)


def test_depth_lines_are_medians_over_seeds(axes):
    residual = {"layer": [0] * 3 + [1] * 3, "residual": [1, 1, 1, 0.1, 0.5, 0.6]}
    table = pd.DataFrame({"mean_scaled": 16.0, "dispersion": 0.5, "seed": [0, 1, 2] * 2, **residual})
    plot_depth(table, "residual", {(16.0, 0.5): {"color": "C0"}}, axes[0])
    assert axes[0].lines[0].get_ydata() == pytest.approx([1, 0.5])
    assert axes[0].lines[0].get_label() == "ξ/λ = 16, dispersion 0.5"


def test_attention_is_drawn_query_downwards_and_key_to_the_right(axes):
    attention = torch.eye(3, dtype=torch.float64).expand(2, 3, 3).clone()
    attention[1] = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0]])
    image = plot_attention_patterns(attention, ["a", "b"], axes)
    assert np.asarray(image.get_array())[:, 0] == pytest.approx([1, 1, 1])
    assert axes[0].get_ylim() == (3.5, 0.5)
