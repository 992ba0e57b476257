"""The columns of the table of `qkrepro spectrum`, what each is, and the table as text; a table is columns by name.

The number of eigenvalues that a mean or a variance runs over is in the column's name: `_model` for all d_model of
them (zeros included), `_head` for the d_head that can differ from zero.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

COLUMNS = {
    "part": "tower of the model, for models of several",
    "layer": "number of the layer, from 0",
    "head": "number of the head, from 0",
    "distance": "tokens between query and key, under rotary positions",
    "d_model": "width of the tokens",
    "d_head": "width of the head",
    "temperature": "λ, one over the model's own logit multiplier",
    "trace": "tr W, the sum of the eigenvalues",
    "trace_sq": "tr W², the sum of their squares",
    "frobenius": "‖W‖_F, root of the sum of squared singular values",
    "spectral_norm": "‖W‖_2, the largest singular value",
    "eigen_mean_model": "mean of all d_model eigenvalues",
    "eigen_variance_model": "tr W²/d_model − mean²; negative for some complex spectra",
    "eigen_mean_head": "mean of the d_head eigenvalues that can differ from zero",
    "eigen_variance_head": "tr W²/d_head − mean²; negative for some complex spectra",
    "eigen_spread_head": "mean |λ − mean|² over these d_head",
    "relative_variance": "eigen_spread_head / eigen_mean_head²: 0 when they all agree",
    "top_share": "share of Σ|λ| in the largest |λ|",
    "spectral_energy_share": "‖W‖_2² / ‖W‖_F², the largest squared singular value over their sum",
    "symmetry_score": "½(1 + tr W²/tr WWᵀ): 1 symmetric, 0 antisymmetric",
    "localization": "localization index of the linearised softmax, 0 flat to 1",
    "centre": "where the signal passes, 0 first to 1 last token",
    "level": "mean signal propagation probability",
    "key_bias": "‖w_kᵀ b_q‖, what the query's bias adds to the logits per unit of key token",
    "trace_z": "tr W/‖W‖_F in standard deviations from random heads",
    "spectral_energy_share_z": "spectral_energy_share in standard deviations from random heads",
    "symmetry_score_z": "the same for symmetry_score",
    "top_share_z": "the same for top_share",
    "relative_variance_percentile": "percentage of random heads with a smaller relative_variance",
    "localization_percentile": "percentage of random heads of this ‖W‖_F with a smaller localization index",
}
Columns = dict[str, list[Any]]  # of the table, by name and in order, all of one length
SHOWN = {  # the columns of the printed table, with short heads
    "part": "part",
    "layer": "layer",
    "head": "head",
    "distance": "dist",
    "temperature": "temp",
    "trace": "trace",
    "trace_z": "z",
    "frobenius": "‖W‖_F",
    "spectral_norm": "‖W‖_2",
    "eigen_mean_head": "mean",
    "eigen_spread_head": "spread",
    "relative_variance_percentile": "spread %",
    "top_share": "top",
    "spectral_energy_share": "energy",
    "spectral_energy_share_z": "energy z",
    "symmetry_score": "sym",
    "symmetry_score_z": "sym z",
    "localization": "local",
    "localization_percentile": "local %",
    "centre": "centre",
}


def joined(tables: Sequence[Columns]) -> Columns:
    """Return the rows of several tables of the same columns below each other."""
    return {name: [value for table in tables for value in table[name]] for name in (tables[0] if tables else {})}


def columns_as_text(table: Columns, kind: str) -> str:
    """Return the table as `csv`, as `json` (records, null where there is no number) or, for people, as a `table`."""
    if kind == "csv":
        lines = [",".join(table), *(",".join(map(_plain, row)) for row in zip(*table.values(), strict=True))]
        return "\n".join(lines)
    if kind == "json":
        rows = (dict(zip(table, map(_known, row), strict=True)) for row in zip(*table.values(), strict=True))
        return json.dumps(list(rows), indent=1, ensure_ascii=False)
    return _aligned({SHOWN[name]: table[name] for name in SHOWN if name in table})


def _known(value: Any) -> Any:
    """Return a value, or None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> str:
    """Return a value in CSV: every digit of it, nothing for a number that is not one."""
    return "" if value != value else str(value)


def _aligned(columns: Columns) -> str:
    """Return the columns below their heads, flush right, numbers to four digits."""
    written = [[name, *map(_short, values)] for name, values in columns.items()]
    widths = [max(map(len, column)) for column in written]
    rows = zip(*written, strict=True)
    return "\n".join(" ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return str(value)
