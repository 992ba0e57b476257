"""Where the random walk breaks: statistics that tell tokens of independent increments from other tokens.

Tokens x are (sequences, T, d), as the query and key projections of a head see them. A walk's increments are independent
and have one covariance Σ, so the variance of its tokens grows with the location.
Source: book, "Theory in trained models".
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from qkrepro.errors import ShapeError, check_integer
from qkrepro.theory.attention import saturation
from qkrepro.theory.rank import rank_residual
from qkrepro.theory.tokens import increment_covariance, random_walk


def walk_like(x: Tensor, generator: Generator, sequences: int | None = None) -> Tensor:
    """Draw walks (n, T, d) of the length and the increments' covariance of x; n: that of x, or `sequences`."""
    count = len(x) if sequences is None else sequences
    return random_walk(x.shape[1], x.shape[2], cov=increment_covariance(x.double()), batch=count, generator=generator)


def increment_correlation(x: Tensor, lags: Sequence[int]) -> Tensor:
    """Return the correlation E ε_tᵀε_{t+k} / tr Σ of the increments, about their mean, at each lag k: float64, (lags,).

    0 at every lag for a walk; −½ at lag 1 and 0 beyond for independent tokens. Raises ArgumentError for a lag < 1.
    """
    steps = _centred_increments(x)
    for lag in lags:
        check_integer("lags", lag, at_least=1)
    products = [(steps[:, lag:] * steps[:, :-lag]).sum(-1).mean() for lag in lags]
    return torch.stack(products) / steps.square().sum(-1).mean()


def variance_growth(x: Tensor) -> Tensor:
    """Return the variance of the token at each location, about the location's mean token, over tr Σ; float64, (T,).

    t for a walk; ½ everywhere for independent tokens. Raises ShapeError for fewer than two sequences.
    """
    _check_several(x)
    return x.double().var(0).sum(-1) / increment_covariance(x.double()).trace()


def covariance_change(x: Tensor) -> float:
    """Return ‖Σ₁ − Σ₂‖_F / ‖Σ‖_F of the increments in the first and second half of the sequences; 0 for a long walk."""
    x, half = x.double(), x.shape[1] // 2
    first, second = increment_covariance(x[:, : half + 1]), increment_covariance(x[:, half:])
    return float((first - second).norm() / increment_covariance(x).norm())


def path_share(x: Tensor) -> float:
    """Return the share of tr Σ that the mean path E x_t brings, the same in all sequences; 0 for a walk.

    What is left comes from what differs between sequences. The estimate is unbiased: it may be below 0. Raises
    ShapeError for fewer than two sequences.
    """
    _check_several(x)
    steps = _centred_increments(x)
    noise = steps.var(0).sum(-1) / len(x)  # (T − 1,), variance of the mean step
    return float((steps.mean(0).square().sum(-1) - noise).mean() / steps.square().sum(-1).mean())


def walk_checks(x: Tensor) -> dict[str, float]:
    """Return five numbers that tell a walk, here with its values, from independent tokens.

    neighbours: `increment_correlation` at lag 1 (0; independent −½). growth: `variance_growth` of the last token over T
    (1; independent 1/2T). halves: `covariance_change` (near 0 for both). path: `path_share` (0 for both; not so where
    positions are added). residual: mean relative distance of the sequences to equal tokens (√((T − 1)/3T); independent
    nearly 1).
    """
    return {
        "neighbours": float(increment_correlation(x, [1])[0]),
        "growth": float(variance_growth(x)[-1]) / x.shape[1],
        "halves": covariance_change(x),
        "path": path_share(x),
        "residual": float(rank_residual(x).mean()),
    }


def open_share(logits: Tensor) -> Tensor:
    """Return the share of sequences in which the linearised softmax does not clip a key: (sequences, T) to (T,)."""
    return (saturation(logits) == 0).double().mean(0)


def normal_share(logits: Tensor) -> Tensor:
    """Return `open_share` if each key's centred logit were normal with its own mean and variance; float64, (T,)."""
    centred = logits.double() - logits.double().mean(-1, keepdim=True)  # (sequences, T)
    mean, deviation = centred.mean(0), centred.std(0)
    upper, lower = (logits.shape[-1] - 1 - mean) / deviation, (-1 - mean) / deviation
    share: Tensor = torch.special.ndtr(upper) - torch.special.ndtr(lower)
    return share


def _centred_increments(x: Tensor) -> Tensor:
    """Return the increments about their mean, float64, (sequences, T − 1, d)."""
    if x.ndim != 3 or x.shape[1] < 3:
        raise ShapeError(f"tokens must have shape (sequences, T, d), T >= 3, got {tuple(x.shape)}")
    steps = x.double().diff(dim=1)
    return steps - steps.mean((0, 1))


def _check_several(x: Tensor) -> None:
    if len(x) < 2:
        raise ShapeError(f"tokens must have shape (sequences, T, d), sequences >= 2, got {tuple(x.shape)}")
