"""The one place where numbers are rounded: for a file, for a table in a page, for a sentence.

Processors differ in the last bits of a sum. What is stored keeps fewer digits than they agree on, what is shown fewer
still, and zero has no sign. Source: book, "How to reproduce this book".
"""

import math
from collections.abc import Mapping
from typing import TypeVar

import pandas as pd

STORED_DIGITS = 8  # significant digits of a number in a file
GLUED_DIGITS = 6  # of a number that a page formats further
Values = TypeVar("Values", pd.DataFrame, "pd.Series[float]", float)


def significant(value: float, digits: int = STORED_DIGITS) -> float:
    """Return the value with so many significant digits; zero is positive, NaN and infinities stay."""
    return float(f"{value:.{digits}g}") + 0.0 if math.isfinite(value) else value


def fixed(value: float, digits: int = 2) -> str:
    """Return the value as text with so many decimals; what rounds to zero has no sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def rounded(values: Values, digits: int | Mapping[str, int]) -> Values:
    """Return a number, a column or a table rounded to so many decimals, zeros positive.

    digits: of all columns, or of the named ones alone; columns that hold no floating-point numbers stay as they are.
    """
    if isinstance(values, pd.DataFrame):
        decimals = digits if isinstance(digits, Mapping) else dict.fromkeys(values.columns, digits)
        floats = [name for name in values.columns if name in decimals and pd.api.types.is_float_dtype(values[name])]
        result = values.copy()
        for name in floats:
            result[name] = values[name].round(decimals[name]) + 0.0
        return result
    if isinstance(values, pd.Series):
        return values.round(digits) + 0.0  # type: ignore[arg-type]
    return round(float(values), digits) + 0.0  # type: ignore[arg-type]
