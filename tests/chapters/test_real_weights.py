"""The tables of the chapters on real weights: what is measured on a text, and the checks of weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import make, save

from qkrepro.chapters.real_weights import random_spectra, spectra
from qkrepro.errors import ArgumentError, CheckpointError
from qkrepro.models.checkpoint import qk_heads
from qkrepro.models.minilm import DIGEST, check_digest, layer_views, measured_heads, minilm_folder, token_windows
from qkrepro.theory.statistics import correlations


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make("bert"), tmp_path_factory.mktemp("bert"))


WINDOWS = [torch.arange(3, 14), torch.tensor([5, 5, 9, 40, 7])]


def test_attention_follows_from_what_a_layer_reads_and_from_the_weights_in_the_file(folder: Path) -> None:
    views = list(layer_views(folder, WINDOWS))
    assert [(view.window, view.layer) for view in views] == [(window, layer) for window in (0, 1) for layer in range(3)]
    heads = list(qk_heads(folder))
    for view in views:
        logits = torch.stack([head.logits(view.inputs) for head in heads if head.layer == view.layer])
        torch.testing.assert_close(view.attention, logits.softmax(-1).float(), rtol=1e-4, atol=1e-5)


def test_measured_quantities_follow_from_attention_and_tokens(folder: Path) -> None:
    table = measured_heads(folder, WINDOWS).set_index(["layer", "head"])
    views = [view for view in layer_views(folder, WINDOWS) if view.layer == 1]
    head = next(head for head in qk_heads(folder) if (head.layer, head.head) == (1, 2))
    rows = [row for view in views for row in view.attention[2].double().numpy()]
    entropy = np.mean([-(row * np.log(row)).sum() for row in rows])
    assert table.loc[(1, 2), "entropy"] == pytest.approx(entropy, rel=1e-5)
    far = [row @ np.abs(np.arange(len(row)) - place % 11) for place, row in enumerate(rows[:11])]
    far += [row @ np.abs(np.arange(len(row)) - place) for place, row in enumerate(rows[11:])]
    assert table.loc[(1, 2), "distance"] == pytest.approx(np.mean(far), rel=1e-5)
    cov = np.cov(torch.cat([view.inputs for view in views]).double().numpy().T, bias=True)
    w = (head.w_q.mT @ head.w_k).numpy()
    assert table.loc[(1, 2), "trace_cov"] == pytest.approx(np.trace(w @ cov) / 6**0.5, rel=1e-6)
    size = np.sqrt(np.trace(w @ cov @ w.T @ cov)) / 6**0.5
    assert table.loc[(1, 2), "frobenius_cov"] == pytest.approx(size, rel=1e-6)


def test_spectra_hold_every_eigenvalue_over_the_norm_of_its_head(folder: Path) -> None:
    table = spectra(folder)
    assert len(table) == 3 * 4 * 6
    first = next(iter(qk_heads(folder)))
    w = (first.w_q.mT @ first.w_k).numpy()
    mine = table.query("layer == 0 and head == 0")
    assert mine["real"].sum() == pytest.approx(np.trace(w) / np.linalg.norm(w), abs=1e-9)
    assert len(random_spectra(6, 24, 5, seed=0)) == 30


def test_correlations_have_a_row_a_quantity(folder: Path) -> None:
    table = measured_heads(folder, WINDOWS)
    table["same"], table["opposite"] = table["entropy"], -table["entropy"]
    found = correlations(table, "entropy", ["same", "opposite"], seed=0, resamples=50).set_index("quantity")
    np.testing.assert_allclose(found.loc["same"], 1)
    np.testing.assert_allclose(found.loc["opposite"], -1)


def test_the_installed_weights_are_the_published_ones_and_others_are_refused(tmp_path: Path) -> None:
    assert (minilm_folder() / "config.json").exists()
    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(CheckpointError, match=f"SHA-256 is .*; allowed: {DIGEST}"):
        check_digest(tmp_path / "model.safetensors", DIGEST)
    with pytest.raises(CheckpointError, match="cannot be read"):
        check_digest(tmp_path / "missing", DIGEST)


def test_a_text_becomes_windows_of_nearly_equal_length_that_hold_it_whole() -> None:
    windows = token_windows(minilm_folder(), "the path starts behind the mill " * 60, 100)
    assert [int(window[0]) for window in windows] == [101] * len(windows)
    assert [int(window[-1]) for window in windows] == [102] * len(windows)
    lengths = [len(window) for window in windows]
    assert max(lengths) <= 100
    assert max(lengths) - min(lengths) <= 1
    assert sum(lengths) - 2 * len(windows) == 360


@pytest.mark.parametrize(("text", "window"), [("", 100), ("word", 2), ("word", 513)])
def test_an_empty_text_or_an_impossible_window_is_an_error(text: str, window: int) -> None:
    with pytest.raises(ArgumentError):
        token_windows(minilm_folder(), text, window)
