"""The distribution function Φ of the standard normal law for NumPy arrays, in float64, without SciPy.

`import scipy.special` takes longer than all that `qkrepro spectrum` computes on a small model. Φ(−t) = exp(−t²/2) R(t)
for t >= 0, and R is smooth: it is tabulated, and expanded about the nearest entry by R' = tR − 1/√(2π) and
R⁽ⁿ⁺¹⁾ = tR⁽ⁿ⁾ + nR⁽ⁿ⁻¹⁾. Source: derived from the definition; Laplace's continued fraction for large t.
"""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

STEP = 1 / 256  # between entries of the table
REACH = 40.0  # exp(−t²/2) is 0 in float64 from 38.6 on
SPLIT = 4.0  # the continued fraction converges fast beyond, erfc has its digits before
BLOCK = 2**14  # numbers at a time, so that a dozen passes over them stay in the cache
DENSITY = 1 / math.sqrt(2 * math.pi)


def normal_cdf(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Φ(x), shaped like x; NaN at NaN.

    Relative error below 1e-14 for x >= −8, below 1e-12 in the rest of the lower tail, where x²/2 itself is rounded.
    """
    flat = np.asarray(x, dtype=np.float64).reshape(-1)
    cumulative = np.empty_like(flat)
    for start in range(0, len(flat), BLOCK):
        here = slice(start, start + BLOCK)
        cumulative[here] = _cdf(flat[here])
    return cumulative.reshape(np.shape(x))


def _cdf(x: NDArray[np.float64]) -> NDArray[np.float64]:
    size = np.abs(x)
    near = np.fmin(size, REACH)
    step = near / STEP
    index = (step + 0.5).astype(np.int32)
    step = (step - index) * STEP  # from the nearest entry
    *first, ratio = (coefficients.take(index) for coefficients in _expansions())
    for coefficient in reversed(first):
        ratio *= step
        ratio += coefficient
    tail = np.exp(-0.5 * size * near) * ratio  # Φ(−|x|)
    return np.abs((x > 0) - tail)  # 1 − tail above 0


@cache
def _expansions() -> tuple[NDArray[np.float64], ...]:
    """Return the Taylor coefficients R⁽ⁿ⁾(t)/n!, n = 0 … 4, at t = 0, STEP, 2 STEP, …, REACH."""
    t = np.arange(round(REACH / STEP) + 1) * STEP
    small = [math.exp(value * value / 2) * math.erfc(value / math.sqrt(2)) / 2 for value in t[t < SPLIT].tolist()]
    large = t[t >= SPLIT]
    fraction = large
    for term in range(60, 0, -1):
        fraction = large + term / fraction
    r0 = np.concatenate([small, DENSITY / fraction])
    r1 = t * r0 - DENSITY
    r2 = t * r1 + r0
    r3 = t * r2 + 2 * r1
    r4 = t * r3 + 3 * r2
    return r0, r1, r2 / 2, r3 / 6, r4 / 24
