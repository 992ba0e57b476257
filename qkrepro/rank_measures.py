"""How alike the tokens of a sequence are: residual to equal tokens, mean cosine similarity, stable rank.

Tokens are (..., T, d), one row a token, of any floating dtype; measures are float64 with the leading shape.
Source: book, "Rank collapse"; Dong, Cordonnier, Loukas 2021 (arXiv 2103.03404); Noci et al. 2022 (arXiv 2206.03126).
"""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import optimize, sparse
from torch import Tensor

from qkrepro.errors import ArgumentError, ShapeError, check_choice, check_finite, check_number

ResidualNorm = Literal["frobenius", "l1-linf"]
Array = npt.NDArray[np.float64]


def rank_residual(x: Tensor, norm: ResidualNorm = "frobenius") -> Tensor:
    """Relative distance of the tokens from being all equal, ‖x − 1x̄ᵀ‖ / ‖x‖ with x̄ the mean token.

    "frobenius": the mean token is the exact minimiser over all tokens; the value lies between 0 (equal tokens) and 1.
    "l1-linf": √(‖·‖₁ ‖·‖_∞), largest absolute column sum times largest absolute row sum (no norm: it violates the
    triangle inequality). The mean token is not its minimiser: the value is at least the minimum of Dong et al. and at
    most twice it, and can exceed 1; `smallest_l1_linf_residual` computes the minimum itself.
    x: (..., T, d). Returns float64, (...).
    Raises ShapeError for fewer than two dimensions, ArgumentError for non-finite values, all-zero tokens, another norm.
    Source: arXiv 2103.03404; the factor of two is derived in the book, "Rank collapse".
    """
    check_choice("norm", norm, ("frobenius", "l1-linf"))
    tokens = _checked(x)
    measure = l1_linf_norm if norm == "l1-linf" else torch.linalg.matrix_norm
    size = measure(tokens)
    if bool((size == 0).any()):
        raise ArgumentError("x holds a sequence of zero tokens only; allowed: at least one token that is not zero")
    residual: Tensor = measure(tokens - tokens.mean(-2, keepdim=True)) / size
    return residual


def l1_linf_norm(x: Tensor) -> Tensor:
    """√(largest absolute column sum × largest absolute row sum) of matrices (..., T, d); float64, (...)."""
    size = _checked(x).abs()
    value: Tensor = (size.sum(-2).amax(-1) * size.sum(-1).amax(-1)).sqrt()
    return value


def mean_cosine_similarity(x: Tensor) -> Tensor:
    """Mean cosine of the angle between two different tokens, 1 when all point the same way, ≈ 0 for independent ones.

    x: (..., T, d) with T >= 2. Returns float64, (...), between −1/(T − 1) and 1.
    Raises ShapeError for T < 2, ArgumentError for non-finite values or a token that is zero (it has no direction).
    Source: Noci et al. 2022 (arXiv 2206.03126).
    """
    tokens = _checked(x)
    length = tokens.shape[-2]
    if length < 2:
        raise ShapeError(f"x has shape {tuple(x.shape)}; allowed: (..., T, d) with T >= 2 tokens")
    norms = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)  # (..., T, 1)
    if bool((norms == 0).any()):
        raise ArgumentError(f"x holds {int((norms == 0).sum())} zero tokens; allowed: none, as they have no direction")
    total = (tokens / norms).sum(-2).square().sum(-1)  # ‖Σ x̂_t‖² = T + the sum over pairs
    mean: Tensor = (total - length) / (length * (length - 1))
    return mean


def stable_rank(x: Tensor) -> Tensor:
    """‖x‖_F² / ‖x‖₂², between 1 (rank one) and min(T, d).

    x: (..., T, d). Returns float64, (...). Raises as `rank_residual` does.
    """
    tokens = _checked(x)
    gram = tokens @ tokens.mT if tokens.shape[-2] <= tokens.shape[-1] else tokens.mT @ tokens  # the smaller one
    largest = torch.linalg.eigvalsh(gram)[..., -1]
    if bool((largest <= 0).any()):
        raise ArgumentError("x holds a sequence of zero tokens only; allowed: at least one token that is not zero")
    rank: Tensor = tokens.square().sum((-2, -1)) / largest
    return rank


