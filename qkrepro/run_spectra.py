"""What the recorded eigenvalues of a run come to: histograms over training, spread about the mean, rotation.

Source: book, "The eigenspectrum in training".
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from qkrepro.run_tables import RunTables

MOMENTS = ("trace", "eigen_mean", "frobenius", "trace_square", "eigen_variance")


def spectrum_histogram(eigenvalues: pd.DataFrame, edges: Sequence[float]) -> pd.DataFrame:
    """Share of eigenvalues by their real part over training: kappa, epoch, left, right, share.

    eigenvalues: kappa, epoch, real; all seeds of a kappa together. What lies outside the edges counts in the outermost.
    """
    inner = np.asarray(edges[1:-1], dtype=float)
    rows = []
    for (kappa, epoch), group in eigenvalues.groupby(["kappa", "epoch"]):
        counts = np.bincount(np.searchsorted(inner, group["real"].to_numpy()), minlength=len(edges) - 1)
        shares = zip(edges[:-1], edges[1:], counts / len(group), strict=True)
        rows += [{"kappa": kappa, "epoch": epoch, "left": a, "right": b, "share": share} for a, b, share in shares]
    return pd.DataFrame(rows, columns=["kappa", "epoch", "left", "right", "share"])


def spectrum_course(tables: RunTables) -> pd.DataFrame:
    """One row a head and an evaluation: run, seed, kappa, update, epoch, layer, head, and what its eigenvalues come to.

    scatter: root of the mean |λ − μ|² over all d_model eigenvalues; relative_spread: scatter over |μ|, 0 for a fully
    concentrated spectrum; rotation: share of Im² in Σ|λ|², 0 for a real spectrum. The zeros beyond the d_head
    eigenvalues in the record count in μ and scatter.
    """
    values = tables.eigenvalues(by=["seed", "kappa", "d_model"])
    values = values.assign(square=values["real"] ** 2 + values["imag"] ** 2, turned=values["imag"] ** 2)
    keys = ["run", "seed", "kappa", "d_model", "update", "epoch", "layer", "head"]
    sums = values.groupby(keys, as_index=False)[["real", "square", "turned"]].sum()
    width = sums["d_model"].astype(float)
    mean = sums["real"] / width
    scatter = ((sums["square"] / width - mean**2).clip(lower=0) ** 0.5).astype(float)
    found = sums.assign(scatter=scatter, relative_spread=scatter / mean.abs(), rotation=sums["turned"] / sums["square"])
    return found.drop(columns=["d_model", "real", "square", "turned"])


def ranked_eigenvalues(eigenvalues: pd.DataFrame) -> pd.DataFrame:
    """Sizes |λ| of each head from the largest to the smallest, at the last evaluation of each run.

    Returns run, seed, kappa, layer, head, rank (from 1), size.
    """
    last = eigenvalues[eigenvalues["update"] == eigenvalues.groupby("run")["update"].transform("max")]
    sizes = np.hypot(last["real"].to_numpy(float), last["imag"].to_numpy(float))
    table = last[["run", "seed", "kappa", "layer", "head"]].assign(size=sizes)
    table = table.sort_values(["run", "layer", "head", "size"], ascending=[True, True, True, False])
    ranks = table.groupby(["run", "layer", "head"]).cumcount() + 1
    return table.assign(rank=ranks).reset_index(drop=True)
