"""The chapter "Both at once": its rules on data that support, refute or say nothing, its tables and figures."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from qkrepro.chapters.both_at_once import (
    CLAIMS,
    QUANTITIES,
    both_at_once,
    label_region,
    plot_both,
    plot_windows,
    safe_cells,
    window_summary,
)
from qkrepro.evidence.claims import claim_named, judge, sensitivity
from qkrepro.theory.depth import Spectrum, Stack, depth_experiment

JITTER = np.linspace(-0.02, 0.02, 10)
WIDE = np.array([-0.4] * 5 + [0.4] * 5)
SAFE, COLLAPSED, MIDDLE = (0.8, 0.7), (0.2, 0.3), (0.55, 0.55)


def safe(positive, negative, noise=JITTER, deep=None):
    """One setting with a positive and a negative mean: (entropy, residual) at the least and the greatest dispersion."""
    rows = [
        {
            "setting": "LayerNorm",
            "tokens": "walk",
            "layers": layers,
            "mean_scaled": mean,
            "dispersion": dispersion,
            "seed": seed,
            "entropy_ratio": entropy + noise[seed],
            "residual_ratio": residual + noise[seed],
        }
        for layers, signs in ((8, (positive, negative)), (24, deep or (positive, negative)))
        for mean, cells in zip((4.0, -4.0), signs, strict=True)
        for dispersion, (entropy, residual) in zip((0.1, 10.0), cells, strict=True)
        for seed in range(len(noise))
    ]
    return {"safe": pd.DataFrame(rows)}


GOOD, BAD = (SAFE, COLLAPSED), (COLLAPSED, COLLAPSED)
OPEN = safe((MIDDLE, COLLAPSED), (MIDDLE, COLLAPSED), WIDE)


@pytest.mark.parametrize(
    ("name", "tables", "outcome"),
    [
        ("prevents-both", safe(GOOD, GOOD), "reproduced"),
        ("prevents-both", safe(GOOD, BAD), "partly"),
        ("prevents-both", safe(BAD, BAD), "not reproduced"),
        ("prevents-both", safe((SAFE, SAFE), (SAFE, SAFE)), "not reproduced"),  # safe without a small variance
        ("prevents-both", OPEN, "inconclusive"),
        ("can-prevent-both", safe(GOOD, BAD), "reproduced"),
        ("can-prevent-both", safe(BAD, BAD), "not reproduced"),
        ("can-prevent-both", OPEN, "inconclusive"),
        ("can-prevent-both-deep", safe(BAD, BAD, deep=(GOOD, BAD)), "reproduced"),
        ("can-prevent-both-deep", safe(GOOD, BAD, deep=(BAD, BAD)), "not reproduced"),
        ("can-prevent-both-deep", OPEN, "inconclusive"),
        ("concentration-helps-both", safe(GOOD, GOOD), "reproduced"),
        ("concentration-helps-both", safe(GOOD, (COLLAPSED, SAFE)), "partly"),
        ("concentration-helps-both", safe((COLLAPSED, SAFE), (COLLAPSED, SAFE)), "not reproduced"),
        ("concentration-helps-both", safe((SAFE, SAFE), (SAFE, SAFE)), "inconclusive"),
    ],
)
def test_data_decide_the_verdict(name, tables, outcome):
    verdict = judge(claim_named(CLAIMS, name), tables)
    assert verdict.outcome == outcome, verdict.because


def test_one_mean_that_is_safe_suffices_for_can_and_not_for_prevents():
    tables = safe(GOOD, BAD)
    verdicts = [judge(claim_named(CLAIMS, name), tables) for name in ("prevents-both", "can-prevent-both")]
    assert [(verdict.holds, verdict.of) for verdict in verdicts] == [(1, 2), (1, 1)]


def test_the_verdict_moves_with_its_threshold():
    table = sensitivity(claim_named(CLAIMS, "can-prevent-both"), safe(((0.6, 0.6), COLLAPSED), BAD))
    assert table.set_index("threshold")["outcome"][[0.5, 0.7]].tolist() == ["reproduced", "not reproduced"]


def test_entropy_is_the_least_of_the_layers_and_depths_are_readings_of_one_run():
    spectra, stack = [Spectrum(4.0, 0.1), Spectrum(4.0, 8.0)], Stack(layers=4, length=12, dim=8)
    result = both_at_once(spectra, stack, seeds=[1, 2], depths=[2, 4])
    table = depth_experiment(spectra, stack, seeds=[1, 2])
    assert len(result) == 8
    for row in result.to_dict("records"):
        same = table[(table["seed"] == row["seed"]) & (table["dispersion"] == row["dispersion"])]
        layers = same[same["layer"].between(1, row["layers"])]
        assert row["entropy_ratio"] == layers["entropy_ratio"].min()
        assert row["first_entropy_ratio"] == layers["entropy_ratio"].iloc[0]
        assert row["residual_ratio"] == layers["residual_ratio"].iloc[-1]


def test_a_cell_is_described_by_medians_so_that_one_seed_does_not_save_it():
    ratios = [0.01] * 9 + [9.0]
    table = pd.DataFrame({"mean_scaled": 1.0, "dispersion": 1.0, "entropy_ratio": 0.9, "residual_ratio": ratios})
    cell = safe_cells(table).iloc[0]
    assert (cell["residual_ratio"], cell["status"]) == (0.01, "collapsed")


def test_window_summary_has_a_row_per_panel_cell_and_quantity():
    tables = safe(GOOD, BAD)["safe"]
    summary = window_summary(tables[tables["layers"] == 8])
    assert len(summary) == 2 * 2 * 2
    assert set(summary["quantity"]) == set(QUANTITIES)
    assert summary.loc[summary["safe"], "mean_scaled"].unique().tolist() == [4.0]


@pytest.fixture
def axes():
    figure, axes = plt.subplots(1, 2)
    yield axes
    plt.close(figure)


def cells(safe: list[tuple[float, float]]) -> pd.DataFrame:
    rows = [
        {"mean_scaled": m, "dispersion": s, "entropy_ratio": 0.1 * s, "residual_ratio": 0.02 * (m + 10)}
        for m in (-10.0, 0.0, 10.0)
        for s in (1.0, 2.0, 4.0, 8.0)
    ]
    table = pd.DataFrame(rows)
    return table.assign(safe=[pair in safe for pair in zip(table["mean_scaled"], table["dispersion"], strict=True)])


def outline(axis) -> list[np.ndarray]:
    lines = [item for item in axis.collections if type(item) is LineCollection]
    return lines[-1].get_segments()


def test_central_map_shows_the_ratios_of_the_table(axes):
    mesh = plot_both(cells([]), 64, axes)
    assert np.asarray(mesh.get_array()).reshape(4, 3)[:, 2] == pytest.approx([0.4] * 4)
    first = np.asarray(axes[0].collections[0].get_array()).reshape(4, 3)
    assert first[:, 0] == pytest.approx([0.1, 0.2, 0.4, 0.8])


def test_central_map_outlines_the_safe_cells_and_nothing_else(axes):
    plot_both(cells([(10.0, 1.0), (10.0, 2.0)]), 64, axes)
    segments = outline(axes[0])
    assert len(segments) == 6  # two cells on top of each other: 2 across, 2 on each side
    points = np.concatenate(segments)
    assert points[:, 0].min() == pytest.approx(5)
    assert points[:, 0].max() == pytest.approx(15)
    assert points[:, 1].max() == pytest.approx(8**0.5)
    assert [text.get_text() for text in axes[1].texts] == ["safe"]


def test_central_map_without_a_safe_cell_has_no_outline_and_no_label(axes):
    plot_both(cells([]), 64, axes)
    assert outline(axes[0]) == []
    assert not axes[0].texts


def test_windows_shade_exactly_the_means_that_are_safe_at_the_least_dispersion(axes):
    rows = [
        {"panel": panel, "quantity": quantity, "mean_scaled": m, "dispersion": s, "safe": s == 1.0 and m == 8.0}
        for panel in ("a", "b")
        for quantity in QUANTITIES
        for m in (0.0, 8.0, 16.0)
        for s in (1.0, 32.0)
    ]
    plot_windows(pd.DataFrame(rows).assign(estimate=0.5, low=0.4, high=0.6), axes)
    spans = [patch for patch in axes[1].patches if patch.get_width() != 0]
    assert len(spans) == 1
    assert (spans[0].get_x(), spans[0].get_width()) == pytest.approx((7.0, 2.0))


def test_region_labels_sit_at_fractions_of_the_axes(axes):
    axes[0].set_xlim(0, 1000)
    label_region(axes[0], 0.5, 0.25, "here")
    assert axes[0].texts[0].get_transform() == axes[0].transAxes
