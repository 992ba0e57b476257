"""Saved numbers come back as they were, and another profile never touches the committed ones."""

import numpy as np
import pandas as pd
import pytest

from qkrepro.errors import ArgumentError
from qkrepro.figure_numbers import FOLDER_VARIABLE, load_numbers, numbers_folder, save_numbers


@pytest.fixture
def book(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "_toc.yml").write_text("root: intro\n")
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


def test_tables_come_back_with_twelve_digits_and_missing_values(book):
    table = pd.DataFrame({"theta": [0.1, 1 / 3], "case": ["a", "b"], "index": [np.nan, 2e-300], "n": [1, 2]})
    save_numbers("chapter", "quick", {"profiles": table})
    back = load_numbers("chapter")["profiles"]
    pd.testing.assert_frame_equal(back, table, rtol=1e-11)


def test_equal_tables_give_equal_bytes(book):
    for _ in range(2):
        save_numbers("chapter", "quick", {"t": pd.DataFrame({"x": [0.1 + 0.2]})})
        first = (book / "notebooks" / "numbers" / "chapter.json").read_bytes()
    assert first == (book / "notebooks" / "numbers" / "chapter.json").read_bytes()


def test_another_profile_is_written_under_the_build_folder_only(book):
    save_numbers("chapter", "smoke", {"t": pd.DataFrame({"x": [1]})})
    assert (book / "_build" / "smoke" / "numbers" / "chapter.json").is_file()
    assert not (book / "notebooks" / "numbers").exists()


def test_the_variable_redirects_the_numbers(book, monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "elsewhere"))
    assert numbers_folder("quick") == tmp_path / "elsewhere"


def test_missing_and_damaged_numbers_are_named(book):
    with pytest.raises(ArgumentError, match="chapter is 'nothing'"):
        load_numbers("nothing")
    save_numbers("chapter", "quick", {"t": pd.DataFrame({"x": [1]})})
    path = book / "notebooks" / "numbers" / "chapter.json"
    path.write_text(path.read_text()[:20])
    with pytest.raises(ArgumentError, match="is damaged"):
        load_numbers("chapter")


def test_outside_a_checkout_the_message_says_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match=r"with _toc\.yml"):
        numbers_folder()
