"""Each rule gives the verdict it states, and data that contradict the claim flip it."""

from pathlib import Path

import numpy as np
import pytest
from agreement import rule_for, text_difference

from qkrepro.errors import ArgumentError
from qkrepro.evidence.claims import claim_named, judge
from qkrepro.evidence.numbers import book_root, load_numbers
from qkrepro.evidence.page import show_verdict
from qkrepro.publishing.claims_pages import STORED, all_claims, changed_verdicts, verdicts, write_pages

SETTINGS = (  # columns that a chapter chooses: the grid of an experiment, not what is measured on it
    *("spread", "mean_scaled", "dispersion", "spread_scaled", "kappa", "temperature", "best_epoch", "last_epoch"),
    *("growth", "alpha", "weight", "ratio", "factor", "scaled_mean"),
)
ABSTRACT = (
    "the small eigenspectrum variance prevents both rank and entropy collapse, leading to better model expressivity "
    "and trainability. reveal that a small eigenspectrum variance leads attention to be localized. making the learning "
    "dynamics more likely to be trapped in plateaus."
)


@pytest.mark.parametrize("entry", all_claims(), ids=lambda entry: entry.name)
def test_every_rule_is_fed_with_made_data_in_the_tests_of_its_chapter(entry):
    text = (book_root() / "tests" / "chapters" / f"test_{entry.chapter}.py").read_text(encoding="utf-8")
    assert entry.name in text or entry.judge.__name__ in text or "CLAIMS" in text
    assert "reproduced" in text


@pytest.mark.parametrize("entry", all_claims(), ids=lambda entry: entry.name)
def test_no_verdict_hangs_on_last_bits(entry):
    """Numbers moved by more than processors differ give the same verdict, with the same counts."""
    tables = load_numbers(entry.chapter)
    told = judge(entry, tables)
    for seed in range(2):
        noise = np.random.default_rng(seed)
        moved = {
            name: _moved(tables[name], noise, rule_for(entry.chapter, name).relative / 10) for name in entry.tables
        }
        again = judge(entry, moved)
        assert again.outcome == told.outcome
        assert text_difference(again.because, told.because) is None


def _moved(table, noise, size):
    """Measured columns times 1 ± size, a tenth of what `agreement` allows, and more than any two processors differ."""
    measured = [name for name in table.select_dtypes("float") if name not in SETTINGS]
    return table.assign(**{name: table[name] * (1 + size * noise.uniform(-1, 1, len(table))) for name in measured})


def test_only_words_of_the_abstract_are_quoted():
    quotes = [entry.quote for entry in all_claims() if entry.quote]
    assert quotes
    assert all(quote in ABSTRACT for quote in quotes)
    assert {entry.provenance for entry in all_claims() if entry.quote} == {"paper"}


def test_a_profile_other_than_the_committed_one_gives_no_verdict():
    shown = show_verdict(claim_named(all_claims(), "xavier-spectrum"), {}, "smoke")
    assert list(shown.verdicts.values()) == [None]
    assert "no verdict" in repr(shown)


def test_a_missing_table_and_an_unknown_claim_are_named():
    with pytest.raises(ArgumentError, match="tables lack checks"):
        show_verdict(claim_named(all_claims(), "xavier-spectrum"), {}, "quick")
    with pytest.raises(ArgumentError, match=r"claim must be one of linearisation-first-order"):
        claim_named(all_claims(), "nothing")


def test_a_chapter_without_numbers_reads_not_run(tmp_path: Path):
    table = verdicts(tmp_path)
    assert set(table["outcome"]) == {"not run"}
    completed = table["because"].str.extract(r"`qkrepro figures (\w+)`")[0]
    written = {path.stem for path in (book_root() / "notebooks").glob("*.ipynb")}
    assert set(completed.dropna()) == written & set(table["chapter"])
    assert set(table.loc[completed.isna(), "because"]) <= {"its chapter is not written yet"}


def test_a_stored_verdict_that_no_longer_follows_is_named(tmp_path: Path):
    table = verdicts(tmp_path)
    table[["claim", "outcome", "setting", "because", "holds", "of"]].to_csv(tmp_path / STORED, index=False)
    assert changed_verdicts(table, tmp_path) == []
    edited = table.assign(outcome=["reproduced", *table["outcome"][1:]])
    edited[["claim", "outcome", "setting", "because", "holds", "of"]].to_csv(tmp_path / STORED, index=False)
    assert changed_verdicts(table, tmp_path) == [all_claims()[0].name]


def test_the_committed_verdicts_follow_from_the_committed_numbers():
    assert changed_verdicts(verdicts()) == []


def test_the_generated_pages_are_current(tmp_path: Path):
    written = write_pages(tmp_path)
    committed = book_root() / "book" / "generated"
    assert {path.name: path.read_text() for path in written} == {
        path.name: (committed / path.name).read_text() for path in written
    }
