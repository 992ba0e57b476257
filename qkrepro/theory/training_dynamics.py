"""What gradient flow of LocAteR's penalty does: a conserved matrix, strict saddles, and where it ends.

Ω(W_q, W_k) = ‖W‖_F² + (tr W − τ)² with W = W_qᵀ W_k; projections are (d_head, d_model), everything is float64.
Source: book, "Theory: LocAteR" (ours; the conserved matrix is in Du, Hu and Lee 2018, arXiv 1806.00900).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import integrate
from torch import Tensor

from qkrepro.errors import ArgumentError, check_integer, check_number, check_qk_shapes

if TYPE_CHECKING:  # shapes in types are for mypy and the tests
    from jaxtyping import Float, Float64

POINTS = 200  # times of a path


class FlowPath(NamedTuple):
    """Gradient flow of Ω, one entry per time: float64 tensors (times,)."""

    time: Tensor
    penalty: Tensor  # Ω
    trace: Tensor  # tr W
    effective_number: Tensor  # N_W = (tr W)²/‖W‖_F², d_head where all non-zero eigenvalues agree
    imbalance_change: Tensor  # ‖Δ(t) − Δ(0)‖_F, 0 but for the integrator's error


def imbalance(
    w_q: Float[Tensor, "*batch d_head d_model"], w_k: Float[Tensor, "*batch d_head d_model"]
) -> Float64[Tensor, "*batch d_head d_head"]:
    """Return Δ = W_q W_qᵀ − W_k W_kᵀ, which gradient flow of every loss in W_qᵀ W_k conserves.

    w_q, w_k: (..., d_head, d_model). Returns float64, (..., d_head, d_head).
    Raises ShapeError when the shapes differ, ArgumentError for non-finite weights.
    """
    check_qk_shapes(w_q, w_k)
    q, k = w_q.double(), w_k.double()
    return q @ q.mT - k @ k.mT


def penalty(
    w_q: Float[Tensor, "*batch d_head d_model"], w_k: Float[Tensor, "*batch d_head d_model"], tau: float = 1.0
) -> Float64[Tensor, "*batch"]:
    """Return LocAteR's Ω = tr(G_q G_k) + (tr W − τ)², from d_head × d_head products; float64, (...).

    w_q, w_k: (..., d_head, d_model). tau: finite. Raises as `imbalance` does, and ArgumentError for tau.
    """
    check_qk_shapes(w_q, w_k)
    check_number("tau", tau)
    q, k = w_q.double(), w_k.double()
    return (q @ q.mT * (k @ k.mT)).sum((-2, -1)) + ((q * k).sum((-2, -1)) - tau).square()


def penalty_gradient(
    w_q: Float[Tensor, "*batch d_head d_model"], w_k: Float[Tensor, "*batch d_head d_model"], tau: float = 1.0
) -> tuple[Float64[Tensor, "*batch d_head d_model"], Float64[Tensor, "*batch d_head d_model"]]:
    """Return the gradient of Ω in w_q and w_k, 2 G_k W_q + 2(t − τ)W_k and the same with the two exchanged; float64.

    Arguments and errors as `penalty`. Source: book, cost and gradient.
    """
    check_qk_shapes(w_q, w_k)
    check_number("tau", tau)
    q, k = w_q.double(), w_k.double()
    pull = 2 * ((q * k).sum((-2, -1), keepdim=True) - tau)
    return 2 * k @ k.mT @ q + pull * k, 2 * q @ q.mT @ k + pull * q


def critical_point(
    d_head: int, d_model: int, rank: int, *, tau: float = 1.0, skew: float = 0.0, generator: torch.Generator
) -> tuple[Float64[Tensor, "d_head d_model"], Float64[Tensor, "d_head d_model"]]:
    """Draw a critical point of Ω with W = τ/(j + 1) P, P a random orthogonal projection of rank j.

    Parameters
    ----------
    d_head, d_model
        Sizes of the head, d_head <= d_model.
    rank
        j from 0 to d_head; j < d_head is a saddle.
    tau
        τ > 0 of Ω.
    skew
        0 gives w_q = w_k up to sign; larger values make the two differ (A and B of w_q = A Uᵀ, w_k = B Uᵀ with
        AᵀB = τ/(j + 1) I).
    generator
        Source of the draws.

    Returns
    -------
    tuple of Tensor
        w_q and w_k, float64, (d_head, d_model) each.

    Raises
    ------
    ArgumentError
        A rank or width out of range, or tau <= 0.
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


