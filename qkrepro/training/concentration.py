"""How concentrated a spectrum is: N = (tr W)²/‖W‖_F², the number of equal eigenvalues that would give these two.

N_W of W = W_QK and N_M of M = Σ^½ W Σ^½, Σ the covariance of the increments of the layer's tokens. N is d_model for a
multiple of the identity, at most the rank for any matrix, and about 1/d_model for a product of independent random
weights. It does not change when W is scaled. Source: book, "What concentrates" (N = ξ²/η for symmetric M).
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

COLUMNS = {"concentration": "", "walk_concentration": "walk_"}  # column to the prefix of its trace and norm


def concentration(trace: ArrayLike, frobenius: ArrayLike) -> NDArray[np.float64]:
    """Return N = trace²/frobenius², float64, the broadcast shape of the two; 0 where the matrix is zero, NaN stays NaN.

    trace: tr W; frobenius: ‖W‖_F (not its square).
    """
    t, f = np.broadcast_arrays(np.asarray(trace, dtype=np.float64), np.asarray(frobenius, dtype=np.float64))
    ratio: NDArray[np.float64] = np.divide(t, f, out=np.zeros_like(t), where=f != 0)
    return ratio**2


def with_concentration(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table of evaluations or summaries with the columns `concentration` and `walk_concentration` filled.

    Records that were written before these columns existed have the traces and norms that they follow from, head by
    head (`trace_LAYER_HEAD`) where a run has several; the column is the mean over heads of N, as in newer records.
    """
    table = table.copy()
    for name, prefix in COLUMNS.items():
        stem = f"{prefix}trace_"
        names = [str(column) for column in table if str(column).startswith(stem)]
        heads = [name.removeprefix(stem) for name in names if name.removeprefix(stem)[:1].isdigit()]
        whole = pd.Series(concentration(table[f"{prefix}trace"], table[f"{prefix}frobenius"]), table.index)
        if heads:
            by_head = [concentration(table[f"{stem}{h}"], table[f"{prefix}frobenius_{h}"]) for h in heads]
            parts = pd.DataFrame(np.stack(by_head, axis=1), table.index)
            whole = parts.mean(axis=1).where(parts.notna().any(axis=1), whole)
        table[name] = table[name].fillna(whole) if name in table else whole
    return table
