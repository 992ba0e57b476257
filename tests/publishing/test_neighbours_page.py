"""The table of the part "Neighbours": current, and with a source and a word on the spectrum for every chapter."""

from importlib import import_module
from pathlib import Path

import pytest

from qkrepro.errors import ArgumentError
from qkrepro.evidence.numbers import book_root
from qkrepro.publishing.claims_pages import all_claims, verdicts
from qkrepro.publishing.neighbours_page import neighbour_chapters, neighbours_page, write_neighbours

CHAPTERS = neighbour_chapters(book_root())


def test_the_committed_table_is_current(tmp_path: Path) -> None:
    committed = book_root() / "book" / "generated" / "neighbours.md"
    assert write_neighbours(book_root(), tmp_path).read_text() == committed.read_text()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_of_the_part_names_its_source_and_what_the_spectrum_says(chapter: str) -> None:
    module = import_module(f"qkrepro.chapters.{chapter}")
    assert module.SOURCE
    assert module.SPECTRUM_SAYS.endswith(".")


def test_every_claim_of_the_part_has_one_row_and_every_chapter_is_named_once() -> None:
    rows = [line for line in neighbours_page(book_root(), verdicts()).splitlines() if line.startswith("|")][2:]
    claims = [claim for claim in all_claims() if claim.chapter in CHAPTERS]
    assert [claim.name for claim, row in zip(claims, rows, strict=True) if f"(#claim-{claim.name})" not in row] == []
    assert [sum(f"/{chapter}`" in row for row in rows) for chapter in CHAPTERS] == [1] * len(CHAPTERS)
    assert {row.replace("\\|", "").count("|") for row in rows} == {6}


def test_a_source_that_is_no_arxiv_id_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"qkrepro.chapters.{CHAPTERS[0]}.SOURCE", "a paper")
    with pytest.raises(ArgumentError, match="arXiv id"):
        neighbours_page(book_root(), verdicts())