def penalty_flow(
    w_q: Float[Tensor, "d_head d_model"],
    w_k: Float[Tensor, "d_head d_model"],
    *,
    tau: float = 1.0,
    time: float = 20.0,
) -> FlowPath:
    """Follow the gradient flow of Ω from these weights, by an adaptive Runge–Kutta method.

    Parameters
    ----------
    w_q, w_k
        Start of the flow, (d_head, d_model).
    tau
        τ of Ω, finite.
    time
        End of the flow, > 0.

    Returns
    -------
    FlowPath
        POINTS entries, from time 0 to the end.

    Raises as `penalty` does, and ArgumentError for a time that is not > 0.
    Source: book, the penalty alone concentrates the spectrum (ours).
    """
    check_qk_shapes(w_q, w_k)
    check_number("tau", tau)
    check_number("time", time, above=0)
    shape = w_q.shape

    def velocity(_: float, weights: np.ndarray) -> np.ndarray:
        q, k = torch.from_numpy(weights.reshape(2, *shape))
        return -torch.stack(penalty_gradient(q, k, tau)).numpy().reshape(-1)

    start = torch.stack([w_q.double(), w_k.double()]).reshape(-1).numpy()
    times = np.linspace(0, time, POINTS)
    solution = integrate.solve_ivp(velocity, (0, time), start, t_eval=times, method="DOP853", rtol=1e-9, atol=1e-12)
    path = torch.from_numpy(np.ascontiguousarray(solution.y.T)).reshape(POINTS, 2, *shape)
    q, k = path[:, 0], path[:, 1]
    trace = (q * k).sum((-2, -1))
    frobenius_sq = (q @ q.mT * (k @ k.mT)).sum((-2, -1))
    change = torch.linalg.matrix_norm(imbalance(q, k) - imbalance(q[:1], k[:1]))
    return FlowPath(torch.from_numpy(times), penalty(q, k, tau), trace, trace.square() / frobenius_sq, change)


def eigenvalue_flow(start: ArrayLike, times: ArrayLike, *, tau: float | None) -> NDArray[np.float64]:
    """Return the eigenvalues of a symmetric W under gradient flow of the penalty in W itself, (times, d).

    start: (d,) eigenvalues at time 0. tau: the target trace; None for ‖W‖_F² alone. Their mean m follows
    dm/dt = −2m − 2(d m − τ), and their distances from it shrink like e^{−2t} either way.
    """
    values, time = np.asarray(start, dtype=np.float64), np.asarray(times, dtype=np.float64)[:, None]
    mean, count = values.mean(), len(values)
    if tau is None:
        return values * np.exp(-2 * time)
    rest = tau / (count + 1)
    moved: NDArray[np.float64] = rest + (mean - rest) * np.exp(-2 * (count + 1) * time)
    moved = moved + (values - mean) * np.exp(-2 * time)
    return moved


def saddle_paths(*, d_head: int, d_model: int, nudges: Mapping[int, float], time: float, seed: int) -> pd.DataFrame:
    """Return gradient flow of the penalty from beside its saddles: rank, time, N_W, penalty.

    nudges: rank of the saddle (0 for the origin) to the size of the random step aside.
    """
    tables = []
    for rank, nudge in nudges.items():
        generator = torch.Generator().manual_seed(seed)
        saddle = critical_point(d_head, d_model, rank, generator=generator)
        step = nudge * torch.randn(2, d_head, d_model, generator=generator, dtype=torch.float64)
        path = penalty_flow(saddle[0] + step[0], saddle[1] + step[1], time=time)
        columns = {"time": path.time, "N_W": path.effective_number, "penalty": path.penalty}
        tables.append(pd.DataFrame({name: value.numpy() for name, value in columns.items()}).assign(rank=rank))
    return pd.concat(tables, ignore_index=True)


def balance_over_steps(sizes: Sequence[float], *, d_head: int, d_model: int, time: float, seed: int) -> pd.DataFrame:
    """Return how far gradient descent of the penalty moves Δ = W_qW_qᵀ − W_kW_kᵀ: size (of a step), time, change.

    change: ‖Δ(t) − Δ(0)‖_F over ‖Δ(0)‖_F, from one random start; gradient flow would leave it at 0.
    """
    start = torch.randn(2, d_head, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = []
    for size in sizes:
        w_q, w_k = start / d_model**0.5
        first = imbalance(w_q, w_k)
        for step in range(round(time / size) + 1):
            change = torch.linalg.matrix_norm(imbalance(w_q, w_k) - first) / torch.linalg.matrix_norm(first)
            rows.append({"size": size, "time": step * size, "change": float(change)})
            g_q, g_k = penalty_gradient(w_q, w_k)
            w_q, w_k = w_q - size * g_q, w_k - size * g_k
    return pd.DataFrame(rows)


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    basis: Tensor = torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q
    return basis
