"""The exact law of Q = g UᵀMU + UᵀMZ (U, Z standard normal): up to a scale, the law of the centred logit YᵀMX.

Its characteristic function is det(I − 2itg S + t²N)^{−1/2} with S = (M + Mᵀ)/2 and N = MMᵀ. Two inversions, the cheaper
one is taken:
- shared nodes, the trapezoid rule in t. In the eigenbasis of N the determinant at a node t is that of I + t²N times
  that of I − 2itg S_t, S_t = (I + t²N)^{−1/2} S (I + t²N)^{−1/2}, so one eigenvalue pass of size d serves every g;
- single laws, where the characteristic function decays slowly (rank 1 or 2, a dominating singular value). Q is the sum
  Σ κ χ²_1 over the 2d eigenvalues κ of [[gS, M/2], [Mᵀ/2, 0]], inverted on a contour through the saddle point that
  bends away from the imaginary direction, so that e^{−zx} decays on it (after Rice 1980, doi 10.1137/0901032).
Source: book, "Theory: signal propagation", the exact law (ours).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from qkrepro.errors import ArgumentError, ShapeError, check_finite, check_number
from qkrepro.theory.spectrum import check_square

if TYPE_CHECKING:  # shapes in types are for mypy and the tests
    from jaxtyping import Float, Float64

NEGLIGIBLE = 30.0  # shared nodes: tails and truncated integrals stay below e^-30 = 1e-13
BEND = math.pi / 11  # angle of the contour to the imaginary direction, far out: at 45° a Gaussian factor stops decaying
STEP = 1 / 20  # on the contour, whose strip of analyticity is BEND wide: error near exp(−2π · BEND · 20) = 1e-15


@dataclass(frozen=True)
class _Core:
    """M, of Frobenius norm 1, reduced to what the law needs; k <= d."""

    eigen: Tensor  # (k,), eigenvalues of S
    singular: Tensor  # (k,), singular values of M
    rotated: Tensor | None  # (k, k), M in its left singular basis, where N = diag(singular²); None if M is symmetric


def interval_probability(
    m: Float[Tensor, "d d"], drift: Float[Tensor, "*shape"], spread: float, lower: float, upper: float
) -> Float64[Tensor, "*shape"]:
    """Return P(lower < drift·UᵀMU + spread·UᵀMZ < upper) for U, Z ~ N(0, I_d) independent, for many drifts at once.

    For (X, Y) ~ N(0, [[α, γ], [γ, β]] ⊗ I_d) the bilinear form YᵀMX has this law at drift γ and spread √(αβ − γ²).

    Parameters
    ----------
    m
        Any real square matrix, (d, d).
    drift
        Any shape, finite.
    spread
        Finite and > 0.
    lower, upper
        Ends of the interval, lower < upper; infinite ones are allowed.

    Returns
    -------
    Tensor
        Float64, shaped like drift, of absolute error below 1e-12.

    Raises
    ------
    ShapeError
        m is not square.
    ArgumentError
        Non-finite input, spread <= 0 or lower >= upper.
    """
    check_square("m", m)
    if m.ndim != 2:
        raise ShapeError(f"m must have shape (d, d), got {tuple(m.shape)}")
    check_number("spread", spread, above=0)
    drift = torch.as_tensor(drift, dtype=torch.float64)
    check_finite("drift", drift)
    if not lower < upper:
        raise ArgumentError(f"lower must be < upper, got {lower!r} and {upper!r}")
    largest = float(m.abs().max())
    if largest == 0 or drift.numel() == 0:
        return torch.full_like(drift, float(lower < 0 < upper))
    scaled = m.double() / largest
    norm = float(scaled.norm())
    core, slope = _reduce(scaled / norm), drift.flatten() / spread  # (n,)
    ends = torch.tensor([[lower], [upper]], dtype=torch.float64) / largest / (norm * spread)  # (2, 1)
    nodes, step, edges = _plan(core, slope, ends)
    if nodes <= _affordable_nodes(core, slope):
        rho = _by_shared_nodes(core, slope, edges, nodes, step)
    else:
        rho = _by_single_laws(core, slope, edges)
    return rho.clamp(0, 1).reshape(drift.shape)


def weighted_chi_square_tail(weights: Float64[Tensor, "n k"], x: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """Return P(Σ_k w_k χ²_1 > x) for independent χ²_1, by the saddle-point contour.

    weights: (n, k), of either sign, at least one not zero in a row. x: (n,). Returns float64, (n,), absolute error
    below 1e-12; the smaller of the two tails keeps its relative accuracy too.
    """
    mean = weights.sum(-1)
    sign = torch.where(x >= mean, 1.0, -1.0).double()  # invert in the tail that x lies in
    facing, x = sign[:, None] * weights, sign * x
    tail = torch.where((facing.amax(-1) <= 0) & (x >= 0), 0.0, _smaller_tail(facing, x))
    return torch.where(sign > 0, tail, 1 - tail)


def _reduce(m: Tensor) -> _Core:
    """Reduce M to its eigenvalues if it is symmetric, else to itself in its left singular basis without its kernel."""
    if float((m - m.mT).abs().max()) <= 1e-15 * float(m.abs().max()):
        values = torch.linalg.eigvalsh((m + m.mT) / 2)
        values = values[values.abs() > 1e-15 * values.abs().max()]
        return _Core(values, values.abs(), None)
    u, singular, vh = torch.linalg.svd(m)
    rank = int((singular > 1e-15 * singular[0]).sum())
    if 2 * rank < len(m):
        basis = torch.linalg.qr(torch.cat([u[:, :rank], vh[:rank].mT], 1)).Q  # (d, 2 rank)
        u, singular, vh = torch.linalg.svd(basis.mT @ m @ basis)
    rotated = singular[:, None] * (vh @ u)  # (k, k)
    return _Core(torch.linalg.eigvalsh((rotated + rotated.mT) / 2), singular, rotated)


def _plan(core: _Core, slope: Tensor, ends: Tensor) -> tuple[float, float, Tensor]:
    """Return the number of shared nodes, their step, and the interval (2, n) clipped to where Q has mass.

    Mass: P(Q − E Q > 2√a‖κ‖ + 2aκ_max) <= e^−a (Laurent, Massart 2000), κ_max from the norms of the blocks. The step
    h makes Q fit into one period 2π/h; beyond the last node |φ(t)| <= Π(1 + t²σ²)^{−1/2} is negligible.
    """
    lower_edge, upper_edge = _mass(core, slope)
    edges = torch.stack([ends[0].clamp(lower_edge, upper_edge), ends[1].clamp(lower_edge, upper_edge)])  # (2, n)
    period = float(torch.maximum(upper_edge - edges[0], edges[1] - lower_edge).max())
    step = 2 * math.pi / period
    low, high = 0.0, 2 * NEGLIGIBLE  # log of the last node
    for _ in range(50):
        middle = (low + high) / 2
        decay = float(torch.log1p((math.exp(middle) * core.singular).square()).sum()) / 2
        low, high = (middle, high) if decay < NEGLIGIBLE else (low, middle)
    return math.ceil(math.exp(high) / step), step, edges


def _mass(core: _Core, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ends of an interval that holds all but 2e^−NEGLIGIBLE of the law, each (n,)."""
    mean = slope * core.eigen.sum()
    norm = (slope.square() * core.eigen.square().sum() + 0.5).sqrt()  # ‖κ‖, as Var Q = 2‖κ‖²
    outer = torch.stack([slope * core.eigen[0], slope * core.eigen[-1]])  # (2, n)
    largest = core.singular.max()
    top, bottom = outer.amax(0), outer.amin(0)
    kappa_max = (top + (top.square() + largest**2).sqrt()) / 2
    kappa_min = ((bottom.square() + largest**2).sqrt() - bottom) / 2
    reach = 2 * math.sqrt(NEGLIGIBLE) * norm
    return mean - reach - 2 * NEGLIGIBLE * kappa_min, mean + reach + 2 * NEGLIGIBLE * kappa_max


