"""A verdict that is not what the first edition printed has a reason, or the book is not built."""

import re
from pathlib import Path

import pandas as pd
import pytest

from qkrepro.errors import SiteError
from qkrepro.publishing.changes_page import FIRST_EDITION, changed_since_the_first_edition, changes_page
from qkrepro.publishing.claims_pages import verdicts

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "book").mkdir()
    rows = "claim,outcome,statement,reason\na,partly,A.,because\nb,partly,B.,\ngone,partly,G.,pooled\nnew,,,asked for\n"
    (tmp_path / FIRST_EDITION).write_text(rows, encoding="utf-8")
    return tmp_path


def _now(**outcomes: str) -> pd.DataFrame:
    return pd.DataFrame({"claim": list(outcomes), "statement": "S.", "outcome": list(outcomes.values())})


def test_each_claim_of_either_edition_has_a_row_and_changed_ones_come_first(root: Path) -> None:
    table = changed_since_the_first_edition(root, _now(b="partly", a="reproduced", new="reproduced"))
    assert table["before"].tolist() == ["partly", "partly", "new", "partly"]
    assert table["after"].tolist() == ["partly", "reproduced", "reproduced", "no longer a claim"]
    lines = changes_page(table).splitlines()
    assert [line.split("|")[3].strip() for line in lines[2:]] == [
        *("**reproduced**", "**reproduced**", "**no longer a claim**", "**partly**")
    ]


def test_a_claim_of_a_new_chapter_needs_no_line_in_the_file(root: Path) -> None:
    table = changed_since_the_first_edition(root, _now(a="partly", b="partly", other="partly")).set_index("claim")
    assert table.loc["other", "before"] == "new"
    assert table.loc["other", "reason"] == "Not in the first edition."


@pytest.mark.parametrize("changed", [{"b": "reproduced"}, {"a": "partly"}])
def test_a_change_without_a_reason_is_refused_by_name(root: Path, changed: dict[str, str]) -> None:
    with pytest.raises(SiteError, match="gives no reason for"):
        changed_since_the_first_edition(root, _now(**changed))


def test_every_change_of_the_book_has_its_reason() -> None:
    table = changed_since_the_first_edition(ROOT, verdicts())
    assert len(table) > 20


def test_every_row_of_a_generated_table_has_the_cells_of_its_header() -> None:
    text = changes_page(changed_since_the_first_edition(ROOT, verdicts()))
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines()]
    assert len(rows) > 10
    assert {len(row) for row in rows} == {len(rows[0])}
