"""The plane's record and marks are what the package computes: sampled again, compared with chapters, counted."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator

from qkrepro.errors import ArgumentError
from qkrepro.models.token_covariance import covariance, increment_second_moment
from qkrepro.publishing.explorer import LEGEND, LENGTHS, counts_table, page_fragment, vega_library, windows_table
from qkrepro.publishing.explorer_marks import (
    STATES,
    MarkGroup,
    dispersion,
    mark_states,
    nearest_cell,
    plane_marks,
    xavier_marks,
)
from qkrepro.publishing.explorer_values import (
    DISPERSIONS,
    LAW_DIMS,
    LAYERS,
    MEANS,
    SEEDS,
    SLOPES,
    VALUES,
    Packed,
    course,
    law_spectrum,
    pack,
    read_values,
    standard_law,
    write_values,
)
from qkrepro.theory.attention import causal_mask, piecewise_linear_attention
from qkrepro.theory.depth import Spectrum, Stack, depth_experiment, first_attention, layer_entropy
from qkrepro.theory.depth_limit import cosine_residual, depth_limit, walk_cosines
from qkrepro.theory.exact_law import interval_probability
from qkrepro.theory.rank import rank_residual
from qkrepro.theory.spectrum import matrix_moments, random_spectrum_matrix
from qkrepro.theory.statistics import t_interval
from qkrepro.theory.tokens import TOKEN_LAWS, independent_tokens
from qkrepro.theory.xavier import xavier_qk

ROOT = Path(__file__).parents[2]
STEP = 1 / 200  # of the record's ratios
SAMPLE = [(16.0, 0.5), (-16.0, 0.5), (0.0, 16.0), (2.0, 1.0), (40.0, 32.0), (-8.0, 4.0)]
RATIOS = ("entropy_ratio", "residual_ratio")


@pytest.fixture(scope="module")
def values() -> dict:
    return read_values(ROOT / VALUES)


@pytest.fixture(scope="module")
def marks() -> dict[str, MarkGroup]:
    return plane_marks(ROOT)


def cell(mean: float, spread: float) -> int:
    return MEANS.index(mean) * len(DISPERSIONS) + DISPERSIONS.index(spread)


def test_the_record_is_below_a_megabyte_and_a_half_and_names_what_made_it(values: dict) -> None:
    assert (ROOT / VALUES).stat().st_size < 1_500_000
    assert {"torch", "numpy", "python", "revision", "command"} <= set(values["made"])
    grid, law = values["grid"], values["law"]
    assert (*grid["means"],) == MEANS  # of the module as it is now
    assert (*grid["dispersions"],) == DISPERSIONS
    assert (*grid["laws"],) == TOKEN_LAWS
    assert (*law["dims"],) == LAW_DIMS


def test_a_cell_is_safe_where_the_lower_ends_of_both_intervals_are_at_least_one_half(values: dict) -> None:
    table = depth_experiment(
        [Spectrum(*pair) for pair in SAMPLE], Stack(layers=8, tokens="random walk"), seeds=range(SEEDS), measures=()
    )
    recorded = values["arrays"]["depth/random walk/true/safe"].values
    first, last = (table[table["layer"] == layer] for layer in (1, 8))
    found = []
    for mean, spread in SAMPLE:
        here = [rows[(rows["mean_scaled"] == mean) & (rows["dispersion"] == spread)] for rows in (first, last)]
        ends = [t_interval(rows[name]).low for rows, name in zip(here, RATIOS, strict=True)]
        found.append(min(ends) >= 0.5)
        assert recorded[7, cell(mean, spread)] == found[-1], (mean, spread, ends)
    assert set(found) == {True, False}


@pytest.mark.parametrize("tokens", TOKEN_LAWS)
def test_recorded_courses_of_the_true_softmax_are_those_of_depth_experiment(values: dict, tokens: str) -> None:
    table = depth_experiment(
        [Spectrum(*pair) for pair in SAMPLE], Stack(layers=LAYERS, tokens=tokens), seeds=range(SEEDS), measures=()
    )
    means = table.groupby(["layer", "mean_scaled", "dispersion"])[["entropy_ratio", "residual_ratio"]].mean()
    recorded = values["arrays"][f"depth/{tokens}/true/mean"].values
    for layer in (1, 2, 8, LAYERS):
        for mean, spread in SAMPLE:
            expected = means.loc[(layer, mean, spread)].to_numpy()
            np.testing.assert_allclose(recorded[:, layer - 1, cell(mean, spread)], expected, atol=0.6 * STEP)


@pytest.mark.parametrize("tokens", TOKEN_LAWS)
def test_recorded_courses_of_the_linearised_softmax_follow_from_its_definition(values: dict, tokens: str) -> None:
    mean, spread = SAMPLE[3]
    ratios = []
    for seed in range(SEEDS):
        generator, mask = Generator().manual_seed(seed), causal_mask(64)
        x = Stack(tokens=tokens).draw_input(generator)
        first, rows = rank_residual(x), []
        for _ in range(8):
            w = mean / 64 * torch.eye(64) + spread / 8 * random_spectrum_matrix(64, 0.0, 1.0, generator=generator)
            weights = piecewise_linear_attention(torch.einsum("td,de,se->ts", x, w, x), mask=mask)
            shares = weights / weights.sum(1, keepdim=True)
            mixed = shares @ x @ (torch.randn(64, 64, generator=generator, dtype=torch.float64) / 8)
            x = (mixed - mixed.mean(1, keepdim=True)) / (mixed.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
            rows.append([layer_entropy(shares) / math.log(48), rank_residual(x) / first])
        ratios.append(rows)
    recorded = values["arrays"][f"depth/{tokens}/linearised/mean"].values[:, :8, cell(mean, spread)]
    np.testing.assert_allclose(recorded, np.mean(ratios, axis=0).T, atol=0.6 * STEP)


def test_rounding_noise_in_the_tokens_is_far_below_a_step_of_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = tuple(torch.tensor(part, dtype=torch.float64)[:, None, None] for part in zip(*SAMPLE, strict=True))
    clean = course("independent", "true", 0, cells)
    noise = 1 + 1e-12 * torch.randn(64, 64, generator=Generator().manual_seed(9), dtype=torch.float64)
    draw_input = Stack.draw_input
    monkeypatch.setattr(Stack, "draw_input", lambda stack, generator: draw_input(stack, generator) * noise)
    assert float((course("independent", "true", 0, cells) - clean).abs().max()) < STEP / 1000


@pytest.mark.parametrize("tokens", TOKEN_LAWS)
def test_two_matrices_give_the_first_layer_at_any_point(values: dict, tokens: str) -> None:
    like, noise, spectrum = (
        values["arrays"][f"first/{tokens}/{name}"].values for name in ("like", "noise", "spectrum")
    )
    for mean, spread in [*SAMPLE, (7.3, 1.9)]:
        logits = torch.from_numpy(mean * like + spread * noise).masked_fill(~causal_mask(64), -torch.inf)
        expected = first_attention([Spectrum(mean, spread)], Stack(tokens=tokens), seed=0)[0]
        torch.testing.assert_close(logits.softmax(-1), expected, atol=0.01, rtol=0)
    assert abs(spectrum.mean()) < 1e-3
    assert abs(spectrum.std() - 1) < 1e-3


@pytest.mark.parametrize("dim", LAW_DIMS)
def test_the_tabulated_law_is_the_exact_law_of_the_package(values: dict, dim: int) -> None:
    table, points = values["arrays"][f"law/{dim}"].values, np.array(values["law"]["points"])
    for a in (0, len(table) // 3, len(table) - 1):
        angle = math.pi / 2 * a / (len(table) - 1)
        eigenvalues = (math.cos(angle) + math.sin(angle) * law_spectrum(dim)) / math.sqrt(dim)
        for g in (0, 12, 17):
            drift, deviation = SLOPES[g], math.sqrt(2 * SLOPES[g] ** 2 + 1)
            centre = drift * eigenvalues.sum() if dim >= values["law"]["centred"] else 0.0
            for p in (10, 32, 40, 50):
                level = centre + points[p] * deviation
                m = torch.diag(torch.from_numpy(eigenvalues))
                exact = interval_probability(m, torch.tensor(drift), 1.0, -math.inf, level)
                assert abs(table[a, g, p] - float(exact)) < 2e-5


def test_the_law_of_many_eigenvalues_is_as_far_from_normal_as_the_record_says(values: dict) -> None:
    from scipy import stats

    points = np.linspace(-3, 3, 13)
    exact = standard_law(values["law"]["many"], [0.0], SLOPES[::8], points)
    error = float(np.abs(exact - stats.norm.cdf(points)).max())
    assert error <= values["law"]["gaussian_error"] + 1e-4 < 0.01


def test_arrays_survive_the_file_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    kept = pack(np.array([[0.004, 1.0], [2.0, -1.0]]), "uint8", STEP)
    assert kept.integers.tolist() == [[1, 200], [255, 0]]
    write_values(tmp_path / "values.js", {"arrays": {"a": kept.as_json()}})
    again = read_values(tmp_path / "values.js")["arrays"]["a"]
    assert isinstance(again, Packed)
    assert (again.values == kept.values).all()
    (tmp_path / "values.js").write_text("window.explorerValues = {};\n")
    with pytest.raises(ArgumentError, match="qkrepro explorer"):
        read_values(tmp_path / "values.js")
    with pytest.raises(ArgumentError, match="qkrepro explorer"):
        read_values(tmp_path / "other.js")


def test_a_symmetric_matrix_lies_on_the_plane_where_its_spectrum_says() -> None:
    w = random_spectrum_matrix(64, 16 / 64, 4.0 / 64, generator=Generator().manual_seed(0))
    moments = matrix_moments(w)
    assert math.isclose(float(moments.trace), 16, rel_tol=1e-9)
    assert math.isclose(dispersion(float(moments.frobenius_sq.sqrt()), 16.0, 64), 2.0, rel_tol=1e-9)


def test_increments_of_independent_tokens_have_twice_their_covariance() -> None:
    x = independent_tokens(256, 4, batch=400, generator=Generator().manual_seed(0))
    ratio = increment_second_moment(list(x)).trace() / covariance(list(x)).trace()
    assert abs(float(ratio) - 2) < 0.02


def test_xavier_is_marked_where_drawn_heads_are() -> None:
    for fan_out, mark in zip((384, 3 * 384), xavier_marks().points, strict=True):
        w_q, w_k = xavier_qk(384, 32, fan_out=fan_out, batch=(8,), generator=Generator().manual_seed(1))
        products = w_k @ w_q.mT  # (8, 32, 32)
        norms = torch.linalg.matrix_norm(w_q.mT @ w_k) / 32**0.5
        assert abs(float(norms.mean()) - mark.y) < 0.02
        assert float((products.diagonal(dim1=-2, dim2=-1).sum(-1) / 32**0.5).abs().max()) < 0.5


def test_all_heads_and_all_judged_runs_are_marked_inside_the_map(marks: dict[str, MarkGroup]) -> None:
    assert len(marks["heads"].points) == 72
    recorded = len(list((ROOT / "results" / "locater-wikitext-2").glob("*/run.json")))
    assert len(marks["baseline"].points) + len(marks["locater"].points) == recorded
    for group in marks.values():
        for mark in [*group.points, *group.trail]:
            assert MEANS[0] <= mark.x <= MEANS[-1]
            assert DISPERSIONS[0] <= mark.y <= DISPERSIONS[-1]


def test_a_run_starts_where_its_initialisation_is_marked(marks: dict[str, MarkGroup]) -> None:
    start, drawn = marks["baseline"].trail[0], marks["xavier"].points[1]
    assert abs(start.x - drawn.x) < 0.05
    assert abs(start.y - drawn.y) < 0.1  # its tokens have not exactly unit covariance


def test_a_grid_point_lies_in_its_own_cell(values: dict) -> None:
    for column, mean in enumerate(MEANS):
        for row, spread in enumerate(DISPERSIONS):
            assert nearest_cell(mean, spread, values["grid"]) == (column, row)


def test_marks_in_safe_cells_are_counted(marks: dict[str, MarkGroup], values: dict) -> None:
    safe, other = dataclasses.replace(marks["heads"].points[0], x=16.0, y=0.5), marks["xavier"].points[0]
    groups = {"heads": dataclasses.replace(marks["heads"], points=[safe, other, safe])}
    assert tuple(LEGEND) == STATES
    counts = mark_states(groups, values, 8).set_index(["tokens", "softmax"]).loc[("random walk", "true")]
    assert counts[["safe", "open", "alike", "few", "both"]].tolist() == [2, 0, 1, 0, 0]
    table = counts_table(groups, values)
    assert "| random walk | true | 2 | 1 | 0 | 0 | 0 |" in table
    assert "at most 2 of the 3 MiniLM heads" in table


def test_the_safe_means_of_the_map_stand_beside_the_predicted_window_of_the_walk(values: dict) -> None:
    lines = [line.strip("| ").split(" | ") for line in windows_table(ROOT, values).splitlines()]
    rows = {name: cells for name, *cells in lines}
    assert set(TOKEN_LAWS) <= set(rows)
    safe = values["arrays"]["depth/random walk/true/safe"].values[7].reshape(len(MEANS), len(DISPERSIONS))[:, 0]
    shown = [float(mean) for mean in rows["random walk"][0].split(", ")]
    assert shown == [mean for mean, is_safe in zip(MEANS, safe, strict=True) if is_safe]
    limit = depth_limit(walk_cosines(64), shown[0], 8)  # the chapter's recursion, at ends of the predicted window
    lower, upper = map(float, re.findall(r"[\d.]+", rows["random walk"][1]))
    assert lower < min(shown) < max(shown) < upper
    assert cosine_residual(limit.cosines)[-1] / cosine_residual(walk_cosines(64)) > 0.5
    ends = [float(end) for end in re.findall(r"[\d.]+", rows["independent"][1])]
    assert not [mean for mean in MEANS if ends[0] <= mean <= ends[1]]  # it falls between two columns
    assert all(mean.startswith("−") for mean in rows["independent"][0].split(", "))
    low = depth_limit(walk_cosines(64), 0.9 * lower, 8)
    assert cosine_residual(low.cosines)[-1] / cosine_residual(walk_cosines(64)) < 0.5


def test_every_control_has_a_label_and_sizes_are_the_true_ones(marks: dict[str, MarkGroup], values: dict) -> None:
    fragment = page_fragment(marks, values)
    for control in re.findall(r"<(?:input|select)[^>]*>", fragment):
        before = fragment[: fragment.index(control)]
        assert before.rfind("<label") > before.rfind("</label>"), control
    shown = re.findall(r'<option value="(\d+)"[^>]*>(\d+)', fragment)
    assert all(value == words for value, words in shown)
    assert {str(length) for length in LENGTHS} | {str(dim) for dim in LAW_DIMS} <= {value for value, _ in shown}
    assert "8192" in dict(shown)
    parts = re.findall(r'data-part="([^"]+)"', fragment)
    assert len(parts) == len(set(parts))


def test_the_library_is_one_script_that_asks_no_other_host() -> None:
    library = vega_library()
    assert len(library.encode()) < 700_000
    assert "window.vega=" in library
    assert "jsdelivr" not in library
    assert not re.search(r"\bimport\s*\(", library)
