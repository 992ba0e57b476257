"""Tables of records: what a sweep has and lacks, arrays in tidy form, and small runs that leave nothing behind."""

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from qkrepro.errors import ArgumentError, RunError
from qkrepro.training.configuration import RunConfiguration
from qkrepro.training.corpus import zipf_probabilities
from qkrepro.training.loop import train
from qkrepro.training.records import copy_record, find_records, read_arrays
from qkrepro.training.tables import (
    SweepTables,
    live_runs,
    perplexity_floor,
    sweep_overview,
    sweep_tables,
    vocabulary_name,
)

TINY = RunConfiguration(
    d_model=16, d_ff=16, length=32, batch=8, epochs=0.05, warmup=10, evaluate_every=10, measured_sequences=4
)
FIXED = {"d_model": 16, "d_ff": 16, "length": 32, "batch": 8, "epochs": 0.05, "warmup": 10, "evaluate_every": 10}


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    threads, folder = torch.get_num_threads(), tmp_path_factory.mktemp("runs") / "some"
    for seed in (0, 1):
        train(replace(TINY, seed=seed, heads=2), folder, progress=False)
    torch.set_num_threads(threads)
    return folder


def write_sweep(folder: Path, records: Path, **lists) -> Path:
    for source in find_records(records):
        copy_record(source, folder / "some" / source.name)
    fixed = FIXED | {"measured_sequences": 4, "heads": 2}
    (folder / "some.yaml").write_text(yaml.safe_dump({"fixed": fixed, "lists": lists}, sort_keys=False))
    return folder / "some.yaml"


@pytest.fixture(scope="module")
def tables(tmp_path_factory, records) -> SweepTables:
    return sweep_tables(write_sweep(tmp_path_factory.mktemp("sweep"), records, seed=[0, 1]))


def test_records_give_one_row_a_run_and_one_row_an_evaluation(tables):
    assert sorted(tables.summary["seed"]) == [0, 1]
    assert tables.curves.groupby("run")["update"].apply(list).tolist() == [[0, 10, 20]] * 2
    best = tables.summary.set_index("run")["best_update"]
    assert set(best) <= set(tables.curves["update"])


def test_eigenvalues_are_those_of_the_file_in_tidy_form(tables, records):
    table, folder = tables.eigenvalues(), find_records(records)[0]
    stored = read_arrays(folder)["eigenvalues"]  # (evaluations, 1 layer, 2 heads, 8)
    run = table["run"].unique()[0]
    chosen = table[(table["run"] == run) & (table["head"] == 1) & (table["update"] == table["update"].max())]
    assert (chosen["real"] + 1j * chosen["imag"]).tolist() == stored[-1, 0, 1].tolist()
    assert len(table) == 2 * stored.size


def test_eigenvalues_sum_to_the_trace_of_the_curve(tables):
    sums = tables.eigenvalues().groupby(["run", "update", "head"])["real"].sum().unstack()
    traces = tables.curves.set_index(["run", "update"])[["trace_0_0", "trace_0_1"]]
    np.testing.assert_allclose(sums.loc[traces.index].to_numpy(), traces.to_numpy(), rtol=1e-6, atol=1e-6)


def test_attention_profile_is_a_distribution_over_locations_up_to_one(tables):
    profiles = tables.profiles(by=["seed"])
    assert profiles.groupby(["run", "update", "layer", "head"])["attention"].sum().to_numpy() == pytest.approx(1, 1e-5)
    assert (profiles["location"].min(), profiles["location"].max()) == (1 / 32, 1)
    assert set(profiles["seed"]) == {0, 1}


def test_a_sweep_says_what_is_recorded_and_the_command_for_what_is_not(tmp_path, records):
    sweep = sweep_tables(write_sweep(tmp_path, records, seed=[1, 5, 0]))
    assert sweep.planned[["seed", "state"]].to_numpy().tolist() == [[1, "recorded"], [5, "not run"], [0, "recorded"]]
    assert sweep.missing.to_numpy().tolist() == [[5, "not run", "qkrepro sweep results/some.yaml --data DIR"]]
    assert sweep.summary["seed"].tolist() == [1, 0]


