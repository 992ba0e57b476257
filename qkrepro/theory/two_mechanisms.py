"""Mean-field equations of a layer of two tokens whose attention is positional or semantic.

x_1 = p + w_1, x_2 = −p + w_2, w Gaussian of variance σ²; the student is softmax(x QQᵀxᵀ/d) x, the target mixes
(1 − ω) softmax(w Q*Q*ᵀwᵀ/d) w with ω A w. As d grows, with n = αd samples, all follows from m = 1·Q/d, θ = σ²Q*·Q/d and
q = σ²‖Q‖²/d. Source: arXiv 2402.03902 (model); the equations as solved here are ours.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from scipy.optimize import root
from scipy.stats import norm, qmc
from torch import Tensor

NOISE, DECAY, STAYING = 0.5, 0.01, 0.6  # σ, λ, and the diagonal of A, whose rows sum to one
MECHANISMS = ("positional", "semantic")
OPPOSITE = torch.tensor([1.0, -1.0], dtype=torch.float64)  # the sign of p in each token


def staying(h: Tensor) -> Tensor:
    """Return the diagonal of softmax(h hᵀ), (..., 2), of h (..., 2): the weight of each token on itself."""
    gap = h[..., :1] - h[..., 1:]
    return torch.sigmoid(h * gap * OPPOSITE)


class Samples(NamedTuple):
    """Gaussian pairs of the teacher, z, and of the rest, (n, 2), the target's diagonal, (n, 2), and weights, (n,)."""

    z: Tensor
    rest: Tensor
    target: Tensor
    shares: Tensor

    def mean(self, values: Tensor) -> float:
        """Return the weighted mean of values (n,)."""
        return float(self.shares @ values)


def draw_samples(weight: float, points: int, seed: int) -> Samples:
    """Return scrambled Sobol points of the four Gaussians; weight: ω of the target. points: a power of two."""
    uniform = qmc.Sobol(4, rng=seed).random(points).clip(1e-12, 1 - 1e-12)
    normal = torch.from_numpy(norm.ppf(uniform))
    return _samples(weight, normal[:, :2], normal[:, 2:], torch.full((points,), 1 / points, dtype=torch.float64))


def _samples(weight: float, z: Tensor, rest: Tensor, shares: Tensor) -> Samples:
    return Samples(z, rest, (1 - weight) * staying(NOISE * z) + weight * STAYING, shares)


def coarse_samples(weight: float, overlap: float) -> Samples:
    """Return the 144 nodes with which the source integrates: Stroud and Secrest's 12 of degree 7, for either pair.

    weight: ω of the target. overlap: cosine θ/(σ√q) of student and teacher; one pair of Gaussians is the student's.
    """
    corners = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    rings, parts = [(corners @ corners[[0, 1]].mT / 2 * math.sqrt(6))], [1 / 36]
    for sign in (-1, 1):
        rings.append(corners * math.sqrt((9 + 3 * sign * math.sqrt(5)) / 4))
        parts.append((5 - 2 * sign * math.sqrt(5)) / 45)
    plane, part = torch.cat(rings), torch.tensor(parts, dtype=torch.float64).repeat_interleave(4)  # (12, 2), (12,)
    student, other = plane.repeat_interleave(12, 0), plane.repeat(12, 1)
    across = math.sqrt(max(1 - overlap**2, 1e-9))
    z, rest = overlap * student + across * other, across * student - overlap * other
    return _samples(weight, z, rest, torch.outer(part, part).flatten())


def proximal(centre: Tensor, target: Tensor, stiffness: float, start: Tensor) -> tuple[Tensor, Tensor]:
    """Descend by Newton's method from `start` to a minimum of loss(h) + stiffness ‖h − centre‖²/2; (n, 2) and its (n,).

    loss(h) = σ²‖diag softmax(hhᵀ) − target‖², half the squared error of the output over d.
    """
    h, scale = start.clone(), 2 * NOISE**2
    curvature = torch.tensor([[[2.0, -1.0], [-1.0, 0.0]], [[0.0, -1.0], [-1.0, 2.0]]], dtype=torch.float64)
    for _ in range(30):
        own = staying(h)
        slope, miss = own * (1 - own), own - target
        first = (h @ curvature).transpose(0, 1)  # (n, 2, 2), gradient of each logit h_l(h_l − h_k)
        pull = (scale * (miss * slope))[..., None, None]
        bend = (scale * (slope**2 + miss * slope * (1 - 2 * own)))[..., None, None]
        gradient = (pull[..., 0] * first).sum(1) + stiffness * (h - centre)
        hessian = (pull * curvature + bend * first[..., :, None] * first[..., None, :]).sum(1)
        a, b, c = hessian[:, 0, 0] + stiffness, hessian[:, 0, 1], hessian[:, 1, 1] + stiffness
        least = (a + c) / 2 - (((a - c) / 2) ** 2 + b**2).sqrt()  # the smaller eigenvalue, lifted where it is too small
        lift = (0.2 * stiffness - least).clamp(min=0)
        a, c = a + lift, c + lift
        step = torch.stack([c, -b, -b, a], -1).reshape(-1, 2, 2) @ gradient[..., None]
        step = (step / (a * c - b**2)[:, None, None])[..., 0]
        h = h - step * (0.5 / step.norm(dim=-1, keepdim=True)).clamp(max=1)
        if float(step.abs().max()) < 1e-8:
            break
    return h, NOISE**2 * (staying(h) - target).square().sum(-1) + stiffness * (h - centre).square().sum(-1) / 2


