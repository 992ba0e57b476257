"""Synthetic token sequences: the random walk that the theory assumes, and two laws that show what it assumes.

Every sequence is float64, (*batch, length, dim), on the generator's device; rows are positions 1 … T.
Source: book, "The setting"; theory, random-walk tokens (reported of arXiv 2402.02098).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor

from qkrepro.errors import check_choice, check_integer, check_number
from qkrepro.theory.spectrum import covariance_root

if TYPE_CHECKING:  # shapes in types are for mypy and the tests
    from jaxtyping import Float, Float64

TokenLaw = Literal["random walk", "independent", "AR(1)"]
TOKEN_LAWS: tuple[TokenLaw, ...] = ("random walk", "independent", "AR(1)")


def draw_tokens(
    law: TokenLaw,
    length: int,
    dim: int,
    *,
    coefficient: float = 0.95,
    batch: int | tuple[int, ...] = (),
    generator: Generator,
) -> Float64[Tensor, "*batch length dim"]:
    """Draw sequences of a law of TOKEN_LAWS with the identity as covariance.

    Parameters
    ----------
    law
        One of TOKEN_LAWS.
    length, dim
        Tokens of a sequence, T >= 2, and their dimension d >= 1.
    coefficient
        φ of "AR(1)", in (−1, 1); the other laws have none.
    batch
        Leading shape; by default one sequence, (length, dim).
    generator
        Source of the draws.

    Returns
    -------
    Tensor
        Tokens, float64, (*batch, length, dim), as `random_walk`, `independent_tokens` or `ar1_tokens` draws them.

    Raises
    ------
    ArgumentError
        An unknown law, or a value out of range.
    """
    check_choice("law", law, TOKEN_LAWS)
    if law == "random walk":
        return random_walk(length, dim, batch=batch, generator=generator)
    if law == "independent":
        return independent_tokens(length, dim, batch=batch, generator=generator)
    return ar1_tokens(length, dim, coefficient=coefficient, batch=batch, generator=generator)


def random_walk(
    length: int,
    dim: int,
    *,
    cov: Float[Tensor, "dim dim"] | None = None,
    batch: int | tuple[int, ...],
    generator: Generator,
) -> Float64[Tensor, "*batch length dim"]:
    """Draw x_t = ε_1 + … + ε_t with independent increments ε_s ~ N(0, cov): norms grow like √t.

    Parameters
    ----------
    length, dim
        Tokens of a sequence, T >= 2, and their dimension d >= 1.
    cov
        Covariance of the *increments*, not of the tokens, (dim, dim); None is the identity.
    batch
        Leading shape, or one number.
    generator
        Source of the draws.

    Returns
    -------
    Tensor
        Tokens, float64, (*batch, length, dim).

    Raises
    ------
    ArgumentError
        A value out of range, an empty batch, a cov that is no covariance.
    ShapeError
        A cov of another shape.
    """
    return independent_tokens(length, dim, cov=cov, batch=batch, generator=generator).cumsum_(-2)


def independent_tokens(
    length: int,
    dim: int,
    *,
    cov: Float[Tensor, "dim dim"] | None = None,
    batch: int | tuple[int, ...],
    generator: Generator,
) -> Float64[Tensor, "*batch length dim"]:
    """Draw independent x_t ~ N(0, cov): no order, so no location can be special.

    cov is the covariance of the tokens; other arguments, result and errors as for `random_walk`.
    """
    check_integer("length", length, at_least=2)
    check_integer("dim", dim, at_least=1)
    shape = (*_batch_shape(batch), length, dim)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
    return noise if cov is None else noise @ covariance_root(cov.to(noise.device), dim)  # the root is symmetric


def ar1_tokens(
    length: int,
    dim: int,
    *,
    coefficient: float,
    cov: Float[Tensor, "dim dim"] | None = None,
    batch: int | tuple[int, ...],
    generator: Generator,
) -> Float64[Tensor, "*batch length dim"]:
    """Draw the stationary x_{t+1} = φ x_t + √(1 − φ²) ε_t: neighbours correlate like a walk's, norms do not grow.

    coefficient is φ in (−1, 1), and E x_t x_sᵀ = φ^|t−s| cov; φ = 0 is `independent_tokens`, draw for draw. cov is the
    covariance of every token; other arguments, result and errors as for `random_walk`.
    """
    check_number("coefficient", coefficient, above=-1, below=1)
    noise = independent_tokens(length, dim, cov=cov, batch=batch, generator=generator)  # (*batch, length, dim)
    steps = [noise[..., 0, :]]  # the first token already has the stationary law
    for t in range(1, length):
        steps.append(coefficient * steps[-1] + (1 - coefficient**2) ** 0.5 * noise[..., t, :])
    return torch.stack(steps, dim=-2)


def increment_covariance(tokens: Float[Tensor, "batch length d"]) -> Float[Tensor, "d d"]:
    """Return Σ, the covariance of x_{t+1} − x_t within sequences (batch, length, d) about their mean, (d, d).

    It has the precision of the tokens, float32 at least; autocast does not touch it.
    """
    tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
    with torch.autocast(tokens.device.type, enabled=False):
        return torch.cov(tokens.diff(dim=1).flatten(0, 1).mT)


def _batch_shape(batch: int | tuple[int, ...]) -> tuple[int, ...]:
    shape = (batch,) if isinstance(batch, int) else tuple(batch)
    for size in shape:
        check_integer("batch", size, at_least=1)
    return shape
