"""The spectrum table as text: what a person reads, CSV and JSON, without pandas."""

import json
import math
from typing import Any

from qkrepro.spectrum_table import Columns

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
    "symmetric_share": "sym",
    "symmetric_share_z": "sym z",
    "localization": "local",
    "localization_percentile": "local %",
    "centre": "centre",
}


def columns_as_text(table: Columns, kind: str) -> str:
    """The table as `csv`, as `json` (records, null where there is no number) or, for people, as a `table`."""
    if kind == "csv":
        lines = [",".join(table), *(",".join(map(_plain, row)) for row in zip(*table.values(), strict=True))]
        return "\n".join(lines)
    if kind == "json":
        rows = (dict(zip(table, map(_known, row), strict=True)) for row in zip(*table.values(), strict=True))
        return json.dumps(list(rows), indent=1, ensure_ascii=False)
    return _aligned({SHOWN[name]: table[name] for name in SHOWN if name in table})


def _known(value: Any) -> Any:
    """A value, or None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> str:
    """A value in CSV: every digit of it, nothing for a number that is not one."""
    return "" if value != value else str(value)


def _aligned(columns: Columns) -> str:
    """Columns below their heads, flush right, numbers to four digits."""
    written = [[name, *map(_short, values)] for name, values in columns.items()]
    widths = [max(map(len, column)) for column in written]
    rows = zip(*written, strict=True)
    return "\n".join(" ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return str(value)
