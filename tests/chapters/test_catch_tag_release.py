"""Catch, tag, release: its rules on data that support, refute or say nothing; the task, and what a tag is."""

import pandas as pd
import pytest
import torch

from qkrepro.chapters.catch_tag_release import CLAIMS, Averager, _between, draw_batch, record, train_averagers
from qkrepro.evidence.claims import claim_named, judge


def runs(catch=0.9, tag=0.9, release=0.9, *, learnt=0.99, energy=0.8):
    rows = [{"run": run, "learnt": learnt, "catch": catch, "tag": tag, "release": release} for run in range(3)]
    rows[0]["learnt"] = 0.3  # a run that failed is not asked how it did
    spectra = [
        {"run": run, "layer": layer, "when": when, "energy": energy if (layer, when) == (1, "trained") else 0.4}
        for run in range(3)
        for layer in (1, 2)
        for when in ("start", "trained")
    ]
    return {"runs": pd.DataFrame(rows), "spectra": pd.DataFrame(spectra)}


def outliers(sink, other, jitter=0.01):
    rows = [
        (window, layer, kind, value + jitter * (-1) ** window * (kind == "sink"))
        for window in range(4)
        for layer in range(2)
        for kind, value in (("sink", sink), ("other", other))
    ]
    return {"outliers": pd.DataFrame(rows, columns=["window", "layer", "kind", "outlier"])}


@pytest.mark.parametrize(
    ("name", "tables", "outcome"),
    [
        ("average-is-caught-tagged-released", runs(), "reproduced"),
        ("average-is-caught-tagged-released", runs(catch=0.1), "not reproduced"),
        ("average-is-caught-tagged-released", runs(tag=0.1), "not reproduced"),
        ("average-is-caught-tagged-released", runs(release=0.1), "not reproduced"),
        ("average-is-caught-tagged-released", runs(learnt=0.5), "not run"),
        ("sinks-have-outlier-features", outliers(8, 3), "reproduced"),
        ("sinks-have-outlier-features", outliers(3, 8), "not reproduced"),
        ("sinks-have-outlier-features", outliers(3, 3, jitter=1.0), "inconclusive"),
        ("sinks-have-outlier-features", {"outliers": outliers(8, 3)["outliers"].query("window == 0")}, "not run"),
        ("catching-is-one-direction", runs(), "reproduced"),
        ("catching-is-one-direction", runs(energy=0.3), "not reproduced"),
        ("catching-is-one-direction", runs(learnt=0.5), "not run"),
    ],
)
def test_data_decide_the_verdict(name, tables, outcome):
    verdict = judge(claim_named(CLAIMS, name), tables)
    assert verdict.outcome == outcome, verdict.because


def test_the_target_is_the_mean_of_the_numbers_after_the_separator():
    features, place, target = draw_batch(2, 50, 6, torch.Generator().manual_seed(0))
    assert place.min() == 1
    assert place.max() == 4
    for row, at, wanted in zip(features.flatten(0, 1), place.flatten(), target.flatten(), strict=True):
        assert row[at].tolist() == [0, 0, 1]
        assert row[:, 2].sum() == 1
        assert row[at + 1 :, 0].mean() == pytest.approx(wanted.item())


def test_a_common_direction_is_all_of_the_variance_and_noise_is_none():
    one, other = torch.tensor([True, True, False, False]), torch.tensor([False, False, True, True])
    tagged = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    assert _between(tagged, one, other) == pytest.approx(1)
    assert _between(tagged[[0, 2, 1, 3]], one, other) == pytest.approx(0)


def test_what_comes_later_changes_no_earlier_token():
    model = Averager(2, 4, torch.Generator().manual_seed(0))
    features, _, _ = draw_batch(2, 3, 6, torch.Generator().manual_seed(1))
    later = features.clone()
    later[:, :, -1] = 5.0
    (_, before, added), (_, after, changed) = model(features), model(later)
    torch.testing.assert_close(added[:, :, :-1], changed[:, :, :-1])
    torch.testing.assert_close(before[1][:, :, :-1], after[1][:, :, :-1])


def test_training_measures_every_run():
    table, spectra = train_averagers(runs=2, dim=4, length=6, batch=8, steps=60, rate=0.02, tested=50)
    assert (table["learnt"] > 0).all()
    shares = table[["catch", "tag", "release", "before"]].stack()
    assert shares.between(0, 1).all()
    assert len(spectra) == 2 * 2 * 2
    assert spectra["energy"].between(1 / 4, 1).all()


def test_a_record_is_made_once_and_then_kept(tmp_path):
    record(tmp_path / "runs", runs=2, steps=3)
    (path,) = (tmp_path / "runs").iterdir()
    assert len(pd.read_csv(path)) == 2
    path.write_text("kept")
    record(tmp_path / "runs", runs=2, steps=3)
    assert path.read_text() == "kept"