def envelope(centre: Tensor, target: Tensor, stiffness: float) -> Tensor:
    """Return the minimiser, (n, 2), of what `proximal` descends: the deepest of those that six starts lead to."""
    best, value = proximal(centre, target, stiffness, centre)
    corners = [(0.5, -0.5), (-0.5, 0.5), (0.6, 0.6), (-0.6, -0.6)]
    starts = [torch.tensor(corner, dtype=torch.float64).expand_as(centre) for corner in corners]
    for start in [2 * centre, *starts]:
        minimum, depth = proximal(centre, target, stiffness, start)
        deeper = depth < value - 1e-12
        best, value = torch.where(deeper[:, None], minimum, best), torch.minimum(value, depth)
    return best


def state_update(state: Sequence[float], alpha: float, samples: Samples) -> tuple[Any, Tensor, Tensor]:
    """Return the next (m, θ, q, V) of the saddle-point equations, with h before and after the update, (n, 2) each.

    θ and q without σ². With g = (h* − h)/(σ²V): m̂ = αE[g·e], θ̂ = αE[g·∂_θh], q̂ = ασ²E‖g‖², V̂ = −αE[g·σξ]/√(q−θ²),
    and m = m̂V, θ = θ̂V, q = V²(q̂ + θ̂² + m̂²), V = 1/(λ + V̂).
    """
    m, theta, q, response = state
    width = math.sqrt(max(q - theta**2, 1e-9))
    before = m * OPPOSITE + NOISE * (theta * samples.z + width * samples.rest)
    after = envelope(before, samples.target, 1 / (NOISE**2 * response))
    g = (after - before) / (NOISE**2 * response)
    turned = NOISE * (samples.z - theta / width * samples.rest)
    m_hat, theta_hat = (alpha * samples.mean((g * toward).sum(-1)) for toward in (OPPOSITE, turned))
    q_hat = alpha * NOISE**2 * samples.mean(g.square().sum(-1))
    v = 1 / (DECAY - alpha * NOISE * samples.mean((g * samples.rest).sum(-1)) / width)
    return (m_hat * v, theta_hat * v, v**2 * (q_hat + theta_hat**2 + m_hat**2), v), before, after


def fixed_point(
    alpha: float,
    samples: Samples | Callable[[float], Samples],
    mechanism: str,
    start: Sequence[float] = (),
    tested: Samples | None = None,
) -> dict[str, Any]:
    """Solve the saddle-point equations on one branch.

    Parameters
    ----------
    alpha: samples of the data over the dimension.
    samples: points of the integration, or what returns them for an overlap of student and teacher.
    mechanism: one of MECHANISMS, the branch.
    start: (m or θ, q, V) to begin from.
    tested: points that energy and error are integrated with, where they differ.

    Returns
    -------
    m, theta, q, response, energy (train loss over d), error (squared, over d: twice the loss, as the source counts it)
    and whether the solver converged.
    """
    place = MECHANISMS.index(mechanism)
    begin = start or ((0.257, 0.2, 45.0) if place == 0 else (0.63, 0.45, 50.0))

    def state(x: Any) -> list[float]:
        return [x[0] * (place == 0), x[0] * (place == 1), abs(x[1]), 100 * abs(x[2])]

    def points(x: Any) -> Samples:
        return samples if isinstance(samples, Samples) else samples(state(x)[1] / abs(x[1]) ** 0.5)

    def residual(x: Any) -> list[float]:
        new, _, _ = state_update(state(x), alpha, points(x))
        return [new[place] - x[0], new[2] - x[1], new[3] / 100 - x[2]]

    solved = root(residual, [begin[0], begin[1], begin[2] / 100], options={"xtol": 1e-5})
    m, theta, q, response = state(solved.x)
    judged = tested or points(solved.x)
    _, before, after = state_update([m, theta, q, response], alpha, judged)
    train, test = (NOISE**2 * judged.mean((staying(h) - judged.target).square().sum(-1)) for h in (after, before))
    order = {"m": m, "theta": NOISE**2 * theta, "q": NOISE**2 * q, "response": response}
    closed = {"energy": alpha * train + DECAY / 2 * q, "error": 2 * test, "converged": bool(solved.success)}
    return {"alpha": alpha, "mechanism": mechanism} | order | closed
