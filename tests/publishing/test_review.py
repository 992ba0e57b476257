"""The numbers of the review: what follows from records is current, and a number that differs is not confirmed."""

import pandas as pd
import pytest

from benchmarks import review


@pytest.fixture(scope="module")
def given() -> pd.DataFrame:
    return pd.read_csv(review.GIVEN, dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def ours() -> pd.DataFrame:
    return review.computed(records_only=True)


def test_the_stored_rows_follow_from_the_committed_records(given: pd.DataFrame, ours: pd.DataFrame) -> None:
    now = review.compared(ours, given[given["quantity"].isin(ours["quantity"])])
    stored = pd.read_csv(review.WRITTEN / "review.csv", dtype=str, keep_default_na=False)
    assert set(stored["quantity"]) == set(given["quantity"])
    rows = stored[stored["quantity"].isin(now["quantity"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, now, check_dtype=False)
    assert (review.WRITTEN / "review.md").read_text(encoding="utf-8") == review.page(stored)
    assert len(now) > 40


def test_a_number_that_differs_is_corrected(given: pd.DataFrame, ours: pd.DataFrame) -> None:
    given = given[given["quantity"].isin(ours["quantity"])].reset_index(drop=True)
    wrong = given.assign(reviewed=["9.99", *given["reviewed"][1:]])
    assert review.compared(ours, given)["outcome"][0] == "confirmed"
    assert review.compared(ours, wrong)["outcome"][0] == "corrected"


def test_a_number_that_nobody_computes_is_an_error(given: pd.DataFrame, ours: pd.DataFrame) -> None:
    with pytest.raises(KeyError, match="no partner"):
        review.compared(ours, given)  # with the simulated ones, which `ours` lacks