def test_a_record_that_is_no_run_of_the_file_is_left_out(tmp_path, records):
    sweep = sweep_tables(write_sweep(tmp_path, records, seed=[1]))
    assert sweep.summary["seed"].tolist() == [1]
    assert set(sweep.curves["seed"]) == {1}
    assert list(sweep.arrays) == sweep.summary["run"].tolist()


def test_another_value_of_any_entry_is_another_run(tmp_path, records):
    sweep = sweep_tables(write_sweep(tmp_path, records, seed=[1], kappa=[0.0, 0.5]))
    assert sweep.planned["state"].tolist() == ["recorded", "not run"]


def test_a_sweep_without_a_record_has_empty_tables_that_can_be_grouped(tmp_path):
    (tmp_path / "none.yaml").write_text("fixed: {batch: 8}\nlists: {seed: [0, 1]}")
    sweep = sweep_tables(tmp_path / "none.yaml")
    assert sweep.planned["state"].tolist() == ["not run", "not run"]
    assert sweep.summary.groupby(["kappa", "seed"])["test_perplexity"].mean().empty
    assert sweep.curves.groupby(["kappa", "epoch"])["valid_perplexity"].mean().empty
    assert sweep.eigenvalues().empty
    assert sweep.profiles().empty
    assert vocabulary_name(sweep) == "full vocabulary"
    assert math.isnan(perplexity_floor(sweep))


def test_a_reduced_vocabulary_is_named_with_its_words_before_anything_is_run(tmp_path):
    (tmp_path / "none.yaml").write_text("fixed: {vocabulary: 8192}\nlists: {seed: [0, 1]}")
    assert vocabulary_name(sweep_tables(tmp_path / "none.yaml")) == "reduced vocabulary (8,192 words)"
    assert vocabulary_name(live_runs([])) == "not run"


def test_overview_counts_runs_and_names_the_command_only_where_something_is_missing(tmp_path, records):
    whole = sweep_tables(write_sweep(tmp_path, records, seed=[0, 1]))
    (tmp_path / "none.yaml").write_text("fixed: {batch: 8}\nlists: {seed: [0]}")
    table = sweep_overview([whole, sweep_tables(tmp_path / "none.yaml")])
    assert table.to_numpy().tolist() == [
        ["some", 2, 2, 0, ""],
        ["none", 1, 0, 1, "qkrepro sweep results/none.yaml --data DIR"],
    ]


def test_a_file_that_is_no_sweep_and_a_damaged_record_are_named(tmp_path, records):
    (tmp_path / "bad.yaml").write_text("[]")
    with pytest.raises(RunError, match=r"bad\.yaml is no sweep"):
        sweep_tables(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_text("lists: {speed: [1]}")
    with pytest.raises(ArgumentError, match=r"configuration entry must be one of .*, got 'speed'"):
        sweep_tables(tmp_path / "bad.yaml")
    path = write_sweep(tmp_path, records, seed=[0, 1])
    next((tmp_path / "some").rglob("run.json")).write_text("{")
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        sweep_tables(path)


def test_live_runs_print_nothing_leave_nothing_and_repeat_themselves(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first, second = (live_runs([replace(TINY, kappa=0.1)]) for _ in range(2))
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    pd.testing.assert_frame_equal(first.curves, second.curves)
    pd.testing.assert_frame_equal(first.eigenvalues(), second.eigenvalues())
    assert first.summary["kappa"].tolist() == [0.1]


def test_floor_is_the_perplexity_of_who_knows_the_word_that_may_be_repeated():
    tables = live_runs([replace(TINY, vocabulary=3, epochs=0.01)])
    pi, repeat = zipf_probabilities(3).tolist(), 0.6
    entropy = 0.0
    for a in range(3):
        for b in range(3):
            p = repeat * (a == b) + (1 - repeat) * pi[b]
            entropy -= pi[a] * p * math.log(p)
    assert perplexity_floor(tables) == pytest.approx(math.exp(entropy))
    assert vocabulary_name(tables) == "full vocabulary (3 words)"