def smallest_l1_linf_residual(x: Tensor, *, tolerance: float = 1e-6) -> float:
    """The residual of Dong et al. with its own minimiser: min over y of √(‖R‖₁ ‖R‖_∞) / √(‖x‖₁ ‖x‖_∞), R = x − 1yᵀ.

    √(fg) is the least of (f + s g)/(2√s) over s > 0, and each f + s g is minimised by a linear program. That minimum is
    concave in s, so its chords bound the product from below: s is refined until the bounds agree to `tolerance`
    (relative). The value returned is attained. One sequence at a time, some 20 linear programs of T·d variables:
    meant for small matrices and as a check of `rank_residual`.
    x: (T, d). Returns a number. Raises ShapeError unless x has two dimensions, otherwise as `rank_residual` does.
    """
    check_number("tolerance", tolerance, above=0)
    if x.ndim != 2:
        raise ShapeError(f"x has shape {tuple(x.shape)}; allowed: (T, d)")
    size = float(l1_linf_norm(x))
    if float(rank_residual(x, "l1-linf")) == 0:
        return 0.0
    program = _CompositeProgram(_checked(x).numpy())
    # f and g at the mean are within a factor of two of their minima, so f/g at the minimiser is within 4 of theirs
    ends = program.solve(program.ratio_at_mean / 4.01), program.solve(program.ratio_at_mean * 4.01)
    best = min(end.product for end in ends)
    intervals = [_Interval.between(*ends)]
    while intervals:
        worst = min(intervals, key=lambda interval: interval.bound)
        if worst.bound >= best * (1 - tolerance) or worst.right.s / worst.left.s < 1 + 1e-9:
            break
        middle = program.solve(worst.s)
        best = min(best, middle.product)
        intervals.remove(worst)
        intervals += [_Interval.between(worst.left, middle), _Interval.between(middle, worst.right)]
    return best / size


class _Weighted(NamedTuple):
    """The minimum of f + s g, and √(f g) where it is attained."""

    s: float
    height: float
    product: float


class _Interval(NamedTuple):
    """Two values of s, a lower bound of √(f g) wherever f/g lies between them, and the s to look at next."""

    bound: float
    s: float
    left: _Weighted
    right: _Weighted

    @classmethod
    def between(cls, left: _Weighted, right: _Weighted) -> "_Interval":
        """Least (a + b s)/(2√s) of the chord a + b s, which the concave minimum of f + s g never falls below."""
        slope = (right.height - left.height) / (right.s - left.s)
        offset = left.height - slope * left.s
        s = offset / slope if slope > 0 else math.inf  # where the chord's bound is least
        if left.s * (1 + 1e-9) < s < right.s * (1 - 1e-9):
            return cls((offset + slope * s) / (2 * math.sqrt(s)), s, left, right)
        bound = min(end.height / (2 * math.sqrt(end.s)) for end in (left, right))
        return cls(bound, math.sqrt(left.s * right.s), left, right)


class _CompositeProgram:
    """min over y of f + s g, f = ‖x − 1yᵀ‖₁ and g = ‖x − 1yᵀ‖_∞, as a linear program in (y, |R|, f, g)."""

    def __init__(self, x: Array) -> None:
        t, d = x.shape
        self.x = x
        column = sparse.kron(np.ones((t, 1)), sparse.eye_array(d))  # (T d, d), y once for every token
        sizes = -sparse.eye_array(t * d)
        by_column = sparse.kron(np.ones((1, t)), sparse.eye_array(d))  # (d, T d), Σ_t |R_tj|
        by_row = sparse.kron(sparse.eye_array(t), np.ones((1, d)))  # (T, T d), Σ_j |R_tj|
        f, g = (sparse.csr_array(np.full((n, 1), -1.0)) for n in (d, t))
        rows: Any = sparse.vstack(
            [
                sparse.hstack([-column, sizes, sparse.csr_array((t * d, 2))]),  # x − y <= |R|
                sparse.hstack([column, sizes, sparse.csr_array((t * d, 2))]),  # y − x <= |R|
                sparse.hstack([sparse.csr_array((d, d)), by_column, f, sparse.csr_array((d, 1))]),  # <= f
                sparse.hstack([sparse.csr_array((t, d)), by_row, sparse.csr_array((t, 1)), g]),  # <= g
            ]
        )
        self.matrix: Any = rows.tocsr()  # SciPy's stubs know only dense constraints
        self.limits = np.concatenate([-x.ravel(), x.ravel(), np.zeros(d + t)])
        self.bounds = [(None, None)] * d + [(0, None)] * (t * d + 2)
        column_sum, row_sum = self._norms(x.mean(0))
        self.ratio_at_mean = column_sum / row_sum

    def solve(self, s: float) -> _Weighted:
        t, d = self.x.shape
        cost = np.concatenate([np.zeros(d + t * d), [1.0, s]])
        found = optimize.linprog(cost, A_ub=self.matrix, b_ub=self.limits, bounds=self.bounds, method="highs")
        column_sum, row_sum = self._norms(np.asarray(found.x)[:d])
        return _Weighted(s, column_sum + s * row_sum, math.sqrt(column_sum * row_sum))

    def _norms(self, y: Array) -> tuple[float, float]:
        residual = np.abs(self.x - y)
        return float(residual.sum(0).max()), float(residual.sum(1).max())


def _checked(x: Tensor) -> Tensor:
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ShapeError(f"x has shape {tuple(x.shape)}; allowed: (..., T, d), neither of them 0")
    check_finite("x", x)
    return x.double()
