"""Saved numbers come back as they were, and only `qkrepro figures` writes those that are committed."""

import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from qkrepro.errors import ArgumentError
from qkrepro.evidence.numbers import (
    FOLDER_VARIABLE,
    INTERACTIVE,
    changed_parameters,
    describe_execution,
    load_numbers,
    numbers_folder,
    save_numbers,
    stored,
)


@pytest.fixture
def book(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "_toc.yml").write_text("root: intro\n")
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


@pytest.fixture
def executed(book, monkeypatch):
    """As in an execution by `qkrepro figures` of the committed profile."""
    folder = book / "notebooks" / "numbers"
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    return folder


def test_tables_come_back_with_eight_digits_and_missing_values(executed):
    table = pd.DataFrame({"theta": [0.1, 1 / 3], "case": ["a", "b"], "index": [np.nan, 2e-300], "n": [1, 2]})
    save_numbers("chapter", "quick", {"profiles": table})
    back = load_numbers("chapter")["profiles"]
    pd.testing.assert_frame_equal(back, table, rtol=1e-8)
    assert back["theta"][1] == 0.33333333


def test_a_verdict_in_a_notebook_is_judged_on_what_is_stored(executed):
    table = pd.DataFrame({"x": [1 / 3, -0.0, np.nan], "case": ["a", "b", "c"]})
    save_numbers("chapter", "quick", {"t": table})
    pd.testing.assert_frame_equal(stored({"t": table})["t"], load_numbers("chapter")["t"])
    assert str(stored({"t": table})["t"]["x"][1]) == "0.0"


def test_equal_tables_give_equal_bytes(executed):
    for _ in range(2):
        save_numbers("chapter", "quick", {"t": pd.DataFrame({"x": [0.1 + 0.2]})})
        first = (executed / "chapter.json").read_bytes()
    assert first == (executed / "chapter.json").read_bytes()


@pytest.mark.parametrize("profile", ["quick", "smoke"])
def test_a_run_by_hand_is_written_under_the_build_folder_only(book, profile):
    save_numbers("chapter", profile, {"t": pd.DataFrame({"x": [1]})})
    assert (book / INTERACTIVE / "chapter.json").is_file()
    assert not (book / "notebooks" / "numbers").exists()


def test_a_run_by_hand_knows_which_parameters_are_not_the_committed_ones(executed, monkeypatch):
    save_numbers("chapter", "quick", {"t": pd.DataFrame({"x": [1]})})
    describe_execution(executed / "chapter.json", {"profile": "quick", "dim": 4, "means": [1.0, 2.0]}, "a processor")
    names = {"profile": "quick", "dim": 8, "means": (1.0, 2.0), "other": 1}
    shell = SimpleNamespace(get_ipython=lambda: SimpleNamespace(user_ns=names))
    monkeypatch.setitem(sys.modules, "IPython", shell)
    assert changed_parameters("chapter") == {}
    monkeypatch.delenv(FOLDER_VARIABLE)
    assert changed_parameters("chapter") == {"dim": (4, 8)}
    assert changed_parameters("no chapter") == {}


def test_missing_and_damaged_numbers_are_named(executed):
    with pytest.raises(ArgumentError, match="chapter is 'nothing'"):
        load_numbers("nothing")
    save_numbers("chapter", "quick", {"t": pd.DataFrame({"x": [1]})})
    path = executed / "chapter.json"
    path.write_text(path.read_text()[:20])
    with pytest.raises(ArgumentError, match="a damaged one"):
        load_numbers("chapter")


def test_outside_a_checkout_the_message_says_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match=r"with _toc\.yml"):
        numbers_folder()
