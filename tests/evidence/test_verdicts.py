"""What rules share: the verdict on correlations that a claim gives a sign to, and the p-value of paired differences."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from qkrepro.evidence.outcomes import paired_p_value
from qkrepro.evidence.verdicts import correlation_verdict


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(0.2, 0.7, "reproduced"), (-0.7, -0.2, "not reproduced"), (-0.1, 0.5, "inconclusive")],
)
def test_a_correlation_has_the_sign_of_the_claim_with_its_whole_interval(
    low: float, high: float, outcome: str, sign: int
) -> None:
    ends = sorted((sign * low, sign * high))
    table = pd.DataFrame([{"quantity": "trace", "correlation": sum(ends) / 2, "low": ends[0], "high": ends[1]}])
    assert correlation_verdict(table, sign).outcome == outcome


def test_no_correlation_is_not_run() -> None:
    assert correlation_verdict(pd.DataFrame(columns=["quantity", "correlation", "low", "high"])).outcome == "not run"


def test_the_paired_p_value_is_that_of_scipy_and_knows_equal_differences() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 5))
    assert paired_p_value((first - second).tolist()) == pytest.approx(stats.ttest_rel(first, second).pvalue)
    assert (paired_p_value([0.3, 0.3]), paired_p_value([0.0, 0.0]), paired_p_value([0.3])) == (0.0, 1.0, 1.0)