def _affordable_nodes(core: _Core, slope: Tensor) -> int:
    """Return the nodes up to which sharing is cheaper; without symmetry a single law takes eigenvalues of size 2k."""
    return 2000 if core.rotated is None else 8 * len(np.unique(slope.abs()))


def _by_shared_nodes(core: _Core, slope: Tensor, edges: Tensor, nodes: float, step: float) -> Tensor:
    """Return by the trapezoid rule (1/π) ∫_0^∞ Re[φ(t)(e^{−it·lower} − e^{−it·upper})/(it)] dt; (n,)."""
    total = (edges[1] - edges[0]) / 2  # (n,), the node t = 0
    for k in range(1, int(nodes) + 1):
        t = step * k
        stretch = 1 + (t * core.singular).square()  # (k,), eigenvalues of I + t²N
        if core.rotated is None:
            values = core.eigen / stretch
        else:
            root = stretch.rsqrt()
            values = torch.linalg.eigvalsh(root[:, None] * (core.rotated + core.rotated.mT) * root / 2)
        y = 2 * t * slope[:, None] * values  # (n, k), the factors are 1 − iy
        log_modulus = -stretch.log().sum() / 2 - torch.log1p(y.square()).sum(-1) / 4  # (n,)
        phase = torch.atan(y).sum(-1) / 2  # (n,), summed, so it may pass π
        total += log_modulus.exp() * ((phase - t * edges[0]).sin() - (phase - t * edges[1]).sin()) / t
    return total * step / math.pi


