"""What gradient flow of LocAteR's penalty does: a conserved matrix, strict saddles, and where it ends.

Ω(W_q, W_k) = ‖W‖_F² + (tr W − τ)² with W = W_qᵀ W_k; projections are (d_head, d_model), everything is float64.
Source: book, "Theory: LocAteR" (ours; the conserved matrix is in Du, Hu and Lee 2018, arXiv 1806.00900).
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy import integrate
from torch import Tensor

from qkrepro.errors import ArgumentError, check_integer, check_number, check_qk_shapes


class FlowPath(NamedTuple):
    """Gradient flow of Ω, one entry per time: float64 tensors (times,)."""

    time: Tensor
    penalty: Tensor  # Ω
    trace: Tensor  # tr W
    effective_number: Tensor  # N_W = (tr W)²/‖W‖_F², d_head where all non-zero eigenvalues agree
    imbalance_change: Tensor  # ‖Δ(t) − Δ(0)‖_F, 0 but for the integrator's error


def imbalance(w_q: Tensor, w_k: Tensor) -> Tensor:
    """Return Δ = W_q W_qᵀ − W_k W_kᵀ, which gradient flow of every loss in W_qᵀ W_k conserves.

    w_q, w_k: (..., d_head, d_model). Returns float64, (..., d_head, d_head).
    Raises ShapeError when the shapes differ, ArgumentError for non-finite weights.
    """
    check_qk_shapes(w_q, w_k)
    q, k = w_q.double(), w_k.double()
    return q @ q.mT - k @ k.mT


def penalty(w_q: Tensor, w_k: Tensor, tau: float = 1.0) -> Tensor:
    """Return LocAteR's Ω = tr(G_q G_k) + (tr W − τ)², from d_head × d_head products; float64, (...).

    w_q, w_k: (..., d_head, d_model). tau: finite. Raises as `imbalance` does, and ArgumentError for tau.
    """
    check_qk_shapes(w_q, w_k)
    check_number("tau", tau)
    return _penalty(w_q.double(), w_k.double(), tau)


def penalty_gradient(w_q: Tensor, w_k: Tensor, tau: float = 1.0) -> tuple[Tensor, Tensor]:
    """Gradient of Ω in w_q and w_k, 2 G_k W_q + 2(t − τ)W_k and the same with the two exchanged; float64.

    Arguments and errors as `penalty`. Source: book, cost and gradient.
    """
    check_qk_shapes(w_q, w_k)
    check_number("tau", tau)
    q, k = w_q.double(), w_k.double()
    pull = 2 * ((q * k).sum((-2, -1), keepdim=True) - tau)
    return 2 * k @ k.mT @ q + pull * k, 2 * q @ q.mT @ k + pull * q


def critical_point(
    d_head: int, d_model: int, rank: int, *, tau: float = 1.0, skew: float = 0.0, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw a critical point of Ω with W = τ/(j + 1) P, P a random orthogonal projection of rank j.

    rank: j from 0 to d_head; j < d_head is a saddle. skew: 0 gives w_q = w_k up to sign; larger values make the two
    differ (A and B of w_q = A Uᵀ, w_k = B Uᵀ with AᵀB = τ/(j + 1) I). Returns float64 (d_head, d_model) each.
    Raises ArgumentError for a rank or width out of range, or tau <= 0.
    """
    check_integer("d_head", d_head, at_least=1)
    check_integer("d_model", d_model, at_least=d_head)
    check_integer("rank", rank, at_least=0)
    check_number("tau", tau, above=0)
    check_number("skew", skew, at_least=0)
    if rank > d_head:
        raise ArgumentError(f"rank must be at most d_head = {d_head}, got {rank}")
    directions = _orthonormal(d_model, rank, generator)  # (d_model, rank)
    frame = _orthonormal(d_head, d_head, generator)  # (d_head, d_head)
    a, beyond = frame[:, :rank], frame[:, rank:]
    b = a  # Aᵀ B = I
    if beyond.shape[1] and rank:
        b = a + skew * beyond @ torch.randn(beyond.shape[1], rank, generator=generator, dtype=torch.float64)
    size = (tau / (rank + 1)) ** 0.5
    return size * a @ directions.mT, size * b @ directions.mT


def smallest_curvature(w_q: Tensor, w_k: Tensor, tau: float = 1.0) -> float:
    """Smallest eigenvalue of the Hessian of Ω at one head, (2 d_head d_model)² in size: meant for small heads.

    w_q, w_k: (d_head, d_model). Negative at every saddle. Raises as `penalty` does.
    """
    check_qk_shapes(w_q, w_k)
    shape = w_q.shape

    def of_vector(weights: Tensor) -> Tensor:
        q, k = weights.reshape(2, *shape)
        return _penalty(q, k, tau)

    point = torch.stack([w_q.double(), w_k.double()]).reshape(-1)
    hessian: Tensor = torch.autograd.functional.hessian(of_vector, point)  # type: ignore[no-untyped-call]
    return float(torch.linalg.eigvalsh(hessian)[0])


def penalty_flow(w_q: Tensor, w_k: Tensor, *, tau: float = 1.0, time: float = 20.0, points: int = 200) -> FlowPath:
    """Follow the gradient flow of Ω from these weights, by an adaptive Runge–Kutta method.

    w_q, w_k: (d_head, d_model). time: end of the flow, > 0. points: number of times shown, >= 2, from 0 to the end.
    Returns a FlowPath. Raises as `penalty` does, and ArgumentError for a time or points out of range.
    Source: book, the penalty alone concentrates the spectrum (ours).
    """
    check_qk_shapes(w_q, w_k)
    check_number("tau", tau)
    check_number("time", time, above=0)
    check_integer("points", points, at_least=2)
    shape = w_q.shape

    def velocity(_: float, weights: np.ndarray) -> np.ndarray:
        q, k = torch.from_numpy(weights.reshape(2, *shape))
        return -torch.stack(penalty_gradient(q, k, tau)).numpy().reshape(-1)

    start = torch.stack([w_q.double(), w_k.double()]).reshape(-1).numpy()
    times = np.linspace(0, time, points)
    solution = integrate.solve_ivp(velocity, (0, time), start, t_eval=times, method="DOP853", rtol=1e-9, atol=1e-12)
    path = torch.from_numpy(np.ascontiguousarray(solution.y.T)).reshape(points, 2, *shape)
    q, k = path[:, 0], path[:, 1]
    trace = (q * k).sum((-2, -1))
    frobenius_sq = (q @ q.mT * (k @ k.mT)).sum((-2, -1))
    change = torch.linalg.matrix_norm(imbalance(q, k) - imbalance(q[:1], k[:1]))
    return FlowPath(torch.from_numpy(times), _penalty(q, k, tau), trace, trace.square() / frobenius_sq, change)


def _penalty(q: Tensor, k: Tensor, tau: float) -> Tensor:
    value: Tensor = (q @ q.mT * (k @ k.mT)).sum((-2, -1)) + ((q * k).sum((-2, -1)) - tau).square()
    return value


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    basis: Tensor = torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q
    return basis
