import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection

from qkrepro.chapters.both_at_once import label_region, plot_both, plot_windows
from qkrepro.chapters.rank_collapse import plot_attention_patterns, plot_depth
from qkrepro.theory.statistics import intervals, quartiles


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
        for quantity in ("entropy", "difference between tokens")
        for m in (0.0, 8.0, 16.0)
        for s in (1.0, 32.0)
    ]
    plot_windows(pd.DataFrame(rows).assign(estimate=0.5, low=0.4, high=0.6), axes)
    spans = [patch for patch in axes[1].patches if patch.get_width() != 0]
    assert len(spans) == 1
    assert (spans[0].get_x(), spans[0].get_width()) == pytest.approx((4.0, 8.0))


def test_depth_lines_are_medians_over_seeds(axes):
    table = pd.DataFrame(
        {
            "mean_scaled": 16.0,
            "dispersion": 0.5,
            "seed": [0, 1, 2] * 2,
            "layer": [0] * 3 + [1] * 3,
            "residual": [1, 1, 1, 0.1, 0.5, 0.6],
        }
    )
    plot_depth(table, "residual", {(16.0, 0.5): {"color": "C0"}}, axes[0])
    assert axes[0].lines[0].get_ydata() == pytest.approx([1, 0.5])
    assert axes[0].lines[0].get_label() == "ξ/λ = 16, dispersion 0.5"


def test_attention_is_drawn_query_downwards_and_key_to_the_right(axes):
    attention = torch.eye(3, dtype=torch.float64).expand(2, 3, 3).clone()
    attention[1] = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0]])
    image = plot_attention_patterns(attention, ["a", "b"], axes)
    assert np.asarray(image.get_array())[:, 0] == pytest.approx([1, 1, 1])
    assert axes[0].get_ylim() == (3.5, 0.5)


def test_intervals_and_quartiles_are_those_of_numpy_and_the_t_distribution():
    table = pd.DataFrame({"cell": ["a"] * 4 + ["b"] * 4, "value": [1.0, 2, 3, 4, 5, 5, 5, 5]})
    found = intervals(table, ["cell"], "value").set_index("cell")
    half = 3.182446305 * np.std([1, 2, 3, 4], ddof=1) / 2  # 97.5% point of t with three degrees of freedom
    assert found.loc["a"].tolist() == pytest.approx([2.5, 2.5 - half, 2.5 + half])
    assert found.loc["b"].tolist() == pytest.approx([5, 5, 5])
    assert quartiles(table, ["cell"], "value").loc[0, ["low", "median", "high"]].tolist() == [1.75, 2.5, 3.25]


def test_region_labels_sit_at_fractions_of_the_axes(axes):
    axes[0].set_xlim(0, 1000)
    label_region(axes[0], 0.5, 0.25, "here")
    assert axes[0].texts[0].get_transform() == axes[0].transAxes
