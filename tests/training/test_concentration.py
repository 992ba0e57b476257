"""The concentration N of a spectrum: values that are known, and records written before it was a column."""

import numpy as np
import pandas as pd
import pytest
import torch

from qkrepro.theory.spectrum import qk_moments
from qkrepro.theory.xavier import xavier_qk
from qkrepro.training.concentration import concentration, with_concentration


@pytest.mark.parametrize("scale", [-3.0, 0.01])
def test_a_multiple_of_a_projection_has_its_rank(scale):
    projection = np.diag([1.0, 1, 1, 0, 0])
    assert concentration(np.trace(scale * projection), np.linalg.norm(scale * projection)) == pytest.approx(3)


def test_the_matrix_of_zeros_has_none_and_a_missing_number_stays_missing():
    assert concentration([0.0, np.nan], [0.0, 1.0]).tolist() == pytest.approx([0.0, np.nan], nan_ok=True)


def test_random_weights_have_one_over_the_width():
    w_q, w_k = xavier_qk(24, 24, batch=(4000,), generator=torch.Generator().manual_seed(0))
    moments = qk_moments(w_q, w_k)
    found = concentration(moments.trace, moments.frobenius_sq.sqrt())
    assert found.mean() == pytest.approx(1 / 24, abs=4 * found.std() / 4000**0.5 + 0.003)


def test_old_tables_gain_the_columns_and_newer_ones_keep_theirs():
    old = pd.DataFrame({"trace": [2.0], "frobenius": [4.0], "walk_trace": [-3.0], "walk_frobenius": [1.5]})
    assert with_concentration(old)[["concentration", "walk_concentration"]].to_numpy().tolist() == [[0.25, 4.0]]
    new = old.assign(concentration=7.0, walk_concentration=np.nan)
    assert with_concentration(new)[["concentration", "walk_concentration"]].to_numpy().tolist() == [[7.0, 4.0]]
    assert "concentration" not in old


def test_of_several_heads_the_column_is_the_mean_and_runs_of_one_head_stand_beside_them():
    heads = {"trace_0_0": [1.0, np.nan], "trace_0_1": [3.0, np.nan], "frobenius_0_0": [1.0, np.nan]}
    heads |= {"frobenius_0_1": [2.0, np.nan], "trace": [2.0, 2.0], "frobenius": [1.5, 1.0]}
    table = pd.DataFrame({**heads, **{f"walk_{name}": values for name, values in heads.items()}})
    assert with_concentration(table)["concentration"].tolist() == pytest.approx([(1 + 2.25) / 2, 4.0])
    assert with_concentration(table)["walk_concentration"].tolist() == pytest.approx([(1 + 2.25) / 2, 4.0])