def _by_single_laws(core: _Core, slope: Tensor, edges: Tensor) -> Tensor:
    """Return the difference of two tails of each law, (n,); weights are computed once per |g|, as κ(−g) = −κ(g)."""
    size, index = np.unique(slope.abs(), return_inverse=True)
    kappa = torch.stack([_chi_square_weights(core, float(g)) for g in size])  # (unique, 2k)
    weights = torch.where(slope < 0, -1.0, 1.0).double()[:, None] * kappa[index]  # (n, 2k)
    return weighted_chi_square_tail(weights, edges[0]) - weighted_chi_square_tail(weights, edges[1])


def _chi_square_weights(core: _Core, g: float) -> Tensor:
    """Return the eigenvalues κ of [[gS, M/2], [Mᵀ/2, 0]], (2k,); for symmetric M (μ/2)(g ± √(g² + 1))."""
    if core.rotated is None:
        root = math.sqrt(g * g + 1)
        return torch.cat([core.eigen * (g + root), core.eigen * (g - root)]) / 2
    drift = g * (core.rotated + core.rotated.mT)
    block = torch.cat([torch.cat([drift, core.rotated], 1), torch.cat([core.rotated.mT, 0 * drift], 1)])
    kappa: Tensor = torch.linalg.eigvalsh(block / 2)
    return kappa


def _smaller_tail(weights: Tensor, x: Tensor) -> Tensor:
    """Return P(Σ w χ²_1 > x) = (1/2πi) ∫ e^{K(z) − zx}/z dz at x >= the mean, K(z) = −½ Σ log(1 − 2wz); (n,).

    Contour z(u) = τ + width (±tan BEND (cosh u − 1) + i sinh u) through the saddle point τ > 0, bent to the side where
    e^{−zx} decays; conjugate halves, so u >= 0. Every factor stays in one half-plane: principal logarithms are right.
    """
    tau, width = _saddle_point(weights, x)  # (n, 1) each
    weights, x = weights[..., None], x[:, None]  # (n, k, 1), (n, 1)
    bend = math.tan(BEND) * torch.where(x >= 0, 1.0, -1.0).double()
    block = min(max(1, 2**21 // weights.numel()), 32)  # nodes at once, bounds the memory
    total = torch.zeros_like(x[:, 0])
    for first in range(0, math.ceil(46 / STEP), block):
        u = STEP * torch.arange(first, first + block, dtype=torch.float64)
        z = tau + width * torch.complex(bend * (u.cosh() - 1), u.sinh().expand(len(x), -1))  # (n, block)
        slope = width * torch.complex(bend * u.sinh(), u.cosh().expand(len(x), -1))
        exponent = -torch.log1p(-2 * weights * z[:, None]).sum(1) / 2 - z * x
        terms = exponent.exp() * slope / z
        total += terms.imag.sum(-1) - (terms[:, 0].imag / 2 if first == 0 else 0)
        if float(terms[:, -1].abs().max()) < 1e-18:
            break
    return total * STEP / math.pi


def _saddle_point(weights: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the minimum τ of K(z) − zx − log z, (n, 1), and the width 1/√(second derivative) there, (n, 1).

    It lies below 1/(2 max w), and below (k/2 + 1)/|x| when no weight is positive.
    """
    low, largest = torch.zeros_like(x), weights.amax(-1)
    high = torch.where(largest > 0, 0.5 / largest, (weights.shape[-1] / 2 + 1) / x.abs())
    for _ in range(40):
        tau = (low + high) / 2
        rising = (weights / (1 - 2 * weights * tau[:, None])).sum(-1) - x > 1 / tau
        low, high = torch.where(rising, low, tau), torch.where(rising, tau, high)
    tau = low
    curvature = 2 * (weights / (1 - 2 * weights * tau[:, None])).square().sum(-1) + 1 / tau.square()
    return tau[:, None], curvature.rsqrt()[:, None]
