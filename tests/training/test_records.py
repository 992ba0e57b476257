"""Records: what is written comes back, equal runs have equal names, damage and full disks are clear errors."""

import errno
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkrepro.errors import RunError
from qkrepro.files import write_atomically
from qkrepro.training.records import (
    RECORD_FILES,
    copy_record,
    is_recorded,
    read_arrays,
    read_records,
    read_run,
    read_runs,
    run_identity,
    write_arrays,
    write_json,
    write_metrics,
)


def write_record(folder, seed=0, kappa=0.0):
    rows = [{"update": 0, "valid_loss": 2.0, "trace": 0.1}, {"update": 10, "valid_loss": 1.0 / 3.0, "trace": 0.2}]
    write_metrics(folder, rows)
    write_arrays(folder, {"update": np.array([0, 10]), "eigenvalues": np.array([[1 + 2j], [3 - 4j]])})
    write_json(folder / "timing.json", {"training_seconds": 1.0})
    content = {"configuration": {"seed": seed, "kappa": kappa}, "corpus": {"name": "text", "digest": "d"}}
    content |= {"environment": {"torch": "2"}, "summary": {"valid_loss": 1.0 / 3.0, "best_update": 10}}
    write_json(folder / "run.json", {"identity": f"run{seed}"} | content)


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.one_of(st.none(), st.integers(), st.floats(0, 1))))
def test_identity_ignores_the_order_of_entries_and_nothing_else(settings):
    assert run_identity(dict(reversed(settings.items()))) == run_identity(settings)
    assert run_identity(settings | {"more": 1}) != run_identity(settings | {"more": 2})


def test_records_become_one_tidy_table_with_configuration_and_exact_numbers(tmp_path):
    write_record(tmp_path / "a", seed=1)
    write_record(tmp_path / "deep" / "b", seed=2, kappa=0.5)
    table = read_records(tmp_path)
    assert table[["run", "seed", "kappa", "corpus", "update"]].to_numpy().tolist() == [
        ["run1", 1, 0.0, "text", 0],
        ["run1", 1, 0.0, "text", 10],
        ["run2", 2, 0.5, "text", 0],
        ["run2", 2, 0.5, "text", 10],
    ]
    assert table["valid_loss"].tolist() == [2.0, 1.0 / 3.0] * 2


def test_runs_are_one_row_each_with_their_summary(tmp_path):
    write_record(tmp_path / "a", seed=1)
    write_record(tmp_path / "b", seed=2)
    assert read_runs(tmp_path)[["run", "best_update"]].to_numpy().tolist() == [["run1", 10], ["run2", 10]]


def test_arrays_come_back(tmp_path):
    write_record(tmp_path)
    assert read_arrays(tmp_path)["eigenvalues"].tolist() == [[1 + 2j], [3 - 4j]]


def test_same_content_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_record(tmp_path / name)
    for name in RECORD_FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_copied_record_equals_its_source(tmp_path):
    write_record(tmp_path / "a")
    copy_record(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted(RECORD_FILES)
    assert read_run(tmp_path / "b") == read_run(tmp_path / "a")


def test_folder_without_run_json_is_no_record(tmp_path):
    write_record(tmp_path / "a")
    (tmp_path / "a" / "run.json").unlink()
    assert not is_recorded(tmp_path / "a")
    with pytest.raises(RunError, match="holds no finished record"):
        read_records(tmp_path)
    with pytest.raises(RunError, match=r"no finished record, which has .*run\.json"):
        copy_record(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("damage", [b"{", b"[]", json.dumps({"identity": "x"}).encode()])
def test_damaged_run_json_is_named(tmp_path, damage):
    write_record(tmp_path)
    (tmp_path / "run.json").write_bytes(damage)
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        read_records(tmp_path)


def test_damaged_metrics_and_arrays_are_named(tmp_path):
    write_record(tmp_path)
    (tmp_path / "metrics.csv").write_bytes(b"")
    (tmp_path / "spectrum.npz").write_bytes(b"not a zip")
    with pytest.raises(RunError, match=r"metrics\.csv is damaged"):
        read_records(tmp_path)
    with pytest.raises(RunError, match=r"spectrum\.npz cannot be read"):
        read_arrays(tmp_path)


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_atomically(tmp_path / "file", b"old")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"file cannot be written: No space left on device"):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_folder_that_is_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_json(tmp_path / "taken" / "run.json", {})
