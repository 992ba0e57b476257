"""Every committed record keeps its name when configurations gain entries, and its sweep file finds it."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from qkrepro.training.concentration import COLUMNS
from qkrepro.training.configuration import RunConfiguration, configuration_from, described, settings
from qkrepro.training.corpus import Corpus
from qkrepro.training.records import ADDED, find_records, read_run
from qkrepro.training.tables import sweep_tables

RESULTS = Path(__file__).parents[2] / "results"
SWEEPS = sorted(path.name for path in RESULTS.glob("*.yaml") if path.with_suffix("").is_dir())
RECORDS = {  # of the first edition: counted by hand
    **{"kappa-reduced": 15, "kappa-short": 15, "locater-wikitext-2": 10, "search-kappa": 4},
    **{"search-schedule": 8, "shapes-reduced": 36, "starts-reduced": 12, "variants-reduced": 18},
}


def recorded_corpus(about: dict) -> Corpus:
    """A corpus with the name and digest of a record, and no text."""
    none = torch.empty(0)
    words = [""] * about["words"]
    return Corpus(
        about["name"], words, none, none, none, about["digest"], about["reduced_vocabulary"], about["entropy"]
    )


def test_entries_that_were_added_have_the_value_of_runs_without_them_as_their_default():
    plain = RunConfiguration()
    assert {name: getattr(plain, name) for name in ADDED} == dict(ADDED)
    assert not set(settings(plain)) & set(ADDED)
    assert settings(replace(plain, schedule="linear"))["schedule"] == "linear"
    assert set(settings(plain)) | set(ADDED) | {"corpus"} == {field.name for field in fields(plain)}


@pytest.mark.parametrize("name", SWEEPS)
def test_every_committed_record_has_the_identity_of_its_configuration(name):
    for folder in find_records(RESULTS / Path(name).stem):
        run = read_run(folder)
        now = described(configuration_from(run["configuration"]), recorded_corpus(run["corpus"]))
        assert now == {key: run[key] for key in ("identity", "configuration", "corpus")}
        assert folder.name.endswith(now["identity"])


@pytest.mark.parametrize("name", RECORDS)
def test_every_run_of_a_first_sweep_is_found_with_the_columns_that_came_later(name):
    tables = sweep_tables(RESULTS / f"{name}.yaml")
    assert len(tables.planned) == len(find_records(RESULTS / name)) == RECORDS[name]
    assert set(tables.planned["state"]) == {"recorded"}
    for table in (tables.summary, tables.curves):
        assert (table[list(ADDED)] == list(ADDED.values())).all(axis=None)
        assert table[list(COLUMNS)].notna().all(axis=None)


def test_concentration_of_the_first_full_runs_is_that_of_the_referees_table():
    """Mean over seeds at the last evaluation; N from traces and norms as they stand in the records."""
    curves = sweep_tables(RESULTS / "locater-wikitext-2.yaml").curves
    last = curves.sort_values("update").groupby("run").tail(1).groupby("kappa")
    assert last["concentration"].mean().to_dict() == pytest.approx({0.0: 0.63, 1e-3: 0.13}, abs=0.01)
    assert last["walk_concentration"].mean().to_dict() == pytest.approx({0.0: 0.91, 1e-3: 0.93}, abs=0.01)
